"""Choose the network of a variant: candidates are proposed, measured and trained for a while."""

import time
from functools import cache, partial

from planer.files import write_json
from planer.job import stage
from planer.latency.relative import relative_latency
from planer.latency.table import LatencyTable
from planer.runtime import resolve_device, resolve_dtype
from planer.search.methods import config_of
from planer.search.network import chosen_network, kept_network, space_of
from planer.search.proxy import ProxyTraining
from planer.search.scorers.replace_one import SupernetLoss
from planer.search.supernet import load_supernet
from planer.training.recipe import recipe_of
from planer.variant import parse_variant

if __name__ == "__main__":
    with stage(snakemake) as job:
        began, files, seed = time.perf_counter(), snakemake.input, snakemake.params.seed
        variant, vocab_size, table = parse_variant(snakemake.wildcards.variant), job.vocab_size, None
        config, table = config_of(job.config, variant), LatencyTable.load(files.table)
        runtime = (resolve_device(config.device), resolve_dtype(config.dtype, resolve_device(config.device)))
        texts, how = (
            (job.tokens("train"), job.tokens("valid")),
            {"taught": variant.is_taught, "cache": files.get("teacher")},
        )
        recipe = recipe_of(config, texts, snakemake.params.train_seed, job.parent(), **how)
        text = texts[1][: config.candidates.tokens]
        proxy, known = ProxyTraining(recipe, job.checkpoint()), {}
        if files.get("supernet"):
            supernet = load_supernet(files.supernet, config, vocab_size).to(runtime[0])
            known["alpha"] = supernet.alpha.detach()
            known["supernet_loss"] = SupernetLoss(supernet, text, config.search, *runtime)
        space = space_of(config, variant, vocab_size, table, seed, **known)
        if not variant.scratch:
            space.start_loss = cache(lambda options: proxy.untrained(space.network(options), text))
        measurement = relative_latency(config, vocab_size, seed, *runtime) if config.candidates.corrections else None

        def trained(candidate, share):
            return proxy(space.network(candidate.options), share)

        find = chosen_network
        if variant.method == "keep":
            find = partial(kept_network, reference=proxy.reference(job.parent()))
        network, notes = find(config, variant, space, table, measurement, trained)
        proxy.hand_over(network, snakemake.output.training)
        network.save(snakemake.output.architecture, **notes)
        spent = time.perf_counter() - began - proxy.seconds_now + proxy.seconds_without(network)
        estimated = notes["selection"]["estimated"]
        write_json(snakemake.output.metrics, {"estimated": estimated, "seconds": spent})
        print(f"{network.pattern}: {estimated:.3f} of the baseline's latency by the table")
        proxy.delete()

"""Choose the network of a variant: candidates are proposed, measured and trained for a while."""

import dataclasses
import time

from planer.config.variant import parse_variant
from planer.files import write_json
from planer.latency.table import LatencyTable
from planer.search.choice import choose_network
from planer.search.methods import config_of
from planer.search.proxy import ProxyTraining
from planer.search.supernet import load_supernet
from planer.training.recipe import recipe_of
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        began, files, params = time.perf_counter(), snakemake.input, snakemake.params
        variant, parent = parse_variant(snakemake.wildcards.variant), job.parent()
        config, table = config_of(job.config, variant), LatencyTable.load(files.table)
        teaching = {"taught": variant.is_taught, "cache": files.get("teacher")}
        runtime = dataclasses.replace(job.runtime(), seed=params.train_seed)
        recipe = recipe_of(config, job.texts(), runtime, parent, **teaching)
        proxy = ProxyTraining(recipe, job.checkpoint())
        known = {"seed": params.seed, "parent": parent}
        if files.get("supernet"):
            known["supernet"] = load_supernet(files.supernet, config, job.vocab_size)
        network, notes = choose_network(config, variant, table, proxy, **known)
        proxy.hand_over(network, snakemake.output.training)
        network.save(snakemake.output.architecture, **notes)
        spent = time.perf_counter() - began - proxy.seconds_now + proxy.seconds_without(network)
        estimated = notes["selection"]["estimated"]
        write_json(snakemake.output.metrics, {"estimated": estimated, "seconds": spent})
        print(f"{network.pattern}: {estimated:.3f} of the baseline's latency by the table")
        proxy.delete()

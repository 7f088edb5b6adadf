"""Turn a pattern, a control, the supernet of a search, or the original of a warm start into architecture.yaml."""

import time

from planer.files import write_json
from planer.job import stage
from planer.latency.table import LatencyTable
from planer.runtime import resolve_device, resolve_dtype
from planer.search.closed_loop import against
from planer.search.methods import config_of
from planer.search.sample import same_architecture, sample_architecture
from planer.search.scorers.replace_one import SupernetLoss
from planer.search.supernet import load_supernet
from planer.search.trials import Trials
from planer.variant import parse_variant

if __name__ == "__main__":
    with stage(snakemake) as job:
        began, files, params, config = time.perf_counter(), snakemake.input, snakemake.params, job.config
        seed, variant = params.seed, parse_variant(snakemake.wildcards.variant)
        vocab_size, device, more = job.vocab_size, resolve_device(config.device), {"seed": seed}
        how = (device, resolve_dtype(config.dtype, device))
        if files.get("original"):
            network, notes = same_architecture(files.original, variant)
        else:
            if config.sample_architecture.corrections:
                more["measured"] = against(config, vocab_size, seed, *how)
            if files.get("supernet"):
                supernet = load_supernet(files.supernet, config_of(config, variant), vocab_size).to(device)
                text = job.tokens("valid")[: config.sample_architecture.tokens]
                more |= {"alpha": supernet.alpha.detach(), "loss": SupernetLoss(supernet, text, config.search, *how)}
            if files.get("train"):
                more["trial"] = Trials(config, job.tokens("train"), text, params.retrain_seed, *how, job.checkpoint())
            network, notes = sample_architecture(config, variant, vocab_size, LatencyTable.load(files.table), **more)
        network.save(snakemake.output.architecture, **notes)
        estimated = notes["selection"]["estimated"]
        write_json(snakemake.output.metrics, {"estimated": estimated, "seconds": time.perf_counter() - began})
        print(f"{network.pattern}: {estimated:.3f} of the baseline's latency by the table")
        if "trial" in more:
            more["trial"].forget()

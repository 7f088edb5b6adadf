"""Turn a pattern, a control, the supernet of a search, or the original of a warm start into architecture.yaml."""

import time

from planer.files import write_json
from planer.job import stage
from planer.latency.table import LatencyTable
from planer.runtime import resolve_device, resolve_dtype
from planer.search.arms import config_of
from planer.search.closed_loop import against
from planer.search.replace_one import SupernetLoss
from planer.search.sample import same_architecture, sample_architecture
from planer.search.supernet import load_supernet
from planer.search.trials import Trials
from planer.variant import parse_variant

if __name__ == "__main__":
    with stage(snakemake) as job:
        began, files = time.perf_counter(), snakemake.input
        config, seed, variant = job.config, snakemake.params.seed, parse_variant(snakemake.wildcards.variant)
        vocab_size, device, trial = job.vocab_size, resolve_device(config.device), None
        how = (device, resolve_dtype(config.dtype, device))
        if files.get("original"):
            architecture, notes = same_architecture(files.original, variant)
        else:
            table, more = LatencyTable.load(files.table), {"seed": seed}
            if config.sample_architecture.corrections:
                more["measured"] = against(config, vocab_size, seed, *how)
            if files.get("supernet"):
                supernet = load_supernet(files.supernet, config_of(config, variant), vocab_size).to(device)
                text = job.tokens("valid")[: config.sample_architecture.tokens]
                more |= {"alpha": supernet.alpha.detach(), "loss": SupernetLoss(supernet, text, config.search, *how)}
            if files.get("train"):
                more["trial"] = trial = Trials(config, job.tokens("train"), text, seed, *how, job.checkpoint())
            architecture, notes = sample_architecture(config, variant, vocab_size, table, **more)
        architecture.save(snakemake.output.architecture, **notes)
        estimated = notes["selection"]["estimated"]
        write_json(snakemake.output.metrics, {"estimated": estimated, "seconds": time.perf_counter() - began})
        print(f"{architecture.pattern}: {estimated:.3f} of the baseline's latency by the table")
        if trial:
            trial.forget()

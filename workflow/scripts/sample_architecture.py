"""Turn a pattern, or the supernet of a search, into architecture.yaml."""

from planer.job import stage
from planer.latency.table import LatencyTable
from planer.search.replace_one import path_loss
from planer.search.sample import sample_architecture
from planer.search.supernet import load_supernet
from planer.training.runtime import resolve_device, resolve_dtype
from planer.variant import parse_variant

if __name__ == "__main__":
    with stage(snakemake) as job:
        config, table = job.config, LatencyTable.load(snakemake.input.table)
        alpha = loss = None
        if snakemake.input.get("supernet"):
            device = resolve_device(config.device)
            supernet = load_supernet(snakemake.input.supernet, config, job.vocab_size)
            alpha = supernet.alpha.detach()
            text = job.tokens("valid")[: config.sample_architecture.tokens]
            loss = path_loss(supernet.to(device), text, config.search, device, resolve_dtype(config.dtype, device))
        variant = parse_variant(snakemake.wildcards.variant)
        architecture, notes = sample_architecture(config, variant, job.vocab_size, table, alpha, loss)
        architecture.save(snakemake.output.architecture, **notes)
        selection = notes["selection"]
        print(f"{architecture.pattern}: {selection['estimated']:.3f} of the baseline's latency by the table")
        job.run.metrics({name: selection[name] for name in ("estimated_ms", "estimated")})

"""Turn a pattern, a control, the supernet of a search, or the original of a warm start into architecture.yaml."""

from planer.job import stage
from planer.latency.table import LatencyTable
from planer.runtime import resolve_device, resolve_dtype
from planer.search.arms import config_of
from planer.search.closed_loop import against
from planer.search.replace_one import SupernetLoss
from planer.search.sample import same_architecture, sample_architecture
from planer.search.supernet import load_supernet
from planer.variant import parse_variant

if __name__ == "__main__":
    with stage(snakemake) as job:
        config, seed, variant = job.config, snakemake.params.seed, parse_variant(snakemake.wildcards.variant)
        vocab_size, device = job.vocab_size, resolve_device(config.device)
        dtype = resolve_dtype(config.dtype, device)
        if snakemake.input.get("original"):
            architecture, notes = same_architecture(snakemake.input.original, variant)
        else:
            table, more = LatencyTable.load(snakemake.input.table), {"seed": seed}
            if config.sample_architecture.corrections:
                baseline = config.model.architecture(vocab_size, config.patterns.baseline)
                more["measured"] = against(baseline, config, seed, device, dtype)
            if snakemake.input.get("supernet"):
                supernet = load_supernet(snakemake.input.supernet, config_of(config, variant), vocab_size).to(device)
                text = job.tokens("valid")[: config.sample_architecture.tokens]
                loss = SupernetLoss(supernet, text, config.search, device, dtype)
                more |= {"alpha": supernet.alpha.detach(), "loss": loss}
            architecture, notes = sample_architecture(config, variant, vocab_size, table, **more)
        architecture.save(snakemake.output.architecture, **notes)
        selection = notes["selection"]
        print(f"{architecture.pattern}: {selection['estimated']:.3f} of the baseline's latency by the table")
        job.run.metrics({name: selection[name] for name in ("estimated_ms", "estimated")})

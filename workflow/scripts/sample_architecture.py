"""Turn a pattern, or the architecture weights of a search, into architecture.yaml."""

from safetensors import safe_open

from planer.job import stage
from planer.latency.table import LatencyTable
from planer.search.sample import sample_architecture
from planer.variant import parse_variant

if __name__ == "__main__":
    with stage(snakemake) as job:
        alpha = None
        if snakemake.input.get("supernet"):
            with safe_open(snakemake.input.supernet, framework="pt") as supernet:
                alpha = supernet.get_tensor("alpha")
        architecture, notes = sample_architecture(
            job.config,
            parse_variant(snakemake.wildcards.variant),
            job.vocab_size,
            LatencyTable.load(snakemake.input.table),
            alpha,
        )
        architecture.save(snakemake.output.architecture, **notes)
        selection = notes["selection"]
        print(f"{architecture.pattern}: {selection['estimated']:.3f} of the baseline's latency by the table")
        job.run.metrics({name: selection[name] for name in ("estimated_ms", "estimated")})

"""Phase 1: train a supernet and its architecture weights towards a latency target."""

from pathlib import Path

from planer import model
from planer.files import write_json, write_parquet
from planer.job import stage
from planer.latency.table import LatencyTable
from planer.search.phase1 import search
from planer.search.supernet import save_supernet
from planer.variant import parse_variant

if __name__ == "__main__":
    with stage(snakemake) as job:
        checkpoint, baseline = job.checkpoint(), snakemake.input.get("baseline")
        supernet, trajectory, metrics = search(
            job.config,
            parse_variant(snakemake.wildcards.variant),
            job.vocab_size,
            LatencyTable.load(snakemake.input.table),
            job.tokens("train"),
            seed=snakemake.params.seed,
            checkpoint=checkpoint,
            on_row=job.run.row,
            parent=model.load(Path(baseline).parent) if baseline else None,
        )
        save_supernet(supernet, snakemake.output.supernet)
        write_parquet(snakemake.output.trajectory, trajectory)
        write_json(snakemake.output.metrics, metrics)
        checkpoint.delete()

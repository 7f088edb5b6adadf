"""Phase 1: train a supernet and its architecture weights towards a latency target."""

from planer.config.variant import parse_variant
from planer.files import write_json, write_parquet
from planer.latency.table import LatencyTable
from planer.search.phase1 import search
from planer.search.supernet import save_supernet
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        record = job.record()
        supernet, trajectory, metrics = search(
            job.config,
            parse_variant(snakemake.wildcards.variant),
            LatencyTable.load(snakemake.input.table),
            job.texts(),
            job.runtime(),
            record,
            job.parent(),
        )
        save_supernet(supernet, snakemake.output.supernet)
        write_parquet(snakemake.output.trajectory, trajectory)
        write_json(snakemake.output.metrics, metrics)
        record.checkpoint.delete()

"""Measure the latency of every option of the design space on the device at hand."""

from planer.latency.profile import profile_blocks
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        table = profile_blocks(job.config, job.vocab_size, job.runtime())
        table.save(snakemake.output.table)
        job.run.metrics({f"{row.option}/{row.attention}_ms": row.median_ms for row in table.headline_rows.itertuples()})

"""Split the dense layers of a network into small experts, exactly."""

from pathlib import Path

from planer import models
from planer.conversion.experts import split
from planer.files import write_json, write_parquet
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        network, labels, metrics = split(
            models.load(Path(snakemake.input.model).parent), job.config.cluster_experts, snakemake.params.seed
        )
        models.save(network, Path(snakemake.output.model).parent)
        write_parquet(snakemake.output.labels, labels)
        write_json(snakemake.output.metrics, metrics)

"""Replace attention projections of a network by MLPs that compute nearly the same."""

from pathlib import Path

from planer import models
from planer.conversion.own_projections import distil_own_projections
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        job.train(distil_own_projections, models.load(Path(snakemake.input.model).parent), job.config.projections)

"""Train the routers that predict how much each expert of a split layer contributes."""

from pathlib import Path

from planer import models
from planer.conversion.routers import train_routers
from planer.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        job.train(train_routers, models.load(Path(snakemake.input.model).parent), job.config.train_routers)

"""Train routers that predict the norm of each expert's output, and choose the threshold tau."""

from pathlib import Path

from planer import models
from planer.config import ThresholdConfig
from planer.conversion.routers import train_routers
from planer.conversion.thresholds import ThresholdChoice
from planer.parsing import build
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        split, dense = (models.load(Path(snakemake.input[name]).parent) for name in ("model", "dense"))
        config = build(ThresholdConfig, snakemake.params.choice)
        choice = ThresholdChoice(dense, job.texts().valid, config, job.runtime())
        job.train(train_routers, split, job.config.train_routers, choice)

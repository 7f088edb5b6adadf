"""Phase 2: train the chosen architecture from scratch."""

from planer.architecture import Architecture
from planer.job import stage
from planer.training.retrain import retrain

if __name__ == "__main__":
    with stage(snakemake) as job:
        job.train(retrain, Architecture.load(snakemake.input.architecture), job.config.retrain)

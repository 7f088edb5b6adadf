"""Phase 2: train the chosen architecture, from random weights or from a warm start."""

from functools import partial
from pathlib import Path

from planer import model
from planer.architecture import Architecture
from planer.job import stage
from planer.training.distillation import Distillation
from planer.training.retrain import retrain

if __name__ == "__main__":
    with stage(snakemake) as job:
        architecture, how = Architecture.load(snakemake.input.architecture), {"start": snakemake.params.start}
        if snakemake.input.get("weights"):
            how["weights"] = model.load_weights(snakemake.input.weights, architecture)
        if snakemake.input.get("teacher"):
            teacher = model.load(Path(snakemake.input.teacher).parent)
            how["objective"] = partial(Distillation, teacher=teacher, distill=job.config.distill)
        job.train(partial(retrain, **how), architecture, job.config.retrain)

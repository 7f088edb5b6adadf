"""Fine-tune a network until few neurons of its dense layers are active per token."""

from functools import partial
from pathlib import Path

from planer import models
from planer.conversion.sparsity import Sparsification, TaughtSparsification, sparsify
from planer.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        network, parent, objective = models.load(Path(snakemake.input.model).parent), job.parent(), Sparsification
        if parent:
            objective = partial(TaughtSparsification, parent=parent, **snakemake.params.teaching)
        job.train(partial(sparsify, objective=objective), network, job.config.sparsify)

"""Fine-tune a network until few neurons of its dense layers are active per token."""

from functools import partial
from pathlib import Path

from planer import models
from planer.conversion.sparsity import sparsify
from planer.training.distillation import taught_by
from planer.training.terms import CrossEntropy
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        network, parent, how = models.load(Path(snakemake.input.model).parent), job.parent(), job.config.sparsify
        prediction = taught_by(parent, how.mem_len, **snakemake.params.teaching) if parent else CrossEntropy
        job.train(partial(sparsify, prediction=prediction), network, how)

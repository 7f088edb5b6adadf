"""Fine-tune a network until few neurons of its dense layers are active per token."""

from functools import partial
from pathlib import Path

from planer import models
from planer.conversion.sparsity import sparsify
from planer.training.distillation import Distillation
from planer.training.teacher import LiveTeacher
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        network, parent, how = models.load(Path(snakemake.input.model).parent), job.parent(), job.config.sparsify
        terms = []
        if parent:
            teacher = LiveTeacher(parent.to(job.runtime().device), how.mem_len)
            terms = [Distillation(teacher, **snakemake.params.teaching)]
        job.train(partial(sparsify, terms=terms), network, how)

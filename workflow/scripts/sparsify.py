"""Fine-tune a network until few neurons of its dense layers are active per token."""

from pathlib import Path

from planer import model
from planer.conversion.sparsity import sparsify
from planer.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        job.train(sparsify, model.load(Path(snakemake.input.model).parent), job.config.sparsify)

"""Check the network that an experiment starts from, or make one with random weights."""

from planer.config.pretrained import PretrainedExperiment
from planer.pretrained.prepare import prepare_model
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        prepare_model(job.config.pretrained, snakemake.params.head, snakemake.output.manifest, snakemake.params.seed)

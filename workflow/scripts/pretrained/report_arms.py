"""One page on all arms of an experiment on a pretrained network."""

from planer.config.pretrained import PretrainedExperiment
from planer.files import read_json
from planer.report.arms.page import write_arms
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment):
        write_arms(snakemake.output.page, [read_json(path, "arm") for path in snakemake.input.reports])

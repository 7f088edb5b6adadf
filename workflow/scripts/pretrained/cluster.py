"""Group the neurons of a pretrained network's feed-forward layers into experts."""

from pathlib import Path

from planer.config.pretrained import PretrainedExperiment
from planer.conversion.clusters import cluster_sites
from planer.files import write_json, write_parquet
from planer.pretrained.prepare import load_network
from planer.tasks.make_task import make_task
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        runtime = job.runtime()
        task = make_task(Path(snakemake.input.task).parent, None, runtime, splits=("train",))
        model = load_network(snakemake.input.network, Path(snakemake.input.model).parent).to(runtime.device)
        labels, metrics = cluster_sites(model, task, job.config.cluster_experts, runtime.seed)
        write_parquet(snakemake.output.labels, labels)
        write_json(snakemake.output.metrics, metrics)

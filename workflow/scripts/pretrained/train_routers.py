"""Train routers that predict the contribution of every expert of a pretrained network's split layers."""

from pathlib import Path

from planer.config.pretrained import PretrainedExperiment
from planer.conversion.arm_files import read_labels, split_by, write_routers
from planer.conversion.site_routers import check_router_hours, train_site_routers
from planer.pretrained.prepare import load_network
from planer.tasks.make_task import make_task
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        config, runtime, record = job.config.train_routers, job.runtime(), job.record()
        task = make_task(Path(snakemake.input.task).parent, config, runtime, "train_routers", ("train", "valid"))
        model = load_network(snakemake.input.network, Path(snakemake.input.model).parent)
        split_by(model, read_labels(snakemake.input.labels), config.width, config.target)
        check_router_hours(model, task, config, runtime, snakemake.params.max_hours)
        history, metrics = train_site_routers(model, task, config, runtime, record)
        write_routers(snakemake.output.routers, model)
        job.write_history(history, metrics, record.checkpoint)

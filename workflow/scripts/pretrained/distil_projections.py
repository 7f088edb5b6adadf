"""Replace attention projections of a pretrained network by MLPs that compute nearly the same."""

from pathlib import Path

from planer.config.pretrained import PretrainedExperiment
from planer.conversion.projections import distil_projections
from planer.pretrained.prepare import load_network, save_network
from planer.tasks.make_task import make_task
from planer.training.finetune import check_hours
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        config, runtime, record = job.config.projections, job.runtime(), job.record()
        task = make_task(Path(snakemake.input.task).parent, config, runtime, "projections", ("train", "valid"))
        runtime.seed_everything("head")
        start = [Path(path).parent for path in (snakemake.input.get("model"),) if path]
        model = load_network(snakemake.input.network, *start, labels=task.facts.label_names)
        check_hours(model, task, config, runtime, snakemake.params.max_hours)
        history, metrics = distil_projections(model, task, config, runtime, record)
        save_network(model, Path(snakemake.output.model).parent)
        job.write_history(history, metrics, record.checkpoint)

"""Fine-tune the dense network that all arms are compared with, or train it from random weights."""

from pathlib import Path

from planer.config.pretrained import PretrainedExperiment
from planer.pretrained.prepare import load_network, save_network
from planer.tasks.make_task import make_task
from planer.training.finetune import check_hours, finetune
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        config, runtime, record = job.config.finetune, job.runtime(), job.record()
        folder = Path(snakemake.input.task).parent
        training, splits = config if config.steps else None, ("train", "valid")
        task = make_task(folder, training, runtime, "finetune", splits, config.accumulate)
        runtime.seed_everything("head")
        model = load_network(snakemake.input.network, labels=task.facts.label_names, new_head=bool(config.steps))
        if config.steps:
            check_hours(model, task, config, runtime, snakemake.params.max_hours)
        history, metrics = finetune(model, task, config, runtime, record)
        save_network(model, Path(snakemake.output.model).parent)
        job.write_history(history, metrics, record.checkpoint)

"""Fine-tune a pretrained network until few of its neurons are active per token."""

from pathlib import Path

from planer.config.pretrained import PretrainedExperiment
from planer.conversion.site_sparsity import sparsify_sites
from planer.pretrained.prepare import load_network, save_network
from planer.tasks.make_task import make_task
from planer.training.finetune import check_hours
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        config, runtime, record = job.config.sparsify, job.runtime(), job.record()
        folder = Path(snakemake.input.task).parent
        training, splits = config if config.steps else None, ("train", "valid")
        task = make_task(folder, training, runtime, "sparsify", splits, config.accumulate)
        runtime.seed_everything("head")
        start = [Path(path).parent for path in (snakemake.input.get("model"),) if path]
        labels, new_head = task.facts.label_names, bool(config.steps)
        model = load_network(snakemake.input.network, *start, labels=labels, new_head=new_head)
        if config.steps:
            check_hours(model, task, config, runtime, snakemake.params.max_hours)
        history, metrics = sparsify_sites(model, task, config, runtime, record)
        save_network(model, Path(snakemake.output.model).parent)
        job.write_history(history, metrics, record.checkpoint)

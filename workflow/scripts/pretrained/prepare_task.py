"""Read a task's texts, tables or images, and turn them into what the network reads."""

from pathlib import Path

from planer.config.pretrained import PretrainedExperiment
from planer.data.prepare_task import prepare_task
from planer.pretrained.prepare import load_network, prepared_folder
from planer.tasks.make_task import check_task
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        network = prepared_folder(snakemake.input.network)
        folder = Path(snakemake.output.manifest).parent
        facts = prepare_task(job.config.task, network, folder, snakemake.params.seed)
        check_task(folder, snakemake.params.batches)
        if facts.label_names and "finetune" not in snakemake.params.batches:  # its 0 steps train no head
            load_network(snakemake.input.network, labels=facts.label_names, new_head=False)

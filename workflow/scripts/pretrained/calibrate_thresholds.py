"""Find the thresholds on neurons of a pretrained network, without training."""

from pathlib import Path

from planer.config.pretrained import PretrainedExperiment
from planer.conversion.neuron_threshold import calibrate
from planer.files import write_json
from planer.pretrained.prepare import load_network
from planer.tasks.make_task import make_task
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        runtime = job.runtime()
        task = make_task(Path(snakemake.input.task).parent, None, runtime, "thresholds", ("train",))
        model = load_network(snakemake.input.network, Path(snakemake.input.model).parent).to(runtime.device)
        thresholds = calibrate(model, task, job.config.thresholds, runtime.seed)
        write_json(snakemake.output.thresholds, thresholds.to_json())

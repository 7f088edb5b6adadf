"""Quality, FLOPs and latency of one arm beside the dense network that was trained as long."""

from pathlib import Path

from planer.config.pretrained import PretrainedExperiment
from planer.conversion.arm_files import read_labels, read_routers, read_thresholds, split_by
from planer.evaluation.arms.evaluate import Arm, evaluate_arm
from planer.evaluation.arms.points import expert_points, threshold_points
from planer.evaluation.arms.summary import summary_line
from planer.files import write_json
from planer.pretrained.prepare import load_network
from planer.progress import tell
from planer.tasks.make_task import make_task
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        files, method, config, runtime = snakemake.input, snakemake.params.method, job.config, job.runtime()
        task = make_task(Path(files.task).parent, None, runtime, "evaluate")
        dense = load_network(files.network, Path(files.reference).parent).to(runtime.device)
        model, points = load_network(files.network, Path(files.model).parent), []
        if method == "experts":
            split_by(model, read_labels(files.labels), config.train_routers.width, config.train_routers.target)
            read_routers(files.routers, model)
            points = expert_points(model, config.evaluate)
        elif method == "threshold":
            points = threshold_points(model, read_thresholds(files.thresholds))
        names = snakemake.wildcards.experiment, snakemake.wildcards.variant
        arm = Arm(*names, method, model.to(runtime.device), points, snakemake.params.reference)
        report = evaluate_arm(arm, dense, task, config.evaluate)
        write_json(snakemake.output.report, report)
        job.run.metrics(report)
        print(summary_line(report), flush=True)
        tell(summary_line(report))

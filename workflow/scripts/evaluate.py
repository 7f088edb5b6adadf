"""Quality, latency, FLOPs and the dynamic-k sweep of one variant."""

from pathlib import Path

from planer.evaluation.evaluate import evaluate
from planer.evaluation.summary import summary_line
from planer.files import read_json, write_json
from planer.latency.table import LatencyTable
from planer.progress import tell
from planer.runtime import resolve_device
from planer.specs import Architecture, load_selection
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        folder, baseline = Path(snakemake.output.report).parent, snakemake.input.get("baseline")
        report = evaluate(
            job.config,
            snakemake.wildcards.experiment,
            snakemake.wildcards.variant,
            retrained=folder / "retrain",
            sparsified=folder / "sparsify",
            routed=folder / "routers",
            baseline=Architecture.load(snakemake.input.baseline_architecture),
            baseline_evaluation=read_json(baseline, "eval") if baseline else None,
            baseline_seconds=read_json(snakemake.input.baseline_training, "training")["seconds"],
            selection=load_selection(snakemake.input.architecture),
            table=LatencyTable.load(snakemake.input.table),
            tokens={split: job.tokens(split) for split in ("train", "valid", "test")},
            stages={Path(path).parent.name: read_json(path, "metrics") for path in snakemake.input.stages},
            seed=snakemake.params.seed,
            device=resolve_device(job.config.device),
        )
        write_json(snakemake.output.report, report)
        job.run.metrics(report)
        print(summary_line(report), flush=True)
        tell(summary_line(report))

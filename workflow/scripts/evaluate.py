"""Quality, latency, FLOPs and the dynamic-k sweep of one variant."""

from pathlib import Path

from planer.evaluation.evaluate import Baseline, Subject, evaluate
from planer.evaluation.summary import summary_line
from planer.files import read_json, write_json
from planer.latency.table import LatencyTable
from planer.progress import tell
from planer.specs import Architecture, load_selection
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        folder, baseline = Path(snakemake.output.report).parent, snakemake.input.get("baseline")
        subject = Subject(
            snakemake.wildcards.experiment,
            snakemake.wildcards.variant,
            (folder / "retrain", folder / "sparsify", folder / "routers"),
            load_selection(snakemake.input.architecture),
            {Path(path).parent.name: read_json(path, "metrics") for path in snakemake.input.stages},
        )
        against = Baseline(
            Architecture.load(snakemake.input.baseline_architecture),
            read_json(baseline, "eval") if baseline else None,
            read_json(snakemake.input.baseline_training, "training")["seconds"],
        )
        table = LatencyTable.load(snakemake.input.table)
        report = evaluate(job.config, subject, against, table, job.texts(), job.runtime())
        write_json(snakemake.output.report, report)
        job.run.metrics(report)
        print(summary_line(report), flush=True)
        tell(summary_line(report))

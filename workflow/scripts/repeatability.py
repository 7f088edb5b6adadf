"""Compare repeats of a search with one another and with repeats of the baseline."""

from planer.evaluation.repeatability import repeatability
from planer.files import read_json, write_json
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        variant, baseline = (
            [read_json(path, "eval") for path in snakemake.input[role]] for role in ("variant", "baseline")
        )
        report = repeatability(job.config.repeatability, variant, baseline)
        write_json(snakemake.output.report, report)
        job.run.metrics(report)

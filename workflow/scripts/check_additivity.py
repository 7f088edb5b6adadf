"""Compare the sum of table entries with the measured latency of random networks and the baseline."""

from planer.files import write_json
from planer.latency.additivity import check_additivity
from planer.latency.table import LatencyTable
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        table = LatencyTable.load(snakemake.input.table)
        report = check_additivity(job.config, job.vocab_size, table, job.runtime())
        write_json(snakemake.output.report, report)
        job.run.metrics({name: value for name, value in report.items() if isinstance(value, float)})

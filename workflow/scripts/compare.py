"""Put the networks of an experiment side by side: a table, figures and a page."""

from planer.evaluation.comparison import compare
from planer.evaluation.report import write_report
from planer.files import read_json, write_parquet
from planer.job import stage
from planer.latency.table import LatencyTable

if __name__ == "__main__":
    with stage(snakemake) as job:
        evaluations = [read_json(path) for path in snakemake.input.reports]
        table, additivity = LatencyTable.load(snakemake.input.table), read_json(snakemake.input.additivity)
        write_parquet(snakemake.output.comparison, compare(evaluations))
        write_report(snakemake.output.report, snakemake.output.figures, evaluations, table.rows, additivity)

"""Compare the networks of an experiment: a table, figures and a page."""

from pathlib import Path

from planer.evaluation.comparison import compare
from planer.files import read_json, write_parquet
from planer.latency.table import LatencyTable
from planer.report.figures import draw
from planer.report.pareto import pareto_figure, pareto_section
from planer.report.repeatability import repeatability_section
from planer.report.report import write_report
from planer.report.search_figures import Search, draw_searches
from planer.report.training_figures import draw_trainings, load_history
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        files = snakemake.input
        evaluations = [read_json(path, "eval") for path in files.reports]
        additivity = read_json(files.additivity, "additivity")
        table = LatencyTable.load(files.table)
        searches = {Path(path).parent.name: Search.load(Path(path).parent) for path in files.searched}
        histories = {Path(path).parents[1].name: load_history(path) for path in files.histories}
        many = [read_json(path, "pareto") for path in files.pareto]
        repeats = [read_json(path, "repeatability") for path in files.repeatability]
        figures = {
            **draw(evaluations, table, additivity),
            **draw_searches(searches),
            **draw_trainings(histories),
        }
        if many:
            figures["pareto"] = pareto_figure(*many)
        analyses = [*map(pareto_section, many), *map(repeatability_section, repeats)]
        write_parquet(snakemake.output.comparison, compare(evaluations))
        write_report(snakemake.output.report, snakemake.output.figures, evaluations, additivity, figures, analyses)

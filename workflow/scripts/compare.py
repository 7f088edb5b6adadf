"""Put the networks of an experiment side by side: a table, figures and a page."""

from pathlib import Path

import pandas as pd

from planer.evaluation.comparison import compare
from planer.evaluation.figures import draw
from planer.evaluation.pareto import pareto_figure, pareto_section
from planer.evaluation.repeatability import repeatability_section
from planer.evaluation.report import write_report
from planer.evaluation.search_figures import Search, draw_searches
from planer.evaluation.training_figures import draw_trainings
from planer.files import read_json, write_parquet
from planer.job import stage
from planer.latency.table import LatencyTable

if __name__ == "__main__":
    with stage(snakemake) as job:
        files = snakemake.input
        evaluations, additivity = [read_json(path) for path in files.reports], read_json(files.additivity)
        searches = [Path(path).parent for path in files.searched]
        histories = {Path(path).parents[1].name: pd.read_parquet(path) for path in files.histories}
        figures = {
            **draw(evaluations, LatencyTable.load(files.table), additivity),
            **draw_searches({folder.name: Search.load(folder) for folder in searches}),
            **draw_trainings(histories),
        }
        analyses = []
        if many := next(map(read_json, files.pareto), None):
            analyses.append(pareto_section(many))
            figures["pareto"] = pareto_figure(many)
        if repeats := next(map(read_json, files.repeatability), None):
            analyses.append(repeatability_section(repeats))
        write_parquet(snakemake.output.comparison, compare(evaluations))
        write_report(snakemake.output.report, snakemake.output.figures, evaluations, additivity, figures, analyses)

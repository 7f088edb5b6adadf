"""Compare networks for many targets, chosen with one supernet, with networks of separate searches."""

from planer.evaluation.pareto import pareto
from planer.files import read_json, write_json, write_text
from planer.report.drawing import to_svg
from planer.report.pareto import pareto_figure
from planer.specs import Architecture, load_selection
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        networks = [
            {"pattern": Architecture.load(path).pattern, "selection": load_selection(path)}
            for path in snakemake.input.architectures
        ]
        evaluations = [read_json(path, "eval") for path in snakemake.input.reports]
        report = pareto(job.config.pareto, networks, evaluations)
        write_json(snakemake.output.report, report)
        write_text(snakemake.output.figure, to_svg(pareto_figure(report)))
        job.run.metrics(report)

"""Estimate from the latency table how long the experiment trains, and refuse one that would not finish."""

from planer.files import write_json
from planer.latency.cost import check_hours, training_hours, training_tokens
from planer.latency.table import LatencyTable
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        table = LatencyTable.load(snakemake.input.table)
        hours, device = training_hours(job.config, job.vocab_size, table), table.identity["device"]
        check_hours(hours, device, job.config)
        report = {"device": device, "settings": snakemake.params.settings}
        report |= {"hours": hours, "tokens": training_tokens(job.config)}
        write_json(snakemake.output.report, report)
        job.run.metrics({f"{name}_hours": value for name, value in hours.items()})

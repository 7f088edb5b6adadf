"""Write the architecture.yaml of a pattern."""

from planer.config.variant import parse_variant
from planer.latency.table import LatencyTable
from planer.search.pattern import pattern_network
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        variant, table = parse_variant(snakemake.wildcards.variant), LatencyTable.load(snakemake.input.table)
        network, notes = pattern_network(job.config, variant, job.vocab_size, table)
        network.save(snakemake.output.architecture, **notes)
        print(f"{network.pattern}: {notes['selection']['estimated']:.3f} of the baseline's latency by the table")

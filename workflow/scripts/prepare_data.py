"""Find or download a corpus, verify it, split and number it."""

from pathlib import Path

from planer.data.prepare import prepare
from planer.job import stage

if __name__ == "__main__":
    with stage(snakemake):
        prepare(snakemake.wildcards.dataset, Path(snakemake.output.train).parent)

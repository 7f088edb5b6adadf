"""Split and tokenise a text: a corpus, found or downloaded and verified, or the user's own files."""

from pathlib import Path

from planer.config.corpora import CORPORA
from planer.data.own_text import prepare_text
from planer.data.prepare import prepare
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake):
        name, folder = snakemake.wildcards.dataset, Path(snakemake.output.train).parent
        if name in CORPORA:
            prepare(name, folder)
        else:
            prepare_text(name, snakemake.params.corpus, folder)

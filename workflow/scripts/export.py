"""Write a converted network as a Hugging Face folder."""

from pathlib import Path

from planer.models.export import export_network
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake):
        files = snakemake.input
        export_network(Path(files.model).parent, snakemake.output.folder, files.vocab)  # with the figures of eval.json

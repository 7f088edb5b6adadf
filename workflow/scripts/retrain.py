"""Train a variant's network to the end, from its start or from where its proxy training has left it."""

from planer.architecture import Architecture
from planer.job import stage
from planer.variant import parse_variant

if __name__ == "__main__":
    with stage(snakemake) as job:
        recipe = job.recipe(parse_variant(snakemake.wildcards.variant), snakemake.params.seed)
        network, checkpoint = Architecture.load(snakemake.input.architecture), job.checkpoint()
        if snakemake.input.get("training"):
            checkpoint.take_up(snakemake.input.training)
        job.write_training(*recipe.train(network, checkpoint, job.run.row), checkpoint)

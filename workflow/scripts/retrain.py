"""Train a variant's network to the end, from its initial weights or from the checkpoint of its proxy training."""

from planer.config.variant import parse_variant
from planer.specs import Architecture
from planer.training.recipe import recipe_of
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        taught, cache = parse_variant(snakemake.wildcards.variant).is_taught, snakemake.input.get("teacher")
        recipe = recipe_of(job.config, job.texts(), job.runtime(), job.parent(), taught=taught, cache=cache)
        network, record = Architecture.load(snakemake.input.architecture), job.record()
        if snakemake.input.get("training"):
            record.checkpoint.take_up(snakemake.input.training)
        job.write_training(*recipe.train(network, record), record.checkpoint)

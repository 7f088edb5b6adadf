"""Train a variant's network to the end, from its initial weights or from the checkpoint of its proxy training."""

from planer.config.variant import parse_variant
from planer.specs import Architecture
from planer.training.recipe import recipe_of
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        texts, cache = (job.tokens("train"), job.tokens("valid")), snakemake.input.get("teacher")
        taught = parse_variant(snakemake.wildcards.variant).is_taught
        recipe = recipe_of(job.config, texts, snakemake.params.seed, job.parent(), taught=taught, cache=cache)
        network, checkpoint = Architecture.load(snakemake.input.architecture), job.checkpoint()
        if snakemake.input.get("training"):
            checkpoint.take_up(snakemake.input.training)
        job.write_training(*recipe.train(network, checkpoint, job.run.row), checkpoint)

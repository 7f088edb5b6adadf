"""Collect the trained weights that a variant's retraining starts from."""

from pathlib import Path

from planer import model
from planer.architecture import Architecture
from planer.job import stage
from planer.search.methods import config_of
from planer.search.supernet import load_supernet
from planer.search.warm_start import inherited, upcycled
from planer.tensors import write_tensors
from planer.variant import parse_variant

if __name__ == "__main__":
    with stage(snakemake) as job:
        architecture = Architecture.load(snakemake.input.architecture)
        if snakemake.input.get("supernet"):
            config = config_of(job.config, parse_variant(snakemake.wildcards.variant))
            weights = inherited(architecture, load_supernet(snakemake.input.supernet, config, job.vocab_size))
        else:
            weights = upcycled(architecture, model.load(Path(snakemake.input.baseline).parent))
        write_tensors(snakemake.output.weights, weights)
        taken = sum(tensor.numel() for tensor in weights.values())
        print(f"{architecture.pattern}: {taken:,} of {architecture.params():,} weights are not random")

# Shared by all rules: experiments and variants, the configuration that each stage reads, code hashes.
import gc
import re
import sys
from functools import cache
from pathlib import Path

gc.freeze()  # Snakemake's modules stay until the end; collecting garbage among them took a quarter of a dry run

import planer
from snakemake.logging import logger
from planer.config import Experiment
from planer.config.arms import arm_values, check_stage
from planer.config.lengths import TRAININGS, check_lengths
from planer.config.model import TEXT_SUFFIX, one_source
from planer.config.pretrained import DENSE, PretrainedExperiment, pretrained_names
from planer.config.strict_yaml import experiment_files, read_assignments, read_experiment, read_yaml
from planer.config.text import corpus_of
from planer.config.variant import FOLDER, OTHER_PATTERN, PATTERN_NAME, PATTERNS, check_name, parse_variant
from planer.errors import UserError
from planer.files import check_writable
from planer.parsing import build, merge
from planer.pretrained.arms import check_arm
from planer.seed import derive_seed
from planer.workflow.environment import prepare_environment
from planer.workflow.failures import FAILURES
from planer.workflow.source import source_hashes
from planer.workflow.targets import TASK_SUFFIX

ROOT = Path(workflow.basedir)
assert Path(planer.__file__).parent == ROOT / "planer", f"another planer is installed: {planer.__file__}"
prepare_environment(ROOT, "scratch/home")
logger.addFilter(FAILURES)
CODE = source_hashes(ROOT, ROOT / "planer/workflow/__pycache__/sources.json")


BASELINE = r"baseline(-seed\d+)?"
"""Baselines: initial weights and teachers of the other variants."""
PATTERN = rf"({'|'.join(PATTERNS)}|{OTHER_PATTERN}{PATTERN_NAME})(-[^/]*)?"
"""Variants with a given block order."""
CHOSEN = rf"(?!{PATTERN}/)[^/]+"
"""All other variants.  In every path a slash follows the variant."""
COMPUTE = ("device", "threads", "dtype")
"""Sections of stages that use the experiment's device."""


EXPERIMENTS = experiment_files(ROOT / "config/experiments", Path("config/experiments"))
"""Experiment files by name; those of the working directory replace those of the repository."""
PRETRAINED = pretrained_names(EXPERIMENTS)
"""Experiments on pretrained networks, which have rules of their own (pretrained.smk)."""
PRETRAINED_NAME = "|".join(map(re.escape, PRETRAINED)) or "(?!)"


wildcard_constraints:
    dataset=rf"(?!({PRETRAINED_NAME}){TASK_SUFFIX}/){FOLDER}",
    experiment=rf"(?!({PRETRAINED_NAME})/){FOLDER}",
    variant=FOLDER,


@cache
def read(experiment):
    """All keys of an experiment: defaults, then its file, then --configfile and --config; checked.

    Returns them as plain values, which params hold, and as Experiment or PretrainedExperiment.
    """
    check_name("experiment", experiment)
    experiment_layers = read_experiment(experiment, EXPERIMENTS)
    # Snakemake's own reading keeps the last of two equal keys in --configfile, and takes --config values as text.
    given = workflow.config_settings
    defaults = ROOT / f"config/{'pretrained' if experiment in PRETRAINED else 'config'}.yaml"
    layers = [read_yaml(defaults), *experiment_layers, *map(read_yaml, given.configfiles)]
    layers.append(read_assignments(given.config_args))
    if experiment in PRETRAINED:
        # A task of another kind replaces what was given for the one before, and no defaults.
        values = merge(layers[0], merge(*layers[1:]))
        checked = build(PretrainedExperiment, values)
        for arm in checked.arms:
            check_arm(arm_values(values, arm), arm)
        return values, checked
    values = merge(*map(one_source, layers))
    checked = build(Experiment, values)
    corpus = corpus_of(checked.data)
    check_lengths(checked, corpus)
    checked.model.head.check(corpus.vocab_size, checked.model.d_model)
    return values, checked


def settings(experiment):
    """All keys of an experiment, as plain values."""
    return read(experiment)[0]


def config_of(experiment):
    """All keys of an experiment, as Experiment."""
    return read(experiment)[1]


def sections(*names):
    """Params function: these top-level keys of the experiment's config, in this order."""

    def params(wildcards):
        return {name: settings(wildcards.experiment)[name] for name in names}

    return params


def untracked_sections(*names):
    """Params function like sections(), whose changes repeat nothing: Snakemake does not compare params of functions
    that take inputs."""

    def params(wildcards, input):
        return sections(*names)(wildcards)

    return params


def seed(stage):
    """Params function: the seed of one stage of one variant."""

    def params(wildcards):
        variant = parse_variant(wildcards.variant)
        return derive_seed(settings(wildcards.experiment)["seed"], stage, variant.repeat)

    return params


def code_hash(script):
    """Params: a hash of the code of a script and of every planer module that it imports, directly or not."""
    return CODE[script]


onstart:
    from planer.workflow import tracking

    try:
        check_writable("results")
        tracking.start("results")
    except UserError as error:
        sys.exit(f"planer: {error}")


onsuccess:
    from planer.workflow import tracking

    tracking.finish("results")


onerror:
    from planer.workflow import tracking

    tracking.finish("results")

# Shared by all rules: which experiments and variants exist, what each stage reads of the config, code hashes.
import re
import sys
from functools import cache
from pathlib import Path

import planer
from snakemake.logging import logger
from planer.config import DataConfig, Experiment, derive_seed
from planer.config.lengths import check_lengths
from planer.config.model import OWN, one_source
from planer.config.text import corpus_of
from planer.workflow.environment import prepare_environment
from planer.workflow.failures import FAILURES
from planer.errors import UserError
from planer.files import check_writable
from planer.parsing import build, merge
from planer.workflow.source import source_hash
from planer.config.strict_yaml import read_assignments, read_experiment, read_yaml
from planer.config.variant import FOLDER, PATTERNS, check_name, parse_variant

ROOT = Path(workflow.basedir)
assert Path(planer.__file__).parent == ROOT / "planer", f"another planer is installed: {planer.__file__}"
prepare_environment(ROOT, "scratch/home")
logger.addFilter(FAILURES)


BASELINE = r"baseline(-seed\d+)?"
"""Variants that others start from and learn from."""
PATTERN = rf"({'|'.join(PATTERNS)})(-[^/]*)?"
"""Variants given by their block order."""
CHOSEN = rf"(?!{PATTERN}/)[^/]+"
"""All others; a slash follows a variant in every path."""


wildcard_constraints:
    dataset=FOLDER,
    experiment=FOLDER,
    variant=FOLDER,


def experiment_files():
    """Experiment files by allowed names; the working directory's come before the repository's."""
    folders = [ROOT / "config/experiments", Path("config/experiments")]
    files = [path for folder in folders for path in sorted(folder.glob("*.yaml"))]
    return {path.stem: path for path in files if re.fullmatch(FOLDER, path.stem)}


@cache
def settings(experiment):
    """All keys of an experiment: defaults, then its file, then --configfile and --config; checked."""
    check_name("experiment", experiment)
    own = read_experiment(experiment, experiment_files())
    # Snakemake reads --configfile and --config too, but as YAML that keeps the last of two equal keys and as text.
    given = workflow.config_settings
    layers = [read_yaml(ROOT / "config/config.yaml"), *own, *map(read_yaml, given.configfiles)]
    values = merge(*map(one_source, [*layers, read_assignments(given.config_args)]))
    checked = build(Experiment, values)
    corpus = corpus_of(checked.data)
    check_lengths(checked, corpus)
    checked.model.head.check(corpus.vocab_size, checked.model.d_model)
    return values


@cache
def data_of(experiment):
    """Which text an experiment reads."""
    return build(DataConfig, settings(experiment)["data"])


def sections(*names):
    """Params function: these top-level keys of the experiment's config, in this order."""

    def params(wildcards):
        return {name: settings(wildcards.experiment)[name] for name in names}

    return params


def untracked_sections(*names):
    """Params function like sections(), whose values repeat nothing when they change: Snakemake does not compare params
    that are derived from inputs."""

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
    """Params: a hash of a script and of every planer module it reaches, which changes when the code does."""
    return source_hash(ROOT / "workflow/scripts" / script, ROOT)


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

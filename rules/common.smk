# Shared by all rules: which experiments and variants exist, what each stage reads of the config, code hashes.
import re
import sys
from functools import cache
from pathlib import Path

import planer
from snakemake.logging import logger
from planer.config import Experiment, derive_seed
from planer.environment import prepare_environment
from planer.failures import FAILURES
from planer.files import UserError, check_writable
from planer.latency.cost import check_hours, load_cost, rescaled
from planer.parsing import build, merge, show
from planer.source import source_hash
from planer.strict_yaml import read_assignments, read_yaml
from planer.variant import FOLDER, PATTERNS, check_name, parse_variant

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
    files = experiment_files()
    if experiment not in files:
        raise UserError(
            f"unknown experiment {show(experiment)}; allowed: {', '.join(sorted(files))}; "
            "a new one is a file config/experiments/<name>.yaml"
        )
    # Snakemake reads --configfile and --config too, but as YAML that keeps the last of two equal keys and as text.
    given = workflow.config_settings
    paths = [ROOT / "config/config.yaml", files[experiment], *given.configfiles]
    values = merge(*map(read_yaml, paths), read_assignments(given.config_args))
    checked = build(Experiment, values)
    estimate = Path(f"results/{experiment}/cost.json")
    if estimate.exists():  # steps may have been raised since
        earlier = load_cost(estimate)
        check_hours(rescaled(earlier, checked), earlier["device"], checked)
    return values


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
    from planer import tracking

    try:
        check_writable("results")
        tracking.start("results")
    except UserError as error:
        sys.exit(f"planer: {error}")


onsuccess:
    from planer import tracking

    tracking.finish("results")


onerror:
    from planer import tracking

    tracking.finish("results")

# Shared by all rules: which experiments and variants exist, what each stage reads of the config, code hashes.
import os
import re
import sys
from functools import cache
from pathlib import Path

import yaml

import planer
from planer.config import Experiment, derive_seed
from planer.files import UserError, check_writable, read_json
from planer.home import provide_home
from planer.latency.cost import check_hours, rescaled
from planer.parsing import build, merge
from planer.source import source_hash
from planer.variant import FOLDER, parse_variant

ROOT = Path(workflow.basedir)
assert Path(planer.__file__).parent == ROOT / "planer", f"another planer is installed: {planer.__file__}"
# Scripts look among installed packages first: a copy of planer there is not the code whose hash decides on repetitions.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
provide_home("scratch/home")


wildcard_constraints:
    dataset=FOLDER,
    experiment=FOLDER,
    variant=FOLDER,


def experiment_files():
    """Experiment files by name; the working directory's come before the repository's."""
    folders = [ROOT / "config/experiments", Path("config/experiments")]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


@cache
def settings(experiment):
    """All keys of an experiment: defaults, then its file, then --configfile and --config; checked."""
    files = experiment_files()
    if experiment not in files:
        raise UserError(
            f"unknown experiment {experiment!r}; allowed: {', '.join(sorted(files))}; "
            "a new one is a file config/experiments/<name>.yaml"
        )
    layers = []
    for path in (ROOT / "config/config.yaml", files[experiment]):
        try:
            layers.append(yaml.safe_load(path.read_text()) or {})
        except yaml.YAMLError as error:
            raise UserError(f"{path.name} is no valid YAML: {' '.join(str(error).split())}") from error
    values = merge(*layers, config)
    checked = build(Experiment, values)
    for name in checked.default_variants:
        parse_variant(name)
    estimate = Path(f"results/{experiment}/cost.json")
    if estimate.exists():  # steps may have been raised since
        earlier = read_json(estimate)
        check_hours(rescaled(earlier, checked), earlier["device"], checked)
    return values


def requested():
    """(experiment, variant or None) of every target under results/ on the command line.

    Snakemake knows its targets only after parsing; a mistake in one of them should be a single line before that.
    """
    targets = [re.fullmatch(r"(?:\./)?results/([^/]+)/(?:([^/]+)/.+|[^/]+)", text) for text in sys.argv[1:]]
    return [(match[1], match[2]) for match in targets if match and match[1] != "data"]


try:
    for experiment_name, variant_name in requested():
        settings(experiment_name)
        if variant_name not in (None, "figures"):
            parse_variant(variant_name)
except UserError as error:
    sys.exit(f"planer: {error}")


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
    except UserError as error:
        sys.exit(f"planer: {error}")
    tracking.start("results")


onsuccess:
    from planer import tracking

    tracking.finish("results")


onerror:
    from planer import tracking

    tracking.finish("results")

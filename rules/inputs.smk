# Input functions: which files a stage of a variant reads.
from dataclasses import fields, replace
from types import SimpleNamespace

from planer.config import TeacherConfig, ThresholdConfig
from planer.config.corpora import CORPORA, entry
from planer.config.variant import parse_variant
from planer.files import checksum
from planer.latency.options import measured_options
from planer.search.methods import needs_supernet, search_config


def dataset_file(name):
    """Input function: a file of the experiment's prepared corpus."""

    def path(wildcards):
        return f"results/data/{config_of(wildcards.experiment).data.folder(wildcards.experiment)}/{name}"

    return path


def vocab_size(wildcards):
    """Params: symbols of the experiment's corpus."""
    return corpus_of(config_of(wildcards.experiment).data).vocab_size


MEASURED = ("seed", *COMPUTE, "model", "design_space", "search_methods", "workload", "profile_blocks")
"""Sections that the latency table is measured for, besides the blocks of the patterns."""


@cache
def measured_names(experiment):
    """Names of the blocks in the latency table: a pattern of known blocks needs no other table."""
    return sorted(block.name for block in measured_options(config_of(experiment)))


@cache
def measured_settings(experiment):
    """A hash of what the training time is estimated from: the latency table and the baseline."""
    values, config = settings(experiment), config_of(experiment)
    sizes = [corpus_of(config.data).vocab_size, config.patterns.baseline]
    return checksum([*(values[name] for name in MEASURED), measured_names(experiment), *sizes])


def notations(wildcards):
    """Params: what a job reads of the section patterns: the baseline's and the variant's own, where it has one."""
    patterns, variant = config_of(wildcards.experiment).patterns, parse_variant(wildcards.get("variant", "baseline"))
    return [patterns.of(name) for name in ("baseline", variant.pattern) if name]


def source_of(wildcards):
    """Params of prepared files: the entry of a corpus, or the path, checksum and vocabulary of a user's own text."""
    if wildcards.dataset in CORPORA:
        return entry(wildcards.dataset)
    data, corpus = config_of(wildcards.dataset.removesuffix(TEXT_SUFFIX)).data, prepared(wildcards)
    return {
        "text": data.text,
        "tokenizer": data.tokenizer,
        "sha256": corpus.sha256,
        "vocab_size": corpus.vocab_size,
    }


def prepared(wildcards):
    """The corpus of a folder in results/data."""
    if wildcards.dataset in CORPORA:
        return CORPORA[wildcards.dataset]
    return corpus_of(config_of(wildcards.dataset.removesuffix(TEXT_SUFFIX)).data)


def search_of(wildcards):
    """The variant whose supernet a variant's network is chosen with, or None."""
    variant = parse_variant(wildcards.variant)
    config = config_of(wildcards.experiment).candidates
    if variant.pattern or not needs_supernet(config, variant):
        return None
    if variant.method == "shared":
        return replace(variant, method="target", target=max(config_of(wildcards.experiment).pareto.targets)).name
    return variant.name


def search_parent(wildcards):
    """The trained baseline, where the variant's search starts from it or has it as teacher."""
    config = search_config(config_of(wildcards.experiment).search, parse_variant(wildcards.variant))
    return trained_baseline(wildcards) if config.needs_parent else {}


def trained_baseline(wildcards):
    """Both files of the baseline with the same seed; all but ``-scratch`` variants start from it."""
    folder = f"results/{{experiment}}/{parse_variant(wildcards.variant).baseline}/retrain"
    return {"parent": f"{folder}/model.safetensors", "parent_architecture": f"{folder}/architecture.yaml"}


def recipe_inputs(wildcards):
    """Initial weights and teacher of a network's training."""
    variant = parse_variant(wildcards.variant)
    if variant.scratch:
        return {}
    cache = teacher_of(wildcards)
    return trained_baseline(wildcards) | (
        {"teacher": f"results/{{experiment}}/{cache}/teacher/logits.safetensors"} if cache else {}
    )


def teacher_of(wildcards):
    """The baseline whose logits the variant's training reads from a file, or None."""
    variant = parse_variant(wildcards.variant)
    config = config_of(wildcards.experiment).distill
    cached = variant.is_taught and config.weight and config.cache_bytes(vocab_size(wildcards)) <= 1e9 * config.cache_gb
    return variant.baseline if cached else None


def teaching(wildcards):
    """Params: weight and temperature of the teacher during sparsify; empty without a teacher."""
    if parse_variant(wildcards.variant).from_papers:
        return {}
    distill = config_of(wildcards.experiment).distill
    return {"weight": distill.weight, "temperature": distill.temperature} if distill.weight else {}


def keys_of(config, section):
    """Params function: the keys of a section that are fields of config, a class for a stage that reads only these."""

    def params(wildcards):
        values = settings(wildcards.experiment)[section]
        return {field.name: values[field.name] for field in fields(config)}

    return params


def sparsification_inputs(wildcards):
    """The network that is made sparse, with MLPs in the place of projections where the experiment replaces them; and the
    trained baseline, where sparsify has a teacher."""
    stage = "projections" if config_of(wildcards.experiment).projections.replace else "retrain"
    folder = f"results/{{experiment}}/{{variant}}/{stage}"
    network = {"model": f"{folder}/model.safetensors", "architecture": f"{folder}/architecture.yaml"}
    return network | (trained_baseline(wildcards) if teaching(wildcards) else {})


def training_inputs(wildcards):
    """The checkpoint of proxy training, where the network was chosen by it."""
    pattern = parse_variant(wildcards.variant).pattern
    return {} if pattern else {"training": "results/{experiment}/{variant}/choice/training.safetensors"}


def recipe_sections(wildcards):
    """Params: the sections that a training reads."""
    section = "retrain" if parse_variant(wildcards.variant).scratch else "distill"
    return sections(*COMPUTE, section)(wildcards)


def choice_inputs(wildcards):
    """Inputs of the choice of a network, besides the table and the texts."""
    search = search_of(wildcards)
    supernet = {"supernet": f"results/{{experiment}}/{search}/search/supernet.safetensors"} if search else {}
    return recipe_inputs(wildcards) | supernet


def choice_sections(wildcards):
    """Params: the sections that the choice of a network reads; search only where there is a supernet."""
    variant = parse_variant(wildcards.variant)
    names = [*COMPUTE, "model", "design_space", "search_methods", "workload"]
    names += ["candidates", "retrain" if variant.scratch else "distill"]
    names += (["search"] if search_of(wildcards) else []) + (["keep"] if variant.method == "keep" else [])
    return sections(*names)(wildcards)


def baseline_report(wildcards):
    """The evaluation of the baseline with the same seed, for every variant but the baseline itself."""
    baseline = parse_variant(wildcards.variant).baseline
    return [] if wildcards.variant == baseline else f"results/{{experiment}}/{baseline}/eval.json"


def baseline_training(wildcards):
    """Metrics of the baseline's training, the unit of search cost."""
    return f"results/{{experiment}}/{parse_variant(wildcards.variant).baseline}/retrain/metrics.json"


def stage_metrics(wildcards):
    """Metrics of all stages of this variant, in order."""
    search, cache = search_of(wildcards), teacher_of(wildcards)
    found = [f"results/{{experiment}}/{cache}/teacher/metrics.json"] if cache else []
    found += [f"results/{{experiment}}/{search}/search/metrics.json"] if search else []
    pattern = parse_variant(wildcards.variant).pattern
    stages = [*([] if pattern else ["choice"]), "retrain", "sparsify", "cluster", "routers"]
    stages += ["projections"] if config_of(wildcards.experiment).projections.replace else []
    return found + expand("results/{experiment}/{variant}/{stage}/metrics.json", stage=stages, allow_missing=True)


def compared_files(wildcards):
    """Files of the default variants to compare: evaluations, training histories, searches; and the default analyses."""
    variants = settings(wildcards.experiment)["default_variants"]
    wanted = settings(wildcards.experiment)["default_analyses"]
    named = [SimpleNamespace(experiment=wildcards.experiment, variant=variant) for variant in variants]
    searches = dict.fromkeys(filter(None, map(search_of, named)))
    files = {
        "reports": ("eval.json", variants),
        "histories": ("retrain/history.parquet", variants),
        "trajectories": ("search/trajectory.parquet", searches),
        "searched": ("architecture.yaml", searches),
    }
    return {
        name: expand(f"results/{{experiment}}/{{variant}}/{file}", variant=list(of), allow_missing=True)
        for name, (file, of) in files.items()
    } | {
        name: [f"results/{{experiment}}/{name}.json"] if name in wanted else [] for name in ("pareto", "repeatability")
    }


def repeated_reports(wildcards):
    """Evaluations of the repeats of a variant and of the baseline."""
    config = config_of(wildcards.experiment).repeatability
    names = {"variant": config.repeats(config.variant), "baseline": config.repeats("baseline")}
    path = "results/{experiment}/{variant}/eval.json"
    return {role: expand(path, variant=repeats, allow_missing=True) for role, repeats in names.items()}


def pareto_files(wildcards):
    """Networks of all targets, and evaluations of both networks of the compared ones."""
    config = config_of(wildcards.experiment).pareto
    chosen = [config.shared(target) for target in config.targets]
    trained = dict.fromkeys(
        variant for target in config.compared for variant in (config.shared(target), config.separate(target))
    )
    return {
        "architectures": expand("results/{experiment}/{variant}/architecture.yaml", variant=chosen, allow_missing=True),
        "reports": expand("results/{experiment}/{variant}/eval.json", variant=trained, allow_missing=True),
    }

# Input functions: which files a stage of a variant reads.
from dataclasses import fields
from types import SimpleNamespace

from planer.config import (
    CandidatesConfig,
    DistillConfig,
    ParetoConfig,
    RepeatabilityConfig,
    SearchConfig,
    ThresholdConfig,
)
from planer.config.corpora import CORPORA, entry
from planer.parsing import build
from planer.search.methods import needs_supernet, search_config
from planer.config.variant import name_of, parse_variant


def dataset_file(name):
    """Input function: a file of the experiment's prepared corpus."""

    def path(wildcards):
        return f"results/data/{data_of(wildcards.experiment).folder(wildcards.experiment)}/{name}"

    return path


def vocab_size(wildcards):
    """Params: symbols of the experiment's corpus."""
    return corpus_of(data_of(wildcards.experiment)).vocab_size


def source_of(wildcards):
    """Params: what prepared files depend on: the entry of a corpus, or one's own text and what is known of it."""
    if wildcards.dataset in CORPORA:
        return entry(wildcards.dataset)
    data, corpus = data_of(wildcards.dataset.removesuffix(OWN)), prepared(wildcards)
    return {
        "text": data.text,
        "tokenizer": data.tokenizer,
        "sha256": corpus.sha256,
        "vocab_size": corpus.vocab_size,
    }


def prepared(wildcards):
    """The corpus that a folder in results/data holds."""
    if wildcards.dataset in CORPORA:
        return CORPORA[wildcards.dataset]
    return corpus_of(data_of(wildcards.dataset.removesuffix(OWN)))


def search_of(wildcards):
    """The variant whose supernet a variant's network is chosen with, or None."""
    variant = parse_variant(wildcards.variant)
    config = build(CandidatesConfig, settings(wildcards.experiment)["candidates"])
    if variant.pattern or not needs_supernet(config, variant):
        return None
    if variant.method == "shared":
        loosest = build(ParetoConfig, settings(wildcards.experiment)["pareto"]).supernet
        return name_of("target", parse_variant(loosest).target, scratch=variant.scratch, repeat=variant.repeat)
    return variant.name


def search_parent(wildcards):
    """The trained baseline, where the variant's search starts from it or learns from it."""
    config = search_config(
        build(SearchConfig, settings(wildcards.experiment)["search"]), parse_variant(wildcards.variant)
    )
    return trained_baseline(wildcards) if config.needs_parent else {}


def trained_baseline(wildcards):
    """Both files of the baseline with the same random streams, which all but ``-scratch`` variants start from."""
    folder = f"results/{{experiment}}/{parse_variant(wildcards.variant).baseline}/retrain"
    return {"parent": f"{folder}/model.safetensors", "parent_architecture": f"{folder}/architecture.yaml"}


def recipe_inputs(wildcards):
    """What a network's training starts from and learns from."""
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
    config = build(DistillConfig, settings(wildcards.experiment)["distill"])
    cached = variant.is_taught and config.weight and config.cache_bytes(vocab_size(wildcards)) <= 1e9 * config.cache_gb
    return variant.baseline if cached else None


def teaching(wildcards):
    """Params: what a teacher has to say while activations are made sparse; nothing without a teacher."""
    if parse_variant(wildcards.variant).from_papers:
        return {}
    distill = build(DistillConfig, settings(wildcards.experiment)["distill"])
    return {"weight": distill.weight, "temperature": distill.temperature} if distill.weight else {}


def threshold_choice(wildcards):
    """Params: what the choice of tau depends on in the section evaluate, and nothing else of it."""
    section = settings(wildcards.experiment)["evaluate"]
    return {field.name: section[field.name] for field in fields(ThresholdConfig)}


def sparsification_parent(wildcards):
    """The trained baseline, which is its own teacher too, where there is a teacher."""
    return trained_baseline(wildcards) if teaching(wildcards) else {}


def training_inputs(wildcards):
    """The beginning of the training, where the network was chosen by it."""
    pattern = parse_variant(wildcards.variant).pattern
    return {} if pattern else {"training": "results/{experiment}/{variant}/choice/training.safetensors"}


def recipe_sections(wildcards):
    """What a training reads of the config."""
    section = "retrain" if parse_variant(wildcards.variant).scratch else "distill"
    return sections("device", "threads", "dtype", "data", section)(wildcards)


def choice_inputs(wildcards):
    """What the choice of a network reads beside the table and the texts."""
    search = search_of(wildcards)
    supernet = {"supernet": f"results/{{experiment}}/{search}/search/supernet.safetensors"} if search else {}
    return recipe_inputs(wildcards) | supernet


def choice_sections(wildcards):
    """What the choice of a network reads of the config: the search where there is a supernet, and the training."""
    variant = parse_variant(wildcards.variant)
    names = ["device", "threads", "dtype", "data", "model", "patterns", "design_space", "search_methods", "workload"]
    names += ["candidates", "retrain" if variant.scratch else "distill"]
    names += (["search"] if search_of(wildcards) else []) + (["keep"] if variant.method == "keep" else [])
    return sections(*names)(wildcards)


def baseline_report(wildcards):
    """Every variant but the baseline itself is compared with the evaluation of the baseline of the same seed."""
    baseline = parse_variant(wildcards.variant).baseline
    return [] if wildcards.variant == baseline else f"results/{{experiment}}/{baseline}/eval.json"


def baseline_training(wildcards):
    """Numbers of the training that a search's cost is compared with."""
    return f"results/{{experiment}}/{parse_variant(wildcards.variant).baseline}/retrain/metrics.json"


def stage_metrics(wildcards):
    """Numbers of every stage that this variant went through, in order."""
    search, cache = search_of(wildcards), teacher_of(wildcards)
    found = [f"results/{{experiment}}/{cache}/teacher/metrics.json"] if cache else []
    found += [f"results/{{experiment}}/{search}/search/metrics.json"] if search else []
    pattern = parse_variant(wildcards.variant).pattern
    stages = [*([] if pattern else ["choice"]), "retrain", "sparsify", "cluster", "routers"]
    return found + expand("results/{experiment}/{variant}/{stage}/metrics.json", stage=stages, allow_missing=True)


def compared_files(wildcards):
    """What the default variants leave to compare: evaluations, histories of their training, and their searches; and
    the analyses of several searches that were asked for."""
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
    how = build(RepeatabilityConfig, settings(wildcards.experiment)["repeatability"])
    names = {"variant": how.repeats(how.variant), "baseline": how.repeats("baseline")}
    path = "results/{experiment}/{variant}/eval.json"
    return {role: expand(path, variant=repeats, allow_missing=True) for role, repeats in names.items()}


def pareto_files(wildcards):
    """Networks of all targets, and evaluations of both networks of the compared ones."""
    how = build(ParetoConfig, settings(wildcards.experiment)["pareto"])
    chosen = [how.shared(target) for target in how.targets]
    trained = dict.fromkeys(road(target) for target in how.compared for road in (how.shared, how.own))
    return {
        "architectures": expand("results/{experiment}/{variant}/architecture.yaml", variant=chosen, allow_missing=True),
        "reports": expand("results/{experiment}/{variant}/eval.json", variant=trained, allow_missing=True),
    }

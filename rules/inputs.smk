# Input functions: which files a stage of a variant reads.
from types import SimpleNamespace

from planer.config import ParetoConfig, RepeatabilityConfig, SampleConfig, SearchConfig
from planer.config.corpora import entry, lookup
from planer.parsing import build
from planer.search.methods import search_config
from planer.variant import parse_variant


def dataset_file(name):
    """Input function: a file of the experiment's prepared corpus."""

    def path(wildcards):
        return f"results/data/{settings(wildcards.experiment)['data']['dataset']}/{name}"

    return path


def vocab_size(wildcards):
    """Params: symbols of the experiment's corpus."""
    return lookup(settings(wildcards.experiment)["data"]["dataset"]).vocab_size


def search_of(wildcards):
    """The variant whose search a variant's network comes from, or None."""
    variant = parse_variant(wildcards.variant)
    if variant.arm == "shared":
        mildest = build(ParetoConfig, settings(wildcards.experiment)["pareto"]).supernet
        return f"{mildest}-seed{variant.repeat}" if variant.repeat else mildest
    return variant.original if variant.searched else None


def search_parent(wildcards):
    """The trained baseline, where the variant's search starts from it or learns from it."""
    variant = parse_variant(wildcards.variant)
    config = search_config(build(SearchConfig, settings(wildcards.experiment)["search"]), variant)
    folder = f"results/{{experiment}}/{variant.baseline}/retrain"
    files = {"baseline": f"{folder}/model.safetensors", "baseline_architecture": f"{folder}/architecture.yaml"}
    return files if config.needs_parent else {}


def architecture_inputs(wildcards):
    """A warm start has the network of its original; a searched variant needs its supernet, others only the table."""
    variant = parse_variant(wildcards.variant)
    if variant.start != "scratch":
        return {"original": f"results/{{experiment}}/{variant.original}/architecture.yaml"}
    files = {"table": "results/{experiment}/latency_table.parquet"}
    if search := search_of(wildcards):
        files["supernet"] = f"results/{{experiment}}/{search}/search/supernet.safetensors"
        files["valid"] = dataset_file("valid.npy")(wildcards)
        if tried(wildcards):
            files["train"] = dataset_file("train.npy")(wildcards)
    return files


def tried(wildcards):
    """Whether beginnings of trainings decide between several networks; PAR's search has one."""
    how = build(SampleConfig, settings(wildcards.experiment)["sample_architecture"])
    return how.competitors > 1 and search_of(wildcards) and parse_variant(wildcards.variant).arm != "par_search"


def sample_sections(wildcards):
    """What the choice of a network reads; only trials have a say of the retraining's settings."""
    names = ["device", "threads", "dtype", "data", "model", "patterns", "design_space", "arms", "workload", "search"]
    return sections(*names, "sample_architecture", *(["retrain"] if tried(wildcards) else []))(wildcards)


def baseline_report(wildcards):
    """Every variant but the baseline itself is compared with the baseline's own evaluation."""
    return [] if wildcards.variant == "baseline" else "results/{experiment}/baseline/eval.json"


def stage_metrics(wildcards):
    """Numbers of every stage that this variant went through, in order; a warm start shares the first two with its
    original."""
    search, original = search_of(wildcards), parse_variant(wildcards.variant).original
    found = [f"results/{{experiment}}/{search}/search/metrics.json"] if search else []
    found.append(f"results/{{experiment}}/{original}/sample/metrics.json")
    stages = ["retrain", "sparsify", "cluster", "routers"]
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


def start_of(wildcards):
    """Params: what retraining starts from."""
    return parse_variant(wildcards.variant).start


def lender(wildcards):
    """The trained network whose weights a warm start takes: the supernet it was found in, or the baseline."""
    if start_of(wildcards) == "inherit":
        return {"supernet": f"results/{{experiment}}/{search_of(wildcards)}/search/supernet.safetensors"}
    return trained_baseline("baseline")


def trained_baseline(name):
    """Both files of the retrained baseline; ``name`` is the model's name among the inputs."""
    folder = "results/{experiment}/baseline/retrain"
    return {name: f"{folder}/model.safetensors", "baseline_architecture": f"{folder}/architecture.yaml"}


def start_files(wildcards):
    """What retraining takes from networks trained before: weights, or a teacher."""
    if start_of(wildcards) in ("inherit", "upcycle"):
        return {"weights": "results/{experiment}/{variant}/warm_start.safetensors"}
    return trained_baseline("teacher") if start_of(wildcards) == "distill" else {}


def lender_sections(wildcards):
    """The sections that describe a supernet; a trained network describes itself."""
    names = ["data", "model", "patterns", "design_space", "arms", "search"]
    return sections(*(names if start_of(wildcards) == "inherit" else []))(wildcards)


def retrain_sections(wildcards):
    """What retraining reads; only distillation has settings beyond those of training from scratch."""
    names = ["device", "threads", "dtype", "data", "retrain"]
    return sections(*names, *(["distill"] if start_of(wildcards) == "distill" else []))(wildcards)

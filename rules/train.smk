# Phase 2: training the chosen network, from random weights or from a warm start.


def start_of(wildcards):
    """Params: what retraining starts from."""
    return parse_variant(wildcards.variant).start


def lender(wildcards):
    """The trained network whose weights a warm start takes: its original's supernet, or the baseline."""
    variant = parse_variant(wildcards.variant)
    if variant.start == "inherit":
        return {"supernet": f"results/{{experiment}}/{variant.original}/search/supernet.safetensors"}
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


rule warm_start:
    input:
        unpack(lender),
        architecture="results/{experiment}/{variant}/architecture.yaml",
    output:
        weights="results/{experiment}/{variant}/warm_start.safetensors",
    log:
        "logs/{experiment}/{variant}/warm_start.log",
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        config=lender_sections,
        code=code_hash("warm_start.py"),
    message:
        "Collecting the weights that {wildcards.experiment}/{wildcards.variant} starts from."
    script:
        "../workflow/scripts/warm_start.py"


rule retrain:
    input:
        unpack(start_files),
        train=dataset_file("train.npy"),
        valid=dataset_file("valid.npy"),
        architecture="results/{experiment}/{variant}/architecture.yaml",
        cost="results/{experiment}/cost.json",
    output:
        architecture="results/{experiment}/{variant}/retrain/architecture.yaml",
        model="results/{experiment}/{variant}/retrain/model.safetensors",
        history="results/{experiment}/{variant}/retrain/history.parquet",
        metrics="results/{experiment}/{variant}/retrain/metrics.json",
    log:
        "logs/{experiment}/{variant}/retrain.log",
    benchmark:
        "benchmarks/runs/{experiment}/{variant}/retrain.tsv"
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=1,
        mem_mb=32000,
        runtime=2880,
    params:
        config=retrain_sections,
        start=start_of,
        seed=seed("retrain"),
        code=code_hash("retrain.py"),
    message:
        "Training {wildcards.experiment}/{wildcards.variant}; start: {params.start}."
    script:
        "../workflow/scripts/retrain.py"

# Experiments on pretrained networks: a network, a task, and arms.  The config of each is read in common.smk.
import math

from planer.config.paths import resolve
from planer.config.pretrained import dense_of, split_seed


def arm_sections(*names):
    """Params function: these top-level keys of the experiment's config, with the overrides of the variant's arm."""

    def params(wildcards):
        values = arm_values(settings(wildcards.experiment), wildcards.variant)
        return {name: values[name] for name in names}

    return params


def arm_seed(stage):
    """Params function: the seed of one stage of one variant."""

    def params(wildcards):
        _, repeat = split_seed(wildcards.variant)
        return derive_seed(settings(wildcards.experiment)["seed"], stage, repeat)

    return params


def experiment_seed(stage):
    """Params function: the seed of a stage that all variants share."""

    def params(wildcards):
        return derive_seed(settings(wildcards.experiment)["seed"], stage)

    return params


def max_hours(wildcards, input):
    """Params: the longest training.  With an input it is not tracked: another limit repeats nothing."""
    return settings(wildcards.experiment)["max_hours"]


def most_minutes(wildcards, attempt):
    """Run time of a job that a cluster grants: the longest training and an hour."""
    return math.ceil(60 * settings(wildcards.experiment)["max_hours"]) + 60


def network_files(wildcards):
    """Files of the user's network that are there; a job refuses what is missing."""
    network = config_of(wildcards.experiment).pretrained
    names = ("config.json", "model.safetensors") if network.folder else ()
    return [str(file) for name in names if (file := resolve(network.folder) / name).is_file()]


def task_files(wildcards):
    """Files and folders of the task's data that are there; a job refuses what is missing."""
    task = config_of(wildcards.experiment).task
    paths = [resolve(path) for path in (task.train, task.valid, task.test) if path]
    return [str(path) for path in paths if path.exists()]


def dense_model(wildcards):
    """The fine-tuned dense network with the same seed."""
    return f"results/{{experiment}}/{dense_of(wildcards.variant)}/finetune/model.safetensors"


def sparsification_start(wildcards):
    """The fine-tuned dense network, unless sparsification starts from the folder."""
    if arm_sections("sparsify")(wildcards)["sparsify"]["start"] == "folder":
        return {}
    return {"model": dense_model(wildcards)}


def method_of(wildcards):
    """Params: the method of the variant's arm."""
    values = settings(wildcards.experiment)
    return values["arms"][arm_name(values, wildcards.variant)]["method"]


def threshold_start(wildcards):
    """The network that gets thresholds: sparsified where the arm says how, else the dense one."""
    values = settings(wildcards.experiment)
    sparsified = "sparsify" in values["arms"][arm_name(values, wildcards.variant)]
    return "results/{experiment}/{variant}/sparsify/model.safetensors" if sparsified else dense_model(wildcards)


def arm_files(wildcards):
    """Files that a converted network is made from, besides the dense one."""
    folder, method = "results/{experiment}/{variant}", method_of(wildcards)
    if method == "experts":
        return {
            "model": f"{folder}/sparsify/model.safetensors",
            "labels": f"{folder}/cluster/labels.parquet",
            "routers": f"{folder}/routers/routers.safetensors",
        }
    if method == "threshold":
        return {"model": threshold_start(wildcards), "thresholds": f"{folder}/thresholds/thresholds.json"}
    return {"model": dense_model(wildcards)}


def arm_reports(wildcards):
    """Evaluations of all arms, in the order of the configuration."""
    arms = settings(wildcards.experiment)["arms"]
    return expand("results/{experiment}/{variant}/eval.json", variant=arms, allow_missing=True)


NETWORK = "results/models/{experiment}/manifest.json"
TASK = "results/data/{experiment}-task/manifest.json"


rule prepare_model:
    input:
        files=network_files,
    output:
        manifest=NETWORK,
    log:
        "logs/models/{experiment}.log",
    benchmark:
        "logs/models/{experiment}.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=30,
    params:
        config=sections("pretrained"),
        head=lambda wildcards: config_of(wildcards.experiment).task.head,
        seed=experiment_seed("prepare_model"),
        code=code_hash("pretrained/prepare_model.py"),
    message:
        "{wildcards.experiment} prepare_model: checking the network; log: {log}"
    script:
        "../workflow/scripts/pretrained/prepare_model.py"


rule prepare_task:
    input:
        files=task_files,
        network=NETWORK,
    output:
        train="results/data/{experiment}-task/train.safetensors",
        valid="results/data/{experiment}-task/valid.safetensors",
        test="results/data/{experiment}-task/test.safetensors",
        manifest=TASK,
    log:
        "logs/data/{experiment}-task.log",
    benchmark:
        "logs/data/{experiment}-task.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=120,
    params:
        config=sections("task"),
        seed=experiment_seed("prepare_task"),
        code=code_hash("pretrained/prepare_task.py"),
    message:
        "{wildcards.experiment} prepare_task: reading and tokenising the data; log: {log}"
    script:
        "../workflow/scripts/pretrained/prepare_task.py"


rule finetune:
    input:
        network=NETWORK,
        task=TASK,
    output:
        config="results/{experiment}/{variant}/finetune/config.json",
        model="results/{experiment}/{variant}/finetune/model.safetensors",
        history="results/{experiment}/{variant}/finetune/history.parquet",
        metrics="results/{experiment}/{variant}/finetune/metrics.json",
    log:
        "logs/{experiment}/{variant}/finetune.log",
    benchmark:
        "logs/{experiment}/{variant}/finetune.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
        variant=rf"{DENSE}(-seed\d+)?",
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=sections("device", "threads", "dtype", "finetune"),
        max_hours=max_hours,
        seed=arm_seed("finetune"),
        code=code_hash("pretrained/finetune.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} finetune: training the dense network; log: {log}"
    script:
        "../workflow/scripts/pretrained/finetune.py"


rule sparsify_sites:
    input:
        unpack(sparsification_start),
        network=NETWORK,
        task=TASK,
    output:
        config="results/{experiment}/{variant}/sparsify/config.json",
        model="results/{experiment}/{variant}/sparsify/model.safetensors",
        history="results/{experiment}/{variant}/sparsify/history.parquet",
        metrics="results/{experiment}/{variant}/sparsify/metrics.json",
    log:
        "logs/{experiment}/{variant}/sparsify_sites.log",
    benchmark:
        "logs/{experiment}/{variant}/sparsify_sites.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections("device", "threads", "dtype", "sparsify"),
        max_hours=max_hours,
        seed=arm_seed("sparsify"),
        code=code_hash("pretrained/sparsify.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} sparsify_sites: making activations sparse; log: {log}"
    script:
        "../workflow/scripts/pretrained/sparsify.py"


rule cluster_sites:
    input:
        network=NETWORK,
        task=TASK,
        model="results/{experiment}/{variant}/sparsify/model.safetensors",
    output:
        labels="results/{experiment}/{variant}/cluster/labels.parquet",
        metrics="results/{experiment}/{variant}/cluster/metrics.json",
    log:
        "logs/{experiment}/{variant}/cluster_sites.log",
    benchmark:
        "logs/{experiment}/{variant}/cluster_sites.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections("device", "threads", "dtype", "cluster_experts"),
        seed=arm_seed("cluster_experts"),
        code=code_hash("pretrained/cluster.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} cluster_sites: splitting feed-forward layers into experts; log: {log}"
    script:
        "../workflow/scripts/pretrained/cluster.py"


rule train_site_routers:
    input:
        network=NETWORK,
        task=TASK,
        model="results/{experiment}/{variant}/sparsify/model.safetensors",
        labels="results/{experiment}/{variant}/cluster/labels.parquet",
    output:
        routers="results/{experiment}/{variant}/routers/routers.safetensors",
        history="results/{experiment}/{variant}/routers/history.parquet",
        metrics="results/{experiment}/{variant}/routers/metrics.json",
    log:
        "logs/{experiment}/{variant}/train_site_routers.log",
    benchmark:
        "logs/{experiment}/{variant}/train_site_routers.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections("device", "threads", "dtype", "train_routers"),
        seed=arm_seed("train_routers"),
        code=code_hash("pretrained/train_routers.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} train_site_routers: training the routers; log: {log}"
    script:
        "../workflow/scripts/pretrained/train_routers.py"


rule calibrate_thresholds:
    input:
        network=NETWORK,
        task=TASK,
        model=threshold_start,
    output:
        thresholds="results/{experiment}/{variant}/thresholds/thresholds.json",
    log:
        "logs/{experiment}/{variant}/calibrate_thresholds.log",
    benchmark:
        "logs/{experiment}/{variant}/calibrate_thresholds.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections("device", "threads", "dtype", "thresholds"),
        seed=arm_seed("thresholds"),
        code=code_hash("pretrained/calibrate_thresholds.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} calibrate_thresholds: reading calibration tokens; log: {log}"
    script:
        "../workflow/scripts/pretrained/calibrate_thresholds.py"

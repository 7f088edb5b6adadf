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

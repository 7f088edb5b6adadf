# Functions for the rules of experiments on pretrained networks: configs, inputs and seeds of arms.
import math

from planer.config.arms import (
    arm_name,
    dense_of,
    is_sparsified,
    owner,
    reference_of,
    replaces_projections,
    reported_arms,
    split_seed,
    training_batches,
)
from planer.config.paths import resolve
from planer.data.user_files import data_files, images_digest
from planer.pretrained.folder import network_files
from planer.workflow.resources import task_memory


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


def batches_of_trainings(wildcards, input):
    """Params: samples of a batch of every stage that trains.  As max_hours, it is not tracked."""
    return training_batches(settings(wildcards.experiment))


def most_minutes(wildcards, attempt):
    """Run time of a job that a cluster grants: the longest training and an hour, more in every attempt."""
    return (math.ceil(60 * settings(wildcards.experiment)["max_hours"]) + 60) * attempt


def files_of_network(wildcards):
    """Files of the user's network that are there; a job refuses what is missing."""
    return list(map(str, network_files(config_of(wildcards.experiment).pretrained)))


def splits_of(experiment):
    """Files and folders of the task's data."""
    task = config_of(experiment).task
    return [resolve(path) for path in (task.train, task.valid, task.test) if path]


def files_of_task(wildcards):
    """Files of the task's data that are there; a job refuses what is missing."""
    return [str(file) for path in splits_of(wildcards.experiment) for file in data_files(path)]


@cache
def digests_of(experiment):
    return [images_digest(path) for path in splits_of(experiment) if not data_files(path)]


def memory_of_task(wildcards, attempt):
    """Host memory of prepare_task.  That of images depends on the network's image size, not on their files."""
    is_text = config_of(wildcards.experiment).task.kind != "labelled_images"
    return task_memory(sum(Path(file).stat().st_size for file in files_of_task(wildcards) if is_text)) * attempt


def image_folders(wildcards):
    """Params: what the task's folders of images hold, in the place of inputs: there may be a million files."""
    return digests_of(wildcards.experiment)


def of_stage(stage, name):
    """Input function: a file of a stage, of the variant whose files of this stage the arm uses."""

    def path(wildcards):
        variant = owner(settings(wildcards.experiment), stage, wildcards.variant)
        return f"results/{{experiment}}/{variant}/{stage}/{name}"

    return path


def dense_model(wildcards):
    """The fine-tuned dense network with the same seed."""
    return f"results/{{experiment}}/{dense_of(wildcards.variant)}/finetune/model.safetensors"


sparsified_model = of_stage("sparsify", "model.safetensors")
replaced_model = of_stage("projections", "model.safetensors")


def reference_model(wildcards):
    """The dense network that the variant is compared with."""
    values = settings(wildcards.experiment)
    reference = reference_of(values, wildcards.variant)
    if reference == dense_of(wildcards.variant):
        return dense_model(wildcards)
    return f"results/{{experiment}}/{owner(values, 'sparsify', reference)}/sparsify/model.safetensors"


def sparsification_start(wildcards):
    """The network with MLPs in the place of projections where the arm replaces them."""
    if replaces_projections(settings(wildcards.experiment), wildcards.variant):
        return {"model": replaced_model(wildcards)}
    return conversion_start(wildcards)


def conversion_start(wildcards):
    """The fine-tuned dense network, unless sparsification starts from the folder."""
    if arm_sections("sparsify")(wildcards)["sparsify"]["start"] == "folder":
        return {}
    return {"model": dense_model(wildcards)}


def method_of(wildcards):
    """Params: the method of the variant's arm."""
    values = settings(wildcards.experiment)
    return values["arms"][arm_name(values, wildcards.variant)]["method"]


def reference_name(wildcards):
    """Params: the dense variant that the variant is compared with."""
    return reference_of(settings(wildcards.experiment), wildcards.variant)


def arm_model(wildcards):
    """The network that is converted, or evaluated as it is: sparsified, with replaced projections, or the dense one."""
    values = settings(wildcards.experiment)
    if is_sparsified(values, wildcards.variant):
        return sparsified_model(wildcards)
    return replaced_model(wildcards) if replaces_projections(values, wildcards.variant) else dense_model(wildcards)


def arm_files(wildcards):
    """Files that the arm's network is made from."""
    files, method = {"model": arm_model(wildcards)}, method_of(wildcards)
    if method == "experts":
        files["labels"] = of_stage("cluster", "labels.parquet")(wildcards)
        files["routers"] = of_stage("routers", "routers.safetensors")(wildcards)
    elif method == "threshold":
        files["thresholds"] = of_stage("thresholds", "thresholds.json")(wildcards)
    return files


def arm_reports(wildcards):
    """Evaluations of all arms, in the order of the configuration."""
    arms = reported_arms(settings(wildcards.experiment))
    return expand("results/{experiment}/{variant}/eval.json", variant=arms, allow_missing=True)


NETWORK = "results/models/{experiment}/manifest.json"
TASK = "results/data/{experiment}-task/manifest.json"

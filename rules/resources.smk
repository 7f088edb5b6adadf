# What jobs ask for: threads, a GPU, memory, time, and a machine for themselves.  SLURM gets all of it; a local run
# takes threads from --cores, GPUs from --resources gpu=<n>, and nothing else.
from planer.workflow.resources import preparation, request

EXCLUSIVE = "--exclusive"
"""sbatch: no other job on the node.  Latencies that are measured beside other jobs are those of neither."""


def gpus(wildcards):
    """GPUs of a job whose script resolves the experiment's device.  auto asks for one: a job that gets none measures
    and trains on a CPU."""
    return 0 if settings(wildcards.experiment)["device"] == "cpu" else 1


def threads_of(wildcards):
    """CPU threads of a job, from the config, because latency depends on them."""
    return settings(wildcards.experiment)["threads"]


def whole_machine(wildcards):
    """Threads of a job that no other may run beside: locally all cores; a SLURM job has its node for itself.  The script
    uses the config's number."""
    needed = threads_of(wildcards)
    return max(workflow.cores, needed) if workflow.local_exec else needed


@cache
def requested_of(stage, experiment, variant):
    return request(stage, build(Experiment, settings(experiment)), variant)


def memory(stage):
    """Resources function: MiB of host memory, more in every attempt."""

    def mem_mb(wildcards, attempt):
        return requested_of(stage, wildcards.experiment, wildcards.get("variant", "baseline")).memory_of(attempt)

    return mem_mb


def minutes(stage):
    """Resources function: run time in minutes, more in every attempt."""

    def runtime(wildcards, attempt):
        return requested_of(stage, wildcards.experiment, wildcards.get("variant", "baseline")).minutes_of(attempt)

    return runtime

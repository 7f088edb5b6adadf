# Resources of jobs: threads, a GPU, memory, time, an exclusive machine.  SLURM gets all of them.  A local run uses only
# threads (--cores) and GPUs.  All local jobs run on the first GPU: use --resources gpu=1 (docs/install.md).
from planer.workflow.resources import preparation, request

EXCLUSIVE = "--exclusive"
"""sbatch: no other job on the node, since other jobs would change the measured latencies."""


def gpus(wildcards):
    """GPUs of a job that uses the experiment's device.  auto asks for one; without one, the job runs on a CPU."""
    return 0 if settings(wildcards.experiment)["device"] == "cpu" else 1


def threads_of(wildcards):
    """CPU threads of a job, from the configuration, because latency depends on them."""
    return settings(wildcards.experiment)["threads"]


def whole_machine(wildcards):
    """Threads of an exclusive job: locally all cores; a SLURM job is exclusive on its node.  The script uses the number
    in the configuration."""
    needed = threads_of(wildcards)
    return max(workflow.cores, needed) if workflow.local_exec else needed


@cache
def requested_of(stage, experiment, variant):
    return request(stage, config_of(experiment), variant)


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

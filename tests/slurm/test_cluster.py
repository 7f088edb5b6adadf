"""The commands of docs/slurm.md on a real SLURM; the tests run in this order."""

from __future__ import annotations

import json
import re
import signal

from tests.slurm.conftest import PATIENCE

RETRAIN = "results/tiny/baseline/retrain/metrics.json"


def submitted(output: str) -> list[str]:
    """Numbers of the jobs that Snakemake says it has submitted, in order."""
    return list(dict.fromkeys(re.findall(r"submitted with SLURM jobid (\d+)", output)))


def test_every_rule_is_a_job_and_measurements_have_a_node_alone(cluster, checkout):
    output = checkout.run("snakemake --workflow-profile slurm results/tiny/baseline/eval.json")
    report = json.loads((checkout.folder / "results/tiny/baseline/eval.json").read_text())
    assert report["variant"] == "baseline" and report["latency"][0]["median_ms"] > 0
    jobs = [cluster.job(number) for number in submitted(output)]
    assert len(jobs) == 9
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    exclusive = {job["Comment"].split("_wildcards")[0] for job in jobs if job["OverSubscribe"] == "NO"}
    assert exclusive == {"rule_profile_blocks", "rule_choose", "rule_evaluate"}


def test_a_job_killed_for_its_memory_is_submitted_with_more(cluster, checkout):
    """The first attempt has less memory than Snakemake needs."""
    output = checkout.run(
        "snakemake --workflow-profile slurm --set-resources prepare_data:mem_mb=attempt*attempt*attempt*150"
        " --forcerun prepare_data -- results/data/pysource/manifest.json"
    )
    first, second = submitted(output)
    jobs = [cluster.job(number) for number in (first, second)]
    assert [(job["JobState"], job["MinMemoryNode"]) for job in jobs] == [("FAILED", "150M"), ("COMPLETED", "1200M")]
    log = checkout.folder / f"logs/slurm/rule_prepare_data/pysource/{first}.log"
    assert "exceeded memory limit" in log.read_text()


def test_interrupted_and_requeued_trainings_resume(cluster, checkout):
    """After Ctrl-C, which cancels the job, and after SLURM requeues it."""
    checkpoint = checkout.folder / "scratch/tiny/baseline/retrain"
    log = checkout.folder / "logs/tiny/baseline/retrain.log"
    checkout.edit("retrain", steps=2000, eval_steps=2000, checkpoint_steps=50)
    command = f"snakemake --workflow-profile slurm {RETRAIN}"
    driver = checkout.start(command)
    cluster.wait(lambda: list(checkpoint.rglob("*.safetensors")), "a checkpoint", PATIENCE)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=PATIENCE)
    assert driver.returncode != 0
    cluster.wait(lambda: not cluster.jobs(), "the end of the job")

    driver = checkout.start(command)
    cluster.wait(lambda: log.exists() and "resuming at step" in log.read_text(), "the job to resume", PATIENCE)
    (number,) = cluster.jobs("RUNNING")
    log.unlink()
    cluster.call("scontrol", "requeue", number)
    cluster.wait(lambda: log.exists() and "resuming at step" in log.read_text(), "the requeued job to resume", PATIENCE)
    output, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, output
    assert cluster.job(number)["Restarts"] == "1"
    assert json.loads((checkout.folder / RETRAIN).read_text())["steps"] == 2000

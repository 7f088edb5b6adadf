"""A SLURM cluster of two nodes on this machine: slurmctld, two slurmd and munged.

Everything is written to the given folder, and no service of the system is used.  Node n1 has two fake GPUs, n2 none.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
NODE_MB = 8000
"""Memory of a node; jobs of small experiments must fit."""

CONFIG = """
ClusterName=planer
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
# A requeued job also waits for cred_expire.
AuthInfo=socket={run}/munge.socket,cred_expire=5
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
# A job above its --mem is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1
{listen}
ReturnToService=2
MinJobAge=7200
KillWait=30
MailProg=/bin/true
# Nodes may have more CPUs and memory than the machine.
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory={memory} Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=SEARCH)]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install munge slurmctld slurmd slurm-client"
    return "" if os.geteuid() == 0 else "slurmd needs root"


class Cluster:
    """A context manager that starts and stops the daemons.  ``environment`` lets programs find them."""

    def __init__(self, folder: Path):
        """folder: short, and open to all users with the folders above it, as munge demands."""
        self.folder, self.run = folder, folder / "run"
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin:{SEARCH}",
        }

    def __enter__(self) -> Cluster:
        self._write_config()
        key, socket_path = self.folder / "munge.key", self.run / "munge.socket"
        files = [f"--pid-file={self.run}/munged.pid", f"--log-file={self.folder}/munged.log"]
        files.append(f"--seed-file={self.folder}/munged.seed")
        try:
            self.call("munged", f"--socket={socket_path}", f"--key-file={key}", *files)
            self.call("slurmctld")
            for node in ("n1", "n2"):
                self.call("slurmd", "-N", node)
            self.wait(lambda: self.call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"], "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Cancel all jobs, then end the daemons that this cluster started, by their pid files."""
        if (self.run / "slurmctld.pid").exists():
            for job in self.jobs():
                self.call("scancel", "--full", "--signal=KILL", job)
                self.call("scancel", job)
            self.wait(lambda: not self.jobs(), "the end of all jobs")
        for name in ("slurmd-n1", "slurmd-n2", "slurmctld", "munged"):
            file = self.run / f"{name}.pid"
            if file.exists():
                pid = int(file.read_text())
                os.kill(pid, 15)
                self.wait(lambda pid=pid: not _lives(pid), f"the end of {name}")
                file.unlink(missing_ok=True)

    def call(self, *command: str) -> str:
        """Run a program of SLURM and return what it prints."""
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def jobs(self, state: str = "all") -> list[str]:
        """Numbers of the jobs in the queue in a state (RUNNING, PENDING), or of all that have not ended."""
        return self.call("squeue", "-h", "-o", "%A", *([] if state == "all" else ["-t", state])).split()

    def job(self, number: str) -> dict[str, str]:
        """SLURM's fields of a job, such as MinMemoryNode, JobState and NodeList."""
        text = self.call("scontrol", "-o", "show", "job", number)
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def wait(self, condition, what: str, seconds: float = 600) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
            time.sleep(0.2)

    def _write_config(self) -> None:
        for folder in (
            self.folder,
            self.run,
            *(self.folder / name for name in ("bin", "state", "spool-n1", "spool-n2")),
        ):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        host = socket.gethostname().partition(".")[0]
        # Bind to loopback where the machine's name resolves to it; elsewhere munge refuses other machines.
        local = _address(host) == "127.0.0.1"
        listen = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" if local else ""
        values = {"folder": self.folder, "run": self.run, "host": host, "ports": free_ports(3), "listen": listen}
        (self.folder / "slurm.conf").write_text(CONFIG.format(memory=NODE_MB, **values))
        # SLURM takes a link to /dev/null for a device, and its number becomes CUDA_VISIBLE_DEVICES.
        for number in range(2):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")
        (self.folder / "gres.conf").write_text(f"NodeName=n1 Name=gpu File={self.folder}/gpu[0-1]\n")
        # No cgroups; up to version 22.05, cgroup/v1 is the only setting without them.
        major = int(re.search(r"(\d+)\.", self.call("slurmd", "-V"))[1])
        plugin = "cgroup/v1" if major <= 22 else "disabled"
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
        with os.fdopen(os.open(self.folder / "munge.key", os.O_WRONLY | os.O_CREAT, 0o400), "wb") as file:
            file.write(os.urandom(1024))
        # In a job, Snakemake calls srun without SLURM_CONF, and srun would look under /etc.
        srun = self.folder / "bin/srun"
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun", path=SEARCH)} "$@"\n'
        )
        srun.chmod(0o755)


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _lives(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"

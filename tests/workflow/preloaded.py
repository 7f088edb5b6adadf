"""A program that runs scripts and modules like Python, in children of a server that has the libraries loaded.

Loading PyTorch, Snakemake and MLflow takes two to four seconds of CPU in every process.  The server loads them once.
The program sends it its arguments, environment, folder and streams, and the server forks a child, which runs the script
or module.  The child differs from a Python process in two ways: libraries do not read variables of its environment when
they are loaded, and modules are not finalised at its end.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("preloaded_client.py")
OTHERS = (
    "jsonschema",
    "k_means_constrained",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "pyarrow.parquet",
    "snakemake.cli",
    "transformers.modeling_utils",
    "transformers.models.auto.tokenization_auto",
)
"""Modules that planer imports later than at its own import.  transformers may not be installed."""


@cache
def python() -> str:
    """Path of the program.  Its server ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="preloaded-"))
    program = folder / "python"
    program.write_text(f"#!{sys.executable} -IS\n{CLIENT.read_text()}")
    program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.workflow.preloaded", folder],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
    )
    assert server.stdout.readline(), "the server of preloaded.py did not start"

    def end() -> None:
        server.kill()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return str(program)


def load() -> None:
    """Import planer and the libraries that it and its scripts use."""
    for path in sorted((ROOT / "planer").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if "triton" not in path.parts and path.stem not in ("hub", "__main__"):
            importlib.import_module(name)
    for name in OTHERS:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)


def main(folder: str) -> None:
    """Serve until the process is killed."""
    load()
    gc.freeze()  # a garbage collection would copy the memory that children share
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/socket")
        listening.listen(64)
        print(flush=True)
        while True:
            connection, _ = listening.accept()
            if not os.fork():
                _answer(connection)
            connection.close()


def _reap(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _answer(connection: socket.socket) -> None:
    """Run the program's script or module in a child, and send its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(connection, 4, 3)
    job = json.loads(connection.recv(int.from_bytes(length), socket.MSG_WAITALL))
    child = os.fork()
    if not child:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        connection.close()
        os._exit(_run(**job))
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    connection.sendall(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]).to_bytes(4, signed=True))
    os._exit(0)


def _run(program: str, arguments: list[str], environment: dict[str, str], folder: str) -> int:
    """Exit status of a script, or of a module after -m."""
    atexit._clear()  # the functions that the server's libraries registered
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [one for one in arguments if one not in ("-P", "-m")]
    try:
        if "-m" in arguments:
            sys.executable = program  # for Snakemake's jobs; processes of PyTorch need the plain Python
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:  # noqa: BLE001 (like Python)
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    main(sys.argv[1])

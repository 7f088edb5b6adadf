"""The C++ operators: built once by the C++ compiler at hand, at their first use, and kept in PyTorch's cache.

The cache is ``$TORCH_EXTENSIONS_DIR``, by default ``~/.cache/torch_extensions``.  The file's name carries a hash of the
sources, PyTorch's version, the compiler and the processor's instructions, so that a change of any builds anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from planer.errors import UserError
from planer.files import replacing

SOURCES = sorted(Path(__file__).parents[1].glob("*/*.cpp"))
HEADERS = sorted(Path(__file__).parents[1].glob("*/*.h"))
OPTIONS = ("-O3", "-march=native", "-std=c++20", "-fopenmp", "-fPIC", "-shared", "-w")

log = logging.getLogger(__name__)


@cache
def available() -> bool:
    """Whether the operators ``torch.ops.planer_cpp`` are there; builds them on the first call.

    Says why not in one warning.  Processes that ask at the same time wait for the first of them: a lock of the
    operating system, which ends with its process, so that a killed build stands in nobody's way.
    """
    try:
        torch.ops.load_library(_library())
    except (ImportError, OSError, UserError, subprocess.SubprocessError) as error:
        log.warning("no C++ kernels, PyTorch's take their place: %s", " ".join(str(error).split()))
        return False
    return True


def unsupported(device: torch.device, dtype: torch.dtype, *allowed: torch.dtype) -> str | None:
    """Why an operator for the allowed types cannot run on tensors of this kind, or None."""
    if device.type != "cpu" or dtype not in allowed:
        return f"needs a CPU and {' or '.join(str(each).removeprefix('torch.') for each in allowed)}"
    return None if available() else "needs a C++ compiler; the log says what failed"


def _library() -> Path:
    """The shared library, built if need be."""
    from torch.utils import cpp_extension  # half a second

    name = os.environ.get("CXX", "c++")
    compiler = shutil.which(name)
    if compiler is None:
        raise UserError(f"there is no C++ compiler {name}; install one or set CXX")
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()).absolute()
    if "~" in folder.parts:  # as PyTorch names the home of a user who has none
        raise UserError("there is no home folder to keep them in; set TORCH_EXTENSIONS_DIR")
    path = folder / f"planer-{_key(compiler)}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            log.info("building C++ kernels for this machine, about a minute: %s", path)
            with replacing(path) as temporary:
                includes = (f"-isystem{folder}" for folder in cpp_extension.include_paths("cpu"))
                libraries = [f"-L{folder}" for folder in cpp_extension.library_paths("cpu")]
                command = [compiler, *OPTIONS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
                command += [*includes, *map(str, SOURCES), "-o", str(temporary), *libraries]
                _run([*command, "-lc10", "-ltorch_cpu", "-ltorch"])
    return path


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = re.findall(r".*(?:error|cannot find).*", done.stderr) or [done.stderr[-200:]]
        raise UserError(f"{shlex.join(command[:1])} failed with status {done.returncode}: {errors[0].strip()}")
    return done.stdout


def _key(compiler: str) -> str:
    """Hash of everything that decides what is built."""
    digest = hashlib.sha256()
    for source in (*SOURCES, *HEADERS):
        digest.update(source.read_bytes())
    for part in (torch.__version__, _run([compiler, "--version"]), *OPTIONS, _processor()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    return "".join(
        sorted(set(re.findall(r"^(?:vendor_id|cpu family|model|flags|Features)\s*:.*$", lines, re.MULTILINE)))
    )

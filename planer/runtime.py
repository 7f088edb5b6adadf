"""Where and how arithmetic runs: device, precision, seeds, reproducible kernels."""

from __future__ import annotations

import ctypes
import gc
import platform
import random
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from planer.errors import UserError
from planer.seed import derive_seed

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt (malloc.h)."""


def resolve_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>`` stands for; auto prefers CUDA.

    Raises UserError for other names and for a CUDA device that this machine does not have.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device: {name!r} is unknown; allowed: auto, cpu, cuda, cuda:<number>")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"device: {name!r} was asked for, but PyTorch finds no CUDA device; use auto or cpu")
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= torch.cuda.device_count():
        allowed = f"cuda:0 to cuda:{torch.cuda.device_count() - 1}" if torch.cuda.device_count() > 1 else "cuda:0"
        raise UserError(f"device: {name!r} does not exist on this machine; allowed: cpu, {allowed}")
    return torch.device("cuda", index)


def device_name(device: torch.device) -> str:
    """The processor's or accelerator's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Type of matrix products: ``float32``, ``bfloat16``, or ``auto`` for bfloat16 on CUDA and float32 on CPU."""
    dtypes = {
        "auto": torch.bfloat16 if device.type == "cuda" else torch.float32,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }
    if name not in dtypes:
        raise UserError(f"dtype: {name!r} is unknown; allowed: {', '.join(dtypes)}")
    return dtypes[name]


@dataclass(frozen=True)
class Runtime:
    """Where and how a job computes, and the seed that all of its random streams are derived from."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    """Of matrix products."""
    seed: int = 0

    def autocast(self) -> AbstractContextManager:
        """Run matrix products in dtype while parameters, gradients and optimiser stay in float32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def derive(self, *names: object) -> int:
        """The seed of a named random stream."""
        return derive_seed(self.seed, *names)

    def derived(self, *names: object) -> Runtime:
        """The same with the seed of a named random stream."""
        return replace(self, seed=self.derive(*names))

    def generator(self, *names: object) -> torch.Generator:
        """A named random stream, on the CPU: it is the same on every device."""
        return torch.Generator().manual_seed(self.derive(*names))

    def seed_everything(self, *names: object) -> None:
        """Seed the global generators: PyTorch's on every device (dropout draws from them), NumPy's and Python's."""
        seed = self.derive(*names)
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)


def runtime_of(config: SimpleNamespace, seed: int) -> Runtime:
    """The runtime that the keys device and dtype of a config ask for.  Raises UserError where there is none such."""
    device = resolve_device(config.device)
    return Runtime(device, resolve_dtype(config.dtype, device), seed)


def set_up_process() -> None:
    """Settings of a process that computes: ``flush_denormals``, ``keep_freed_memory`` and ``convolve_as_matmul``.

    What was imported so far is left out of garbage collections, each of which otherwise takes a tenth of a second.
    Call this before the first parallel computation: threads take over the settings of the one that starts them.
    """
    flush_denormals()
    keep_freed_memory()
    convolve_as_matmul()
    gc.freeze()


def flush_denormals() -> None:
    """Have this thread, and those that it starts, read and write floats below 1e-38 as zero.

    The attention of a trained network gives distant positions such probabilities, and some processors are slow with
    them: on an Intel Xeon a trained network took a tenth longer than the same one with random weights, which the
    latency table and the search measure.  Where a processor has no such mode nothing happens.
    """
    torch.set_flush_denormal(True)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory in the process instead of giving it back after every layer.

    By default large activations are unmapped when freed, and their pages are faulted in anew by the next call: up to a
    quarter of a small network's forward pass on a CPU, and it depends on which blocks follow one another, so that block
    latencies would not add up.  Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(option, value)


def convolve_as_matmul() -> None:
    """Have float32 convolutions on a GPU use TF32 only where matrix products do.

    By default PyTorch has TF32 on for convolutions and off for products.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On the CPU, let the same seed give the same bits whatever the threads do; restores the setting afterwards.

    By default the backward of indexing, which mixtures of experts rely on, adds up in the order in which threads
    arrive.  On CUDA nothing changes: deterministic kernels cost too much there, and some do not exist.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled

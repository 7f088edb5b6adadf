"""Devices, dtypes and reproducibility."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from planer.errors import UserError
from planer.runtime import Runtime, convolve_as_matmul, reproducible, resolve_device, resolve_dtype

CPU = torch.device("cpu")


@pytest.fixture
def cuda_devices(monkeypatch):
    """A function that sets the number of CUDA devices of the machine."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    return pretend


@pytest.mark.parametrize(
    "count, name, expected",
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "cpu", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_names_of_devices(cuda_devices, count, name, expected):
    cuda_devices(count)
    assert resolve_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    "count, name, message",
    [
        (0, "cuda", "'cuda' was asked for, but PyTorch finds no CUDA device; use auto or cpu"),
        (0, "cuda:0", "no CUDA device"),
        (1, "cuda:1", "'cuda:1' does not exist on this machine; allowed: cpu, cuda:0$"),
        (4, "cuda:7", "allowed: cpu, cuda:0 to cuda:3"),
        (1, "gpu", "'gpu' is unknown; allowed: auto, cpu, cuda, cuda:<number>"),
        (1, "cuda:", "unknown"),
        (1, "", "unknown"),
    ],
)
def test_impossible_devices_are_one_line(cuda_devices, count, name, message):
    cuda_devices(count)
    with pytest.raises(UserError, match=message):
        resolve_device(name)


def test_names_of_dtypes():
    assert resolve_dtype("auto", CPU) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert resolve_dtype("bfloat16", CPU) is torch.bfloat16
    with pytest.raises(UserError, match="'float16' is unknown; allowed: auto, float32, bfloat16"):
        resolve_dtype("float16", CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_covers_products_only(dtype):
    layer = torch.nn.Linear(3, 3)
    with Runtime(CPU, dtype).autocast():
        assert layer(torch.ones(2, 3)).dtype is dtype
    assert layer.weight.dtype is torch.float32


def test_every_global_generator_is_seeded():
    samples = []
    for _ in range(2):
        Runtime(seed=11).seed_everything("dropout")
        samples.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert samples[0] == samples[1]


def test_reproducible_restores_the_setting():
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), reproducible(CPU):
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_denormals_are_zero_in_every_thread():
    """In a process of its own: the setting stays with its threads."""
    code = """
import torch
from planer.runtime import set_up_process
torch.set_num_threads(4)
set_up_process()
if torch.set_flush_denormal(True):
    small = torch.full((2_000_000,), 1e-20)  # large enough for all threads
    assert not (small * small).any()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("allowed", [False, True])
def test_convolutions_use_tf32_where_matrix_products_do(allowed):
    convolution, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolution.allow_tf32, matmul.allow_tf32
    try:
        convolution.allow_tf32, matmul.allow_tf32 = not allowed, allowed
        convolve_as_matmul()
        assert convolution.allow_tf32 is allowed
    finally:
        convolution.allow_tf32, matmul.allow_tf32 = before

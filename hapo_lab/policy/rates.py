"""What a device can do: a product of matrices, and a copy in its memory, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hapo_lab.policy.models import compute_dtype


@dataclass(frozen=True)
class Rates:
    """Of a device, in the dtype that models compute in there."""

    flops: float
    """Floating-point operations per second, in a product of two square matrices."""
    bytes_per_second: float
    """Read and written, in a copy."""


def measured(device: torch.device, size: int | None = None) -> Rates:
    """By matrices of size x size: a second's work. Default: 8192 on a GPU, 1024 elsewhere."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(size, size, device=device, dtype=compute_dtype(device))
    return Rates(2 * size**3 / _shortest(lambda: a @ a, device), 2 * a.nbytes / _shortest(a.clone, device))


def _shortest(what: Callable[[], object], device: torch.device) -> float:
    """Seconds, of ten tries."""
    taken = []
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        what()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""A device's measured rates, and its computing dtype."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from hapo_lab.policy.threads import SMALL

DTYPES = ("float32", "bfloat16", "float16")
WORTH = 1.5
"""How many times as fast as float32 a CPU must multiply bfloat16, for models to compute in it."""


@dataclass(frozen=True)
class Rates:
    """A device's rates."""

    flops: float
    """Floating-point operations per second, in a product of two square matrices of one dtype."""
    bytes_per_second: float
    """Read and written, in a copy that no cache holds."""


def measured(device: torch.device, dtype: torch.dtype, size: int | None = None) -> Rates:
    """A second's work. `size`: rows and columns of the matrices; by default 8192 on a GPU, 1024 elsewhere."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(size, size, device=device, dtype=dtype)
    return Rates(2 * size**3 / _shortest(lambda: a @ a, device), copied(device))


def copied(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy into memory that is there already: new pages take far longer than bytes."""
    source, target = torch.ones(2, COPIED // 4, device=device)
    return 2 * source.nbytes / _shortest(lambda: target.copy_(source), device)


COPIED = 2**27
"""Bytes, in float32: more than a cache holds."""


def compute_dtype(device: torch.device, hidden: int) -> torch.dtype:
    """The default computing dtype of a model of this hidden size. LoRA, log-probabilities and optimizer are always float32.

    GPU: bfloat16 where the hardware has it, else float16. CPU: bfloat16 where that is `WORTH` while; float32 elsewhere, and for
    a small model, whose figures are then the same on all machines. $HAPO_LAB_DTYPE overrides it.
    """
    if asked := os.environ.get("HAPO_LAB_DTYPE"):
        return dtype_of(asked, "HAPO_LAB_DTYPE")
    if device.type != "cuda":
        return torch.bfloat16 if hidden > SMALL and bfloat16_gain() >= WORTH else torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def dtype_of(name: str, what: str = "dtype") -> torch.dtype:
    """By name; ValueError, about `what`, unless models can compute in it."""
    if name not in DTYPES:
        raise ValueError(f"{what} is {name!r}; choose one of {', '.join(DTYPES)}.")
    return getattr(torch, name)


@cache
def bfloat16_gain() -> float:
    """How many times as fast as float32 this CPU multiplies bfloat16: a pass of 512 tokens through a layer of SmolLM2's."""
    def seconds(dtype: torch.dtype) -> float:
        tokens, weights = torch.ones(512, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        return _shortest(lambda: torch.nn.functional.linear(tokens, weights), torch.device("cpu"))

    return seconds(torch.float32) / seconds(torch.bfloat16)


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

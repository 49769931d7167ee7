"""What the C library's allocator is told. glibc has both calls; where another library has none, nothing happens."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache

MMAP_THRESHOLD = -3  # the name of the parameter, in glibc's malloc.h
APART = 2**20
"""Bytes from which a tensor lies apart: a layer's smallest one, of a thousand tokens, is as large."""


def give_back() -> None:
    """Return freed memory to the system: glibc would keep it, a quarter of a GiB after SmolLM2 is loaded."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@cache
def large_tensors_apart() -> None:
    """From now on a large tensor's memory goes back to the system when the tensor goes.

    torch asks for aligned memory, and glibc can't serve that from a hole of the same size. So a pass that frees and makes the
    same tensors layer by layer would hold nearly as much as one that keeps them all. The system clears each page that it
    hands out, which takes a third of such a pass's time.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, APART)
    give_back()

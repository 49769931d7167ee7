"""The number of the processor's threads that a policy computes with.

Threads that share a product of matrices wait for each other at its end. Beside another busy process one of them may have to
wait for its turn on the processor, and all others with it. A model of small matrices spends most of a step waiting, so it
computes on one thread. A larger one keeps its threads, and they spin only for a moment (`GOMP_SPINCOUNT`, set in
`hapo_lab/__init__.py`). `benchmarks/neighbour.py` prints what both choices cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedConfig

SMALL = 256
"""Hidden size up to which a model computes on one thread."""


def worth_threads(config: PreTrainedConfig) -> int:
    """One for a small model; for others as many as torch was given."""
    return 1 if config.get_text_config().hidden_size <= SMALL else torch.get_num_threads()


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """So many threads within, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""A function, told by what it gives: its numbers in some cases, compared with the right ones and with known slips'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hapo_lab.notebook.marking import UNWRITTEN, Mark, is_open, plain

Trace = dict[str, np.ndarray]
"""What a function gave in each case, by the case's name."""
Slips = Sequence[tuple[Callable, str]]
"""Wrong functions, each with the misconception behind it."""
NOTHING = np.empty(0)
"""What a function gives that returns nothing."""


def numbers(value: Any) -> np.ndarray:
    """A tensor, array, list or number as float64; NOTHING for a `...`."""
    return NOTHING if is_open(value) else plain(value)


def marked(answer: Callable, trace: Callable[[Callable], Trace], right: Callable, slips: Slips, well: str) -> Mark:
    """`trace` runs a function on the cases. A wrong one that agrees with a slip in all of them shows that misconception."""
    with np.errstate(all="ignore"):
        given, wanted = trace(answer), trace(right)
        if not any(value.size for value in given.values()):
            return UNWRITTEN
        if (case := _difference(given, wanted)) is None:
            return Mark(True, well)
        says = next((says for slip, says in slips if _difference(given, trace(slip)) is None), None)
    return Mark(False, says or f"{case}: yours gives {_shown(given[case])}; it should be {_shown(wanted[case])}")


def _shown(found: np.ndarray) -> str:
    return "nothing" if not found.size else np.array2string(found, precision=4, threshold=12, suppress_small=True)


def _difference(given: Trace, wanted: Trace) -> str | None:
    """The first case in which they differ."""
    return next((case for case, value in wanted.items() if given[case].shape != value.shape
                 or not np.allclose(given[case], value, rtol=1e-5, atol=1e-6, equal_nan=True)), None)

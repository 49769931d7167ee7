"""How an exercise is marked: an answer in any form, against the right one and against misconceptions.

A check never raises. `exercises.py` hands them to the lessons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import wraps
from traceback import extract_tb
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch


@dataclass(frozen=True)
class Mark:
    """A check's result. `right` is None if there is no answer yet."""

    right: bool | None
    says: str

    def __repr__(self) -> str:
        return {True: "✓ Right: ", False: "✗ Not yet: ", None: "… "}[self.right] + " ".join(self.says.split())


class Told(Exception):
    """Raised by a check: its text is what the reader is told."""


UNANSWERED = Mark(None, "write your answer above")
UNWRITTEN = Mark(None, "your function returns nothing yet")
_EXERCISES: dict[str, Callable[..., Mark]] = {}


def exercises() -> list[str]:
    """Their names."""
    return list(_EXERCISES)


def exercise(check: Callable[..., Mark]) -> Callable[..., Mark]:
    """Register a check, made `safe`."""
    _EXERCISES[check.__name__] = safe(check)
    return _EXERCISES[check.__name__]


def safe(check: Callable[..., Mark]) -> Callable[..., Mark]:
    """A check whose own errors never reach the reader."""
    @wraps(check)
    def never_raises(answer: Any = ...) -> Mark:
        try:
            return UNANSWERED if is_open(answer) else check(answer)
        except Told as told:
            return Mark(False, str(told))
        except Exception as error:
            return Mark(False, f"this answer can't be read ({_trouble(error, answer)}); wanted: {check.__doc__}")
    return never_raises


def _trouble(error: Exception, answer: object) -> str:
    """What went wrong, and in a function of the reader's where: its cell shows no traceback."""
    if isinstance(answer, str):
        return "it is a text, in quotation marks"
    file = getattr(getattr(answer, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
    return f"{type(error).__name__}: {error}" + (f", in line {lines[-1]} of its cell" if lines else "")


def is_open(answer: object) -> bool:
    """Whether an answer, or a part of it, is missing."""
    return any(part is ... or part is None for part in (answer if isinstance(answer, tuple | list) else [answer]))


def number(answer: Any, right: Any, wrongs: Sequence[tuple[Any, str]], well: str, hint: str, tolerance: float = 0.01) -> Mark:
    """An answer that is a number, or several; `wrongs` pairs a wrong one with the misconception behind it.

    It may be off by `tolerance`, in parts of the right one, or be rounded to two digits. At 0 it is a whole number.
    """
    given = plain(answer)
    if given.size != plain(right).size:
        return Mark(False, f"{_count(given)}; wanted: {_count(plain(right))}. {hint}")

    def agree(value: Any) -> list[bool]:
        return [bool(np.isclose(x, y, rtol=tolerance, atol=1e-6) or (tolerance and np.isclose(x, float(f"{y:.1e}"), rtol=1e-9)))
                for x, y in zip(given.flat, plain(value).flat, strict=True)]
    hits = agree(right)
    if all(hits):
        return Mark(True, well)
    in_percent = [(100 * plain(right), "that is it in percent: say it as a fraction of 1")] if tolerance else []
    if says := next((says for value, says in [*wrongs, *in_percent] if all(agree(value))), None):
        return Mark(False, says)
    if any(hits):
        return Mark(False, f"the {'first' if hits[0] else 'second'} of the two is right. {hint}")
    near = ", but near: compute it exactly" if tolerance and np.allclose(given, plain(right), rtol=0.05, atol=0) else ""
    return Mark(False, f"{answer} is not it{near}. {hint}")


def function(answer: Any, right: Callable, cases: Sequence[tuple], wrongs: Sequence[tuple[Callable, str]], well: str,
             show: Callable[[np.ndarray], Any] = lambda numbers: np.round(numbers, 4)) -> Mark:
    """An answer that is a function of numbers or lists of them, for which arrays and tensors will do as well.

    A wrong one that agrees with it on all cases names the misconception. `show` writes what it gives in a case.
    """
    with np.errstate(all="ignore"), catch_warnings():
        simplefilter("ignore")  # an array's function may grumble about a tensor
        found = list(_results(answer, cases))
        if all(is_open(value) for value in found[0]):
            return UNWRITTEN
        unsaid = [is_open(value) for value in found[0]]
        found = [[plain(value) for value in values] for values in found]
        for formula, mark in ((right, Mark(True, well)), *((formula, Mark(False, says)) for formula, says in wrongs)):
            wanted = [plain(formula(*case)) for case in cases]
            if any(all(map(_alike, values, wanted)) for values in found):
                return mark
        given, wanted = found[0], [plain(right(*case)) for case in cases]
    i = next(i for i, pair in enumerate(zip(given, wanted, strict=True)) if not _alike(*pair))
    case = ", ".join(f"{x}" for x in cases[i])
    return Mark(False, f"for ({case}) yours gives {'nothing' if unsaid[i] else show(given[i])}; it should be {show(wanted[i])}")


def _count(given: np.ndarray) -> str:
    return "one number" if given.size == 1 else f"{given.size} numbers"


def plain(value: Any) -> np.ndarray:
    """Its numbers as float64, whatever holds them: a list, an array, a tensor, fractions."""
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, float)


def _results(answer: Callable, cases: Sequence[tuple]) -> Iterator[list]:
    """What a function makes of all cases, for each form of its arguments that it takes; at least one, or its error.

    It gets copies: what it does to a list is not done to the case.
    """
    errors = []
    for form in (copy, plain, lambda x: torch.from_numpy(np.atleast_1d(plain(x))).reshape(np.shape(x))):
        try:
            yield [answer(*map(form, case)) for case in cases]
        except Exception as error:
            errors.append(error)
    if len(errors) == 3:
        raise errors[0]


def _alike(given: np.ndarray, wanted: np.ndarray) -> bool:
    return given.size == wanted.size and bool(
        np.allclose(given.reshape(wanted.shape), wanted, rtol=2e-5, atol=1e-6, equal_nan=True))


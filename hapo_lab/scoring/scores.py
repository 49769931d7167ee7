"""Scores of answers: avg@k, the unbiased pass@k, lengths and cuts, by source, with intervals over problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from hapo_lab.training.intervals import interval_over_problems

ALL = "all"
"""The source of the row over all problems."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Answers:
    """A model's answers: three (problems, samples) arrays."""

    model: str
    sources: tuple[str, ...]
    """The source of each problem."""
    correct: np.ndarray
    """Whether each answer is right, and not cut."""
    tokens: np.ndarray
    """The length of each answer, its end included."""
    finished: np.ndarray
    """False: cut at the length limit."""


@dataclass(frozen=True)
class Score:
    """A model's answers to the problems of one source."""

    model: str
    source: str
    problems: int
    samples: int
    """Of each problem."""
    passes: dict[int, Estimate]
    """k -> pass@k with its 95% interval over problems, k being the powers of two up to `samples`."""
    length: float
    """Mean tokens."""
    cut: float
    """Share of answers that were cut at the length limit."""

    @property
    def average(self) -> Estimate:
        """avg@k of all k samples: the mean share of right answers. Being unbiased, pass@1 is the same number."""
        return self.passes[1]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimate of the probability that at least one of k answers is right (Chen et al., 2021,
    arXiv 2107.03374): 1 - C(samples - right, k) / C(samples, k).

    ValueError unless 1 <= k <= samples.

    >>> pass_at_k(samples=4, right=1, k=1), pass_at_k(samples=4, right=1, k=2), pass_at_k(samples=4, right=1, k=4)
    (0.25, 0.5, 1.0)
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} can't be told from {samples} samples: take k from 1 to {samples}.")
    return (comb(samples, k) - comb(samples - right, k)) / comb(samples, k)  # whole numbers: rounded once


def score(answers: Answers) -> list[Score]:
    """A model's score per source, in their order, and last over all problems, with equal weights."""
    sources = np.array(answers.sources)
    return [_score(answers, source, sources == source) for source in dict.fromkeys(answers.sources)] + [
        _score(answers, ALL, np.ones(len(sources), dtype=bool))]


def _score(answers: Answers, source: str, chosen: np.ndarray) -> Score:
    right = answers.correct[chosen].sum(1)
    samples = answers.correct.shape[1]
    passes = {k: _mean(np.array([pass_at_k(samples, int(s), k) for s in right])) for k in powers(samples)}
    return Score(answers.model, source, len(right), samples, passes, float(answers.tokens[chosen].mean()),
                 float(1 - answers.finished[chosen].mean()))


def powers(samples: int) -> list[int]:
    """Of two, from 1 up to `samples`."""
    return [2**i for i in range(samples.bit_length())]


def _mean(rates: np.ndarray) -> Estimate:
    return Estimate(float(rates.mean()), *interval_over_problems(rates))


def table(scores: Sequence[Score]) -> list[str]:
    """Markdown: a row per model and source."""
    k = scores[0].samples
    passes = list(scores[0].passes)
    heads = ["model", "source", "problems", "samples", f"avg@{k} [95%]", *(f"pass@{k}" for k in passes), "length, tokens",
             "cut"]
    rows = [[s.model, s.source, s.problems, s.samples, s.average, *(f"{s.passes[k].value:.3f}" for k in passes),
             f"{s.length:.1f}", f"{s.cut:.3f}"] for s in scores]
    return [_row(heads), "|---" * len(heads) + "|", *map(_row, rows)]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"


def records(scores: Sequence[Score]) -> list[dict[str, object]]:
    """The same for a CSV file, and the intervals of pass@k too: a dict per row."""
    found: list[dict[str, object]] = []
    for s in scores:
        means = {f"avg@{s.samples}": s.average} | {f"pass@{k}": estimate for k, estimate in s.passes.items()}
        found.append({"model": s.model, "source": s.source, "problems": s.problems, "samples": s.samples} | {
            f"{name}{end}": value for name, e in means.items()
            for end, value in (("", e.value), ("_low", e.low), ("_high", e.high))} | {"length": s.length, "cut": s.cut})
    return found

"""Statistics over seeds: interquartile means, probabilities of improvement and profiles, with intervals.

By `rliable` (Agarwal et al., 2021, arXiv 2108.13264): in its stratified bootstrap a method's seeds are drawn anew within each
task. It is optional: `pip install "hapo_lab[compare]"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import numpy as np
from scipy import stats

from hapo_lab.experiments.outcomes import HELD_OUT, Outcome, by_method
from hapo_lab.scoring.scores import Estimate

RESAMPLES = 2000
FALSE = 0.05
"""The chance of a false verdict in a whole column of a table, or in all columns of a table of splits."""


def scores(found: Sequence[Outcome], split: str = HELD_OUT) -> dict[str, np.ndarray]:
    """Method's name -> (seeds, tasks) success. A method's seeds are those that finished all of its tasks. Once test problems
    have been examined, unexamined runs are left out.
    """
    looked = any(o.test for o in found)
    return _by_seed([o for o in found if not looked or split in o.test], lambda o: o.success(split))


def spent(found: Sequence[Outcome], axis: str) -> dict[str, np.ndarray]:
    """Method's name -> (seeds, tasks) of what a whole run spends, by an axis of `AXES`."""
    return _by_seed(found, lambda o: float(o.budget(axis)[-1]))


def _by_seed(found: Sequence[Outcome], measure: Callable[[Outcome], float]) -> dict[str, np.ndarray]:
    tasks, table = list(dict.fromkeys(o.task for o in found if o.finished)), {}
    for name, mine in by_method(found):
        cells = {(o.seed, o.task): measure(o) for o in mine}
        rows = [[cells[seed, task] for task in tasks] for seed in dict.fromkeys(o.seed for o in mine)
                if all((seed, task) in cells for task in tasks)]
        if rows:
            table[name] = np.array(rows)
    return table


def interquartile_means(table: dict[str, np.ndarray]) -> dict[str, Estimate]:
    """Of each method: the mean of the middle half of all its (seed, task) scores, with a 95% interval."""
    return _estimates(_rliable(), table, lambda x: np.array([middle_mean(x)]))


def middle_mean(scores: np.ndarray) -> float:
    """The mean of the middle half: what rliable's `aggregate_iqm` gives, in a third of the time.

    >>> middle_mean(np.array([[0.0, 0.4], [0.6, 9.0]]))
    0.5
    """
    cut = scores.size // 4
    return float(np.partition(scores.ravel(), (cut, scores.size - cut - 1))[cut:scores.size - cut].mean())


def improvements(table: dict[str, np.ndarray], over: str, tables: int = 1) -> dict[str, Estimate]:
    """P(a run of the method beats one of `over`), averaged over tasks, a tie counting half, for each other method.

    The intervals hold together at 95%: with m other methods each has the level 1 - 0.05 / m (Bonferroni); if `tables` are
    read side by side, 1 - 0.05 / (m * tables).
    """
    pairs = {name: (mine, table[over]) for name, mine in table.items() if name != over}
    return _estimates(_rliable(), pairs, lambda x, y: np.array([wins(x, y)]), len(pairs) * tables)


def wins(x: np.ndarray, y: np.ndarray) -> float:
    """The share of pairs of a run of x and one of y, on the same task, that x wins, a tie counting half. (seeds, tasks) each.

    What rliable's `probability_of_improvement` gives, in a fiftieth of the time: a table asks for it some 50,000 times.

    >>> wins(np.array([[0.9], [0.5]]), np.array([[0.5], [0.1]]))
    0.875
    """
    return float(np.mean((x[:, None] > y) + (x[:, None] == y) / 2))


def enough(runs: int, others: int = 1) -> bool:
    """Whether this number of runs per side can differ at all, in one of `others` comparisons.

    A bootstrap of runs that do not overlap has no width at all, however few they are. The rank test then has
    p = 2 / C(2 runs, runs), of four against four 2 / 70.

    >>> enough(3), enough(4), enough(4, others=11), enough(10, others=11)
    (False, True, False, True)
    """
    return 2 / comb(2 * runs, runs) < FALSE / others


def verdict(improvement: Estimate, runs: int, others: int = 1) -> str:
    """The verdict that the interval supports, in words. `runs`: of the smaller side; `others`: see `enough`."""
    if not enough(runs, others):
        return "too few runs"
    return "better" if improvement.low > 0.5 else "worse" if improvement.high < 0.5 else "not told apart"


def verdicts(table: dict[str, np.ndarray], over: str, tables: int = 1) -> dict[str, tuple[Estimate, str]]:
    """Each other method's `improvements` and verdict; {} if `over` has no runs."""
    won = improvements(table, over, tables) if over in table else {}
    return {name: (estimate, verdict(estimate, min(len(table[name]), len(table[over])), len(won) * tables))
            for name, estimate in won.items()}


def savings(table: dict[str, np.ndarray], over: str) -> dict[str, str]:
    """Of each other method, from `spent`: whether its runs spend "less" than those of `over`, "more", or are "not told apart";
    as `verdicts` does."""
    words = {"better": "less", "worse": "more"}
    return {name: words.get(word, word) for name, (_, word) in verdicts({n: -x for n, x in table.items()}, over).items()}


def profiles(table: dict[str, np.ndarray], levels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each method: (levels,) the share of its runs above each level, and the (2, levels) interval of that share."""
    values, intervals = _intervals(_rliable(), table, lambda x: (x[..., None] > levels).mean((0, 1)))
    return {name: (values[name], intervals[name]) for name in table}


def median_to(found: Sequence[Outcome], level: float, axis: str) -> float:
    """The median of what runs of one method spend until they reach a level of validation success; inf if fewer than half do.

    A run that never reaches it is censored at its end. All end after the same number of steps, so it would have taken more of
    them than any run that did, and it counts as dearer on every axis. Where the number of runs is even: the lower median.
    """
    spent = sorted(cost if reached else np.inf for cost, reached in (o.reached(level, axis) for o in found))
    return float(spent[(len(spent) - 1) // 2])


def band(rows: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points,) mean of some runs' curves, and its 95% interval over runs: Student's t."""
    values = np.array(rows, dtype=float)
    mean, runs = values.mean(0), len(values)
    half = stats.t.ppf(0.975, runs - 1) * values.std(0, ddof=1) / runs ** 0.5 if runs > 1 else np.full(mean.shape, np.nan)
    return mean, mean - half, mean + half


def _estimates(library: Any, table: dict, measure: Any, comparisons: int = 1) -> dict[str, Estimate]:
    values, intervals = _intervals(library, table, measure, 1 - FALSE / max(comparisons, 1))
    return {name: Estimate(float(values[name][0]), *map(float, intervals[name][:, 0])) for name in table}


def _intervals(library: Any, table: dict, measure: Any, size: float = 1 - FALSE) -> tuple[dict, dict]:
    """rliable 1.2.0 resamples by numpy's global generator, whatever random state it is given: so that one is seeded, and put
    back."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        return library.get_interval_estimates(table, measure, reps=RESAMPLES, confidence_interval_size=size)
    finally:
        np.random.set_state(before)


def _rliable() -> Any:
    try:
        from rliable import library
    except ImportError:
        raise ValueError('rliable is not installed: python -m pip install "hapo_lab[compare]".') from None
    return library

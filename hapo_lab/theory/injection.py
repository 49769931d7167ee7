"""The probability that a gate injects if the policy succeeds at a rate mu: exact, and by two classical bounds.

    P(inject | mu) = sum over S of Binomial(S; N, mu) P(inject | S)

The paper's Theorem 4.2 says, by a reader's account, that it goes to 0 as the policy improves. With N fixed it does so only if
mu itself goes to 1. All gates but `BetaGate` are this kit's, to compare. The policy is fixed here: each visit of the prompt
draws S from Binomial(N, mu).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from math import ceil, comb, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from hapo_lab.gate import BetaGate, as_written
from hapo_lab.gates import (
    AlwaysGate,
    Gate,
    HardGate,
    MemorylessGate,
    NeverGate,
    RunningGate,
    StepAnnealedGate,
    SuccessAnnealedGate,
    ThompsonGate,
)

LARGEST_GROUP = 1024
"""N + 1 outcomes are summed, with binomial coefficients that a float64 still holds."""
MOST_STATES = 10_000
"""Histories of a gate's memory that are told apart."""
MOST_CELLS = 2 * 10**8
"""Grid cells that a bracket may visit: some seconds."""


def binomial_pmf(trials: int, success: ArrayLike, failure: ArrayLike | None = None) -> np.ndarray:
    """P(S = 0), ..., P(S = N) along a new last axis, each to a few units of the last place.

    `failure` is 1 - success, for callers that know it to more digits than the subtraction leaves.
    Written as a square, so that no power underflows before the coefficient has met it.
    """
    s = np.arange(trials + 1)
    mu = np.asarray(success, dtype=float)[..., None]
    fail = 1 - mu if failure is None else np.asarray(failure, dtype=float)[..., None]
    return (_roots(trials) * mu ** (s / 2) * fail ** ((trials - s) / 2)) ** 2


def binomial_cdf(k: ArrayLike, trials: ArrayLike, success_rate: ArrayLike) -> np.ndarray:
    """P(Binomial(trials, success_rate) <= k), elementwise, float64; 0 for k < 0 and 1 for k >= trials."""
    k, n, mu = np.broadcast_arrays(k, trials, np.asarray(success_rate, dtype=float))
    inside = (k >= 0) & (k < n)
    tail = special.betaincc(np.where(inside, k, 0) + 1, np.where(inside, n - k, 1), mu)
    return np.where(inside, tail, (k >= n).astype(float))


def injection_chances(success_rate: ArrayLike, trials: int, gate: Gate, visit: int = 1) -> np.ndarray:
    """P(inject | S) for S = 0..N along a new last axis, exactly, at a prompt's `visit`-th visit (from 1).

    For a gate with memory it is the mean over all histories of earlier visits, with one group per step. For
    `StepAnnealedGate` the visit is the step. Any other gate is asked for every history with a distinct state.

    Raises
    ------
    ValueError
        A rate outside [0, 1], an impossible N or visit, a discount below 1 (see `injection_bracket`), too many histories.
    """
    mu, n = _rates(success_rate), group_size(trials)
    if visit != int(visit) or visit < 1:
        raise ValueError(f"purity: visit {visit}; visits are counted from 1, in whole numbers.")
    return np.broadcast_to(_KNOWN.get(type(gate), _over_histories)(gate, mu, n, visit), (*mu.shape, n + 1))


def _over_histories(gate: Gate, mu: np.ndarray, n: int, visit: int) -> np.ndarray:
    """Equal states are counted together, so a gate without memory has one history."""
    pmf = np.moveaxis(binomial_pmf(n, mu), -1, 0)
    states: list[tuple[dict, np.ndarray]] = [({}, np.ones(mu.shape))]
    for _ in range(visit - 1):
        after: dict[str, tuple[dict, np.ndarray]] = {}
        for state, weight in states:
            for s in range(n + 1):
                new = gate.decide(state, [""], [s], [n], [0.5])[2]
                known = after.get(name := json.dumps(new, sort_keys=True), (new, 0.0))
                after[name] = new, known[1] + weight * pmf[s]
        if len(after) > MOST_STATES:
            raise ValueError(f"purity: {gate} remembers so much that {visit} visits have more than {MOST_STATES:,} histories: "
                             "ask for an earlier visit, or smaller groups.")
        met = list(after.values())
        if len(states) == len(met) == 1 and states[0][0] == met[0][0]:
            break  # it remembers nothing more
        states = met
    return sum(weight[..., None] * gate.chances(state, "", n).numpy() for state, weight in states)


def _memoryless(gate: BetaGate | MemorylessGate, mu: np.ndarray, n: int, visit: int) -> np.ndarray:
    return _of_its_own_group(gate, n)


def _by_step(gate: StepAnnealedGate, mu: np.ndarray, n: int, visit: int) -> np.ndarray:
    return gate.chances({"step": visit - 1}, "", n).numpy()


def _running(gate: RunningGate, mu: np.ndarray, n: int, visit: int) -> np.ndarray:
    """At a discount of 1 the successes of earlier visits are Binomial((visit - 1) N, mu)."""
    if gate.discount != 1 and visit > 1:
        raise ValueError(f"purity: with a discount of {gate.discount} only bounds are known: use injection_bracket.")
    return binomial_cdf(gate.cutoff(visit * n) - np.arange(n + 1), (visit - 1) * n, mu[..., None])


def _by_success(gate: SuccessAnnealedGate, mu: np.ndarray, n: int, visit: int) -> np.ndarray:
    s, total = np.arange(n + 1), min(visit, gate.window) * n
    last = (_falling_cutoffs(gate, n, total) >= s[:, None]).sum(1) - 1  # successes in the window up to which S injects
    return binomial_cdf(last - s, total - n, mu[..., None])


_KNOWN: dict[type, Callable[..., np.ndarray]] = {
    **dict.fromkeys((BetaGate, ThompsonGate, HardGate, NeverGate, AlwaysGate), _memoryless),
    StepAnnealedGate: _by_step, RunningGate: _running, SuccessAnnealedGate: _by_success}
"""Gates whose histories need not be walked through, by their exact class: one derived from it may decide otherwise."""


def injection_probability(success_rate: ArrayLike, trials: int, gate: Gate, visit: int = 1) -> np.ndarray:
    """P(inject | mu) at a prompt's `visit`-th visit, exact, in the shape of `success_rate`; see `injection_chances`.

    All terms of the sum are positive, so its relative error stays below 1e-12.

    Examples
    --------
    >>> from hapo_lab.gate import BetaGate
    >>> injection_probability([.5, .9, 1], 8, BetaGate()).round(4).tolist()
    [0.9648, 0.1869, 0.0]
    """
    chances = injection_chances(success_rate, trials, gate, visit)
    return (binomial_pmf(trials, success_rate) * chances).sum(-1)


def injection_bracket(success_rate: ArrayLike, trials: int, gate: Gate, visit: int = 1,
                      cells: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) with lower <= P(inject | mu) <= upper, for every gate; they are equal if the value is exact.

    With a discount below 1 the running sum s = discount s + S has too many values to count. It is followed on a grid
    of 1/`cells` of a success: rounded up it is never less than the true one, and a larger s injects less often, which
    gives the lower end; rounded down, the upper. The width falls as 1/cells. (Rigorous but for the arithmetic's own
    rounding, about 1e-13 of the value.)
    """
    if not (type(gate) is RunningGate and gate.discount != 1 and visit > 1):
        exact = injection_probability(success_rate, trials, gate, visit)
        return exact, exact
    mu, n = _rates(success_rate), group_size(trials)
    if cells < 1 or cells != int(cells):
        raise ValueError(f"purity: a success is cut into {cells} cells; it must be a whole number, at least 1.")
    discount = as_written(gate.discount)
    cost = mu.size * visit * (n + 1) * n * cells * min(visit, 1 / (1 - float(discount)))
    if cost > MOST_CELLS:
        raise ValueError(f"purity: this bracket would visit {cost:.0e} grid cells, and {MOST_CELLS:.0e} take seconds: "
                         "ask for fewer cells, visits or success rates.")
    weight = (1 - discount**visit) / (1 - discount)  # of all visits, in visits
    last = ceil(gate.bound(weight * n) * cells) - 1  # the last grid cell that injects
    ends = [[_below(last, n, m, discount, visit, cells, up) for m in mu.flat] for up in (True, False)]
    lower, upper = (np.reshape(end, mu.shape) for end in ends)
    return lower, upper


def hoeffding_bound(success_rate: ArrayLike, trials: int, gate: Gate, visit: int = 1) -> np.ndarray:
    """P(S <= k) <= exp(-2 n (mu - k/n)^2) where mu > k/n, else 1; k the cutoff of n trials."""
    mu, (k, n) = _rates(success_rate), _count_cutoff(gate, trials, visit)
    return np.where(mu > k / n, np.exp(-2 * n * (mu - k / n) ** 2), 1.0) * (k >= 0)


def chernoff_bound(success_rate: ArrayLike, trials: int, gate: Gate, visit: int = 1) -> np.ndarray:
    """P(S <= k) <= exp(-n KL(k/n || mu)) where mu > k/n, else 1; KL between coins, in nats."""
    mu, (k, n) = _rates(success_rate), _count_cutoff(gate, trials, visit)
    x = min(max(k / n, 0), 1)
    divergence = special.rel_entr(x, mu) + special.rel_entr(1 - x, 1 - mu)
    return np.where(mu > x, np.exp(-n * divergence), 1.0) * (k >= 0)


def purity_horizon(target: float, trials: int, gate: Gate, how: str = "exact", visit: int = 1) -> float:
    """The success rate above which P(inject | mu), or a bound on it, is at most `target`.

    `how` is "exact" (for a bracket its upper end), "hoeffding" or "chernoff". NaN: there is none.

    Examples
    --------
    >>> from hapo_lab.gate import BetaGate
    >>> [round(purity_horizon(.01, 8, BetaGate(), how), 4) for how in ("exact", "chernoff", "hoeffding")]
    [0.9803, 0.9891, nan]
    """
    curves = {"exact": lambda *a: injection_bracket(*a)[1], "hoeffding": hoeffding_bound, "chernoff": chernoff_bound}
    if how not in curves:
        raise ValueError(f"purity: the horizon of {how!r} is not known; choose one of {', '.join(curves)}.")
    if not 0 < target < 1:
        raise ValueError(f"purity: the target is {target}; it must lie between 0 and 1, such as 0.01.")

    def excess(mu: float) -> float:
        return float(curves[how](mu, trials, gate, visit)) - target

    if excess(0.0) <= 0:
        return 0.0
    return optimize.brentq(excess, 0.0, 1.0, xtol=1e-15) if excess(1.0) <= 0 else float("nan")


def group_size(trials: int, smallest: int = 1) -> int:
    """`trials` as an int; ValueError unless it is a whole number from `smallest` to `LARGEST_GROUP`."""
    if trials != int(trials) or not smallest <= trials <= LARGEST_GROUP:
        raise ValueError(f"purity: a group of {trials} rollouts; it must be a whole number from {smallest} to {LARGEST_GROUP} "
                         "(the cost of exactness: every outcome is summed).")
    return int(trials)


def _below(last: int, n: int, mu: float, discount: Fraction, visit: int, cells: int, up: bool) -> float:
    """P(the rounded sum's cell <= last) after `visit` visits."""
    pmf = binomial_pmf(n, mu)
    grid: np.ndarray = np.ones(1)
    for _ in range(visit):
        numerator, denominator = np.arange(len(grid)) * discount.numerator, discount.denominator
        grid = np.bincount(-(-numerator // denominator) if up else numerator // denominator, weights=grid)
        old, grid = grid, np.zeros(len(grid) + n * cells)
        for s in range(n + 1):
            grid[s * cells:s * cells + len(old)] += pmf[s] * old
    return grid[:last + 1].sum() if last >= 0 else 0.0


def count_cutoff(gate: Gate, trials: int, visit: int = 1) -> tuple[int, int] | None:
    """(k, n) if the gate injects where n draws hold at most k successes, which the bounds speak of; None if not so."""
    if type(gate) is RunningGate and gate.discount == 1:
        return gate.cutoff(visit * group_size(trials)), visit * trials
    try:
        chances = injection_chances([0.3, 0.7], trials, gate, visit)
    except ValueError:
        return None
    k = int(chances[0].sum()) - 1
    return (k, trials) if (chances == (np.arange(trials + 1) <= k)).all() else None


def _count_cutoff(gate: Gate, trials: int, visit: int) -> tuple[int, int]:
    group_size(trials)
    if (found := count_cutoff(gate, trials, visit)) is None:
        raise ValueError(f"purity: {gate} does not compare one binomial count with a cutoff, so these bounds say nothing "
                         "of it: use injection_bracket.")
    return found


@lru_cache(maxsize=16)
def _of_its_own_group(gate: BetaGate | MemorylessGate, trials: int) -> np.ndarray:
    return gate.chances({}, "", trials).numpy()


@lru_cache(maxsize=16)
def _roots(trials: int) -> np.ndarray:
    return np.array([sqrt(comb(trials, s)) for s in range(trials + 1)])


@lru_cache(maxsize=16)
def _falling_cutoffs(gate: SuccessAnnealedGate, trials: int, total: int) -> np.ndarray:
    return np.array([gate.cutoff_at(Fraction(seen, total), trials) for seen in range(total + 1)])


def _rates(success_rate: ArrayLike) -> np.ndarray:
    mu = np.asarray(success_rate, dtype=float)
    if not ((mu >= 0) & (mu <= 1)).all():
        raise ValueError("purity: a success rate lies outside [0, 1].")
    return mu

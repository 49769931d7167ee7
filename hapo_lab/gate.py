"""The Beta gate: when has a group failed badly enough to be shown the teacher?

    posterior of a prompt's success   Beta(a0 + S, b0 + N - S)
    its mean                          c = (a0 + S) / (a0 + b0 + N)
    decision                          inject  <=>  c < gamma        (strict)

S counts the successes among the N rollouts of a group, Beta(a0, b0) is the prior and gamma the
threshold. Defaults a0 = b0 = 1 and gamma = 0.8 are the paper's, by a reader's account. `BetaGate` is the
paper's gate; the others are this kit's, to compare it with: what would let the teacher really leave?
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, isfinite
from typing import Protocol

import numpy as np
import torch
from scipy import special


def as_written(number: float) -> Fraction:
    """The decimal that the user wrote: 0.8 is 4/5, not the binary double next to it."""
    return Fraction(number).limit_denominator(10**6)


@dataclass(frozen=True)
class BetaPosterior:
    """Beta(alpha, beta) over a success probability, elementwise over tensors of one shape (float64).

    Every method returns tensors of that shape (`pdf`, `cdf`: broadcast with their argument).
    """

    alpha: torch.Tensor
    beta: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """alpha / (alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def variance(self) -> torch.Tensor:
        """m (1 - m) / (alpha + beta + 1), with m the mean."""
        return self.mean * (1 - self.mean) / (self.alpha + self.beta + 1)

    @property
    def mode(self) -> torch.Tensor:
        """The density's peak; 0 or 1 where the density piles up there, NaN where no single point is the peak."""
        a, b = self.alpha, self.beta
        peak = torch.where((a > 1) & (b > 1), (a - 1) / (a + b - 2), (a > b).double())
        return torch.where((a < 1) & (b < 1) | (a == 1) & (b == 1), torch.nan, peak)

    def pdf(self, x: torch.Tensor | float) -> torch.Tensor:
        """Density at x in [0, 1]."""
        x = torch.as_tensor(x, dtype=torch.float64, device="cpu")
        log_density = (torch.special.xlogy(self.alpha - 1, x) + torch.special.xlog1py(self.beta - 1, -x)
                       - torch.lgamma(self.alpha) - torch.lgamma(self.beta) + torch.lgamma(self.alpha + self.beta))
        return log_density.exp()

    def cdf(self, x: torch.Tensor | float) -> torch.Tensor:
        """P(success probability <= x): the regularised incomplete beta function."""
        return self._special(special.betainc, torch.as_tensor(x, dtype=torch.float64, device="cpu").numpy())

    def interval(self, mass: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
        """The central interval that holds `mass` of the posterior, 0 < mass < 1."""
        if not 0 < mass < 1:
            raise ValueError(f"interval: mass is {mass}; it must lie between 0 and 1, such as 0.95.")
        tail = (1 - mass) / 2
        return self._special(special.betaincinv, tail), self._special(special.betaincinv, 1 - tail)

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """One draw an element, by inverting the cdf at a uniform number."""
        return self._special(special.betaincinv, torch.rand(self.alpha.shape, generator=generator, dtype=torch.float64).numpy())

    def _special(self, function, x) -> torch.Tensor:
        return torch.as_tensor(function(self.alpha.numpy(), self.beta.numpy(), x))


class Gate(Protocol):
    """What decides which of a step's groups are shown the teacher.

    A gate keeps nothing to itself. What it remembers is `state`: plain data for JSON, {} before the first step.
    """

    def decide(self, state: dict, keys: Sequence[str], successes: Sequence[int], trials: Sequence[int],
               uniforms: Sequence[float]) -> tuple[torch.Tensor, BetaPosterior, dict]:
        """One training step's decisions: a pure function, called once a step.

        Parameters
        ----------
        state : dict
            As the previous step returned it; it is not changed.
        keys, successes, trials : sequences, one entry a group
            The prompt's key; S and N of its sampled rollouts (demonstrations never count).
        uniforms : sequence of floats in [0, 1), one a group
            All the randomness that a gate may use.

        Returns
        -------
        decisions : (groups,) bool tensor
        posterior : BetaPosterior over (groups,)
            The belief that each decision was made with (of a gate that holds none: from a uniform prior, to look at).
        state : dict
            For the next step. Order: forget (discount), add this step's S, decide.
        """
        ...


class _MemorylessGate:
    """Decides from a group's own S and N; the state stays as it is."""

    def decide(self, state, keys, successes, trials, uniforms):
        return self.injects(successes, trials), self.posterior(successes, trials), state

    def posterior(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> BetaPosterior:
        """Beta(1 + S, 1 + N - S), only for looking at."""
        return BetaGate().posterior(successes, trials)


class _CutoffGate(_MemorylessGate):
    """Injects up to S = `cutoff(trials)`; below 0: never, at least `trials`: always."""

    def injects(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> torch.Tensor:
        """Whether each group is shown the teacher: bool, in the shape of the counts.

        `successes` and `trials` hold whole numbers 0 <= S <= N, N >= 1, in any dtype; ValueError otherwise.
        """
        s, n = _counts(successes, trials)
        sizes, which = n.unique(return_inverse=True)
        cutoffs = torch.tensor([self.cutoff(int(size)) for size in sizes], device=s.device)
        return s <= cutoffs[which]

    def chance(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> torch.Tensor:
        """P(inject | S): 0 or 1, float64, in the shape of the counts."""
        return _CutoffGate.injects(self, successes, trials).double()

    def injection_probability(self, success_rate: torch.Tensor | float, trials: int) -> torch.Tensor:
        """P(inject | mu) = P(Binomial(N, mu) <= cutoff), exact, float64, in the shape of `success_rate`."""
        mu = torch.as_tensor(success_rate, dtype=torch.float64, device="cpu")
        if not bool(((mu >= 0) & (mu <= 1)).all()):
            raise ValueError("gate: a success rate lies outside [0, 1].")
        return torch.as_tensor(binomial_cdf(self.cutoff(trials), trials, mu.numpy()))

    def ladder(self, trials: int) -> list[str]:
        """What happens at S = 0..N: "inject", "leave", or "erases".

        "erases" is an injection at S = N - 1: it takes the group's only failure, every reward becomes 1,
        every advantage 0, and the group teaches nothing.
        """
        k = self.cutoff(trials)
        return ["leave" if s > k else "erases" if s == trials - 1 else "inject" for s in range(trials + 1)]

    def can_close(self, trials: int) -> bool:
        """Whether a group of only successes is left alone: if not, the teacher can never leave."""
        return self.cutoff(trials) < trials


@dataclass(frozen=True)
class _BetaPrior:
    """Beta(alpha, beta) and a threshold, each the decimal that was written."""

    alpha: float = 1.0
    beta: float = 1.0
    threshold: float = 0.8

    def __post_init__(self):
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (isfinite(value) and as_written(value) > 0):
                raise ValueError(f"gate: the prior's {name} is {value}; it must be a positive number "
                                 "(at least 0.000001), such as 1.")
        if not (isfinite(self.threshold) and 0 < as_written(self.threshold) <= 1):
            raise ValueError(f"gate: the threshold is {self.threshold}; it must lie in (0, 1], such as 0.8.")

    @cached_property
    def _exact(self) -> tuple[Fraction, Fraction, Fraction]:
        return as_written(self.alpha), as_written(self.beta), as_written(self.threshold)

    def bound(self, trials: Fraction | int) -> Fraction:
        """(a0 + S) / (a0 + b0 + N) < gamma  <=>  S < bound = gamma (a0 + b0 + N) - a0, exactly."""
        a, b, gamma = self._exact
        return gamma * (a + b + trials) - a

    def posterior(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> BetaPosterior:
        """Beta(a0 + S, b0 + N - S), in the shape of the counts."""
        s, n = _counts(successes, trials)
        return BetaPosterior(self.alpha + s.double().cpu(), self.beta + (n - s).double().cpu())


@dataclass(frozen=True)
class BetaGate(_BetaPrior, _CutoffGate):
    """Inject where the posterior mean of a prompt's success is below a threshold.

    Parameters
    ----------
    alpha, beta : float > 0
        The prior Beta(alpha, beta): pseudo-counts of successes and failures.
    threshold : float in (0, 1]
        gamma. All three mean the decimal that was written, and ties are decided exactly.

    Raises
    ------
    ValueError
        A prior that is not positive, a threshold outside (0, 1].

    Examples
    --------
    >>> BetaGate().injects(torch.tensor([0, 6, 7]), 8)      # 0.1, 0.7 and, exactly, 0.8
    tensor([ True,  True, False])
    """

    def cutoff(self, trials: int) -> int:
        """The largest S that still injects, out of `trials`; below 0: none, at least `trials`: every one."""
        return ceil(self.bound(_size(trials))) - 1

    def injects(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> torch.Tensor:
        """As of every gate with a cutoff; a size at which this one can't close, or erases signals, is warned about once."""
        decisions = super().injects(successes, trials)
        for size in torch.as_tensor(trials).unique().tolist():
            self._warn_once(int(size))
        return decisions

    def _warn_once(self, trials: int) -> None:
        key = (self._exact, trials)
        if key in _warned or self.cutoff(trials) < trials - 1:
            return
        _warned.add(key)
        what = (f"injects at S = {trials - 1}, where it replaces the group's only failure: "
                "all advantages become 0 and the group teaches nothing")
        if not self.can_close(trials):
            what = "can never close: it injects even when every rollout is right"
        warnings.warn(f"{self} with groups of {trials} {what}. Lower the threshold, or choose a prior "
                      "with a smaller beta or larger groups.", stacklevel=3)


@dataclass(frozen=True)
class NeverGate(_CutoffGate):
    """Leaves every group alone."""

    def cutoff(self, trials: int) -> int:
        _size(trials)
        return -1


@dataclass(frozen=True)
class AlwaysGate(_CutoffGate):
    """Injects into every group, one of only successes included."""

    def cutoff(self, trials: int) -> int:
        return _size(trials)


@dataclass(frozen=True)
class HardGate(_CutoffGate):
    """Injects where the whole group failed."""

    def cutoff(self, trials: int) -> int:
        _size(trials)
        return 0


@dataclass(frozen=True)
class ThompsonGate(_BetaPrior, _MemorylessGate):
    """Inject where a draw from the posterior, not its mean, is below the threshold."""

    def chance(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> torch.Tensor:
        """P(inject | S) = P(Beta(a0 + S, b0 + N - S) < gamma), float64, in the shape of the counts."""
        return self.posterior(successes, trials).cdf(self.threshold)

    def decide(self, state, keys, successes, trials, uniforms):
        draw_is_below = torch.as_tensor(uniforms, dtype=torch.float64) < self.chance(successes, trials)
        return draw_is_below, self.posterior(successes, trials), state


@dataclass(frozen=True)
class _AnnealedGate(_BetaPrior):
    """`BetaGate` with a threshold that falls on a line to `end` as `progress` goes from 0 to 1."""

    end: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.end <= self.threshold:
            raise ValueError(f"gate: the threshold ends at {self.end}; it must lie between 0 and its start, {self.threshold}.")

    def cutoff(self, trials: int, progress: Fraction) -> int:
        """The largest S that still injects, out of `trials`; below 0: none, at least `trials`: every one."""
        a, b, start = self._exact
        gamma = start + (as_written(self.end) - start) * progress
        return ceil(gamma * (a + b + _size(trials)) - a) - 1

    def _decide(self, progress, successes, trials):
        cutoffs = torch.tensor([self.cutoff(n, progress) for n in trials])
        return _counts(successes, trials)[0] <= cutoffs, self.posterior(successes, trials)


@dataclass(frozen=True)
class StepAnnealedGate(_AnnealedGate):
    """The threshold falls with time: `threshold` at the first step, `end` once `steps` of them are done.

    The paper's third version speaks of "adaptive threshold annealing" and publishes no schedule: this line is ours.
    State: {"step": steps done}.
    """

    steps: int = 100

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1 or self.steps != int(self.steps):
            raise ValueError(f"gate: the threshold falls over {self.steps} steps; it must be a whole number, at least 1.")

    def progress(self, step: int) -> Fraction:
        """The share of the way to `end` at a step that counts from 1."""
        return min(Fraction(step - 1, self.steps), Fraction(1))

    def decide(self, state, keys, successes, trials, uniforms):
        step = state.get("step", 0) + 1
        return *self._decide(self.progress(step), successes, trials), {"step": step}


@dataclass(frozen=True)
class SuccessAnnealedGate(_AnnealedGate):
    """The threshold falls with the student's success rate over the last `window` steps, the present one included.

    State: {"recent": [[S, N], ...]}, a step's sums over its groups.
    """

    window: int = 10

    def __post_init__(self):
        super().__post_init__()
        if self.window < 1 or self.window != int(self.window):
            raise ValueError(f"gate: a window of {self.window} steps; it must be a whole number, at least 1.")

    def decide(self, state, keys, successes, trials, uniforms):
        _counts(successes, trials)
        recent = [*state.get("recent", []), [int(sum(successes)), int(sum(trials))]][-self.window:]
        rate = Fraction(sum(s for s, _ in recent), sum(n for _, n in recent))
        return *self._decide(rate, successes, trials), {"recent": recent}


@dataclass(frozen=True)
class RunningGate(_BetaPrior):
    """The posterior of a prompt accumulates over the prompt's visits, so that its mean settles:

        Beta(a0 + s, b0 + n - s),    s = sum of discount^age S,    n = sum of discount^age N

    `discount`, in (0, 1], is what a visit still counts one visit later; 1: nothing is forgotten.
    State: {"visits": {key: [[S, N], ...]}}: whole numbers, so that ties are decided exactly and a new prior or
    discount acts at once.
    """

    discount: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not (isfinite(self.discount) and 0 < as_written(self.discount) <= 1):
            raise ValueError(f"gate: the discount is {self.discount}; it must lie in (0, 1], such as 0.9.")

    def decide(self, state, keys, successes, trials, uniforms):
        _counts(successes, trials)
        visits, sums = dict(state.get("visits", {})), []
        for key, s, n in zip(keys, successes, trials, strict=True):
            visits[key] = [*visits.get(key, []), [int(s), int(n)]]
            sums.append(self._discounted(visits[key]))
        decisions = torch.tensor([s < self.bound(n) for s, n in sums])
        s, n = torch.tensor([[float(x) for x in pair] for pair in sums], dtype=torch.float64).T
        return decisions, BetaPosterior(self.alpha + s, self.beta + (n - s)), {"visits": visits}

    def _discounted(self, visits: list[list[int]]) -> tuple[Fraction, Fraction]:
        discount, s, n = as_written(self.discount), Fraction(0), Fraction(0)
        for successes, trials in visits:
            s, n = discount * s + successes, discount * n + trials
        return s, n


def binomial_cdf(k, trials, success_rate) -> np.ndarray:
    """P(Binomial(trials, success_rate) <= k), elementwise, float64; 0 for k < 0 and 1 for k >= trials."""
    k, n, mu = np.broadcast_arrays(k, trials, np.asarray(success_rate, dtype=float))
    inside = (k >= 0) & (k < n)
    tail = special.betaincc(np.where(inside, k, 0) + 1, np.where(inside, n - k, 1), mu)
    return np.where(inside, tail, (k >= n).astype(float))


_warned: set = set()


def _size(trials: int) -> int:
    if trials < 1 or trials != int(trials):
        raise ValueError(f"gate: a group of {trials} rollouts; it must be a whole number, at least 1.")
    return int(trials)


def _counts(successes, trials) -> tuple[torch.Tensor, torch.Tensor]:
    given = torch.broadcast_tensors(torch.as_tensor(successes), torch.as_tensor(trials))
    s, n = (x.long().contiguous() for x in given)
    n = n.to(s.device)
    if any(bool((x != x.long()).any()) for x in given) or bool(((s < 0) | (s > n) | (n < 1)).any()):
        raise ValueError("gate: successes and trials must be whole numbers with 0 <= S <= N and N >= 1.")
    return s, n

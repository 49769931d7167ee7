"""The Beta gate: when has a group failed badly enough to be shown the teacher?

    posterior of a prompt's success   Beta(a0 + S, b0 + N - S)
    its mean                          c = (a0 + S) / (a0 + b0 + N)
    decision                          inject  <=>  c < gamma        (strict)

S counts the successes among the N rollouts of a group, Beta(a0, b0) is the prior and gamma the
threshold. Defaults a0 = b0 = 1 and gamma = 0.8 are the paper's, by a reader's account.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, isfinite
from typing import Protocol

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
    """What decides whether a group is shown the teacher."""

    def injects(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> torch.Tensor: ...

    def posterior(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> BetaPosterior: ...


@dataclass(frozen=True)
class BetaGate:
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

    def cutoff(self, trials: int) -> int:
        """The largest S that still injects, out of `trials`; below 0: none, at least `trials`: every one.

        (a0 + S) / (a0 + b0 + N) < gamma  <=>  S < gamma (a0 + b0 + N) - a0, in exact fractions.
        """
        if trials < 1 or trials != int(trials):
            raise ValueError(f"gate: a group of {trials} rollouts; it must be a whole number, at least 1.")
        a, b, gamma = self._exact
        return ceil(gamma * (a + b + int(trials)) - a) - 1

    def injects(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> torch.Tensor:
        """Whether each group is shown the teacher: bool, in the shape of the counts.

        `successes` and `trials` hold whole numbers 0 <= S <= N, N >= 1, in any dtype; ValueError otherwise.
        """
        s, n = _counts(successes, trials)
        sizes, which = n.unique(return_inverse=True)
        cutoffs = torch.tensor([self.cutoff(int(size)) for size in sizes], device=s.device)
        for size in sizes.tolist():
            self._warn_once(size)
        return s <= cutoffs[which]

    def posterior(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> BetaPosterior:
        """Beta(a0 + S, b0 + N - S), in the shape of the counts."""
        s, n = _counts(successes, trials)
        return BetaPosterior(self.alpha + s.double().cpu(), self.beta + (n - s).double().cpu())

    def injection_probability(self, success_rate: torch.Tensor | float, trials: int) -> torch.Tensor:
        """P(inject | mu) = P(Binomial(N, mu) <= cutoff), exact, float64, in the shape of `success_rate`."""
        mu = torch.as_tensor(success_rate, dtype=torch.float64, device="cpu")
        if not bool(((mu >= 0) & (mu <= 1)).all()):
            raise ValueError("gate: a success rate lies outside [0, 1].")
        k = min(self.cutoff(trials), trials)
        return torch.zeros_like(mu) if k < 0 else torch.as_tensor(special.bdtr(k, trials, mu.numpy()))

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
class NeverGate:
    """Leaves every group alone; its posterior, from a uniform prior, is only for looking at."""

    def injects(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> torch.Tensor:
        return torch.zeros_like(_counts(successes, trials)[0], dtype=torch.bool)

    def posterior(self, successes: torch.Tensor | int, trials: torch.Tensor | int) -> BetaPosterior:
        return BetaGate().posterior(successes, trials)


_warned: set = set()


def _counts(successes, trials) -> tuple[torch.Tensor, torch.Tensor]:
    given = torch.broadcast_tensors(torch.as_tensor(successes), torch.as_tensor(trials))
    s, n = (x.long().contiguous() for x in given)
    n = n.to(s.device)
    if any(bool((x != x.long()).any()) for x in given) or bool(((s < 0) | (s > n) | (n < 1)).any()):
        raise ValueError("gate: successes and trials must be whole numbers with 0 <= S <= N and N >= 1.")
    return s, n

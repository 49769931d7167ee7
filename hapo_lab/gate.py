"""The Beta gate: does a group have so few successes that it gets the teacher?

    posterior of a prompt's success   Beta(a0 + S, b0 + N - S)
    its mean                          c = (a0 + S) / (a0 + b0 + N)
    decision                          inject  <=>  c < gamma        (strict)

S counts the successes among the N rollouts of a group, Beta(a0, b0) is the prior and gamma the threshold. Defaults a0 = b0 = 1
and gamma = 0.8 are the paper's, by a reader's account. `gates.py` defines the protocol of gates, and others to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, isfinite

import torch

Counts = torch.Tensor | Sequence[int] | int  # S or N: of one group, or of several


@dataclass(frozen=True)
class BetaPosterior:
    """Beta(alpha, beta) over a success probability, elementwise over float64 tensors of one shape. Results have that shape;
    those of `pdf` and `cdf` broadcast it with their argument.

    >>> BetaPosterior(torch.tensor(7.0), torch.tensor(3.0)).mean
    tensor(0.7000)
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
        """The density's peak, which may be 0 or 1; NaN if no single point is the peak."""
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
        return self._special("betainc", x)

    def interval(self, mass: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
        """The central interval that holds `mass` of the posterior, 0 < mass < 1."""
        if not 0 < mass < 1:
            raise ValueError(f"interval: mass is {mass}; it must lie between 0 and 1, such as 0.95.")
        tail = (1 - mass) / 2
        return self._special("betaincinv", tail), self._special("betaincinv", 1 - tail)

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """One draw per element: the inverse cdf at a uniform number."""
        return self._special("betaincinv", torch.rand(self.alpha.shape, generator=generator, dtype=torch.float64))

    def _special(self, function: str, x: torch.Tensor | float) -> torch.Tensor:
        from scipy import special  # here: the gate's decisions need none of it
        at = torch.as_tensor(x, dtype=torch.float64, device="cpu")
        return torch.as_tensor(getattr(special, function)(self.alpha.numpy(), self.beta.numpy(), at.numpy()))


@dataclass(frozen=True)
class BetaGate:
    """Injects if the posterior mean of a prompt's success probability is below a threshold. It has no memory.

    >>> BetaGate().injects([0, 6, 7], 8)      # means of 0.1, 0.7 and, exactly, 0.8
    tensor([ True,  True, False])
    """

    alpha: float = 1.0
    beta: float = 1.0
    """Beta(alpha, beta) is the prior: pseudo-counts of successes and failures, both positive."""
    threshold: float = 0.8
    """gamma, in (0, 1]. All three numbers are read as the decimals that the user wrote, so ties are exact."""

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not (isfinite(value) and as_written(value) > 0):
                raise ValueError(f"gate: the prior's {name} is {value}; it must be a positive number "
                                 "(at least 0.000001), such as 1.")
        if not (isfinite(self.threshold) and 0 < as_written(self.threshold) <= 1):
            raise ValueError(f"gate: the threshold is {self.threshold}; it must lie in (0, 1], such as 0.8.")

    @cached_property
    def exact(self) -> tuple[Fraction, Fraction, Fraction]:
        """a0, b0 and gamma."""
        return as_written(self.alpha), as_written(self.beta), as_written(self.threshold)

    def bound(self, trials: Fraction | int) -> Fraction:
        """(a0 + S) / (a0 + b0 + N) < gamma  <=>  S < bound = gamma (a0 + b0 + N) - a0, exactly."""
        a, b, gamma = self.exact
        return gamma * (a + b + trials) - a

    def cutoff(self, trials: int) -> int:
        """The largest S of `trials` that injects; a negative cutoff never injects, one of `trials` or more always does."""
        return ceil(self.bound(trials)) - 1

    def posterior(self, successes: Counts, trials: Counts) -> BetaPosterior:
        """Beta(a0 + S, b0 + N - S), in the shape of the counts."""
        s, n = counts(successes, trials)
        return BetaPosterior(self.alpha + s.double().cpu(), self.beta + (n - s).double().cpu())

    def injects(self, successes: Counts, trials: Counts) -> torch.Tensor:
        """Whether each group gets the teacher: a bool tensor in the shape of the counts, which may have any dtype."""
        s, n = counts(successes, trials)
        sizes, which = n.unique(return_inverse=True)
        return s <= torch.tensor([self.cutoff(int(size)) for size in sizes], device=s.device)[which]

    def chances(self, state: dict, key: str, trials: int, others: Sequence[tuple[int, int]] = ()) -> torch.Tensor:
        """See `gates.Gate`."""
        return self.injects(torch.arange(trials + 1), trials).double()

    def decide(self, state: dict, keys: Sequence[str], successes: Sequence[int], trials: Sequence[int],
               uniforms: Sequence[float]) -> tuple[torch.Tensor, BetaPosterior, dict]:
        """See `gates.Gate`."""
        return self.injects(successes, trials), self.posterior(successes, trials), state


def as_written(number: float) -> Fraction:
    """A number as the decimal that the user wrote: 0.8 is 4/5, not the nearest binary double."""
    return Fraction(number).limit_denominator(10**6)


def counts(successes: Counts, trials: Counts) -> tuple[torch.Tensor, torch.Tensor]:
    """S and N as whole numbers, broadcast; ValueError unless 0 <= S <= N and N >= 1."""
    given = torch.broadcast_tensors(torch.as_tensor(successes), torch.as_tensor(trials))
    s, n = (x.long().contiguous() for x in given)
    n = n.to(s.device)
    if any(bool((x != x.long()).any()) for x in given) or bool(((s < 0) | (s > n) | (n < 1)).any()):
        raise ValueError("gate: successes and trials must be whole numbers with 0 <= S <= N and N >= 1.")
    return s, n

"""The protocol of gates, and gates to compare with the paper's: with which of them does the teacher really leave?

`BetaGate` is the paper's. The others, the schedules among them, are this kit's. Your own gate is a frozen dataclass with the
two methods of `Gate`; a `MemorylessGate` needs `chances` alone. In your own file its name is "my_gates.py:Half", for the
command line, `run.json` and `resume`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from math import ceil, isfinite
from typing import Any, Protocol, cast

import torch

from hapo_lab.gate import BetaGate, BetaPosterior, Counts, as_written, counts

Others = Sequence[tuple[int, int]]
"""(S, N) of a step's other groups."""
Decided = tuple[torch.Tensor, BetaPosterior, dict]
"""Decisions, posterior, and the state for the next step: see `Gate.decide`."""


class Gate(Protocol):
    """Decides which of a step's groups get the teacher.

    A gate keeps no memory of its own. Its memory is `state`: plain data for JSON, {} before the first step.

    >>> class FirstVisit:
    ...     def chances(self, state, key, trials, others=()):
    ...         return torch.full((trials + 1,), float(key not in state), dtype=torch.float64)
    ...     def decide(self, state, keys, successes, trials, uniforms):
    ...         decisions = torch.tensor([key not in state for key in keys])
    ...         return decisions, BetaGate().posterior(successes, trials), state | dict.fromkeys(keys, True)
    >>> ladder(FirstVisit(), 2), ladder(FirstVisit(), 2, state={"7*8": True}, key="7*8")
    (['inject', 'erases', 'inject'], ['leave', 'leave', 'leave'])
    """

    def chances(self, state: dict, key: str, trials: int, others: Others = ()) -> torch.Tensor:
        """(N + 1,) float64: P(inject | S) for S = 0..N successes of one group; 0s and 1s, unless the gate is random.

        Parameters
        ----------
        state : dict
            Before the step.
        key : str
            The prompt's.
        trials : int
            N.
        others : sequence of (S, N)
            The step's other groups, for gates that look at the whole step.
        """
        ...

    def decide(self, state: dict, keys: Sequence[str], successes: Sequence[int], trials: Sequence[int],
               uniforms: Sequence[float]) -> Decided:
        """One training step's decisions: a pure function, called once per step.

        Parameters
        ----------
        state : dict
            As the previous step returned it; it is not changed.
        keys, successes, trials : sequences, one entry per group
            The prompt's key; S and N of its sampled rollouts (demonstrations never count).
        uniforms : sequence of floats in [0, 1), one per group
            All the randomness that a gate may use.

        Returns
        -------
        decisions : (groups,) bool tensor
        posterior : BetaPosterior over (groups,)
            The belief behind each decision. A gate without a belief gives one from a uniform prior, for display.
        state : dict
            For the next step. Order: forget (discount), add this step's S, decide.
        """
        ...


def ladder(gate: Gate, trials: int, state: dict | None = None, key: str = "") -> list[str]:
    """A gate's decision at S = 0..N: "inject", "leave", "erases", or its chance of injecting, such as "40%".

    "erases" is an injection at S = N - 1. It replaces the group's only failure: every reward becomes 1, every advantage 0,
    and the group teaches nothing.

    >>> ladder(BetaGate(), 4)
    ['inject', 'inject', 'inject', 'erases', 'leave']
    """
    return rungs(gate.chances(state or {}, key, trials).tolist())


def rungs(chances: Sequence[float]) -> list[str]:
    """`ladder`, of P(inject | S = 0..N)."""
    return [f"{chance:.0%}" if 0.005 < chance < 0.995 else "leave" if chance < 0.5
            else "erases" if s == len(chances) - 2 else "inject" for s, chance in enumerate(chances)]


def can_close(gate: Gate, trials: int) -> bool:
    """Whether the gate ever leaves a group without failures alone, on a prompt's first visit. If not, the teacher never leaves.

    >>> can_close(BetaGate(), 8), can_close(BetaGate(), 2)
    (True, False)
    """
    return bool(gate.chances({}, "", trials)[-1] < 1)


def numbers_of(gate: Any) -> set[str]:
    """The names of the numbers of a gate, or of a class of gates: the dataclass's fields."""
    return {field.name for field in fields(gate)} if is_dataclass(gate) else set()


def with_numbers(gate: Gate, **numbers: float) -> Gate:
    """The gate with other numbers. TypeError: it is not a dataclass, or has no number of that name."""
    return replace(cast(Any, gate), **numbers)


def number(name: str, value: Any) -> float:
    """A gate's number, from a user's value. ValueError: it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"gate: the {name} is {value!r}; it must be a number.") from None


_warned: set[tuple[str, int]] = set()


def warn_of_size(gate: Gate, trials: int, replaces: bool = True) -> None:
    """Warn once if a gate with a threshold can't close in groups of this size, or, if the teacher `replaces` a rollout,
    erases their signal."""
    found = ladder(gate, trials)
    closes = found[-1] == "leave"
    if "erases" not in found or (closes and not replaces):
        return
    if "threshold" not in numbers_of(gate) or (str(gate), trials) in _warned:
        return
    _warned.add((str(gate), trials))
    what = (f"injects at S = {trials - 1}, where it replaces the group's only failure: "
            "all advantages become 0 and the group teaches nothing" if closes else
            "can never close: it injects even when every rollout is right")
    warnings.warn(f"{gate} with groups of {trials} {what}. Lower the threshold, or choose a prior with a smaller beta or "
                  "larger groups.", stacklevel=3)


# without memory ----------------------------------------------------------------------------------------------------


class MemorylessGate:
    """Decides from a group's own S and N. A subclass writes `chances`.

    >>> class Half(MemorylessGate):
    ...     def chances(self, state, key, trials, others=()):
    ...         return 0.5 * (torch.arange(trials + 1) == 0)          # half of the groups that failed whole
    >>> ladder(Half(), 2)
    ['50%', 'leave', 'leave']
    """

    chances: Callable[..., torch.Tensor]

    def decide(self, state: dict, keys: Sequence[str], successes: Sequence[int], trials: Sequence[int],
               uniforms: Sequence[float]) -> Decided:
        """See `Gate`."""
        counts(successes, trials)
        chances = [self.chances(state, key, n)[s] for key, s, n in zip(keys, successes, trials, strict=True)]
        return (torch.as_tensor(uniforms, dtype=torch.float64) < torch.stack(chances), self.posterior(successes, trials), state)

    def posterior(self, successes: Counts, trials: Counts) -> BetaPosterior:
        """Beta(1 + S, 1 + N - S), only for looking at."""
        return BetaGate().posterior(successes, trials)


def _up_to(cutoff: int, trials: int) -> torch.Tensor:
    """Chances that are 1 up to S = `cutoff`."""
    if trials < 1 or trials != int(trials):
        raise ValueError(f"gate: a group of {trials} rollouts; it must be a whole number, at least 1.")
    return (torch.arange(trials + 1) <= cutoff).double()


@dataclass(frozen=True)
class NeverGate(MemorylessGate):
    """Never injects.

    >>> ladder(NeverGate(), 2)
    ['leave', 'leave', 'leave']
    """

    def chances(self, state: dict, key: str, trials: int, others: Others = ()) -> torch.Tensor:
        """See `Gate`."""
        return _up_to(-1, trials)


@dataclass(frozen=True)
class AlwaysGate(MemorylessGate):
    """Injects into every group, one without failures included.

    >>> ladder(AlwaysGate(), 2)
    ['inject', 'erases', 'inject']
    """

    def chances(self, state: dict, key: str, trials: int, others: Others = ()) -> torch.Tensor:
        """See `Gate`."""
        return _up_to(trials, trials)


@dataclass(frozen=True)
class HardGate(MemorylessGate):
    """Injects if the whole group failed.

    >>> ladder(HardGate(), 2)
    ['inject', 'leave', 'leave']
    """

    def chances(self, state: dict, key: str, trials: int, others: Others = ()) -> torch.Tensor:
        """See `Gate`."""
        return _up_to(0, trials)


@dataclass(frozen=True)
class ThompsonGate(MemorylessGate, BetaGate):
    """Injects if a draw from the posterior, not its mean, is below the threshold.

    >>> ladder(ThompsonGate(), 4)
    ['inject', '99%', '94%', '74%', '33%']
    """

    posterior = BetaGate.posterior

    def chances(self, state: dict, key: str, trials: int, others: Others = ()) -> torch.Tensor:
        """P(Beta(a0 + S, b0 + N - S) < gamma); see `Gate`."""
        return self.posterior(torch.arange(trials + 1), trials).cdf(self.threshold)


# with memory -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _AnnealedGate(BetaGate):
    """`BetaGate` with a threshold that falls linearly to `end` as `progress` goes from 0 to 1."""

    end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.end <= self.threshold:
            raise ValueError(f"gate: the threshold ends at {self.end}; it must lie between 0 and its start, {self.threshold}.")

    def cutoff_at(self, progress: Fraction, trials: int) -> int:
        """`BetaGate.cutoff`, on the way."""
        a, b, start = self.exact
        gamma = start + (as_written(self.end) - start) * progress
        return ceil(gamma * (a + b + trials) - a) - 1

    def _decide(self, progress: Fraction, successes: Counts, trials: Sequence[int]) -> tuple[torch.Tensor, BetaPosterior]:
        cutoffs = torch.tensor([self.cutoff_at(progress, n) for n in trials])
        return counts(successes, trials)[0] <= cutoffs, self.posterior(successes, trials)


@dataclass(frozen=True)
class StepAnnealedGate(_AnnealedGate):
    """The threshold falls linearly with time: `threshold` at the first step, `end` after `steps` steps.

    The paper's third version names "adaptive threshold annealing" and publishes no schedule: the linear one is ours.
    State: {"step": steps done}.

    >>> ladder(StepAnnealedGate(steps=10), 4, state={"step": 5})          # the threshold is 0.4 now
    ['inject', 'inject', 'leave', 'leave', 'leave']
    """

    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.steps != int(self.steps):
            raise ValueError(f"gate: the threshold falls over {self.steps} steps; it must be a whole number, at least 1.")

    def progress(self, done: int) -> Fraction:
        """The share of the way to `end` after a number of steps."""
        return min(Fraction(done, self.steps), Fraction(1))

    def chances(self, state: dict, key: str, trials: int, others: Others = ()) -> torch.Tensor:
        """See `Gate`."""
        return _up_to(self.cutoff_at(self.progress(state.get("step", 0)), trials), trials)

    def decide(self, state: dict, keys: Sequence[str], successes: Sequence[int], trials: Sequence[int],
               uniforms: Sequence[float]) -> Decided:
        """See `Gate`."""
        done = state.get("step", 0)
        return *self._decide(self.progress(done), successes, trials), {"step": done + 1}


@dataclass(frozen=True)
class SuccessAnnealedGate(_AnnealedGate):
    """The threshold falls with the student's success rate over the last `window` steps, the present one included.

    State: {"recent": [[S, N], ...]}, one entry per step, summed over its groups.

    >>> ladder(SuccessAnnealedGate(), 4, state={"recent": [[8, 12]]})
    ['inject', 'inject', 'leave', 'leave', 'leave']
    """

    window: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.window != int(self.window):
            raise ValueError(f"gate: a window of {self.window} steps; it must be a whole number, at least 1.")

    def chances(self, state: dict, key: str, trials: int, others: Others = ()) -> torch.Tensor:
        """See `Gate`."""
        return torch.tensor([float(s <= self.cutoff_at(self._rate(self._recent(state, [*others, (s, trials)])), trials))
                             for s in range(trials + 1)], dtype=torch.float64)

    def decide(self, state: dict, keys: Sequence[str], successes: Sequence[int], trials: Sequence[int],
               uniforms: Sequence[float]) -> Decided:
        """See `Gate`."""
        counts(successes, trials)
        recent = self._recent(state, zip(successes, trials, strict=True))
        return *self._decide(self._rate(recent), successes, trials), {"recent": recent}

    def _recent(self, state: dict, groups: Iterable[tuple[int, int]]) -> list[list[int]]:
        s, n = zip(*groups, strict=True)
        return [*state.get("recent", []), [int(sum(s)), int(sum(n))]][-self.window:]

    def _rate(self, recent: list[list[int]]) -> Fraction:
        return Fraction(sum(s for s, _ in recent), sum(n for _, n in recent))


@dataclass(frozen=True)
class RunningGate(BetaGate):
    """The posterior of a prompt accumulates over the prompt's visits, so that its mean settles:

        Beta(a0 + s, b0 + n - s),    s = sum of discount^age S,    n = sum of discount^age N

    `discount`, in (0, 1], is a visit's weight one visit later; 1: nothing is forgotten.
    State: {"visits": {key: [[S, N], ...]}}: whole numbers, so that ties are exact and a new prior or discount acts at once.

    >>> ladder(RunningGate(), 4, state={"visits": {"7*8": [[4, 4]]}}, key="7*8")
    ['inject', 'inject', 'inject', 'leave', 'leave']
    """

    discount: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isfinite(self.discount) and 0 < as_written(self.discount) <= 1):
            raise ValueError(f"gate: the discount is {self.discount}; it must lie in (0, 1], such as 0.9.")

    def chances(self, state: dict, key: str, trials: int, others: Others = ()) -> torch.Tensor:
        """See `Gate`."""
        s, n = self._discounted([*state.get("visits", {}).get(key, []), [0, trials]])
        return _up_to(ceil(self.bound(n) - s) - 1, trials)

    def decide(self, state: dict, keys: Sequence[str], successes: Sequence[int], trials: Sequence[int],
               uniforms: Sequence[float]) -> Decided:
        """See `Gate`."""
        counts(successes, trials)
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


GATES: dict[str, type[Gate]] = {
    "beta": BetaGate, "always": AlwaysGate, "never": NeverGate, "hard": HardGate, "thompson": ThompsonGate,
    "by-step": StepAnnealedGate, "by-success": SuccessAnnealedGate, "running": RunningGate}
"""By name, for the command line. "beta" is the paper's."""

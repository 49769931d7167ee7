"""The protocol of engines, which draw completions from the present policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hapo_lab.policy.chat import text_of
from hapo_lab.policy.policy import Policy


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: from the policy's softmax at a temperature, without any other rule.

    >>> Sampling(max_new_tokens=28)
    Sampling(max_new_tokens=28, temperature=1.0)
    """

    max_new_tokens: int = 32
    """A completion that reaches this length without an end-of-turn token is cut, and scores 0."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not self.temperature > 0:
            raise ValueError(f"{self}: max_new_tokens must be at least 1, temperature positive.")


@dataclass(frozen=True)
class Completion:
    """What an engine returns for one sample.

    >>> said = Completion(ids=(5, 6, 2), text="56", logps=(-0.25, -0.5, 0.0), finished=True)
    >>> sum(said.logps)                                     # the log-probability of all of it
    -0.75
    """

    ids: tuple[int, ...]
    """The tokens, with the end-of-turn token if it was reached."""
    text: str
    """Decoded, without special tokens."""
    logps: tuple[float, ...]
    """The engine's log-probability of each token, under its sampling distribution; empty if the engine gives none."""
    finished: bool
    """False: cut at the length limit."""


class EngineError(RuntimeError):
    """An engine can't answer; the message says why. The policy is unchanged."""


def completion(policy: Policy, ids: Sequence[int], logps: Sequence[float]) -> Completion:
    """An engine's sample as a `Completion`. EngineError: the log-probabilities are NaN."""
    if math.isnan(sum(logps)):
        raise EngineError(f"{policy.name} gives NaN for log-probabilities, computing in {policy.model.dtype}: its weights are "
                          "broken or its activations overflow, so go back to a sound adapter, or to a device that computes "
                          "in bfloat16 or float32")
    return Completion(tuple(ids), text_of(policy, ids), tuple(logps), ids[-1] in policy.ends)


class Engine(Protocol):
    """Draws completions from the present policy.

    >>> class Echo:
    ...     name = "echo"
    ...     def sync(self): pass
    ...     def sleep(self): pass
    ...     def generate(self, prompts, n, sampling, seed):
    ...         return [[Completion(tuple(ids), "", logps=(), finished=True)] * n for ids in prompts]
    >>> engine: Engine = Echo()
    >>> [[c.ids for c in group] for group in engine.generate([[5], [6, 7]], n=2, sampling=Sampling(), seed=0)]
    [[(5,), (5,)], [(6, 7), (6, 7)]]
    """

    name: str
    """The engine's name in run.json."""

    def sync(self) -> None:
        """Take over the policy's present weights."""

    def sleep(self) -> None:
        """Free the memory that only sampling needs, until the next `sync`: an update follows, and needs it."""

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> list[list[Completion]]:
        """n completions for each prompt (token ids), in order; the same seed gives the same completions."""


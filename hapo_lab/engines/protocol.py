"""What an engine is: it draws completions from the present policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hapo_lab.policy.chat import text_of
from hapo_lab.policy.policy import Policy


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: from the policy's softmax at a temperature, and from nothing else.

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
    """Its tokens, the end-of-turn token included if it was reached."""
    text: str
    """Decoded, without special tokens."""
    logps: tuple[float, ...]
    """The engine's log-probability of each token, under the distribution it sampled from; empty if the engine tells none."""
    finished: bool
    """False: cut at the length limit."""


class EngineError(RuntimeError):
    """An engine can't answer, in words. The policy is as it was."""


def completion(policy: Policy, ids: Sequence[int], logps: Sequence[float]) -> Completion:
    """What an engine sampled. EngineError if it was sampled from nothing, that is from NaN."""
    if math.isnan(sum(logps)):
        raise EngineError(f"{policy.name} gives NaN for log-probabilities, computing in {policy.model.dtype}: its weights are "
                          "broken or its activations overflow, so go back to a sound adapter, or to a device that computes "
                          "in bfloat16 or float32")
    return Completion(tuple(ids), text_of(policy, ids), tuple(logps), ids[-1] in policy.ends)


class Engine(Protocol):
    """Whatever draws completions from the present policy.

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
    """For the reader of run.json."""

    def sync(self) -> None:
        """Take over the policy's present weights."""

    def sleep(self) -> None:
        """Let go of what only sampling needs, until the next `sync`: an update follows, and wants the memory."""

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> list[list[Completion]]:
        """n completions for each prompt (token ids), in order; the same seed gives the same completions."""


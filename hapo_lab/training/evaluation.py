"""Success on held-out problems, without a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from hapo_lab.engines.protocol import Completion, Engine, Sampling
from hapo_lab.policy.chat import demonstration_ids, prompt_ids
from hapo_lab.policy.logprobs import completion_logprobs
from hapo_lab.policy.policy import Policy
from hapo_lab.policy.threads import computing_with
from hapo_lab.reproducibility.seeds import derive
from hapo_lab.ssi import Rollout
from hapo_lab.tasks.problem import Problem, Task, Verifier, judged
from hapo_lab.training.intervals import interval_over_problems

TOGETHER = 64
"""Rollouts drawn at a time: fewer use a processor badly, more take memory."""


@dataclass(frozen=True)
class Evaluation:
    """Rollouts on each problem, graded."""

    problems: tuple[Problem, ...]
    rollouts: tuple[tuple[Rollout, ...], ...]

    @property
    def by_problem(self) -> np.ndarray:
        """(problems,) success rates."""
        return np.array([np.mean([r.reward for r in rollouts]) for rollouts in self.rollouts])

    @property
    def success(self) -> float:
        """Mean reward."""
        return float(self.by_problem.mean())

    @property
    def dead(self) -> float:
        """Share of problems whose rollouts failed whole."""
        return float((self.by_problem == 0).mean())

    def interval(self, mass: float = 0.95) -> tuple[float, float]:
        """Of the success: see `interval_over_problems`."""
        return interval_over_problems(self.by_problem, mass)

    def __str__(self) -> str:
        low, high = self.interval()
        return (f"{self.success:.1%} [{low:.1%}, {high:.1%}] over {len(self.problems)} problems x {len(self.rollouts[0])}, "
                f"{self.dead:.0%} of the groups failed whole")


class Graded(Protocol):
    """Anything with a verifier, such as a task."""

    @property
    def verify(self) -> Verifier:
        """The verdict on a completion."""


def grade(task: Graded, problem: Problem, completion: Completion) -> Rollout:
    """A completion with its verdict. A completion that was cut at the length limit scores 0."""
    verdict = task.verify(problem, completion.text)
    reason = verdict.reason if completion.finished else f"cut at {len(completion.ids)} tokens"
    return Rollout(completion.ids, completion.text, float(verdict.correct and completion.finished), reason,
                   completion.finished, completion.logps)


def draw(policy: Policy, engine: Engine, task: Graded, problems: Sequence[Problem], n: int, sampling: Sampling,
         seed: int) -> list[tuple[Rollout, ...]]:
    """n completions of each problem, graded."""
    completions = engine.generate([prompt_ids(policy, p) for p in problems], n, sampling, seed)
    return [tuple(grade(task, p, c) for c in group) for p, group in zip(problems, completions, strict=True)]


def demonstrated(policy: Policy, task: Task, problem: Problem, limit: int, most: int = 1) -> list[Rollout]:
    """The first `most` of a problem's demonstrations as graded rollouts, without those longer than `limit` tokens."""
    found = []
    for text in problem.demonstrations[:most]:
        ids = demonstration_ids(policy, replace(problem, demonstration=text), limit)
        if ids is not None:
            verdict = judged(task.verify, problem, text)
            found.append(Rollout(ids, text, float(verdict.correct), verdict.reason, teacher=True))
    return found


def token_logps(policy: Policy, problem: Problem, completions: Sequence[Sequence[int]]) -> torch.Tensor:
    """(tokens of all completions,) log p of each token of a problem's completions."""
    with computing_with(policy.threads):
        logp, _, mask = completion_logprobs(policy.model, [prompt_ids(policy, problem)], [completions])
    return logp[mask].cpu()


def evaluate(policy: Policy, engine: Engine, task: Task, problems: tuple[Problem, ...] | None = None, *, samples: int = 8,
             sampling: Sampling | None = None, seed: int = 0) -> Evaluation:
    """Sample and grade: by default every held-out problem, 8 times, at temperature 1.

    Its draws differ from those of a training run with the same seed.

    >>> policy, task = load_policy("tiny"), load_task("sums")
    >>> found = evaluate(policy, TransformersEngine(policy), task, task.heldout[:2], samples=4)
    >>> found.by_problem.shape, 0 <= found.success <= 1
    ((2,), True)
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1.")
    problems = task.heldout if problems is None else problems
    sampling = sampling or Sampling(task.max_new_tokens)
    rollouts, batch = [], max(TOGETHER // samples, 1)
    engine.sync()  # it may hold the policy as it was before it was trained
    for start in range(0, len(problems), batch):
        some = problems[start:start + batch]
        with computing_with(policy.threads):
            rollouts += draw(policy, engine, task, some, samples, sampling, derive(seed, "evaluation", start))
    return Evaluation(tuple(problems), tuple(rollouts))

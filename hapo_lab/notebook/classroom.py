"""Lesson 10's student, teacher and run log, so that the learner writes only HAPO."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from hapo_lab.engines.protocol import Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.methods import HAPO, judge
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.decoder import Model
from hapo_lab.policy.policy import Policy
from hapo_lab.reproducibility.seeds import derive
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.manifest import describe
from hapo_lab.runs.record import record_of
from hapo_lab.ssi import Group, Rollout
from hapo_lab.tasks.problem import Problem, Task
from hapo_lab.training.config import TINY
from hapo_lab.training.evaluation import demonstrated, draw


class Student:
    """A policy that answers problems, graded by the task's verifier.

    >>> policy, task = load_policy("tiny"), load_task("sums")
    >>> student = Student(policy, task, n=4)
    >>> [[rollout.reward for rollout in group] for group in student.sample(task.train[:2])]
    [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, policy: Policy, task: Task, n: int = 8, seed: int = 0):
        self._policy, self._task, self._n, self._seed = policy, task, n, seed
        self._engine, self._asked = TransformersEngine(policy), 0

    @property
    def model(self) -> Model:
        """(B, L) token ids -> an object with (B, L, V) `logits`."""
        return self._policy.model

    def prompt(self, problem: Problem) -> list[int]:
        """The problem as token ids, ready for an answer."""
        return prompt_ids(self._policy, problem)

    def sample(self, problems: Sequence[Problem]) -> list[list[Rollout]]:
        """n graded rollouts of each problem from the present policy; each call draws new ones."""
        self._asked += 1
        self._engine.sync()
        return [list(group) for group in draw(self._policy, self._engine, self._task, problems, self._n, self._sampling,
                                              derive(self._seed, "rollouts", self._asked))]

    @property
    def _sampling(self) -> Sampling:
        return Sampling(self._task.max_new_tokens)


def teacher_of(policy: Policy, task: Task) -> Callable[[Problem], Rollout]:
    """A function that answers a problem with its demonstration, in the policy's tokens; its reward is the verifier's."""
    return lambda problem: demonstrated(policy, task, problem, task.max_new_tokens)[0]


class Diary:
    """The learner's steps as a run log in memory: `Dashboard(diary.log)` shows them."""

    def __init__(self, policy: Policy, task: Task, steps: int, rate: float):
        method = replace(HAPO, name="HAPO, your own")
        config = replace(TINY, steps=steps, learning_rate=rate, warmup=0, final_rate=1.0, eval_every=0)
        self.log = RunLog(describe(policy, task, method, asdict(config), "transformers"))
        self._rate, self._then = rate, time.monotonic()

    def add(self, problems: Sequence[Problem], sampled: Sequence[Sequence[Rollout]], taught: Sequence[Sequence[Rollout]],
            loss: float) -> None:
        """Record a step: its groups as sampled and as updated on, and its loss. (The posteriors are the kit's.)"""
        drawn, _ = judge(HAPO.gate, [Group(p, tuple(g)) for p, g in zip(problems, sampled, strict=True)], {},
                         [0.5] * len(problems))
        groups = [_seated(group, after) for group, after in zip(drawn, taught, strict=True)]
        unmeasured = dict.fromkeys(("grad_norm", "teacher_share", "teacher_logp", "clip_fraction", "entropy", "kl", "heldout"))
        now = time.monotonic()
        self.log.add(record_of(
            len(self.log.steps) + 1, drawn, groups, loss=loss, seconds={"step": now - self._then}, updated=True,
            learning_rate=self._rate, teacher_samples=sum(r.teacher for g in taught for r in g), without_demonstration=0,
            dead_before=sum(g.dead for g in drawn), **unmeasured,
            tokens_trained=sum(len(r.ids) for g in groups if not g.dead for r in g.rollouts)), groups)
        self._then = now


def _seated(group: Group, after: Sequence[Rollout]) -> Group:
    """A group as sampled, with the seat that the teacher has by now."""
    seat = next((i for i, r in enumerate(after) if r.teacher), -1)
    gone = next((r for r in group.rollouts if not any(r is other for other in after)), None)
    seated = replace(group, rollouts=tuple(after), replaced=seat, removed=gone)
    return replace(seated, advantages=HAPO.advantages(seated.rewards, seated.teacher_mask))

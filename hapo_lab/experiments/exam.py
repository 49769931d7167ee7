"""The evaluation on test problems: success on each split, and the policy's distance from its teacher's way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.experiments.experiment import Experiment, Trial
from hapo_lab.experiments.folder import HELD_OUT, finished, imitator_of
from hapo_lab.policy.models import load_policy
from hapo_lab.policy.policy import Policy
from hapo_lab.reproducibility import disk
from hapo_lab.tasks.elsewhere import elsewhere
from hapo_lab.tasks.problem import Problem, Task
from hapo_lab.training.evaluation import Evaluation, demonstrated, evaluate, token_logps

SAMPLES = 8
"""Completions per test problem."""


def look(experiment: Experiment, trial: Trial, run: Path) -> None:
    """Write a trial's test.json, from its adapter, or from the base model where it has none: success on the test problems, one
    by one, and `teachers_way`."""
    spec = experiment.tasks[trial.task]
    task = spec.load(experiment.task_seed)
    policy = _policy(experiment, run)
    splits: dict[str, tuple[Problem, ...]] = {HELD_OUT: task.heldout} | (
        {} if spec.sha256 else elsewhere(spec.base, experiment.task_seed))
    exams = {split: evaluate(policy, TransformersEngine(policy), task, problems, samples=SAMPLES, seed=trial.seed)
             for split, problems in splits.items()}
    success = {split: {p.key: rate for p, rate in zip(exam.problems, exam.by_problem.tolist(), strict=True)}
               for split, exam in exams.items()}
    imitator = imitator_of(run, trial)
    other = _policy(experiment, imitator) if finished(imitator) and imitator != run else None
    disk.replace(run / "test.json", (json.dumps({
        "success": success, "way": teachers_way(policy, task, exams[HELD_OUT], other)}) + "\n").encode())


def _policy(experiment: Experiment, run: Path) -> Policy:
    return load_policy(experiment.model, adapter=run / "adapter" if finished(run) else None)


@torch.no_grad()
def teachers_way(policy: Policy, task: Task, exam: Evaluation, imitator: Policy | None = None) -> dict[str, float]:
    """The distance of a policy's answers from its teacher's.

    Parameters
    ----------
    policy, task
    exam : Evaluation
        The policy's, of the problems to compare by.
    imitator : Policy, optional
        A policy that was trained on the demonstrations alone.

    Returns
    -------
    dict
        "length" of an answer and "teacher_length" of a demonstration, in tokens, the turn's end included; "teacher_logp", the
        mean log p of a demonstration's token, in nats; with an imitator "kl", an estimate of KL(policy || imitator) in nats per
        token of the answers. Without demonstrations the teacher's entries are missing.
    """
    answers = [[r.ids for r in rollouts] for rollouts in exam.rollouts]
    found = {"length": _mean(torch.tensor([float(len(ids)) for group in answers for ids in group]))}
    shown = [[r.ids for r in demonstrated(policy, task, p, task.max_new_tokens)] for p in exam.problems]
    if any(shown):
        found |= {"teacher_length": _mean(torch.tensor([float(len(ids)) for group in shown for ids in group])),
                  "teacher_logp": _mean(torch.cat(list(_logps(policy, exam.problems, shown))))}
    if imitator:
        mine, others = (torch.cat(list(_logps(who, exam.problems, answers))) for who in (policy, imitator))
        found["kl"] = _mean(mine - others)
    return found


def _logps(policy: Policy, problems: tuple[Problem, ...], completions: list[list[tuple[int, ...]]]) -> Iterator[torch.Tensor]:
    return (token_logps(policy, p, ids) for p, ids in zip(problems, completions, strict=True) if ids)


def _mean(x: torch.Tensor) -> float:
    return x.mean().item()

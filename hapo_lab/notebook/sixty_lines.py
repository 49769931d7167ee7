"""HAPO in fewer than 60 lines: lesson 10's solution, function by function.

A rollout has `ids`, `reward` and `teacher` (`hapo_lab.Rollout`). A student has `sample(problems)`, `prompt(problem)` and a
`model` (`hapo_lab.notebook.classroom.Student`). Shapes: N rollouts per group, B rollouts and L places per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hapo_lab.ssi import Rollout


def advantages(rewards: Tensor, std: bool = True) -> Tensor:
    """(N,) rewards of one group -> (N,): how far each lies above the group's mean, in standard deviations if `std`."""
    centred = rewards - rewards.mean()
    return centred / (rewards.std() + 1e-4) if std else centred


def injects(successes: float, n: int, a0: float = 1, b0: float = 1, gamma: float = 0.8) -> bool:
    """Whether the mean of the posterior Beta(a0 + S, b0 + N - S) is below the threshold."""
    return (a0 + successes) / (a0 + b0 + n) < gamma


def inject(rollouts: Sequence[Rollout], demonstration: Rollout) -> list[Rollout]:
    """A new group, with the demonstration in the seat of the worst rollout, the first of equals."""
    worst = min(range(len(rollouts)), key=lambda seat: rollouts[seat].reward)
    return [*rollouts[:worst], demonstration, *rollouts[worst + 1:]]


def teach(rollouts: Sequence[Rollout], demonstration: Rollout) -> tuple[Sequence[Rollout], Tensor]:
    """A group as sampled -> the group that the update sees, and its (N,) advantages."""
    if injects(sum(r.reward for r in rollouts), len(rollouts)):  # S is of the sampled rollouts
        rollouts = inject(rollouts, demonstration)
    return rollouts, advantages(torch.tensor([r.reward for r in rollouts]))  # of the new group


def token_losses(logp: Tensor, old_logp: Tensor, advantages: Tensor, teacher: Tensor) -> Tensor:
    """(B, L) log-probabilities now and at sampling, (B, 1) advantages, (B, 1) bool -> (B, L) losses."""
    ratio, p = (logp - old_logp).exp(), logp.exp()
    student = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return -torch.where(teacher, p / (p + 0.1) * advantages, student)


def masked_mean(losses: Tensor, mask: Tensor) -> Tensor:
    """(B, L) losses and (B, L) bool -> the mean over the tokens where the mask is True."""
    return (losses * mask).sum() / mask.sum()


def log_probs(student: Any, problems: Sequence, groups: Sequence[Sequence[Rollout]]) -> tuple[Tensor, Tensor]:
    """(B, L) log-probabilities of each next token in rows of prompt, completion and padding, L being one less than the longest
    row; and a (B, L) mask, True on the completions' tokens."""
    rows = [(student.prompt(problem), r.ids) for problem, group in zip(problems, groups, strict=True) for r in group]
    ids = pad_sequence([torch.tensor([*prompt, *said]) for prompt, said in rows], batch_first=True)
    logits = student.model(ids).logits[:, :-1]  # each place predicts the next token
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    place = torch.arange(1, ids.shape[1])
    return logp, torch.stack([(place >= len(prompt)) & (place < len(prompt) + len(said)) for prompt, said in rows])


def step(student: Any, teacher: Callable[[Any], Rollout], problems: Sequence,
         optimizer: torch.optim.Optimizer) -> tuple[float, list, list]:
    """One training step. Returns the loss, the groups as sampled, and the groups as learned from."""
    sampled = student.sample(problems)
    pairs = [teach(group, teacher(problem)) for group, problem in zip(sampled, problems, strict=True)]
    taught = [group for group, _ in pairs]
    logp, mask = log_probs(student, problems, taught)
    weights = torch.cat([a for _, a in pairs])[:, None]
    is_teacher = torch.tensor([[r.teacher] for group in taught for r in group])
    loss = masked_mean(token_losses(logp, logp.detach(), weights, is_teacher), mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), sampled, taught

"""Methods as data: which gate, whose seats, which advantages, shaping, clip and aggregation.

A method is a value, not a class of its own: the trainer reads its fields and never asks for its name.
Swap a part with `dataclasses.replace(HAPO, gate=BetaGate(threshold=0.5))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch

from hapo_lab.gate import BetaGate, BetaPosterior
from hapo_lab.gates import Gate, NeverGate
from hapo_lab.loss import Shaping, aggregation_weights, group_advantages, log_probability, ratio
from hapo_lab.ssi import Group, Rollout, synthetic_success_injection


@dataclass(frozen=True)
class Method:
    """Everything in which the compared methods differ.

    >>> strict = Method("HAPO, bar 0.5", gate=BetaGate(threshold=0.5))
    >>> strict.advantages(torch.tensor([1.0, 0.0, 0.0]), teacher_mask=torch.tensor([True, False, False]))
    tensor([ 1.1545, -0.5773, -0.5773])
    """

    name: str
    """As it stands in figures and tables."""
    gate: Gate = NeverGate()
    """Decides from a group's sampled successes whether SSI replaces its worst rollout by the demonstration."""
    teacher_seats: int = 0
    """1: a seat of every group is the demonstration's, and one rollout less is sampled (LUFFY)."""
    imitation: bool = False
    """True: the advantages are 1 for the teacher and 0 for the student, who counts in no divisor (SFT); False: relative to the
    group."""
    scale: str = "std"
    """Of the group advantages: "std" or "none"."""
    shaping: Shaping = ratio(0.1)
    """F, of the teacher's tokens."""
    eps_low: float = 0.2
    """The students' ratio is clipped below 1 - eps_low ..."""
    eps_high: float = 0.2
    """... and above 1 + eps_high; inf: not at all."""
    aggregation: str = "dapo"
    """How tokens make a loss: see `loss.aggregation_weights`."""
    entropy_bonus: float = 0.0
    """Times the mean entropy of all the batch's tokens, the teacher's included, added to the objective. (verl's masked mean,
    which LUFFY's released recipe uses. With `imitation`, of the teacher's tokens alone.)"""

    def advantages(self, rewards: torch.Tensor, teacher_mask: torch.Tensor) -> torch.Tensor:
        """(N,) rewards of a group -> (N,) advantages. A rollout alone has nothing to be compared with: 0."""
        if self.imitation:
            return teacher_mask.to(rewards.dtype)
        return group_advantages(rewards, self.scale) if len(rewards) > 1 else torch.zeros_like(rewards)

    def learns_from(self, teacher_mask: torch.Tensor) -> torch.Tensor:
        """(B,) bool: the sequences that divisors count, dead groups' included."""
        return teacher_mask if self.imitation else torch.ones_like(teacher_mask)

    def weights(self, token_mask: torch.Tensor, teacher_mask: torch.Tensor, max_length: int,
                group_index: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) `aggregation_weights` over the sequences that it learns from; 0 on the others. Shapes as there."""
        counted, weights = self.learns_from(teacher_mask), torch.zeros(token_mask.shape, dtype=torch.float64)
        groups = None if group_index is None else group_index[counted]
        weights[counted] = aggregation_weights(token_mask[counted], self.aggregation, max_length, groups)
        return weights


HAPO = Method("HAPO", gate=BetaGate())
"""Beta(1, 1), threshold 0.8 [a reader's account of the paper]; std, F = p/(p + 0.1), token mean, clip 0.2 [ours].

>>> HAPO.gate
BetaGate(alpha=1.0, beta=1.0, threshold=0.8)
"""

GRPO = Method("GRPO")
"""HAPO's conventions with the gate never open: the comparison changes one thing.

>>> from dataclasses import replace
>>> GRPO == replace(HAPO, name="GRPO", gate=NeverGate())
True
"""

LUFFY = Method("LUFFY", teacher_seats=1, scale="none", eps_low=inf, eps_high=inf, aggregation="luffy", entropy_bonus=0.001)
"""As its released recipe runs: a teacher in every group, no std, no clip, an entropy bonus.

>>> LUFFY.teacher_seats, LUFFY.scale, LUFFY.eps_high, LUFFY.entropy_bonus
(1, 'none', inf, 0.001)
"""

SFT = Method("SFT", teacher_seats=1, imitation=True, shaping=log_probability)
"""Maximum likelihood on the demonstrations alone. The students are sampled only to be measured.

>>> SFT.advantages(torch.tensor([1.0, 1.0, 0.0]), teacher_mask=torch.tensor([False, True, False]))
tensor([0., 1., 0.])
"""

METHODS = {"hapo": HAPO, "grpo": GRPO, "luffy": LUFFY, "sft": SFT}


def judge(gate: Gate, groups: Sequence[Group], state: dict, uniforms: Sequence[float]) -> tuple[list[Group], dict]:
    """A step's groups with the gate's posterior and decision filled in, and its state for the next step.

    See `Gate.decide`: `uniforms` is one number in [0, 1) a group.
    """
    decisions, posterior, state = gate.decide(state, [g.problem.key for g in groups], [g.successes for g in groups],
                                              [len(g.rollouts) for g in groups], uniforms)
    beliefs = [BetaPosterior(*pair) for pair in zip(posterior.alpha, posterior.beta, strict=True)]
    return [replace(g, posterior=belief, decision=decision)
            for g, belief, decision in zip(groups, beliefs, decisions.tolist(), strict=True)], state


def teach(method: Method, group: Group, demonstration: Rollout | None) -> Group:
    """From a group that the gate has judged to the group that the update sees: SSI, reserved seats, advantages.

    Without a demonstration the group keeps its rollouts; its advantages are filled in.
    """
    if demonstration is not None:
        if group.decision:
            group = synthetic_success_injection(group, demonstration)
        seats = (replace(demonstration, teacher=True),) * method.teacher_seats
        group = replace(group, rollouts=group.rollouts + seats)
    return replace(group, advantages=method.advantages(group.rewards, group.teacher_mask))

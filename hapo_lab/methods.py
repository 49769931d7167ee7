"""Methods as data: which gate, whose seats, which advantages, shaping, clip and aggregation.

A method is a value, not a class: the trainer reads its fields, never its name.
Swap a part with `dataclasses.replace(HAPO, gate=BetaGate(threshold=0.5))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, inf, pi

import torch

from hapo_lab.gate import BetaGate, BetaPosterior
from hapo_lab.gates import Gate, NeverGate
from hapo_lab.loss import Shaping, aggregation_weights, group_advantages, log_probability, ratio
from hapo_lab.ssi import Group, Rollout, extra_seat, several_seats


@dataclass(frozen=True)
class Decay:
    """A number that falls from `start` to `end` over a run, along half a cosine.

    >>> [round(Decay(0.9, 0.1)(progress), 3) for progress in (0, 0.25, 0.5, 1)]
    [0.9, 0.783, 0.5, 0.1]
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (0 < self.start <= 1 and 0 < self.end <= 1):
            raise ValueError(f"Decay goes from {self.start} to {self.end}; both must be above 0, where it would be another "
                             "method's, and at most 1.")

    def __call__(self, progress: float) -> float:
        """Its value at a share of the run, 0 to 1."""
        return self.end + (self.start - self.end) * (1 + cos(pi * min(progress, 1))) / 2


@dataclass(frozen=True)
class Method:
    """A method: all in which the compared methods differ.

    >>> strict = Method("HAPO, bar 0.5", gate=BetaGate(threshold=0.5))
    >>> strict.advantages(torch.tensor([1.0, 0.0, 0.0]), teacher_mask=torch.tensor([True, False, False]))
    tensor([ 1.1545, -0.5773, -0.5773])
    """

    name: str
    """Its name in figures and tables."""

    gate: Gate = NeverGate()
    """Decides from a group's sampled successes whether the group gets the teacher."""
    seat: str = "replace"
    """Where the gate's demonstration goes. "replace": to the worst rollout's seat (SSI). "extra": to an extra seat. "alone":
    to an extra seat, imitated in its own token mean, and the group's students teach nothing. "aside": to no seat, see
    `aside`."""
    teachers: int = 1
    """With seat "replace": how many demonstrations the gate gives to a group at most, each in the seat of a failure (AMPO)."""
    teacher_seats: int = 0
    """1: one seat of every group is the demonstration's, so one rollout fewer is sampled (LUFFY)."""
    aside: float = 0.0
    """With seat "aside": as soon as this share of a step's prompts waits, newest first, their demonstrations make an update of
    their own, by maximum likelihood."""

    scale: str = "std"
    """Scale of the group advantages: "std", "none" or "leave_one_out", see `loss.group_advantages`."""
    compared: str = "group"
    """The rollouts behind the students' mean and std: "group", the teacher included, or "students" alone."""
    overlong: float = 0.0
    """A rollout's reward falls linearly by up to 1/2 over this last share of the length limit (DAPO)."""
    imitation: float | Decay = 0.0
    """mu: the loss is (1 - mu) times the students' and mu times the demonstrations' shaped likelihood (advantage 1), each side
    divided by its own tokens. The students are compared among themselves. 1: they teach nothing (SFT). A `Decay` moves it."""

    shaping: Shaping = ratio(0.1)
    """F, for the teacher's tokens."""
    eps_low: float = 0.2
    """The students' ratio is clipped below 1 - eps_low ..."""
    eps_high: float = 0.2
    """... and above 1 + eps_high; inf: not at all."""
    sequence_ratio: bool = False
    """Whether the ratio is per sequence instead of per token (GSPO)."""
    aggregation: str = "dapo"
    """How the tokens' objectives are averaged: see `loss.aggregation_weights`."""
    entropy_bonus: float = 0.0
    """Times the mean entropy of all the batch's tokens, the teacher's included, added to the objective. (verl's masked mean,
    which LUFFY's released recipe uses. With `imitation` 1, of the teacher's tokens alone.)"""
    kl: float = 0.0
    """Coefficient of the KL to the base, per student token, subtracted from the objective; see `loss.hapo_loss`."""

    redraws: int = 0
    """Dead groups are discarded and other prompts drawn, up to this many times per step (DAPO)."""
    until: float = 1.0
    """The share of the run after which ..."""
    then: Method | None = None
    """... another method goes on."""

    def __post_init__(self) -> None:
        for name, known in (("seat", ("replace", "extra", "alone", "aside")), ("compared", ("group", "students"))):
            if getattr(self, name) not in known:
                raise ValueError(f"method {self.name!r}: {name} is {getattr(self, name)!r}; choose one of {', '.join(known)}.")
        if self.teachers < 1 or (self.teachers > 1 and self.seat != "replace"):
            raise ValueError(f"method {self.name!r}: {self.teachers} teachers; it must be at least 1, and with seat "
                             f"{self.seat!r} no more.")
        if (self.seat == "aside") != (self.aside > 0):
            raise ValueError(f"method {self.name!r}: seat 'aside' and `aside`, how many demonstrations make an "
                             "update, go together: set both or none.")

    def at(self, progress: float) -> Method:
        """The method at a share of the run, 0 to 1: its stage, with `imitation` as a number."""
        if self.then and progress >= self.until:
            return self.then.at(progress)
        return replace(self, imitation=self.imitation(progress)) if isinstance(self.imitation, Decay) else self

    @property
    def stages(self) -> tuple[Method, ...]:
        """The method, and the methods that follow it."""
        return (self, *(self.then.stages if self.then else ()))

    @property
    def mu(self) -> float:
        """`imitation` as a number; a `Decay` at the run's start."""
        return self.imitation(0) if isinstance(self.imitation, Decay) else self.imitation

    def advantages(self, rewards: torch.Tensor, teacher_mask: torch.Tensor) -> torch.Tensor:
        """(N,) rewards of a group -> (N,) advantages. A single rollout has the advantage 0."""
        if self.mu == 1 or (self.seat == "alone" and teacher_mask.any()):
            return teacher_mask.to(rewards.dtype)
        advantages = self._relative(rewards)
        if self.mu or self.compared == "students":
            advantages = advantages.masked_scatter(~teacher_mask, self._relative(rewards[~teacher_mask]))
        return advantages.masked_fill(teacher_mask, 1) if self.mu else advantages

    def _relative(self, rewards: torch.Tensor) -> torch.Tensor:
        return group_advantages(rewards, self.scale) if len(rewards) > 1 else torch.zeros_like(rewards)

    def learns_from(self, teacher_mask: torch.Tensor, group_index: torch.Tensor | None = None) -> torch.Tensor:
        """(B,) bool: the sequences that divisors count, dead groups' included. `group_index`: (B,), default one group."""
        if self.mu == 1:
            return teacher_mask
        if self.seat != "alone":
            return torch.ones_like(teacher_mask)
        group = torch.zeros(len(teacher_mask)) if group_index is None else group_index
        return teacher_mask | ~torch.isin(group, group[teacher_mask])

    def weights(self, token_mask: torch.Tensor, teacher_mask: torch.Tensor, max_length: int,
                group_index: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) `aggregation_weights` over the sequences that it learns from; 0 on the others. Shapes as there."""
        counted, weights = self.learns_from(teacher_mask, group_index), torch.zeros(token_mask.shape, dtype=torch.float64)
        students, teachers = counted & ~teacher_mask, counted & teacher_mask
        sides = ([(students, 1 - self.mu, self.aggregation), (teachers, self.mu, self.aggregation)] if self.mu else
                 [(students, 1.0, self.aggregation), (teachers, 1.0, "dapo")] if self.seat == "alone" else
                 [(counted, 1.0, self.aggregation)])
        for side, share, aggregation in sides:
            groups = None if group_index is None else group_index[side]
            weights[side] = share * aggregation_weights(token_mask[side], aggregation, max_length, groups)
        return weights


HAPO = Method("HAPO", gate=BetaGate())
"""Beta(1, 1), threshold 0.8, std [a reader's account of the paper]; ddof 1, F = p/(p + 0.1), token mean, clip 0.2 [ours].

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

SFT = Method("SFT", teacher_seats=1, imitation=1.0, shaping=log_probability)
"""Maximum likelihood on the demonstrations alone. The students are sampled only for measurement.

>>> SFT.advantages(torch.tensor([1.0, 1.0, 0.0]), teacher_mask=torch.tensor([False, True, False]))
tensor([0., 1., 0.])
"""

LESSON = replace(SFT, name="a demonstration set aside")
"""The method for a group whose demonstration was set aside."""


def judge(gate: Gate, groups: Sequence[Group], state: dict, uniforms: Sequence[float]) -> tuple[list[Group], dict]:
    """A step's groups with the gate's posterior and decision, and the gate's state for the next step.

    See `Gate.decide`: `uniforms` is one number in [0, 1) per group.
    """
    decisions, posterior, state = gate.decide(state, [g.problem.key for g in groups], [g.successes for g in groups],
                                              [len(g.rollouts) for g in groups], uniforms)
    beliefs = [BetaPosterior(*pair) for pair in zip(posterior.alpha, posterior.beta, strict=True)]
    return [replace(g, posterior=belief, decision=decision)
            for g, belief, decision in zip(groups, beliefs, decisions.tolist(), strict=True)], state


def teach(method: Method, group: Group, demonstration: Rollout | None, max_length: int | None = None,
          others: Sequence[Rollout] = ()) -> Group:
    """The group that the update sees, from one that the gate has judged: SSI, reserved seats, advantages.

    Without a demonstration the group keeps its rollouts, and gets its advantages. `max_length`: the completion limit in
    tokens, for a method with `overlong`. `others`: demonstrations of further teachers, for a method that takes several.
    """
    if demonstration is not None:
        if group.decision:
            group = seated(method, group, demonstration, others)
        seats = (replace(demonstration, teacher=True),) * method.teacher_seats
        group = replace(group, rollouts=group.rollouts + seats)
    rewards = group.rewards - overlong_penalty(method, group, max_length)
    return replace(group, advantages=method.advantages(rewards, group.teacher_mask))


def seated(method: Method, group: Group, demonstration: Rollout, others: Sequence[Rollout] = ()) -> Group:
    """The group with the demonstration in the method's seat, if its gate has opened."""
    if method.seat == "aside":
        return group
    if method.seat != "replace":
        return extra_seat(group, demonstration)
    return several_seats(group, [demonstration, *others][:method.teachers])


def overlong_penalty(method: Method, group: Group, max_length: int | None = None) -> torch.Tensor:
    """(N,): what a group's rewards lose by length: on a line from 0 to 1/2 over the last `method.overlong` of the limit.

    DAPO takes 1 from rewards of -1 and 1; on rewards of 0 and 1 that is 1/2, and the advantages are the same.
    """
    if not method.overlong:
        return torch.zeros_like(group.rewards)
    if not max_length:
        raise ValueError(f"method {method.name!r} shapes rewards by length: pass max_length, the completion limit in tokens.")
    buffer = method.overlong * max_length
    lengths = torch.tensor([len(r.ids) for r in group.rollouts], dtype=torch.float64)
    return ((lengths - (max_length - buffer)) / buffer).clamp(0, 1).masked_fill(group.teacher_mask, 0) / 2

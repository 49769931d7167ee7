"""Methods as data: which gate, whose seats, which advantages, shaping, clip and aggregation.

A method is a value, not a class of its own: the trainer reads its fields and never asks for its name.
Swap a part with `dataclasses.replace(HAPO, gate=BetaGate(threshold=0.5))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import inf

import torch

from hapo_lab import parts
from hapo_lab.gate import (
    AlwaysGate,
    BetaGate,
    BetaPosterior,
    Gate,
    HardGate,
    NeverGate,
    RunningGate,
    StepAnnealedGate,
    SuccessAnnealedGate,
    ThompsonGate,
)
from hapo_lab.loss import (
    SHAPINGS,
    Shaping,
    aggregation_weights,
    group_advantages,
    log_probability,
    probability,
    ratio,
    sqrt,
)
from hapo_lab.ssi import Group, Rollout, synthetic_success_injection


@dataclass(frozen=True)
class Method:
    """Everything in which the compared methods differ."""

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

    def described(self) -> dict:
        """As JSON, for a run's run.json; `method_from` reads it."""
        described = parts.described(self)
        return {name: part for name, part in described.items() if type(self) is not Method or name != "kind"}


HAPO = Method("HAPO", gate=BetaGate())
"""Beta(1, 1), threshold 0.8 [a reader's account of the paper]; std, F = p/(p + 0.1), token mean, clip 0.2 [ours]."""

GRPO = Method("GRPO")
"""HAPO's conventions with the gate never open: the comparison changes one thing."""

LUFFY = Method("LUFFY", teacher_seats=1, scale="none", eps_low=inf, eps_high=inf, aggregation="luffy", entropy_bonus=0.001)
"""As its released recipe runs: a teacher in every group, no std, no clip, an entropy bonus."""

SFT = Method("SFT", teacher_seats=1, imitation=True, shaping=log_probability)
"""Maximum likelihood on the demonstrations alone. The students are sampled only to be measured."""

METHODS = {"hapo": HAPO, "grpo": GRPO, "luffy": LUFFY, "sft": SFT}

GATES = {"beta": BetaGate, "always": AlwaysGate, "never": NeverGate, "hard": HardGate, "thompson": ThompsonGate,
         "by-step": StepAnnealedGate, "by-success": SuccessAnnealedGate, "running": RunningGate}
"""To compare: "beta" is the paper's, the others are ours."""

PARTS = {part.__name__: part for part in (Method, *GATES.values(), ratio, probability, sqrt, log_probability)}
"""What a run.json names: methods, gates and shapings of this kit."""


def get_method(name: str) -> Method:
    """A method by its name, or one of your own from a file: "FILE.py:NAME"."""
    method = _get("method", name, METHODS)
    if not isinstance(method, Method):
        raise ValueError(f"{name!r} is no Method: make it one, such as dataclasses.replace(HAPO, name=..., gate=...).")
    return method


def get_gate(name: str, **numbers: float) -> Gate:
    """A gate by its name, or one of your own, "FILE.py:NAME": a class, or a gate that is made already.

    ValueError names what is not known: the gate, or a number that it doesn't have.
    """
    gate = _get("gate", name, GATES)
    if not hasattr(gate, "decide"):
        raise ValueError(f"{name!r} is no gate: it has no decide (see hapo_lab.gate.Gate).")
    if unknown := numbers.keys() - {f.name for f in (fields(gate) if is_dataclass(gate) else ())}:
        raise ValueError(f"the gate {name!r} has no {' and no '.join(sorted(unknown))}: leave it out.")
    try:
        return gate(**numbers) if isinstance(gate, type) else replace(gate, **numbers) if numbers else gate
    except TypeError as error:
        raise ValueError(f"the gate {name!r} can't be made: {error}.") from None


def get_shaping(name: str) -> Shaping:
    """A shaping by its name, or one of your own, "FILE.py:NAME": a function, or an object that is called like one."""
    shaping = _get("shaping", name, SHAPINGS)
    if not callable(shaping):
        raise ValueError(f"{name!r} is no shaping: it can't be called with log-probabilities.")
    return shaping() if isinstance(shaping, type) else shaping


def _get(what: str, name: str, known: dict[str, object]):
    if name in known:
        return known[name]
    if ".py:" in name:
        return parts.load(name)
    raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(known)}, or write FILE.py:NAME.")


def method_from(described: dict) -> Method:
    """The method that `Method.described` described; ValueError if a part of it can't be had as it was."""
    try:
        return parts.rebuilt({"kind": "Method"} | described, PARTS)
    except TypeError as error:  # of a part that takes other numbers than it was described with
        raise ValueError(f"{error}.") from None


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

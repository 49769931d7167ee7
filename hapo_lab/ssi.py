"""Groups of rollouts, and Synthetic Success Injection (SSI): a demonstration replaces a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from hapo_lab.gate import BetaPosterior

Part = TypeVar("Part")

@dataclass(frozen=True)
class Rollout:
    """One completion of a prompt, by the policy or (`teacher`) by the demonstration.

    >>> Rollout(ids=(5, 6, 2), text="56", reward=1.0, reason="it says 56").reward
    1.0
    """

    ids: tuple[int, ...]
    """The completion's tokens, its end-of-turn token included."""
    text: str
    """The completion as read by the verifier: decoded, without special tokens."""
    reward: float
    """0 or 1: the verifier's verdict; 0 for a rollout that was cut at the length limit."""
    reason: str = ""
    """The verifier's words."""
    finished: bool = True
    """False: cut at the length limit."""
    engine_logps: tuple[float, ...] = ()
    """The sampling engine's log-probabilities, one per token; empty for a demonstration."""
    teacher: bool = False
    """Written by the teacher."""

    def __post_init__(self) -> None:
        if self.reward not in (0, 1):
            raise ValueError(f"rollout {self.text[:40]!r}: its reward is {self.reward}; rewards are 0 or 1.")


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt, with the gate's decision and the advantages. Functions return new groups, and change none.

    >>> group = Group("7 * 8", tuple(Rollout((5, 2), text, float(text == "56")) for text in ("54", "56", "63")))
    >>> group.successes, group.dead, group.rewards
    (1, False, tensor([0., 1., 0.], dtype=torch.float64))
    """

    problem: Any
    """The `Problem` that they answer."""
    rollouts: tuple[Rollout, ...]
    """The rollouts that the update sees; after SSI one of them is the teacher's."""
    posterior: BetaPosterior | None = None
    """The gate's belief in this prompt's success, from the sampled rollouts alone (0-d tensors)."""
    decision: bool | None = None
    """Whether the gate asked for the teacher. (A group without a demonstration gets none.)"""
    replaced: int = -1
    """The seat that the gate gave to the teacher; -1: none."""
    removed: Rollout | None = None
    """The replaced rollout; None for an extra seat."""
    more: tuple[tuple[int, Rollout], ...] = ()
    """Further seats that the gate gave to teachers, with their replaced rollouts."""
    advantages: torch.Tensor | None = None
    """(N,): one number per rollout."""

    @property
    def rewards(self) -> torch.Tensor:
        """(N,) float64, of the rollouts that the update sees."""
        return torch.tensor([r.reward for r in self.rollouts], dtype=torch.float64)

    @property
    def teacher_mask(self) -> torch.Tensor:
        """(N,) bool: which rollouts are the teacher's."""
        return torch.tensor([r.teacher for r in self.rollouts])

    @property
    def sampled(self) -> tuple[Rollout, ...]:
        """The policy's own rollouts, the replaced one in its seat. The student's metrics use only these."""
        seats = list(self.rollouts)
        for seat, rollout in ((self.replaced, self.removed), *self.more):
            if rollout:
                seats[seat] = rollout
        return tuple(r for r in seats if not r.teacher)

    @property
    def successes(self) -> int:
        """S: the number of right rollouts among the sampled ones."""
        return int(sum(r.reward for r in self.sampled))

    @property
    def dead(self) -> bool:
        """Whether all rewards are equal, so that every group-relative advantage is 0."""
        return bool((self.rewards == self.rewards[0]).all())


def synthetic_success_injection(group: Group, demonstration: Rollout, seat: int | None = None) -> Group:
    """Replace the group's lowest-reward rollout (the first of equals) by a verified demonstration.

    By a reader's account of the paper, SSI replaces one rollout per group and changes nothing else. The group's statistics
    are recomputed over the new group.

    Parameters
    ----------
    group : Group
        As sampled; ValueError if it already holds an injected rollout.
    demonstration : Rollout
        Verified, with reward 1. ValueError: another reward, or no tokens.
    seat : int, optional
        The seat to replace, if finer rewards than these decide which rollout is the worst.

    Returns
    -------
    Group
        A new group, with `replaced` and `removed` set and the teacher marked. The old one is unchanged. The new one has no
        advantages yet, because its statistics are new.

    Examples
    --------
    >>> group = Group("7 * 8", tuple(Rollout((5, 2), text, 0.0) for text in ("54", "63")))
    >>> after = synthetic_success_injection(group, Rollout((5, 6, 2), "56", 1.0))
    >>> [r.text for r in after.rollouts], after.teacher_mask, after.removed.text
    (['56', '63'], tensor([ True, False]), '54')
    """
    seat = int(group.rewards.argmin()) if seat is None else seat  # argmin: the first of equals
    return _seated(group, demonstration, seat, group.rollouts[seat])


def several_seats(group: Group, demonstrations: Sequence[Rollout]) -> Group:
    """SSI with several demonstrations: each replaces a failure, as long as failures remain (AMPO).

    >>> group = Group("7 * 8", tuple(Rollout((5, 2), text, 0.0) for text in ("54", "63", "57")))
    >>> after = several_seats(group, [Rollout((5, 6, 2), "56", 1.0), Rollout((5, 6, 6, 2), "It is 56", 1.0)])
    >>> [r.text for r in after.rollouts], [r.text for r in after.sampled]
    (['56', 'It is 56', '57'], ['54', '63', '57'])
    """
    first, *others = demonstrations
    after = synthetic_success_injection(group, first)
    for demonstration in others:
        if after.rewards.min() == 1:
            break
        again = synthetic_success_injection(replace(after, replaced=-1), demonstration)
        after = replace(again, replaced=after.replaced, removed=after.removed,
                        more=(*after.more, (again.replaced, known(again.removed))))
    return after


def extra_seat(group: Group, demonstration: Rollout) -> Group:
    """Add a verified demonstration beside the group's rollouts, all of which stay. Errors as in SSI.

    >>> group = Group("7 * 8", tuple(Rollout((5, 2), text, 0.0) for text in ("54", "63")))
    >>> [r.text for r in extra_seat(group, Rollout((5, 6, 2), "56", 1.0)).rollouts]
    ['54', '63', '56']
    """
    return _seated(group, demonstration, len(group.rollouts), None)


def _seated(group: Group, demonstration: Rollout, seat: int, removed: Rollout | None) -> Group:
    """The group with the teacher in a seat, if it has no teacher yet."""
    if group.replaced >= 0:
        raise ValueError(f"SSI: seat {group.replaced} of this group is the teacher's already; a group takes one injection.")
    if not demonstration.ids:
        raise ValueError(f"SSI: the demonstration {demonstration.text[:60]!r} has no tokens.")
    if demonstration.reward != 1:
        raise ValueError(f"SSI: the demonstration {demonstration.text[:60]!r} is not a verified success "
                         f"({demonstration.reason or 'reward 0'}); only such a one may be injected.")
    rollouts = (*group.rollouts[:seat], replace(demonstration, teacher=True), *group.rollouts[seat + 1:])
    return replace(group, rollouts=rollouts, replaced=seat, removed=removed, advantages=None)


def known(part: Part | None) -> Part:
    """A part of a group that an earlier function must have filled in, such as its advantages."""
    assert part is not None, "this group has not come so far"
    return part

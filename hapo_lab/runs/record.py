"""The record of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from hapo_lab.ssi import Group, known


@dataclass(frozen=True)
class StepRecord:
    """One training step. "Student" figures are over all sampled rollouts, the replaced ones included, the teacher's excluded.
    A tuple holds one entry per group. None means "nothing to measure".

    >>> record: StepRecord = shipped_run("hapo-0").steps[0]
    >>> record.successes, record.decisions, record.teacher_samples
    ((0, 0, 0, 0), (True, True, True, True), 4)
    """

    step: int
    """The step's number, from 1."""
    problems: tuple[str, ...]
    """Keys of the step's problems."""
    reward: float
    """Mean reward of the students: their success at the training temperature."""
    length: float
    """Mean length of the students' completions, in tokens."""
    cut: float
    """Share of the students' completions that reached the length limit."""
    successes: tuple[int, ...]
    """S, the number of right rollouts."""
    trials: tuple[int, ...]
    """Rollouts sampled."""
    posterior: tuple[tuple[float, float], ...]
    """(alpha, beta) of the gate's posterior."""
    decisions: tuple[bool, ...]
    """Whether the gate asked for the teacher."""
    replaced: tuple[int, ...]
    """The seat that the gate gave to the teacher; -1: none."""
    advantages: tuple[tuple[float, ...], ...]
    """Advantages of the rollouts that the update saw."""
    teacher_samples: int
    """Demonstrations in the update, by SSI, by a reserved seat, or in an update of their own."""
    without_demonstration: int
    """Groups whose problem has no demonstration within the length limit."""
    dead_before: int
    """Groups of equal rewards as sampled ..."""
    dead_after: int
    """... and as updated on."""
    updated: bool
    """False: no token carried a gradient, and the optimizer took no step."""
    loss: float | None
    """The loss of the last inner epoch, which it minimised: less the entropy bonus."""
    grad_norm: float | None
    """Norm of the gradient, before clipping."""
    teacher_share: float | None
    """|g_T| / (|g_T| + |g_S|): the teacher's part in the gradient's norm."""
    teacher_logp: float | None
    """Mean log-probability of the teacher's tokens, before the update."""
    clip_fraction: float | None
    """Share of student tokens whose gradient the clip cut, in the last inner epoch."""
    entropy: float | None
    """Mean entropy over the student's trained tokens, in nats, before the update."""
    kl: float | None
    """KL from the sampling policy to the base model, per student token, in nats, before the update. A k3 estimate, at steps
    with an evaluation."""
    heldout: float | None
    """Success on held-out problems after this step, no teacher; at steps with an evaluation."""
    learning_rate: float
    tokens_sampled: int
    """Tokens that the student sampled, the replaced rollouts included."""
    tokens_trained: int
    """Completion tokens that carried a gradient."""
    engine_gap: float | None = None
    """Mean |log p of the trainer - log p of the engine that sampled| over the student's trained tokens, in nats ..."""
    engine_gap_max: float | None = None
    """... and the largest. Truncated importance weights correct for it."""
    without_engine_logp: int = 0
    """Trained rollouts of the student without log-probabilities from the engine. Their gap is unknown, and their importance
    weight is 1."""
    thrown_away: int = 0
    """Groups that a method with `redraws` drew and discarded. The student's figures include them."""
    skipped: int = 0
    """Optimizer steps that float16 overflowed; each was repeated with half the loss scale."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase: rollout, gate (gate, SSI and advantages), update, evaluate."""
    gate_state: dict = field(default_factory=dict)
    """This step's changes of the gate's state; `RunLog.gate_state` joins them. {}: no memory."""

    @property
    def injected(self) -> tuple[bool, ...]:
        """Per group, whether a demonstration replaced a rollout or took an extra seat."""
        return tuple(seat >= 0 for seat in self.replaced)

    @property
    def all_wrong(self) -> int:
        """Groups that failed whole, as sampled ..."""
        return sum(s == 0 for s in self.successes)

    @property
    def all_right(self) -> int:
        """... and groups without a failure. The advantages of both are 0."""
        return sum(s == n for s, n in zip(self.successes, self.trials, strict=True))

    @property
    def training_seconds(self) -> float:
        """Seconds without the evaluation."""
        return sum(s for phase, s in self.seconds.items() if phase != "evaluate")


def numbers(record: StepRecord) -> dict:
    """Every figure that is a single number, or None; the seconds are spread out by phase, and the groups counted."""
    row = {f.name: getattr(record, f.name) for f in fields(record)}
    row |= {f"seconds_{phase}": s for phase, s in record.seconds.items()} | {"groups": len(record.problems)}
    return {k: v for k, v in row.items() if not isinstance(v, tuple | dict)}


def record_of(step: int, drawn: Sequence[Group], groups: Sequence[Group], **rest: Any) -> StepRecord:
    """A step's record: what its groups tell, and the rest.

    Parameters
    ----------
    step : int
    drawn : sequence of Group
        All that the policy sampled in this step, before the teacher came: the student's figures are theirs.
    groups : sequence of Group
        As the update saw them.
    """
    students = [r for g in drawn for r in g.rollouts]
    mean = lambda values: sum(values) / len(students)  # noqa: E731
    return StepRecord(
        step=step, problems=tuple(g.problem.key for g in groups),
        reward=mean([r.reward for r in students]), length=mean([len(r.ids) for r in students]),
        cut=mean([not r.finished for r in students]), tokens_sampled=sum(len(r.ids) for r in students),
        successes=tuple(g.successes for g in groups), trials=tuple(len(g.sampled) for g in groups),
        posterior=tuple((b.alpha.item(), b.beta.item()) for b in (known(g.posterior) for g in groups)),
        decisions=tuple(known(g.decision) for g in groups), replaced=tuple(g.replaced for g in groups),
        advantages=tuple(tuple(known(g.advantages).tolist()) for g in groups), dead_after=sum(g.dead for g in groups), **rest)


def step_from(row: dict) -> StepRecord:
    """The record that a line of steps.jsonl holds; fields that it doesn't know are left out."""
    known = {f.name for f in fields(StepRecord)}
    row = {k: tuple(tuple(x) if isinstance(x, list) else x for x in v) if isinstance(v, list) else v
           for k, v in row.items() if k in known}
    return StepRecord(**row)


def changed_entries(before: dict, after: dict) -> dict:
    """The entries of `after`, nested ones too, that are not the same in `before`; none may be gone."""
    return {key: changed_entries(before.get(key, {}), value) if isinstance(value, dict) else value
            for key, value in after.items() if key not in before or value != before[key]}


def merged(state: dict, changes: dict) -> dict:
    """A gate's state with what `changed_entries` found, at every depth."""
    return state | {key: merged(state.get(key, {}), value) if isinstance(value, dict) else value
                    for key, value in changes.items()}


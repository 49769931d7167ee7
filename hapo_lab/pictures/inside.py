"""Look inside a run, finished or not: its health, any group of any step, and another gate's decisions."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from statistics import median

import torch

from hapo_lab.gate import BetaGate
from hapo_lab.pictures.style import (
    TITLE,
    Figure,
    blank,
    end_labels,
    grid,
    headline,
    panel_title,
    plot_area,
    plot_dead_groups,
    plot_line,
    step_axis,
    style,
    whole,
)
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.progress import mean_of
from hapo_lab.runs.record import StepRecord
from hapo_lab.ssi import Group, known


def health(log: RunLog) -> Figure:
    """Signs of a sound training over the steps: gradient norm, clip fraction, dead groups before and
    after SSI, entropy, KL to the base, the teacher's log-probability and its share of the gradient's norm.

    Each sign has a verdict, by bounds of ours: `JUMP`, `CLIPPED`, `FALLEN`, `LINGERS`. The headline names those to watch.
    """
    figure, last, watch = Figure(), log.steps[-1:], []
    for ax, (name, lines) in zip(grid(figure, 2, 3), _HEALTH.items(), strict=True):
        rows = [(who, colour, [measure(r) for r in log.steps]) for who, colour, measure in lines]
        known = [v for _, _, values in rows for v in values if v is not None]
        step_axis(ax, log.planned, name, top=1.1 * max([*known, 0]) or 1)
        if known and min(known) < 0:
            ax.set_ylim(1.1 * min(known), 0)
        labels = []
        for who, colour, values in rows:
            measured = [(r, v) for r, v in zip(log.steps, values, strict=True) if v is not None]
            if measured:
                plot_line(ax, [r for r, _ in measured], [v for _, v in measured], colour)
                labels.append((last[0].step, measured[-1][1], who, colour))
        end_labels(ax, labels)
        if name == "dead groups" and last:
            ax.set_ylim(0, 1.04)
            plot_dead_groups(ax, log.steps)
        judged = [v for v in rows[0][2] if v is not None]
        sound, words = _VERDICTS[name](judged, log) if judged else (True, "not measured yet")
        watch += [] if sound else [name]
        panel_title(ax, (f"{name[0].upper()}{name[1:]}: " if sound else f"Watch: {name}: ")
                    + words.replace("-", "\N{MINUS SIGN}"))
    skipped = sum(r.skipped for r in log.steps)
    headline(figure, f"{log.name}: health after step {len(log.steps)} of {log.planned}"
                     + (f": watch the {', the '.join(watch)}" if watch else ": no sign to watch" if last else "")
                     + (f"; float16 overflowed {skipped} times" if skipped else ""))
    return figure


JUMP = 10
"""A gradient norm so many times its median is one."""
CLIPPED = 0.2
"""A share of clipped tokens above this one is large."""
FALLEN = 0.1
"""An entropy below this share of its first value has fallen."""
LINGERS = 0.1
"""A teacher whose share of the gradient's norm, the mean of the last five steps, is above this has not left."""

_HEALTH = {
    "gradient norm": [("before clip", style.ink, lambda r: r.grad_norm)],
    "clip fraction": [("student", style.student, lambda r: r.clip_fraction)],
    "dead groups": [("after SSI", style.teacher, lambda r: r.dead_after / len(r.problems))],
    "entropy": [("entropy, nats", style.student, lambda r: r.entropy), ("KL to base", style.held_out, lambda r: r.kl)],
    "teacher's log p": [("teacher", style.teacher, lambda r: r.teacher_logp)],
    "teacher's share": [("teacher", style.teacher, lambda r: r.teacher_share)],
}
"""Sign -> its lines; the first is judged."""
_VERDICTS: dict[str, Callable[[list[float], RunLog], tuple[bool, str]]] = {
    "gradient norm": lambda v, _: (max(v) <= JUMP * median(v), f"{v[-1]:.2g}, at most {max(v):.2g}"),
    "clip fraction": lambda v, _: (max(v) <= CLIPPED, f"at most {max(v):.0%}" if any(v) else "no token is clipped"),
    "dead groups": lambda v, log: (log.steps[-1].dead_after <= log.steps[-1].all_right,
                                   f"{log.steps[0].all_wrong} all wrong at first, {log.steps[-1].all_wrong} now"),
    "entropy": lambda v, _: (v[-1] >= FALLEN * v[0], f"{v[0]:.2f} at first, {v[-1]:.2f} now"),
    "teacher's log p": lambda v, _: (v[-1] >= v[0], f"{v[0]:.2f} at first, {v[-1]:.2f} now"),
    "teacher's share": lambda v, _: (mean_of(v[-5:]) <= LINGERS, f"{v[0]:.2f} at first, {v[-1]:.2f} now"),
}
"""Sign -> whether it is sound, and its figures, from what was measured of its first line."""


def group_at(log: RunLog, step: int, number: int) -> Group:
    """Group `number` (from 1) of a step (from 1). ValueError: the run has no such group."""
    groups = log.groups_of(_step(log, step).step)
    if not 1 <= number <= len(groups):
        raise ValueError(f"step {step} has groups 1 to {len(groups)}; there is no group {number}.")
    return groups[number - 1]


CELL = "text-align:left;vertical-align:top;white-space:pre-wrap"
"""A completion keeps its lines."""


def completions_table(group: Group) -> str:
    """A group's completions in HTML: the teacher's seat is marked, and the replaced rollout stands below."""
    columns = ("seat", "who", "reward", "advantage", "says", "verifier")
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in columns)
    rows = []
    for seat, (r, a) in enumerate(zip(group.rollouts, known(group.advantages).tolist(), strict=True)):
        who, colour = ("teacher", style.teacher_words) if r.teacher else ("student", style.student)
        rows.append((seat, who, f"{r.reward:.0f}", f"{a:+.2f}", r.text, r.reason, colour))
    if gone := group.removed:
        rows.append((group.replaced, "replaced", f"{gone.reward:.0f}", "", gone.text, gone.reason, style.faint))
    body = "".join(f"<tr style='background:white;color:{colour}'>"
                   + "".join(f"<td style='{CELL}'>{escape(str(x))}</td>" for x in cells) + "</tr>" for *cells, colour in rows)
    return f"<table><tr style='background:white;color:{style.ink}'>{head}</tr>{body}</table>"


REPLAY = "replays decisions, not the training that would have followed"


def replay_figure(log: RunLog, step: int, alpha: float = 1.0, beta: float = 1.0, threshold: float = 0.8) -> tuple[Figure, dict]:
    """The run up to a step: what its gate decided, and what a Beta gate with these numbers says to the same groups."""
    steps, gate = log.steps[:_step(log, step).step], BetaGate(alpha, beta, threshold)
    recorded = [sum(r.decisions) for r in steps]
    replayed = [int(gate.injects(torch.tensor(r.successes), torch.tensor(r.trials)).sum()) for r in steps]
    figure, most = blank(3.8), max(len(r.problems) for r in steps)
    panels = grid(figure, 2, 1, TITLE)
    for ax, who, counts in zip(panels, ("The run's gate", "This gate"), (recorded, replayed), strict=True):
        step_axis(ax, log.planned, "groups", top=1.08 * most)
        ax.yaxis.set_major_locator(whole())
        plot_area(ax, steps, 0, counts, style.teacher)
        panel_title(ax, f"{who} asks for the teacher in {sum(counts)} of {sum(len(r.problems) for r in steps)} groups")
    panels[0].set(xlabel="", xticks=())
    panels[1].set_xlabel(f"step; this panel {REPLAY}")
    figure.details = f"the second panel {REPLAY}"
    more = sum(replayed) - sum(recorded)
    headline(figure, "Both gates decide alike: choose other numbers" if recorded == replayed else
             f"This gate asks for the teacher in {abs(more)} groups {'more' if more > 0 else 'fewer'}" if more else
             "This gate asks for the teacher as often, in other steps")
    return figure, {"recorded": recorded, "replayed": replayed}


def _step(log: RunLog, step: int) -> StepRecord:
    if not 1 <= step <= len(log.steps):
        raise ValueError(f"this run has steps 1 to {len(log.steps)}; there is no step {step}." if log.steps
                         else "this run has no step yet.")
    return log.steps[step - 1]

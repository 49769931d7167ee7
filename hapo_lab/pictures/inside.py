"""Look inside a run, finished or not: its health, any group of any step, and what another gate would have decided."""

from __future__ import annotations

from html import escape

import torch

from hapo_lab.gate import BetaGate
from hapo_lab.pictures.figures import group_figure
from hapo_lab.pictures.style import Figure, end_labels, grid, headline, panel_title, plot_area, plot_line, step_axis, style
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.record import StepRecord
from hapo_lab.ssi import Group, known


def health(log: RunLog) -> Figure:
    """What tells a sound training from a sick one, over the steps: gradient norm, clip fraction, dead groups before and
    after SSI, entropy, KL to the base, the teacher's log-probability and its share of the gradient's norm."""
    figure, last = Figure(), log.steps[-1:]
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
        panel_title(ax, f"{name.capitalize()}: " + ", ".join(f"{who} {y:.3g}" for _, y, who, _ in labels) if labels
                    else f"{name.capitalize()}: not measured yet")
    skipped = sum(r.skipped for r in log.steps)
    headline(figure, f"{log.name}: health after step {len(log.steps)} of {log.planned}"
                     + (f"; float16 overflowed {skipped} times" if skipped else ""))
    return figure


_HEALTH = {
    "gradient norm": [("before clipping", style.ink, lambda r: r.grad_norm)],
    "clip fraction": [("student's tokens", style.student, lambda r: r.clip_fraction)],
    "dead groups": [("before SSI", style.faint, lambda r: r.dead_before), ("after", style.teacher, lambda r: r.dead_after)],
    "nats": [("entropy", style.student, lambda r: r.entropy), ("KL to base", style.held_out, lambda r: r.kl)],
    "teacher's log p": [("mean of a token", style.teacher, lambda r: r.teacher_logp)],
    "teacher's share": [("of the gradient", style.teacher, lambda r: r.teacher_share)],
}


def group_page(log: RunLog, step: int, number: int) -> tuple[Figure, str]:
    """Group `number` (from 1) of a step (from 1): its picture, and its completions as a table in HTML."""
    groups = log.groups_of(_step(log, step).step)
    if not 1 <= number <= len(groups):
        raise ValueError(f"step {step} has groups 1 to {len(groups)}; there is no group {number}.")
    group = groups[number - 1]
    return group_figure(group, log.manifest["method"]["scale"]), _completions(group)


CELL = "text-align:left;vertical-align:top;white-space:pre-wrap"
"""A completion keeps its lines."""


def _completions(group: Group) -> str:
    """Teacher's seat marked, and who sat there before."""
    columns = ("seat", "who", "reward", "advantage", "says", "verifier")
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in columns)
    rows = []
    for seat, (r, a) in enumerate(zip(group.rollouts, known(group.advantages).tolist(), strict=True)):
        who, colour = ("teacher", style.teacher) if r.teacher else ("student", style.student)
        rows.append((seat, who, f"{r.reward:.0f}", f"{a:+.2f}", r.text, r.reason, colour))
    if gone := group.removed:
        rows.append((group.replaced, "replaced", f"{gone.reward:.0f}", "", gone.text, gone.reason, style.faint))
    body = "".join(f"<tr style='color:{colour}'>" + "".join(f"<td style='{CELL}'>{escape(str(x))}</td>" for x in cells)
                   + "</tr>" for *cells, colour in rows)
    return f"<table style='background:white'><tr style='color:{style.ink}'>{head}</tr>{body}</table>"


REPLAY = "a replay of decisions, not of the training that would have followed"


def replay_figure(log: RunLog, step: int, alpha: float = 1.0, beta: float = 1.0, threshold: float = 0.8) -> tuple[Figure, dict]:
    """The run up to a step: what its gate decided, and what a Beta gate with these numbers says to the same groups."""
    steps, gate = log.steps[:_step(log, step).step], BetaGate(alpha, beta, threshold)
    recorded = [sum(r.decisions) for r in steps]
    replayed = [int(gate.injects(torch.tensor(r.successes), torch.tensor(r.trials)).sum()) for r in steps]
    figure = Figure()
    left, right = grid(figure, 1, 2)
    step_axis(left, log.planned, "groups below the threshold", top=1.08 * max(len(r.problems) for r in steps))
    plot_area(left, steps, recorded, style.teacher, alpha=0.5)
    plot_line(left, steps, replayed, style.ink)
    end_labels(left, [(step, recorded[-1], "recorded", style.teacher), (step, replayed[-1], "replayed", style.ink)])
    panel_title(left, f"Groups up to step {step}: {sum(recorded)} recorded, {sum(replayed)} replayed")
    step_axis(right, log.planned, "success", top=1.04)
    plot_line(right, steps, [r.reward for r in steps], style.student)
    end_labels(right, [(step, steps[-1].reward, "student", style.student)])
    panel_title(right, f"Student {steps[-1].reward:.2f} at step {step}")
    headline(figure, REPLAY[0].upper() + REPLAY[1:])
    return figure, {"recorded": recorded, "replayed": replayed}


def _step(log: RunLog, step: int) -> StepRecord:
    if not 1 <= step <= len(log.steps):
        raise ValueError(f"this run has steps 1 to {len(log.steps)}; there is no step {step}." if log.steps
                         else "this run has no step yet.")
    return log.steps[step - 1]

"""A run as ten seconds of animation: the gate's posteriors, its decisions, and the teacher leaving."""

from __future__ import annotations

from collections import Counter
from io import BytesIO

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from hapo_lab.gate import BetaGate, BetaPosterior
from hapo_lab.gates import ladder
from hapo_lab.pictures.figures import beta_gate_of, states_of
from hapo_lab.pictures.style import (
    Figure,
    frame,
    grid,
    headline,
    ink,
    panel_title,
    plot_area,
    plot_line,
    step_axis,
    style,
    to_png,
    whole,
    write,
)
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.record import StepRecord

SECONDS, FIRST, LAST = 10.0, 1.0, 2.0
"""Of the whole, of its first frame and of its last."""
MOST = 60
"""Frames: of a longer run, evenly chosen steps."""
COLOURS = 64
"""Of the file."""


def animation(log: RunLog) -> bytes:
    """A GIF, 800 pixels wide: a frame per step.

    Raises
    ------
    ValueError
        The run has fewer than three steps, or another gate than a Beta gate.
    """
    if len(log.steps) < 3:
        raise ValueError(f"an animation needs a run of at least 3 steps; this one has {len(log.steps)}.")
    shown = np.unique(np.linspace(1, len(log.steps), min(MOST, len(log.steps))).round().astype(int)).tolist()
    frames = [_coarse(Image.open(BytesIO(to_png(step_figure(log, step)))).convert("RGB")) for step in shown]
    shades: Counter = Counter()
    for picture in frames:
        shades.update({colour: count for count, colour in picture.getcolors(picture.width * picture.height) or ()})
    palette = Image.new("P", (1, 1))  # the most frequent: white stays white, and each role has its colour
    palette.putpalette([channel for colour, _ in shades.most_common(COLOURS) for channel in colour])
    first, *rest = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in frames]
    between = round(100 * (SECONDS - FIRST - LAST) / (len(shown) - 2)) * 10  # a GIF counts hundredths of a second
    last = round(1000 * (SECONDS - FIRST)) - between * (len(shown) - 2)
    file = BytesIO()
    first.save(file, "gif", save_all=True, append_images=rest, loop=0, optimize=False,
               duration=[round(1000 * FIRST), *[between] * (len(shown) - 2), last])
    return file.getvalue()


def step_figure(log: RunLog, step: int) -> Figure:
    """One frame: the posteriors of a step's groups, the gate's lamps with the groups above them, and the run up to there."""
    gate, record = beta_gate_of(log, step), log.steps[step - 1]
    if not gate:
        raise ValueError("an animation shows a Beta gate; this run has another one.")
    figure = Figure()
    figure.set_size_inches(8, 3.7)
    figure.set_dpi(100)
    beliefs, lamps, course = grid(figure, 1, 3)
    _beliefs(beliefs, record, gate)
    _lamps(lamps, record, gate)
    _course(course, log, step)
    headline(figure, f"Step {step}: student right in {record.reward:.0%} of its tries, teacher in "
                     f"{record.teacher_samples or 'none'} of {len(record.problems)} groups")
    return figure


def _coarse(picture: Image.Image) -> Image.Image:
    """In 32 levels per channel: no two of its colours are one to Pillow's search in a palette."""
    return picture.point(lambda level: int(level) | 7)


def _beliefs(ax: Axes, record: StepRecord, gate: BetaGate) -> None:
    frame(ax, "success probability", "")
    most = max(a + b for a, b in record.posterior) - 1  # the density of Beta(1, b) at 0 is b
    ax.set(xlim=(0, 1), ylim=(0, 1.15 * most), xticks=[0, 0.5, 1], yticks=[])
    x = np.linspace(0, 1, 201)
    for (posterior, state), count in Counter(zip(record.posterior, states_of(record), strict=True)).items():
        y = BetaPosterior(*torch.tensor(posterior, dtype=torch.float64)).pdf(torch.from_numpy(x)).numpy()
        ax.fill_between(x, y, color=ink(state), alpha=0.15, lw=0)
        ax.plot(x, y, color=ink(state), lw=1.4 + 0.6 * count, ls="-." if state == "right" else "-")
    ax.axvline(gate.threshold, color=style.threshold, ls="--", lw=1.5)
    write(ax, gate.threshold - 0.03, 0.99, f"threshold {gate.threshold:g}", style.threshold, ha="right", va="top",
          transform=ax.get_xaxis_transform())
    panel_title(ax, "What the gate believes")


def _lamps(ax: Axes, record: StepRecord, gate: BetaGate) -> None:
    trials, groups = max(record.trials), len(record.problems)
    frame(ax, f"S, right of {trials}", "")
    ax.set(xlim=(-0.7, trials + 0.7), ylim=(-2.6, groups + 0.2), yticks=[], xticks=range(0, trials + 1, 1 + trials // 8))
    ax.spines["left"].set_visible(False)
    rungs = ladder(gate, trials)
    faces = {"inject": style.teacher, "erases": style.dead, "leave": "white"}
    ax.scatter(range(trials + 1), [-0.8] * (trials + 1), 110, [faces[rung] for rung in rungs], lw=2, zorder=3,
               edgecolors=[style.student if rung == "leave" else style.teacher for rung in rungs])
    for rung, colour in (("inject", style.teacher), ("leave", style.student)):
        if where := [s for s, other in enumerate(rungs) if other == rung]:
            write(ax, sum(where) / len(where), -1.9, rung, colour, ha="center", va="center")
    height: Counter[int] = Counter()
    for s, state in zip(record.successes, states_of(record), strict=True):
        ax.bar(s, 0.8, 0.8, bottom=height[s], color=getattr(style, state), edgecolor=style.faint, lw=0.8)
        height[s] += 1
    panel_title(ax, "What the gate does")


def _course(ax: Axes, log: RunLog, step: int) -> None:
    steps, groups = log.steps[:step], max(len(r.problems) for r in log.steps)
    step_axis(ax, log.planned, "groups", top=1.45 * groups)
    ax.yaxis.set_major_locator(whole())
    plot_area(ax, steps, 0, [r.teacher_samples for r in steps], style.teacher)
    plot_line(ax, steps, [groups * r.reward for r in steps], style.student)
    for height, words, colour in ((0.99, "student right", style.student), (0.87, "teacher", style.teacher)):
        write(ax, 0.03, height, words, colour, va="top", transform=ax.transAxes)
    panel_title(ax, "The teacher leaves" if log.steps[-1].teacher_samples < log.steps[0].teacher_samples
                else "The teacher's part")

"""The method on one page of A4: formulas, a small picture of each, the kit's numbers, the glossary, and where to read on."""

from __future__ import annotations

from io import BytesIO
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf

from hapo_lab.gate import BetaGate
from hapo_lab.gates import ladder
from hapo_lab.loss import group_advantages, ratio, shaped_surrogate
from hapo_lab.pictures.explorables import example_group, value_and_gradient
from hapo_lab.pictures.glossary import DEFAULTS, MARKS, TERMS
from hapo_lab.pictures.style import Figure, frame, style, write

WIDTH, HEIGHT = 595.0, 842.0
"""Of A4, in points: everything is placed in these, from the upper left corner."""
MARGIN, GAP = 34.0, 16.0
SMALL, LINE, TERM = 7.3, 9.3, 90.0
"""Of the type, of its lines, and of the room for a term."""
GATE = BetaGate()
"""The paper's, and HAPO's here."""
READ_ON = ("Lessons: 00 a first run, 01 advantage collapse, 02 SSI, 03 the gate, 04 the loss, 05 training live, "
           "06 fair comparison, 07 asymptotic purity, 08 your own task, 09 mathematics, 10 build HAPO. Pages: README, "
           "docs/glossary.md, docs/purity.md, docs/comparison.md, docs/teaching.md. Paper: arXiv 2603.11321, "
           "by Wu, Wang, Chen and Wei.")
"""Where the page ends."""


def cheat_sheet() -> Figure:
    """The page. In a notebook its last line shows it; `to_pdf` makes it a file."""
    figure = Figure()
    figure.set_size_inches(WIDTH / 72, HEIGHT / 72)
    _say(figure, MARGIN, 42, "HAPO on one page", size=17, weight="bold")
    _say(figure, MARGIN, 57, "Hindsight-Anchored Policy Optimization: a teacher where the model fails, who leaves as it "
         "improves.", size=9.5)
    _say(figure, MARGIN, 70, MARKS)
    _say(figure, MARGIN, 88, " \N{RIGHTWARDS ARROW} ".join(_PIPELINE), size=9.5, color=style.teacher, weight="bold")
    width = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
    for i, (heading, formulas, note, draw) in enumerate(_PARTS):
        left = MARGIN + i * (width + GAP)
        _say(figure, left, 112, heading, size=10, weight="bold")
        for row, formula in enumerate(formulas):
            _say(figure, left, 130 + 19 * row, formula, size=9.5, parse_math=True)
        draw(_panel(figure, left + 20, 172, width - 24, 90))
        _lines(figure, left, 296, note, width)
    y = _heading(figure, 334, "Numbers of the kit")
    column = (WIDTH - 2 * MARGIN - GAP) / 2
    half = (len(DEFAULTS) + 1) // 2
    for i, (what, value, mark) in enumerate(DEFAULTS):
        left, at = MARGIN + i // half * (column + GAP), y + 10 * (i % half)
        _say(figure, left, at, what)
        _say(figure, left + 98, at, value, weight="bold")
        _say(figure, left + column - 28, at, mark, color=style.faint)
    y = _heading(figure, y + 10 * half + 12, "Glossary")
    rows = [(term, wrap(meaning, round((column - TERM) / (0.515 * SMALL)))) for term, meaning in TERMS.items()]
    total, left, at = sum(len(lines) + 0.35 for _, lines in rows), MARGIN, y
    for term, lines in rows:
        if left == MARGIN and at - y > (total / 2 - 1) * LINE:
            left, at = MARGIN + column + GAP, y
        _say(figure, left, at, term, weight="bold")
        for line in lines:
            _say(figure, left + TERM, at, line)
            at += LINE
        at += 0.35 * LINE
    _lines(figure, MARGIN, _heading(figure, HEIGHT - 52, "Where to read on"), READ_ON, WIDTH - 2 * MARGIN)
    return figure


def to_pdf(figure: Figure) -> bytes:
    """The figure as the bytes of a PDF file of one page, its text as text; the same figure makes the same bytes."""
    file, dpi = BytesIO(), figure.dpi
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        FigureCanvasPdf(figure).print_pdf(file, metadata={"Title": figure.texts[0].get_text(), "CreationDate": None})
    figure.dpi = dpi
    return file.getvalue()


# its parts ---------------------------------------------------------------------------------------------------------


_TEXT: dict[str, Any] = {"size": SMALL, "color": style.ink, "parse_math": False}


def _say(figure: Figure, x: float, y: float, text: str, **options: Any) -> None:
    """A line of text, y points below the page's top."""
    figure.text(x / WIDTH, 1 - y / HEIGHT, text, **_TEXT | options)


def _lines(figure: Figure, x: float, y: float, text: str, width: float) -> None:
    for row, line in enumerate(wrap(text, round(width / (0.525 * SMALL)))):
        _say(figure, x, y + LINE * row, line)


def _heading(figure: Figure, y: float, text: str) -> float:
    """A heading; where the text below it begins."""
    _say(figure, MARGIN, y, text, size=10, weight="bold")
    return y + 14


def _panel(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    return figure.add_axes((x / WIDTH, 1 - (y + height) / HEIGHT, width / WIDTH, height / HEIGHT))


def _frame(ax: Axes, x: str, y: str) -> None:
    frame(ax, x, "", SMALL)
    ax.set_title(y, loc="left", size=SMALL, color=style.ink, pad=4)


def _lamps(ax: Axes) -> None:
    """The paper's gate at N = 8."""
    rungs = ladder(GATE, 8)
    _frame(ax, "S, right of 8", "posterior mean c, and what the gate does")
    s = np.arange(9)
    colours = [style.teacher if rung == "inject" else style.student for rung in rungs]
    ax.axhline(GATE.threshold, color=style.threshold, ls="--", lw=1)
    ax.scatter(s, (GATE.alpha + s) / (GATE.alpha + GATE.beta + 8), 42, edgecolors=colours, lw=1.5,
               facecolors=[c if rung == "inject" else "white" for c, rung in zip(colours, rungs, strict=True)], zorder=3)
    ax.set(xlim=(-0.5, 8.5), ylim=(0, 1.05), xticks=s, yticks=[0, 0.5, 0.8, 1])
    write(ax, 0, 0.83, "threshold", style.threshold, size=SMALL, va="bottom")
    write(ax, 4.2, 0.36, "inject", style.teacher, size=SMALL)
    write(ax, 6.9, 0.62, "leave", style.student, size=SMALL)


def _advantages(ax: Axes) -> None:
    """After SSI at N = 8 in each group that the gate injects into; as sampled in the others."""
    _frame(ax, "S, right of 8", "advantage in the update")
    found: dict[str, list[tuple[int, float]]] = {"teacher": [], "right": [], "wrong": []}
    for s, rung in enumerate(ladder(GATE, 8)):
        rewards = example_group(min(s + (rung == "inject"), 8)).rewards
        advantages = group_advantages(rewards).tolist()
        found["teacher"] += [(s, advantages[0])] if rung == "inject" else []
        found["right"] += [(s, advantages[0])] if s else []
        found["wrong"] += [(s, advantages[-1])] if s < 8 else []
    for who, colour, dash, size in (("teacher", style.teacher, "-", 5), ("right", style.student, "--", 2.5),
                                    ("wrong", style.faint, ":", 2.5)):
        ax.plot(*zip(*found[who], strict=True), color=colour, ls=dash, marker="o", ms=size, lw=1.4)
    ax.axhline(0, color=style.faint, lw=0.7)
    ax.set(xlim=(-0.5, 8.5), ylim=(-2.9, 2.9), xticks=range(9), yticks=[-2, 0, 2])
    write(ax, 0.5, 2.3, "teacher", style.teacher, size=SMALL)
    write(ax, 5.2, 0.75, "student, right", style.student, size=SMALL)
    write(ax, -0.2, -2.3, "student, wrong", style.faint, size=SMALL)


def _shaping(ax: Axes) -> None:
    """F and its gradient in log p."""
    _frame(ax, "p, the teacher's token to the student", "a teacher's token, advantage 1")
    x = np.geomspace(1e-4, 1, 200)
    value, gradient = value_and_gradient(lambda logp: shaped_surrogate(logp, torch.tensor(1.0), ratio(0.1)), x)
    ax.plot(x, value, color=style.teacher, lw=1.6)
    ax.plot(x, gradient, color=style.ink, lw=1.6, ls="--")
    ax.set(xscale="log", xlim=(1e-4, 1), ylim=(0, 1.05), yticks=[0, 0.25, 0.5, 1])
    ax.set_xticks([1e-4, 1e-3, 0.01, 0.1, 1], ["1e-4", "1e-3", "0.01", "0.1", "1"])
    ax.minorticks_off()
    write(ax, 0.012, 0.62, "F(p)", style.teacher, size=SMALL)
    write(ax, 1.3e-4, 0.29, "gradient in log p", style.ink, size=SMALL)


_PIPELINE = ("prompt", "N rollouts", "verifier", "gate", "(SSI)", "group advantages", "clipped and shaped loss")
_PARTS = (
    ("1 Gate: who needs a teacher?", (r"$c = \frac{a_0 + S}{a_0 + b_0 + N}$   inject if $c < \gamma$  [R]",),
     "The gate sees S alone and forgets each group. At N = 8 it injects up to S = 6; S = 7 is a tie, and left alone.", _lamps),
    ("2 SSI and advantages",
     (r"worst rollout $\rightarrow \tau^*$  (SSI)  [R]", r"$A_i = \frac{r_i - mean}{std}$,  of the new group  [R]"),
     "At S = 0 the dead group teaches: the teacher is pulled up with 2.47, seven failures are pushed down with 0.35.",
     _advantages),
    ("3 Loss: clipped and shaped",
     (r"student  $\min(\rho A,\, clip(\rho, 1 \pm \varepsilon)\, A)$  [R]",
      r"teacher  $F(p)\, A$,  $F = p / (p + 0.1)$  [ours]"),
     "F stands in the ratio's place: the policy did not sample a teacher's token. Where p is small, the gradient is too.",
     _shaping),
)
"""Heading, formulas, a note, and what draws the picture between them."""

"""The style of every figure: colours, type, axes, and labels that do not overlap.

Object-oriented matplotlib, never pyplot, every style given explicitly: figures may be drawn from any thread, and under
anybody's rcParams.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Any, cast

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike
from PIL import Image

from hapo_lab.runs.record import StepRecord


@dataclass
class Style:
    """The style that all figures share."""

    student: str = "#0072B2"
    teacher: str = "#D55E00"
    teacher_words: str = "#B84F00"
    """Its words on a page, of which WCAG asks a contrast of 4.5."""
    held_out: str = "#009E73"
    wrong: str = "#A0A0A0"
    """A group whose rollouts are all wrong ..."""
    right: str = "#DCDCDC"
    """... and one whose rollouts are all right: both are dead, for opposite reasons."""
    dead: str = "#999999"
    """The teacher replaces the only failure: the gate's injection makes the group dead."""
    threshold: str = "black"
    ink: str = "#222222"
    faint: str = "#666666"
    runs: tuple[str, ...] = ("#000000", "#CC79A7", "#6A3D9A", "#A08A00", "#8C510A", "#8FA83A", "#A50F3C", "#B39DDB",
                             "#3F4F00", "#D9A0A0", "#5B2C6F", "#C51B7D")
    """Where lines are runs and not roles: no blue, orange or green. Of three neighbours each has a lightness of its own."""
    dashes: tuple[str, ...] = ("-", "--", "-.", ":")
    """Of each three in `runs`."""
    size: float = 11
    """Of the type, in points."""


style = Style()


class projector:
    """Larger type in all later figures: `projector()` for good, `with projector():` for a while, `projector(False)` back.

    >>> small = training_figure(shipped_run("hapo-0"))
    >>> with projector():
    ...     large = training_figure(shipped_run("hapo-0"))
    >>> [figure.axes[0].xaxis.label.get_size() for figure in (small, large)]
    [11.0, 16.0]
    """

    def __init__(self, on: bool = True):
        self._before, style.size = style.size, 16 if on else 11

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        style.size = self._before


class Figure(matplotlib.figure.Figure):
    """1600 x 900 pixels, and any notebook shows it as they are."""

    details = ""
    """Figures for who can't see it, where no title tells them."""

    def __init__(self) -> None:
        super().__init__(figsize=(16 / 1.2, 9 / 1.2), dpi=120, facecolor="white")

    @property
    def says(self) -> str:
        """Its headline."""
        return " ".join(text.get_text() for text in self.texts)

    @property
    def described(self) -> str:
        """Its alternative text: the headline, what each panel's title states, and details."""
        parts = [self.says, *(ax.get_title(loc="left") for ax in self.axes), self.details]
        return "; ".join(" ".join(part.split()) for part in parts if part.strip("?"))

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        return bundle(self)


def blank(height: float) -> Figure:
    """As wide as a cell's output: larger type takes a larger picture too, so that everything still fits."""
    figure, larger = Figure(), (style.size / 11) ** 0.6
    figure.set_size_inches(9.6 * larger, height * larger)
    return figure


def cell_figure(rows: int, columns: int, height: float = 4.0, between: float = 5.6) -> tuple[Figure, list[Axes]]:
    """Axes in a picture as wide as a cell's output; `between`: see `grid`."""
    figure = blank(height)
    return figure, grid(figure, rows, columns, between)


def to_png(figure: matplotlib.figure.Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    file, canvas = BytesIO(), FigureCanvasAgg(figure)
    canvas.draw()
    # without transparency, and packed lightly: half the time, and no more bytes
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(file, "png", compress_level=1)
    return file.getvalue()


def bundle(figure: Figure) -> tuple[dict, dict]:
    """The figure for a notebook, and its metadata: an image that every viewer shows, and the same one in HTML.

    JupyterLab gives an image its alternative text in HTML alone.
    """
    png, alt = b64encode(to_png(figure)).decode(), figure.described
    html = f'<img src="data:image/png;base64,{png}" alt="{escape(alt)}">'
    return {"image/png": png, "text/html": html, "text/plain": figure.says}, {"image/png": {"alt": alt}}


def in_256_colours(png: bytes) -> bytes:
    """The same picture in a third of the bytes, for what is downloaded, and kept in every clone."""
    small = BytesIO()
    Image.open(BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png")
    return small.getvalue()


def ink(state: str) -> str:
    """Its colour as type: grey is too faint to read."""
    return getattr(style, state) if state in ("student", "teacher", "held_out") else style.faint


def dashes(colour: str) -> str:
    """What tells a run's line from one of like lightness; a role's line is solid."""
    return style.dashes[style.runs.index(colour) // 3] if colour in style.runs else "-"


def grid(figure: Figure, rows: int, columns: int, between: float = 5.6) -> list[Axes]:
    """Axes with room for the type: laid out by hand, which is far faster than a layout engine. `between` rows lie so many
    lines: `TITLE` where they share the last row's horizontal axis."""
    line, (width, height) = style.size / 72, figure.get_size_inches()
    left, right, top, bottom, across, between = (lines * line for lines in (4.5, 1.3, 4.9, 3.4, 5.0, between))
    figure.subplots_adjust(left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height,
                           wspace=across * columns / (width - left - right - across * (columns - 1)),
                           hspace=between * rows / (height - top - bottom - between * (rows - 1)))
    return list(figure.subplots(rows, columns, squeeze=False).flat)


FIFTHS = (0, 0.2, 0.4, 0.6, 0.8, 1)
"""Ticks of a probability, with the usual threshold among them."""
TITLE = 3.0
"""Lines that a panel's title takes."""
LOW = 3.4
"""Inches of a picture that stands whole on a projector of 1280 x 720 pixels, under a ladder and three rows of sliders."""


def frame(ax: Axes, x: str, y: str, size: float = 0) -> None:
    """The bare axes of a panel, with their labels: the upright one as long as the axis at most, where nothing cuts it. The
    labels stand at fixed places: matplotlib would measure all ticks' labels again to find one. `size`: the type's, if not the
    style's."""
    size = size or style.size
    ax.set_facecolor("white")
    ax.grid(False)
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ax.spines.values():
        spine.set(color=style.faint, linewidth=1)
    ax.tick_params(color=style.faint, labelcolor=style.ink, labelsize=size, width=1, length=3)
    ax.set_xlabel(x, color=style.ink, size=size)
    height = 72 * inches(ax)[1]
    ax.set_ylabel(y, color=style.ink, size=min(size, height / (0.55 * max(len(y), 1))))
    inch, line = cast(Figure, ax.figure).dpi_scale_trans, size / 72
    ax.xaxis.set_label_coords(0.5, 0, ax.transAxes + ScaledTranslation(0, -1.2 * line - 10.5 / 72, inch))
    ax.yaxis.set_label_coords(0, 0.5, ax.transAxes + ScaledTranslation(-3.1 * line, 0, inch))


def step_axis(ax: Axes, planned: int, y: str, top: float) -> None:
    """A panel over a run's steps."""
    frame(ax, "step", y)
    ax.set(xlim=(0.5, planned + 0.5), ylim=(0, top))
    ax.xaxis.set_major_locator(whole())


def whole() -> MaxNLocator:
    """Ticks at whole numbers, few of them."""
    return MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height of a panel."""
    figure: Any = ax.figure
    box, (width, height) = ax.get_position(), figure.get_size_inches()
    return box.width * width, box.height * height


def plot_line(ax: Axes, steps: Sequence[StepRecord], values: Sequence[float], colour: str) -> None:
    """One value per step, thinner in a long run."""
    ax.plot([r.step for r in steps], values, color=colour, ls=dashes(colour), lw=2.2 if len(steps) < 100 else 1.2,
            marker="o" if len(steps) == 1 else None, ms=5, solid_capstyle="round", clip_on=False)


def plot_area(ax: Axes, steps: Sequence[StepRecord], low: ArrayLike, high: ArrayLike, colour: str) -> None:
    """Bars without gaps, as one patch: a step's bar is 1 wide."""
    edges = np.array([(r.step - 0.5, r.step + 0.5) for r in steps]).ravel()
    ax.fill_between(edges, np.repeat(np.broadcast_to(low, len(steps)), 2), np.repeat(high, 2), color=colour, lw=0)


def plot_dead_groups(ax: Axes, steps: Sequence[StepRecord]) -> None:
    """Shares of dead groups per step: all right from below, all wrong from above, each with its name inside.

    The success rate lies between the two: the white band is the groups that teach.
    """
    right, wrong = (np.array([getattr(r, which) / len(r.problems) for r in steps]) for which in ("all_right", "all_wrong"))
    (left, end), last = ax.get_xlim(), steps[-1].step + 0.5
    half = min(0.33 * len("all wrong") * style.size / 72 / inches(ax)[0] * (end - left), (last - left) / 2)
    for low, high, colour, name in ((0 * right, right, style.right, "all right"),
                                    (1 - wrong, 1 + 0 * wrong, style.wrong, "all wrong")):
        plot_area(ax, steps, low, high, colour)
        if (share := high - low).any():
            middle = int(np.searchsorted(share.cumsum(), share.sum() / 2))
            write(ax, float(np.clip(steps[middle].step, left + half, last - half)), (low + high)[middle] / 2, name, style.ink,
                  ha="center", va="center", bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1}, zorder=4)


def write(ax: Axes, x: float, y: float, text: str, colour: str, **options: Any) -> None:
    """Text in a panel, as it stands: a dollar sign is a dollar sign."""
    ax.text(x, y, text, color=colour, parse_math=False, **{"size": style.size} | options)


def write_below(ax: Axes, x: float, text: str, colour: str, weight: str) -> None:
    """Text in the place of a tick's label: a tick itself takes far longer to draw."""
    below = ax.get_xaxis_transform() + ScaledTranslation(0, -6.5 / 72, cast(Figure, ax.figure).dpi_scale_trans)
    write(ax, x, 0, text, colour, weight=weight, transform=below, ha="center", va="top")


def panel_title(ax: Axes, text: str) -> None:
    """As large as the panel is wide enough for."""
    size = min(1.1 * style.size, (72 * inches(ax)[0] + style.size) / (0.53 * len(text)))
    ax.set_title(text, loc="left", size=size, color=style.ink, parse_math=False, pad=0.6 * style.size,
                 y=1)  # else it is moved clear of ticks above, which are measured for it


def headline(figure: Figure, text: str) -> None:
    """The sentence above a figure, as large as fits."""
    line, (width, height) = style.size / 72, figure.get_size_inches()
    size = min(1.2 * style.size, 72 * (width - 2 * line) / (0.6 * len(text)))
    figure.text(1.3 * line / width, 1 - 1.2 * line / height, text, size=size, color=style.ink, weight="bold", va="top",
                parse_math=False)


def in_a_line(text: str, most: int = 80) -> str:
    r"""A problem's question as a title holds it: on one line, plain fractions as a/b, cut after `most` characters.

    >>> in_a_line(r"What is \frac{1}{5} + \frac{2}{3}?")
    'What is 1/5 + 2/3?'
    """
    plain = re.sub(r"(?<![\w}])\\[dt]?frac\{(\w+)\}\{(\w+)\}(?![\w\\({^])", r"\1/\2", text)  # alone: 2\frac{3}{4} is not 23/4
    line = " ".join(plain.split())
    return line if len(line) <= most else f"{line[:most - 1]}…"


def end_labels(ax: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) right of each line's end, moved apart; the axis is cut short to make room."""
    if not labels:
        return
    width, height = (72 * side for side in inches(ax))
    left, right = ax.get_xlim()
    room = min((max(len(text) for _, _, text, _ in labels) + 1) * 0.6 * style.size / width, 0.5)
    ax.set_xlim(left, left + (right - left) / (1 - room))
    ax.spines["bottom"].set_bounds(left, right)
    ax.set_xticks([tick for tick in whole().tick_values(left, right) if left <= tick <= right])
    bottom, top = ax.get_ylim()
    labels = sorted(labels, key=lambda label: label[1])
    spots, gap = [(y - bottom) / (top - bottom) * height for _, y, _, _ in labels], 1.15 * style.size
    for i in range(len(spots)):
        spots[i] = max(spots[i], spots[i - 1] + gap if i else gap / 2)
    for i in reversed(range(len(spots))):
        spots[i] = min(spots[i], spots[i + 1] - gap if i < len(spots) - 1 else height - gap / 2)
    for (x, _, text, colour), spot in zip(labels, spots, strict=True):
        write(ax, x + 0.5 + 0.015 * (right - left), bottom + spot / height * (top - bottom), text, colour, va="center")


def peak_labels(ax: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray, str, str]]) -> None:
    """Write each curve's label over its peak; one that would touch its neighbour is lifted."""
    width, height = (72 * side for side in inches(ax))
    em, line = 0.62 * style.size / width, 1.25 * style.size / height * ax.get_ylim()[1]
    placed: list[tuple[float, float, float]] = []
    for x, y, text, state in sorted(curves, key=lambda c: c[0][c[1].argmax()]):
        half = len(text) * em / 2
        at = float(np.clip(x[y.argmax()], half + em / 2, 1 - half))
        spot = y.max() + 0.1 * line
        while any(abs(at - other) < half + reach and abs(spot - level) < line for other, reach, level in placed):
            spot += 0.25 * line
        placed.append((at, half, spot))
        write(ax, at, spot, text, ink(state), ha="center", va="bottom",
              bbox={"fc": "white", "ec": "none", "alpha": 0.9, "pad": 0.5})

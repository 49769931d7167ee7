"""Figures: pure functions of run logs, the same live, in a notebook that loads a shipped run, and in a test.

All are object-oriented matplotlib, never pyplot, and read no rcParams that matter: they may be drawn from any thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib.figure
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator

from hapo_lab.gate import BetaGate, BetaPosterior
from hapo_lab.loss import group_advantages
from hapo_lab.records import RunLog, StepRecord
from hapo_lab.ssi import Group


@dataclass
class Style:
    """What all figures share."""

    student: str = "#0072B2"
    teacher: str = "#D55E00"
    held_out: str = "#009E73"
    dead: str = "#999999"
    threshold: str = "black"
    ink: str = "#222222"
    faint: str = "#666666"
    runs: tuple[str, ...] = ("#000000", "#CC79A7", "#56B4E9", "#E69F00", "#7B3294", "#8C510A", "#4D9221", "#B2182B")
    """Where lines are runs and not roles."""
    size: float = 11
    """Of the type, in points."""


style = Style()


class projector:
    """Larger type in all later figures: `projector()` for good, `with projector():` for a while, `projector(False)` back."""

    def __init__(self, on: bool = True):
        self._before, style.size = style.size, 16 if on else 11

    def __enter__(self) -> None: ...

    def __exit__(self, *error) -> None:
        style.size = self._before


class Figure(matplotlib.figure.Figure):
    """1600 x 900 pixels, and any notebook shows it as they are."""

    def __init__(self):
        super().__init__(figsize=(16 / 1.2, 9 / 1.2), dpi=120, facecolor="white")

    def _repr_png_(self) -> bytes:
        return to_png(self)


def to_png(figure: matplotlib.figure.Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    file = BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


# one run -----------------------------------------------------------------------------------------------------------


def training_figure(log: RunLog) -> Figure:
    """Six panels: student success, length and teacher samples over the steps (the paper's Figure 2, without what a
    demonstration guided); the gate's posteriors now and over the steps; what the gate does at each S."""
    figure = Figure()
    panels = _grid(figure, 2, 3)
    for panel, draw in zip(panels, (_success, _length, _teacher, _posteriors, _history, _ladder), strict=True):
        draw(panel, log)
    _headline(figure, f"{log.name}   {progress_line(log)}")
    return figure


def progress_line(log: RunLog) -> str:
    """Step, student's success, teacher samples, and the time left or, at the end, taken."""
    parts = [f"step {len(log.steps)} of {log.planned}"]
    if log.steps:
        last = log.steps[-1]
        parts += [f"student {last.reward:.2f}"] + ([] if last.heldout is None else [f"held-out {last.heldout:.2f}"])
        parts += [f"teacher in {last.teacher_samples} of {len(last.problems)} groups"]
        left = seconds_left(log)
        parts += [f"{_duration(left)} left" if left else f"{_duration(sum(sum(r.seconds.values()) for r in log.steps))} in all"]
    return "   ".join(parts)


def seconds_left(log: RunLog) -> float:
    """Steps to go at the pace of the last five, and the evaluations to go at the mean of those made; 0 at the end."""
    ahead = range(len(log.steps) + 1, log.planned + 1)
    if not ahead or not log.steps:
        return 0.0
    every = log.about["config"].get("eval_every", 0)
    evaluations = sum(step % every == 0 or step == log.planned for step in ahead) if every else 0
    made = [r.seconds["evaluate"] for r in log.steps if "evaluate" in r.seconds]
    return (len(ahead) * _mean(r.training_seconds for r in log.steps[-5:]) + evaluations * _mean(made))


def _success(ax: Axes, log: RunLog) -> None:
    _step_axis(ax, log.planned, "success", top=1.04)
    if not log.steps:
        return _title(ax, "No step yet")
    last, tested = log.steps[-1], [r for r in log.steps if r.heldout is not None]
    dead = [r.dead_before / len(r.problems) for r in log.steps]
    _area(ax, log.steps, dead, style.dead, alpha=0.3)
    _line(ax, log.steps, [r.reward for r in log.steps], style.student)
    labels = [(last.step, dead[-1], "dead", style.faint), (last.step, last.reward, "student", style.student)]
    if tested:
        ax.plot([r.step for r in tested], [r.heldout for r in tested], "o", color=style.held_out, ms=7, mec="white", clip_on=False)
        labels.append((last.step, tested[-1].heldout, "held-out", style.held_out))
    _end_labels(ax, labels)
    _title(ax, f"Student {last.reward:.2f}" + (f", held-out {tested[-1].heldout:.2f}" if tested else f" at step {last.step}"))


def _length(ax: Axes, log: RunLog) -> None:
    _step_axis(ax, log.planned, "tokens", top=1.15 * max((r.length for r in log.steps), default=1))
    if not log.steps:
        return _title(ax, "No step yet")
    last = log.steps[-1]
    _line(ax, log.steps, [r.length for r in log.steps], style.student)
    _end_labels(ax, [(last.step, last.length, "student", style.student)])
    _title(ax, f"{last.length:.0f} tokens" + (f", {last.cut:.0%} cut at the limit" if last.cut else ", none cut"))


def _teacher(ax: Axes, log: RunLog) -> None:
    groups = max((len(r.problems) for r in log.steps), default=1)
    _step_axis(ax, log.planned, "teacher samples", top=1.08 * groups)
    ax.yaxis.set_major_locator(_whole())
    if not log.steps:
        return _title(ax, "No step yet")
    last = log.steps[-1]
    _area(ax, log.steps, [r.teacher_samples for r in log.steps], style.teacher)
    _end_labels(ax, [(last.step, last.teacher_samples, "teacher", style.teacher)])
    _title(ax, f"Teacher in {last.teacher_samples or 'none'} of {len(last.problems)} groups"
           + (f", {last.without_demonstration} had none" if last.without_demonstration else ""))


def _posteriors(ax: Axes, log: RunLog) -> None:
    """The densities of the last step's groups; equal ones are drawn once."""
    gate = _gate(log)
    _frame(ax, "success probability", "density")
    ax.set(xlim=(0, 1), ylim=(0, 4), yticks=[])
    if log.steps:
        last = log.steps[-1]
        kinds = Counter(zip(last.posterior, last.successes, last.trials, _states(last), strict=True))
        x = np.linspace(0.004, 0.996, 249)
        curves = [(x, _density(*key[0], x), f"{key[1]}/{key[2]}" + (f" ×{count}" if count > 1 else ""), key[3])
                  for key, count in sorted(kinds.items())]
        ax.set_ylim(0, 1.35 * max(y.max() for _, y, _, _ in curves))
        for _, y, _, state in curves:
            ax.plot(x, y, color=_colour(state), lw=2)
            ax.fill_between(x, y, color=_colour(state), alpha=0.08, lw=0)
        _peak_labels(ax, curves)
        asked, n = sum(last.decisions), len(last.problems)
        _title(ax, f"{asked or 'None'} of {n} groups below {gate.threshold:g}" if gate
               else f"The gate opens in {asked} of {n} groups" if asked else f"{n} groups, no threshold")
    else:
        _title(ax, "No posterior yet")
    if gate:
        ax.axvline(gate.threshold, color=style.threshold, ls="--", lw=1.5)
        _text(ax, gate.threshold, 0.99, "threshold ", style.threshold, ha="right", va="top", transform=ax.get_xaxis_transform())


def _history(ax: Axes, log: RunLog) -> None:
    """A dot for the posterior means of each step, larger where groups agree."""
    gate = _gate(log)
    _step_axis(ax, log.planned, "posterior mean", top=1.04)
    labels = [(log.planned, gate.threshold, "threshold", style.threshold)] if gate else []
    if log.steps:
        means = [[a / (a + b) for a, b in r.posterior] for r in log.steps]
        dots = Counter((r.step, round(mean, 6), state) for r, row in zip(log.steps, means, strict=True)
                       for mean, state in zip(row, _states(r), strict=True))
        width = float(np.clip(0.9 * 72 * _inches(ax)[0] / log.planned, 3.5, 11))
        steps, heights, states = zip(*dots, strict=True)
        ax.scatter(steps, heights, [width**2 * (0.3 + 0.7 * c / max(dots.values())) for c in dots.values()],
                   [_colour(s) for s in states], lw=0, alpha=0.85, clip_on=False)
        last = {state: (step, height, _NAMES[state], _ink(state)) for step, height, state in dots}
        labels += [(log.steps[-1].step, *rest) for _, *rest in last.values()]
        _title(ax, f"Posterior mean {np.mean(means[-1]):.2f}" + (f", at first {np.mean(means[0]):.2f}" if len(means) > 1 else ""))
    else:
        _title(ax, "No posterior yet")
    _end_labels(ax, labels)
    if gate:
        ax.plot([0.5, log.planned + 0.5], [gate.threshold] * 2, color=style.threshold, ls="--", lw=1.5)


def _ladder(ax: Axes, log: RunLog) -> None:
    """A lamp for each S: what the gate does there; above it, how often that S came in the last steps."""
    n, recent = _trials(log), log.steps[-5:]
    rungs = _rungs(log, n)
    came = Counter(s for r in recent for s in r.successes)
    top = max(came.values(), default=1)
    _frame(ax, f"S, successes of {n}", f"groups in {len(recent)} step{'s' * (len(recent) != 1)}")
    ax.set(xlim=(-0.7, n + 0.7), ylim=(-0.62 * top, 1.2 * top), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.set_xticks(range(0, n + 1, 1 + n // 11))
    faces, edges = zip(*(_RUNGS[rung](style) for rung in rungs), strict=True)
    ax.bar(list(came), list(came.values()), 0.62, alpha=0.45, color=[edges[s] if faces[s] == "white" else faces[s] for s in came])
    ax.scatter(range(n + 1), [-0.17 * top] * (n + 1), min(190, (0.75 * 72 * _inches(ax)[0] / (n + 1)) ** 2), faces,
               edgecolors=edges, lw=2, zorder=3)
    for rung in dict.fromkeys(rungs):
        where = [s for s, other in enumerate(rungs) if other == rung]
        low = rung == "erases"  # one lamp wide: its word takes a line of its own
        _text(ax, sum(where) / len(where), (-0.53 if low else -0.38) * top, rung, _RUNGS[rung](style)[1], ha="center", va="center")
    for s, count in came.items() if n <= 16 else ():
        _text(ax, s, count + 0.03 * top, str(count), style.faint, ha="center", va="bottom")
    opens = [s for s, rung in enumerate(rungs) if rung in ("inject", "erases")]
    seats = log.about["method"]["teacher_seats"]
    _title(ax, "The gate's decisions so far" if "unseen" in rungs else f"Injects up to S = {max(opens)} of {n}" if opens
           else "No gate, a teacher in every group" if seats else "No gate, no teacher")


# several runs, and one group ---------------------------------------------------------------------------------------


def comparison_figure(logs: Sequence[RunLog]) -> Figure:
    """Runs in one picture: success (lines: student; points: held-out), teacher samples, length, dead groups before SSI."""
    if not logs:
        raise ValueError("comparison_figure: there is no run to draw; pass at least one RunLog.")
    figure, names = Figure(), run_names(logs)
    measures = (("success", lambda r: r.reward), ("teacher samples", lambda r: r.teacher_samples),
                ("student tokens", lambda r: r.length), ("dead groups", lambda r: r.dead_before / len(r.problems)))
    planned = max(log.planned for log in logs)
    for ax, (unit, measure) in zip(_grid(figure, 2, 2), measures, strict=True):
        values = [[measure(r) for r in log.steps] for log in logs]
        shares = unit in ("success", "dead groups")
        _step_axis(ax, planned, unit, top=1.04 if shares else 1.1 * max((v for row in values for v in row), default=1) or 1)
        labels = []
        for i, (log, row) in enumerate(zip(logs, values, strict=True)):
            colour = style.runs[i % len(style.runs)]
            _line(ax, log.steps, row, colour)
            labels += [(log.steps[-1].step, row[-1], names[i], colour)] if row else []
            tested = [r for r in log.steps if unit == "success" and r.heldout is not None]
            ax.plot([r.step for r in tested], [r.heldout for r in tested], "o", color=style.held_out, ms=8, mec=colour,
                    mew=1.8, clip_on=False)
            if tested and i == len(logs) - 1:
                _text(ax, 0.98, 0.05, "points: held-out", style.held_out, ha="right", transform=ax.transAxes)
        _end_labels(ax, labels)
        _title(ax, _comparison_title(unit, logs, names, values))
    _headline(figure, f"{len(logs)} run{'s' * (len(logs) != 1)}: " + ", ".join(names))
    return figure


def run_names(logs: Sequence[RunLog]) -> list[str]:
    """The methods' names; equal ones told apart by seed, else by folder, else by number."""
    names = [log.name for log in logs]
    for tell in (lambda i, log: f"seed {log.about['config'].get('seed')}", lambda i, log: log.folder and log.folder.name,
                 lambda i, log: f"#{i + 1}"):
        details = [tell(i, log) for i, log in enumerate(logs)]
        useful = {name for name in names if len({d for n, d in zip(names, details, strict=True) if n == name}) > 1}
        names = [f"{n} ({d})" if n in useful and d else n for n, d in zip(names, details, strict=True)]
    return names


def group_figure(group: Group, scale: str = "std") -> Figure:
    """Rewards and advantages of one group, as sampled (left) and as updated on (right); the teacher's seat in its colour.

    `scale` is the method's: of the advantages that the group would have had without the teacher.
    """
    figure = Figure()
    panels = _grid(figure, 2, 2)
    before = torch.tensor([r.reward for r in group.sampled], dtype=torch.float64)
    after = group.advantages if group.advantages is not None else group_advantages(group.rewards, scale)
    columns = ((before, group_advantages(before, scale), torch.zeros(len(before), dtype=torch.bool)),
               (group.rewards, after, group.teacher_mask))
    every = torch.cat([advantages for _, advantages, _ in columns])
    low, high = min(float(every.min()), 0), max(float(every.max()), 0)
    pad = 0.2 * (high - low) or 1
    for i, (rewards, advantages, teacher) in enumerate(columns):
        _seats(panels[i], rewards, teacher, group.replaced, "reward", (0, 1.25))
        _seats(panels[i + 2], advantages, teacher, group.replaced, "advantage", (low - pad, high + pad))
        panels[i].set_yticks([0, 1])
    seat = f"the teacher takes seat {group.replaced}" if group.replaced >= 0 else \
        f"{int(group.teacher_mask.sum()) or 'no'} teacher's seat beside them" if group.teacher_mask.any() else "left alone"
    titles = (f"As sampled: {group.successes} of {len(before)} right", f"After: {seat}",
              _gain(columns[0]), _gain(columns[1]))
    for ax, title in zip(panels, titles, strict=True):
        _title(ax, title)
    _headline(figure, f"One group: {group.problem.key}")
    return figure


def _gain(column: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> str:
    rewards, advantages, teacher = column
    if not advantages.any():
        return "Every advantage is 0: nothing to learn"
    parts = [(name, advantages[where][:1].tolist()) for name, where in
             (("teacher", teacher), ("right", (rewards == 1) & ~teacher), ("wrong", rewards == 0))]
    return "Advantages: " + ", ".join(f"{name} {_signed(value[0])}" for name, value in parts if value)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _seats(ax: Axes, values: torch.Tensor, teacher: torch.Tensor, replaced: int, unit: str, limits: tuple[float, float]) -> None:
    _frame(ax, "seat", unit)
    ax.set(ylim=limits, xticks=range(len(values)))
    colours = [style.teacher if t else style.student for t in teacher]
    bars = ax.bar(range(len(values)), values.tolist(), 0.7, color=colours)
    ax.axhline(0, color=style.faint, lw=1)
    ax.spines["bottom"].set_visible(False)
    texts = [_signed(v) if unit == "advantage" else f"{v:.0f}" for v in values.tolist()]
    for label, colour in zip(ax.bar_label(bars, texts, padding=2, size=style.size * min(1, 9 / len(values))), colours, strict=True):
        label.set_color(colour)
    if replaced >= 0:
        ax.get_xticklabels()[replaced].set(color=style.teacher, weight="bold")


def _comparison_title(unit: str, logs: Sequence[RunLog], names: list[str], values: list[list[float]]) -> str:
    if not any(values):
        return "No step yet"
    if unit == "success":
        tests = [[r.heldout for r in log.steps if r.heldout is not None] for log in logs]
        what, last = ("held-out", tests) if any(tests) else ("student", values)
        best = max(row[-1] for row in last if row)
        who = " and ".join(name for name, row in zip(names, last, strict=True) if row and row[-1] == best)
        return f"Highest {what} success at the end: {best:.2f}, {who}"
    if unit == "teacher samples":
        most = max(map(sum, values))
        who = " and ".join(name for name, row in zip(names, values, strict=True) if sum(row) == most)
        return f"Most teacher samples: {most}, {who}" if most else "No teacher samples"
    ends = [_mean(row[-5:]) for row in values if row]
    number = (lambda x: f"{x:.0%}") if unit == "dead groups" else (lambda x: f"{x:.0f}")
    span = number(min(ends)) + (f" to {number(max(ends))}" if number(min(ends)) != number(max(ends)) else "")
    return f"Groups dead before SSI, last 5 steps: {span}" if unit == "dead groups" else f"Student length, last 5 steps: {span} tokens"


# what the log says -------------------------------------------------------------------------------------------------

_NAMES = {"teacher": "teacher", "student": "live", "dead": "dead"}
_RUNGS = {"inject": lambda s: (s.teacher, s.teacher), "leave": lambda s: ("white", s.student),
          "erases": lambda s: (s.dead, s.teacher), "unseen": lambda s: ("white", s.dead)}
"""Face and edge of a lamp."""


def _states(record: StepRecord) -> list[str]:
    """Of each group: "teacher" (injected), else "dead" (teaches nothing), else "student"."""
    return ["teacher" if injected else "student" if any(advantages) else "dead"
            for injected, advantages in zip(record.injected, record.advantages, strict=True)]


def _colour(state: str) -> str:
    return getattr(style, state)


def _ink(state: str) -> str:
    """Its colour as type: grey is too faint to read."""
    return style.faint if state == "dead" else _colour(state)


def _gate(log: RunLog) -> BetaGate | None:
    gate = log.about["method"]["gate"]
    if not isinstance(gate, dict) or gate.get("kind") != "BetaGate":
        return None
    return BetaGate(gate["alpha"], gate["beta"], gate["threshold"])


def _trials(log: RunLog) -> int:
    return max(log.steps[-1].trials) if log.steps else log.about["config"]["group_size"] - log.about["method"]["teacher_seats"]


def _rungs(log: RunLog, trials: int) -> list[str]:
    """The gate's ladder; of a gate that is not known here, what it did so far."""
    gate, kind = _gate(log), log.about["method"]["gate"]
    if gate or kind == {"kind": "NeverGate"}:
        return gate.ladder(trials) if gate else ["leave"] * (trials + 1)
    seen = {s: decision for r in log.steps for s, decision in zip(r.successes, r.decisions, strict=True)}
    return [{True: "inject", False: "leave", None: "unseen"}[seen.get(s)] for s in range(trials + 1)]


def _density(alpha: float, beta: float, x: np.ndarray) -> np.ndarray:
    a, b = torch.tensor([alpha, beta], dtype=torch.float64)
    return BetaPosterior(a, b).pdf(x).numpy()


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {s} s" if minutes else f"{s} s"


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


# how it is drawn ---------------------------------------------------------------------------------------------------


def _grid(figure: Figure, rows: int, columns: int) -> list[Axes]:
    """Axes with room for the type: laid out by hand, which is far faster than a layout engine."""
    line, (width, height) = style.size / 72, figure.get_size_inches()
    left, right, top, bottom, across, between = (lines * line for lines in (4.1, 1.3, 4.9, 3.4, 4.6, 5.6))
    figure.subplots_adjust(left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height,
                           wspace=across * columns / (width - left - right - across * (columns - 1)),
                           hspace=between * rows / (height - top - bottom - between * (rows - 1)))
    return list(figure.subplots(rows, columns).flat)


def _frame(ax: Axes, x: str, y: str) -> None:
    ax.set_facecolor("white")
    ax.grid(False)
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ax.spines.values():
        spine.set(color=style.faint, linewidth=1)
    ax.tick_params(color=style.faint, labelcolor=style.ink, labelsize=style.size, width=1, length=3)
    ax.set_xlabel(x, color=style.ink, size=style.size)
    ax.set_ylabel(y, color=style.ink, size=style.size)


def _step_axis(ax: Axes, planned: int, y: str, top: float) -> None:
    _frame(ax, "step", y)
    ax.set(xlim=(0.5, planned + 0.5), ylim=(0, top))
    ax.xaxis.set_major_locator(_whole())


def _whole() -> MaxNLocator:
    return MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])


def _inches(ax: Axes) -> tuple[float, float]:
    box, (width, height) = ax.get_position(), ax.figure.get_size_inches()
    return box.width * width, box.height * height


def _line(ax: Axes, steps: Sequence[StepRecord], values: Sequence[float], colour: str) -> None:
    ax.plot([r.step for r in steps], values, color=colour, lw=2.2 if len(steps) < 100 else 1.2,
            marker="o" if len(steps) == 1 else None, ms=5, solid_capstyle="round", clip_on=False)


def _area(ax: Axes, steps: Sequence[StepRecord], values: Sequence[float], colour: str, alpha: float = 1) -> None:
    """Bars without gaps, as one patch: a step's bar is 1 wide."""
    edges = np.array([(r.step - 0.5, r.step + 0.5) for r in steps]).ravel()
    ax.fill_between(edges, np.repeat(values, 2), color=colour, alpha=alpha, lw=0)


def _text(ax: Axes, x: float, y: float, text: str, colour: str, **options) -> None:
    ax.text(x, y, text, color=colour, parse_math=False, **{"size": style.size} | options)


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", size=1.1 * style.size, color=style.ink, parse_math=False, pad=0.6 * style.size)


def _headline(figure: Figure, text: str) -> None:
    line, (width, height) = style.size / 72, figure.get_size_inches()
    size = min(1.2 * style.size, 72 * (width - 2 * line) / (0.69 * len(text)))
    figure.text(1.3 * line / width, 1 - 1.2 * line / height, text, size=size, color=style.ink, weight="bold", va="top",
                parse_math=False)


def _end_labels(ax: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) right of each line's end, moved apart; the axis is cut short to make room."""
    if not labels:
        return
    width, height = (72 * side for side in _inches(ax))
    left, right = ax.get_xlim()
    room = min((max(len(text) for _, _, text, _ in labels) + 1) * 0.6 * style.size / width, 0.5)
    ax.set_xlim(left, left + (right - left) / (1 - room))
    ax.spines["bottom"].set_bounds(left, right)
    ax.set_xticks([tick for tick in _whole().tick_values(left, right) if left <= tick <= right])
    bottom, top = ax.get_ylim()
    labels = sorted(labels, key=lambda label: label[1])
    spots, gap = [(y - bottom) / (top - bottom) * height for _, y, _, _ in labels], 1.15 * style.size
    for i in range(len(spots)):
        spots[i] = max(spots[i], spots[i - 1] + gap if i else gap / 2)
    for i in reversed(range(len(spots))):
        spots[i] = min(spots[i], spots[i + 1] - gap if i < len(spots) - 1 else height - gap / 2)
    for (x, _, text, colour), spot in zip(labels, spots, strict=True):
        _text(ax, x + 0.5 + 0.015 * (right - left), bottom + spot / height * (top - bottom), text, colour, va="center")


def _peak_labels(ax: Axes, curves) -> None:
    """Write each curve's label over its peak; one that would touch its neighbour is lifted."""
    width, height = (72 * side for side in _inches(ax))
    em, line = 0.62 * style.size / width, 1.25 * style.size / height * ax.get_ylim()[1]
    placed: list[tuple[float, float, float]] = []
    for x, y, text, state in sorted(curves, key=lambda c: c[0][c[1].argmax()]):
        half = len(text) * em / 2
        at = float(np.clip(x[y.argmax()], half + em / 2, 1 - half))
        spot = y.max() + 0.1 * line
        while any(abs(at - other) < half + reach and abs(spot - level) < line for other, reach, level in placed):
            spot += 0.25 * line
        placed.append((at, half, spot))
        _text(ax, at, spot, text, _ink(state), ha="center", va="bottom", bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5})

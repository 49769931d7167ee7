"""Figures: pure functions of run logs and groups, for live runs, shipped runs and tests alike."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.ticker import MaxNLocator

from hapo_lab.gate import BetaGate, BetaPosterior
from hapo_lab.gates import ladder
from hapo_lab.loss import group_advantages
from hapo_lab.pictures.style import (
    TITLE,
    Figure,
    blank,
    end_labels,
    frame,
    grid,
    headline,
    in_a_line,
    inches,
    ink,
    panel_title,
    peak_labels,
    plot_area,
    plot_dead_groups,
    plot_line,
    step_axis,
    style,
    whole,
    write,
    write_below,
)
from hapo_lab.reproducibility import parts
from hapo_lab.reproducibility.catalogue import PARTS
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.progress import mean_of, progress_line
from hapo_lab.runs.record import StepRecord
from hapo_lab.ssi import Group

# one run -----------------------------------------------------------------------------------------------------------


def training_figure(log: RunLog, panels: int = 6) -> Figure:
    """A run. With 6 panels: student success, length and teacher samples over the steps (the paper's Figure 2, without the
    demonstrations' trajectories); the gate's posteriors now and over the steps; the gate's decision at each S. With 2:
    success and teacher samples, for a first look.

    Raises
    ------
    ValueError
        Another number of panels.

    Examples
    --------
    >>> figure = training_figure(shipped_run("hapo-0"))     # a cell's last line shows it; figure.savefig("run.png") keeps it
    >>> len(figure.axes), len(training_figure(shipped_run("hapo-0"), panels=2).axes)
    (6, 2)
    """
    drawn = {2: (_success, _teacher), 6: (_success, _length, _teacher, _posteriors, _history, _ladder)}.get(panels)
    if not drawn:
        raise ValueError(f"a run is drawn in 2 panels or in 6; {panels!r} is neither.")
    figure, shape = (blank(4.4), (1, 2)) if panels == 2 else (Figure(), (2, 3))
    for panel, draw in zip(grid(figure, *shape), drawn, strict=True):
        draw(panel, log)
        if draw in (_success, _length, _teacher, _history):
            _changes(panel, log, named=draw is _length)  # where there is room
    headline(figure, f"{log.name}   {progress_line(log)}")
    return figure


def _success(ax: Axes, log: RunLog) -> None:
    step_axis(ax, log.planned, "success", top=1.04)
    if not log.steps:
        return panel_title(ax, "No step yet")
    last = log.steps[-1]
    heldout = [success for _, success in _tested(log)]
    plot_line(ax, log.steps, [r.reward for r in log.steps], style.student)
    labels = [(last.step, last.reward, "student", style.student)]
    if heldout:
        _points(ax, log, "white")
        labels.append((last.step, heldout[-1], "held-out", style.held_out))
    end_labels(ax, labels)
    plot_dead_groups(ax, log.steps)
    where = f", held-out {heldout[-1]:.2f}" if heldout else f" at step {last.step}"
    panel_title(ax, f"Student {last.reward:.2f}" + where)


def _length(ax: Axes, log: RunLog) -> None:
    step_axis(ax, log.planned, "tokens", top=1.15 * max((r.length for r in log.steps), default=1) or 1)
    if not log.steps:
        return panel_title(ax, "No step yet")
    last = log.steps[-1]
    plot_line(ax, log.steps, [r.length for r in log.steps], style.student)
    end_labels(ax, [(last.step, last.length, "student", style.student)])
    panel_title(ax, f"{last.length:.0f} tokens" + (f", {last.cut:.0%} cut at the limit" if last.cut else ", none cut"))


def _teacher(ax: Axes, log: RunLog) -> None:
    groups = max((len(r.problems) for r in log.steps), default=1)
    step_axis(ax, log.planned, "teacher samples", top=1.08 * groups)
    ax.yaxis.set_major_locator(whole())
    if not log.steps:
        return panel_title(ax, "No step yet")
    last = log.steps[-1]
    plot_area(ax, log.steps, 0, [r.teacher_samples for r in log.steps], style.teacher)
    end_labels(ax, [(last.step, last.teacher_samples, "teacher", style.teacher)])
    panel_title(ax, f"Step {last.step}: teacher in {last.teacher_samples or 'none'} of {len(last.problems)} groups"
           + (f", {last.without_demonstration} had none" if last.without_demonstration else ""))


def _posteriors(ax: Axes, log: RunLog) -> None:
    """The densities of the last step's groups; equal ones are drawn once."""
    gate = beta_gate_of(log, max(len(log.steps), 1))
    frame(ax, "success probability", "density")
    ax.set(xlim=(0, 1), ylim=(0, 4), yticks=[])
    if gate:
        ax.axvline(gate.threshold, color=style.threshold, ls="--", lw=1.5)
        write(ax, gate.threshold, 0.99, "threshold ", style.threshold, ha="right", va="top", transform=ax.get_xaxis_transform())
    if not log.steps:
        return panel_title(ax, "No posterior yet")
    last, x = log.steps[-1], np.linspace(0.004, 0.996, 249)
    kinds = Counter(zip(last.posterior, last.successes, last.trials, states_of(last), strict=True))
    curves = [(x, BetaPosterior(*torch.tensor(posterior, dtype=torch.float64)).pdf(torch.from_numpy(x)).numpy(),
               f"{s}/{n}" + (f" ×{count}" if count > 1 else ""), state)
              for (posterior, s, n, state), count in sorted(kinds.items())]
    ax.set_ylim(0, 1.35 * max(y.max() for _, y, _, _ in curves))
    for _, y, _, state in curves:
        ax.plot(x, y, color=ink(state), lw=2, ls="-." if state == "right" else "-")
        ax.fill_between(x, y, color=ink(state), alpha=0.08, lw=0)
    peak_labels(ax, curves)
    asked, groups = sum(last.decisions), len(last.problems)
    panel_title(ax, f"{asked or 'None'} of {groups} groups below {gate.threshold:g}" if gate
           else f"The gate opens in {asked} of {groups} groups" if asked else f"{groups} groups, no threshold")


def _history(ax: Axes, log: RunLog) -> None:
    """A dot for the posterior means of each step, larger where groups agree."""
    step_axis(ax, log.planned, "posterior mean", top=1.04)
    labels = []
    if gates := _gates(log):
        labels = [(log.planned, gates[-1][1].threshold, "threshold", style.threshold)]
        ends = [first for first, _ in gates[1:]] + [log.planned + 1]
        ax.plot([x - 0.5 for (first, _), end in zip(gates, ends, strict=True) for x in (first, end)],
                [gate.threshold for _, gate in gates for _ in range(2)], color=style.threshold, ls="--", lw=1.5)
    dots = Counter((r.step, round(a / (a + b), 6), state) for r in log.steps
                   for (a, b), state in zip(r.posterior, states_of(r), strict=True))
    if dots:
        width = float(np.clip(0.9 * 72 * inches(ax)[0] / log.planned, 3.5, 11))
        steps, heights, states = zip(*dots, strict=True)
        ax.scatter(steps, heights, [width**2 * (0.3 + 0.7 * c / max(dots.values())) for c in dots.values()],
                   [getattr(style, s) for s in states], lw=[0.8 * (s == "right") for s in states], edgecolors=style.faint,
                   alpha=0.85, clip_on=False)
        last = {state: (log.steps[-1].step, height, _NAMES[state], ink(state)) for _, height, state in dots}
        labels += last.values()
    end_labels(ax, labels)
    means = [mean_of([a / (a + b) for a, b in r.posterior]) for r in log.steps]
    panel_title(ax, "No posterior yet" if not means else f"Posterior mean {means[-1]:.2f}"
           + (f", at first {means[0]:.2f}" if len(means) > 1 else ""))


def _ladder(ax: Axes, log: RunLog) -> None:
    """A lamp for each S: what the gate does there; above it, how often that S came in the last steps."""
    seats, recent = log.manifest["method"]["teacher_seats"], log.steps[-5:]
    n = max(recent[-1].trials) if recent else log.manifest["config"]["group_size"] - seats
    rungs = _rungs(log, n)
    came = Counter(s for r in recent for s in r.successes)
    top = max(came.values(), default=1)
    frame(ax, f"S, successes of {n}", f"groups in {len(recent)} step{'s' * (len(recent) != 1)}")
    ax.set(xlim=(-0.7, n + 0.7), ylim=(-0.62 * top, 1.2 * top), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.set_xticks(range(0, n + 1, 1 + n // 11))
    faces, edges, bars = zip(*(_RUNGS[rung](style) for rung in rungs), strict=True)
    ax.bar(list(came), list(came.values()), 0.62, alpha=0.45, color=[bars[s] for s in came])
    ax.scatter(range(n + 1), [-0.17 * top] * (n + 1), min(190, (0.75 * 72 * inches(ax)[0] / (n + 1)) ** 2), faces,
               edgecolors=edges, lw=2, zorder=3)
    for rung in dict.fromkeys(rungs):
        where = [s for s, other in enumerate(rungs) if other == rung]
        height = -0.53 if rung == "erases" else -0.38  # one lamp wide: its word takes a line of its own
        write(ax, sum(where) / len(where), height * top, rung, edges[where[0]], ha="center", va="center")
    for s, count in came.items() if n <= 16 else ():
        write(ax, s, count + 0.03 * top, str(count), style.faint, ha="center", va="bottom")
    opens = [s for s, rung in enumerate(rungs) if rung in ("inject", "erases")]
    panel_title(ax, "The gate's decisions so far" if "unseen" in rungs else f"Injects up to S = {max(opens)} of {n}" if opens
           else "No gate, always a teacher" if seats else "No gate, no teacher")


# several runs, and one group ---------------------------------------------------------------------------------------


def comparison_figure(logs: Sequence[RunLog], panels: int = 4) -> Figure:
    """Runs in one picture: success (lines: student; points: held-out), teacher samples; with 4 `panels` also length, and the
    groups that are all wrong before SSI. ValueError: no run, or another number of panels than 2 or 4.

    >>> figure = comparison_figure([shipped_run("hapo-0"), shipped_run("grpo-0")])
    >>> figure.texts[0].get_text()
    '2 runs: HAPO; GRPO'
    """
    if not logs:
        raise ValueError("comparison_figure: there is no run to draw; pass at least one RunLog.")
    if panels not in (2, 4):
        raise ValueError(f"runs are compared in 2 panels or in 4; {panels!r} is neither.")
    figure, names, planned = blank(4.4) if panels == 2 else Figure(), run_names(logs), max(log.planned for log in logs)
    for ax, (unit, measure) in zip(grid(figure, panels // 2, 2), _MEASURES.items(), strict=False):
        values = [[measure(r) for r in log.steps] for log in logs]
        highest = max((v for row in values for v in row), default=1)
        step_axis(ax, planned, unit, top=1.04 if unit in ("success", "groups all wrong") else 1.1 * highest or 1)
        labels = []
        for i, (log, row) in enumerate(zip(logs, values, strict=True)):
            colour = style.runs[i % len(style.runs)]
            plot_line(ax, log.steps, row, colour)
            labels += [(log.steps[-1].step, row[-1], names[i], colour)] if row else []
            if unit == "success":
                _points(ax, log, colour)
        if unit == "success" and _tested(*logs):
            labels.append((max(len(log.steps) for log in logs), 0.5, "● held-out", style.held_out))
        end_labels(ax, labels)
        panel_title(ax, "No step yet" if not any(values) else _best(logs, names) if unit == "success" else _span(unit, values))
    headline(figure, f"{len(logs)} run{'s' * (len(logs) != 1)}: " + "; ".join(names))
    return figure


def run_names(logs: Sequence[RunLog]) -> list[str]:
    """The methods' names; equal ones told apart by seed, else by folder, else by number."""
    names = [log.name for log in logs]
    for tell in (lambda i, log: f"seed {log.manifest['config'].get('seed')}", lambda i, log: log.folder and log.folder.name,
                 lambda i, log: f"#{i + 1}"):
        details = [tell(i, log) for i, log in enumerate(logs)]
        useful = {name for name in names if len({d for n, d in zip(names, details, strict=True) if n == name}) > 1}
        names = [f"{n} ({d})" if n in useful and d else n for n, d in zip(names, details, strict=True)]
    return names


def group_figure(group: Group, scale: str = "std") -> Figure:
    """Rewards and advantages of one group, as sampled (left) and as updated on (right); the teacher's seat in its colour.

    `scale` is the method's: of the advantages that the group would have had without the teacher.

    >>> group = shipped_run("hapo-0").groups_of(step=1)[0]
    >>> group_figure(group).texts[0].get_text()
    'One group: Tom 25'
    """
    figure = blank(4.6)
    panels = grid(figure, 2, 2, TITLE)
    before = torch.tensor([r.reward for r in group.sampled], dtype=torch.float64)
    after = group.advantages if group.advantages is not None else group_advantages(group.rewards, scale)
    columns = ((before, group_advantages(before, scale), torch.zeros(len(before), dtype=torch.bool)),
               (group.rewards, after, group.teacher_mask))
    low, high = (bound(0.0, *(x for _, advantages, _ in columns for x in advantages.tolist())) for bound in (min, max))
    pad = 0.25 * (high - low) or 1
    what = f"the teacher takes seat {group.replaced}" if group.replaced >= 0 else \
        "the teacher joins" if group.teacher_mask.any() else "left alone"
    titles = (f"As sampled: {group.successes} of {len(before)} right", f"As updated on: {what}")
    for i, (rewards, advantages, teacher) in enumerate(columns):
        seats_panel(panels[i], rewards, teacher, group.replaced, "reward", (0, 1.25), numbered=False)
        seats_panel(panels[i + 2], advantages, teacher, group.replaced, "advantage", (low - pad, high + pad))
        panel_title(panels[i], titles[i])
        panel_title(panels[i + 2], advantages_in_words(rewards, advantages, teacher))
    panels[0].set_yticks([0, 1])
    panels[2].yaxis.set_major_locator(MaxNLocator(4))
    for same in panels[1], panels[3]:  # as on the left
        same.set(yticks=[], ylabel="")
    headline(figure, f"One group: {in_a_line(group.problem.key)}")
    return figure


def advantages_in_words(rewards: torch.Tensor, advantages: torch.Tensor, teacher: torch.Tensor) -> str:
    """The advantages of a group's teacher, right and wrong rollouts, in words."""
    if not advantages.any():
        return "Every advantage is 0: nothing to learn"
    parts = [(name, advantages[where][:1].tolist()) for name, where in
             (("teacher", teacher), ("right", (rewards == 1) & ~teacher), ("wrong", rewards == 0))]
    return "Advantages: " + ", ".join(f"{name} {_signed(value[0])}" for name, value in parts if value)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}") if value else "0"


def seats_panel(ax: Axes, values: torch.Tensor, teacher: torch.Tensor, replaced: int, unit: str,
                limits: tuple[float, float], numbered: bool = True) -> None:
    """A bar for each rollout of a group; `numbered`: with the seats' numbers below.

    All bars are one artist, and no label is an annotation: this picture is drawn while a slider moves.
    """
    seats_axis(ax, len(values), unit, limits, numbered, replaced)
    bars = [[(i - 0.35, 0), (i - 0.35, v), (i + 0.35, v), (i + 0.35, 0)] for i, v in enumerate(values.tolist())]
    colours = [style.teacher if t else style.student for t in teacher]
    ax.add_collection(PolyCollection(bars, facecolors=colours), autolim=False)
    size = min(style.size, 72 * inches(ax)[0] / len(values) / 3.8)  # five characters side by side
    pad = 2 / 72 / inches(ax)[1] * (limits[1] - limits[0])
    for i, (v, colour) in enumerate(zip(values.tolist(), colours, strict=True)):
        write(ax, i, v + (pad if v >= 0 else -pad), _signed(v) if unit == "advantage" else f"{v:.0f}", colour, size=size,
              ha="center", va="bottom" if v >= 0 else "top")
    ax.axhline(0, color=style.faint, lw=1)
    ax.spines["bottom"].set_visible(False)


def seats_axis(ax: Axes, seats: int, unit: str, limits: tuple[float, float], numbered: bool = True, replaced: int = -1,
               ) -> None:
    """A place for each rollout of a group."""
    frame(ax, "seat" if numbered else "", unit)
    ax.set(xlim=(-0.7, seats - 0.3), ylim=limits, xticks=())
    for seat in range(seats if numbered else 0):
        write_below(ax, seat, str(seat), *((style.teacher, "bold") if seat == replaced else (style.ink, "normal")))


_MEASURES = {"success": lambda r: r.reward, "teacher samples": lambda r: r.teacher_samples,
             "student tokens": lambda r: r.length, "groups all wrong": lambda r: r.all_wrong / len(r.problems)}


def _best(logs: Sequence[RunLog], names: list[str]) -> str:
    what = "held-out" if _tested(*logs) else "student"
    last = {name: _tested(log)[-1][1] if what == "held-out" else log.steps[-1].reward
            for name, log in zip(names, logs, strict=True) if (_tested(log) if what == "held-out" else log.steps)}
    best = [name for name, value in last.items() if value == max(last.values())]
    who = " and ".join(best) if len(best) < 3 else f"{len(best)} runs"
    return f"Best {what} at the end: {max(last.values()):.2f}, {who}"


def _span(unit: str, values: list[list[float]]) -> str:
    number = "{:.0%}" if unit == "groups all wrong" else "{:.1f}"
    low, *_, high = [number.format(end) for end in sorted(mean_of(row[-5:]) for row in values if row) * 2]
    return f"{unit.capitalize()}, last 5 steps: {low if low == high else f'{low} to {high}'}"


# what the log says -------------------------------------------------------------------------------------------------

_NAMES = {"teacher": "teacher", "student": "mixed", "wrong": "all wrong", "right": "all right"}
_RUNGS = {"inject": lambda s: (s.teacher, s.teacher, s.teacher), "leave": lambda s: ("white", s.student, s.student),
          "erases": lambda s: (s.dead, s.teacher, s.dead), "unseen": lambda s: ("white", s.faint, s.faint)}
"""Face and edge of a lamp, and its bar."""


def states_of(record: StepRecord) -> list[str]:
    """Of each group: "teacher" (injected), else "student" (it teaches), else, dead, "right" or "wrong"."""
    return ["teacher" if injected else "student" if any(advantages) else "right" if s == n else "wrong" for
            injected, advantages, s, n in zip(record.injected, record.advantages, record.successes, record.trials, strict=True)]


def _tested(*logs: RunLog) -> list[tuple[int, float]]:
    """(step, held-out success) of the steps that were evaluated."""
    return [(r.step, r.heldout) for log in logs for r in log.steps if r.heldout is not None]


def beta_gate_of(log: RunLog, step: int | None = None) -> BetaGate | None:
    """The Beta gate in force at a step (None: the next one); None if it is another kind of gate."""
    gate = log.gate(step)
    if not isinstance(gate, dict) or gate.get("kind") != "BetaGate":
        return None
    return BetaGate(gate["alpha"], gate["beta"], gate["threshold"])


def _gates(log: RunLog) -> list[tuple[int, BetaGate]]:
    """Each Beta gate of the run, with the first step that it acts on."""
    return [(step, gate) for step in log.gates() if step <= log.planned and (gate := beta_gate_of(log, step))]


_SHORT = {"alpha": "α", "beta": "β", "threshold": "γ"}


def _changes(ax: Axes, log: RunLog, named: bool) -> None:
    """A dotted line where the gate was changed; `named`: with its new numbers, where there is room between two lines."""
    width, height = (72 * side for side in inches(ax))
    left, right = ax.get_xlim()
    free = right
    for (_, before), (step, gate) in reversed(list(itertools.pairwise(log.gates().items()))):
        if step > log.planned:
            continue
        ax.axvline(step - 0.5, color=style.threshold, ls=":", lw=1)
        if named and (free - step) / (right - left) * width > 1.3 * style.size:
            free = step
            new = ", ".join(f"{_SHORT.get(name, name)} {value:g}" for name, value in gate.items()
                            if value != before[name] and isinstance(value, int | float)) or "changed"
            write(ax, step - 0.5, 0.03, new, style.threshold, size=min(style.size, 0.7 * height / (0.58 * len(new))),
                  rotation=90, va="bottom", ha="left", transform=ax.get_xaxis_transform())


def _rungs(log: RunLog, trials: int) -> list[str]:
    """The gate's ladder; of a gate that draws, remembers, or is not this kit's, what it did so far."""
    described = log.gate()
    if isinstance(described, dict) and described["kind"] in PARTS and not log.gate_state(len(log.steps)):
        rungs = ladder(parts.rebuilt(described, PARTS), trials)
        if not any(rung.endswith("%") for rung in rungs):
            return rungs
    seen = {s: decision for r in log.steps for s, decision in zip(r.successes, r.decisions, strict=True)}
    return [{True: "inject", False: "leave", None: "unseen"}[seen.get(s)] for s in range(trials + 1)]


def _points(ax: Axes, log: RunLog, edge: str) -> None:
    tested = _tested(log)
    ax.plot([step for step, _ in tested], [success for _, success in tested], "o", color=style.held_out, ms=8, mec=edge,
            mew=1.5, clip_on=False)

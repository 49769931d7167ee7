"""An experiment in pictures and tables: each method's success and cost, with intervals over seeds."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from scipy import stats

from hapo_lab.experiments.outcomes import AXES, HELD_OUT, Outcome, by_method
from hapo_lab.experiments.statistics import (
    RESAMPLES,
    Estimate,
    band,
    enough,
    interquartile_means,
    median_to,
    profiles,
    savings,
    scores,
    spent,
    verdicts,
)
from hapo_lab.pictures.style import (
    FIFTHS,
    Figure,
    dashes,
    end_labels,
    frame,
    grid,
    headline,
    inches,
    panel_title,
    style,
    to_png,
    write,
)

LEVEL = 0.8
"""The success level whose cost is computed."""
FIGURE_2 = ("hapo", "luffy_matched")
"""The methods of the paper's Figure 2, by short name. LUFFY has HAPO's conventions, except the gate."""


def budget_figure(found: Sequence[Outcome]) -> Figure:
    """Validation success over each budget: a line per method, the mean of its runs; over the steps with its 95% band.

    Over a budget other than steps, a run's points lie at its own spending; the line joins the means of both.
    """
    figure, colours = Figure(), _colours(found)
    axes, ends = grid(figure, 2, 3), {}
    for ax, (axis, words) in zip(axes, AXES.items(), strict=False):
        frame(ax, words, "validation success")
        for name, runs in by_method(found):
            points = min(len(o.validation) for o in runs)
            spent = np.mean([[o.budget(axis)[int(step)] for step, _ in o.validation[:points]] for o in runs], axis=0)
            mean, low, high = band([[success for _, success in o.validation[:points]] for o in runs])
            ends[name] = mean[-1]
            ax.plot(spent, mean, color=colours[name], ls=dashes(colours[name]), lw=2.2, clip_on=False)
            if axis == "steps" and len(runs) > 1:
                ax.fill_between(spent, low.clip(0, 1), high.clip(0, 1), color=colours[name], alpha=0.15, lw=0)
        ax.set_ylim(0, 1)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(int(44 / style.size)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel_title(ax, f"Over {words}")
    _key(axes[5], found, colours)
    headline(figure, "What each method reaches, for what it spends")
    figure.details = "at the end " + ", ".join(f"{name} {end:.2f}" for name, end in ends.items())
    return figure


def interval_figure(found: Sequence[Outcome], over: str | None = None, split: str = HELD_OUT) -> Figure:
    """Interquartile means with 95% intervals, and the probability that a method's run beats one of `over`, with intervals that
    hold together at 95%.

    `over`: a method's name in figures; by default HAPO's, or the first method's where HAPO is not compared.
    """
    figure, colours, table, over = Figure(), _colours(found), scores(found, split), over or _reference(found)
    means = interquartile_means(table)
    order = sorted(means, key=lambda name: means[name].value)
    axes = grid(figure, 1, 2)
    _dots(axes[0], {name: means[name] for name in order}, colours, f"success, {_where(found, split)}")
    told = verdicts(table, over)
    won = {name: estimate for name, (estimate, _) in told.items()} | {over: Estimate(0.5, 0.5, 0.5)}
    _dots(axes[1], {name: won[name] for name in order if name in won}, colours, f"P(better than a run of {over})")
    axes[1].axvline(0.5, color=style.faint, lw=1, ls=":")
    apart = [f"{name} {told[name][1]}" for name in reversed(order) if name in told and told[name][1] in ("better", "worse")]
    runs = sorted({len(rows) for rows in table.values()})
    panel_title(axes[0], f"Each of {' to '.join(map(str, runs[:1] + runs[1:][-1:]))} runs: the middle half's mean")
    panel_title(axes[1], f"At 0.5 nothing tells a method apart from {over}")
    headline(figure, f"Told apart from {over}: " + ("; ".join(apart) if apart else "none"))
    return figure


def task_figure(found: Sequence[Outcome], split: str = HELD_OUT) -> Figure:
    """Interquartile means with their 95% intervals over an experiment's tasks, in their order: a line per method."""
    figure, colours, means = Figure(), _colours(found), _by_task(found, split)
    ax, = grid(figure, 1, 1)
    frame(ax, "task", f"success, {_where(found, split)}")
    labels, shifts = [], np.linspace(-0.15, 0.15, len(colours)) if len(colours) > 1 else [0.0]
    for name, shift in zip(colours, shifts, strict=True):
        points = [(at + shift, row[name]) for at, row in enumerate(means.values()) if name in row]
        places = [at for at, _ in points]
        ax.plot(places, [e.value for _, e in points], "o", color=colours[name], ls=dashes(colours[name]), lw=1.6, ms=8)
        ax.vlines(places, [e.low for _, e in points], [e.high for _, e in points], color=colours[name], lw=5, alpha=0.35)
        if points:
            labels.append((len(means) - 1.2, points[-1][1].value, name, colours[name]))
    ax.set(xlim=(-0.3, len(means) - 0.7), ylim=(0, 1.02))
    end_labels(ax, labels)
    ax.set_xticks(range(len(means)), list(means))
    headline(figure, "Success by task: the middle half's mean and its 95% interval")
    return figure


def profile_figure(found: Sequence[Outcome], split: str = HELD_OUT) -> Figure:
    """The share of runs above each level of success."""
    figure, colours, table = Figure(), _colours(found), scores(found, split)
    levels = np.linspace(0, 1, 101)
    ax, = grid(figure, 1, 1)
    frame(ax, f"success in percent, {_where(found, split)}", "share of runs above it")
    ax.set(xlim=(0, 100), ylim=(0, 1.02))
    labels = []
    for name, (share, (low, high)) in profiles(table, levels).items():
        ax.plot(100 * levels, share, color=colours[name], ls=dashes(colours[name]), lw=2.2, drawstyle="steps-post")
        ax.fill_between(100 * levels, low, high, color=colours[name], alpha=0.1, lw=0, step="post")
        labels.append((100.0, float(np.trapezoid(share, levels)), name, colours[name]))
    end_labels(ax, labels)
    headline(figure, "A curve further right: more of its runs succeed more often")
    figure.details = "on the mean " + ", ".join(f"{name} {mean:.2f}" for _, mean, name, _ in labels)
    return figure


def teacher_figure(found: Sequence[Outcome], methods: Sequence[str]) -> Figure:
    """The paper's Figure 2: reward, length and teacher samples per step of some methods (by short name), the teacher's
    own trajectories left out of reward and length; bands over seeds."""
    figure, colours = Figure(), _colours(found)
    shown = [o for o in found if o.method in methods and o.finished]
    axes = grid(figure, 2, 2)
    for ax, (curve, words) in zip(axes, (("reward", "reward"), ("length", "length, tokens"),
                                         ("teacher_samples", "teacher samples")), strict=False):
        frame(ax, "step", words)
        for name, runs in by_method(shown):
            mean, low, high = band([cast(list[float], o.curves[curve]) for o in runs])
            steps = np.arange(1, len(mean) + 1)
            ax.plot(steps, mean, color=colours[name], ls=dashes(colours[name]), lw=2.2)
            ax.fill_between(steps, low.clip(0), high, color=colours[name], alpha=0.15, lw=0)
        ax.set_ylim(bottom=0, top=1.02 if curve == "reward" else None)
        panel_title(ax, f"{words[0].upper()}{words[1:]} per step" if curve == "teacher_samples" else f"The student's {curve}")
    _key(axes[3], shown, colours)
    headline(figure, "Figure 2, redrawn: mean over seeds, and its 95% band")
    return figure


# which seeds? ------------------------------------------------------------------------------------------------------


def stories_figure(found: Sequence[Outcome], methods: Sequence[str], seeds: Sequence[int]) -> Figure:
    """Validation success over the steps of some methods (by short name), in a panel per seed; at the end of a line the success
    of the run, as `Outcome.success` has it."""
    figure, colours, ends = Figure(), _colours(found), []
    for ax, seed in zip(grid(figure, 1, len(seeds)), seeds, strict=True):
        runs = {o.name: o for method in methods for o in found if (o.method, o.seed) == (method, seed)}
        frame(ax, "step", "validation success")
        for name, outcome in runs.items():
            steps, success = zip(*outcome.validation, strict=True)
            ax.plot(steps, success, color=colours[name], ls=dashes(colours[name]), lw=2.2, clip_on=False)
        ax.set(xlim=(0, max(o.planned for o in runs.values())), ylim=(0, 1 + 0.05 * (len(runs) + 1)), yticks=FIFTHS)
        ax.spines["left"].set_bounds(0, 1)
        end_labels(ax, [(o.planned - 0.5, o.validation[-1][1], f"{o.success():.1%}", colours[name])
                        for name, o in runs.items()])
        for row, name in enumerate(reversed(runs), 1):  # above every line
            write(ax, 0, 1 + 0.05 * row, name, colours[name], va="center")
        panel_title(ax, f"Seed {seed}")
        ends += [f"seed {seed}: " + ", ".join(f"{name} {o.success():.1%}" for name, o in runs.items())]
    figure.details = "at the end " + "; ".join(ends)
    headline(figure, "The same methods, the same problems, " + (
        f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"))
    return figure


def chosen_seeds(found: Sequence[Outcome], methods: tuple[str, str], seeds: Sequence[int]) -> tuple[Figure, dict[str, float]]:
    """Success of two methods (by short name) in the runs of some seeds; and the difference of their means, with the 95%
    interval of a percentile bootstrap over runs.

    Numbers: "difference", "low" and "high", of which the last two are nan unless the seeds are `enough`. ValueError: no seed.
    """
    if not seeds:
        raise ValueError("No seed is chosen: switch at least one on.")
    figure, colours = Figure(), _colours(found)
    pair = {o.name: {run.seed: run.success() for run in found if run.method == o.method}
            for method in methods for o in found if o.method == method}
    left, right = grid(figure, 1, 2)
    frame(left, f"success, {_where(found, HELD_OUT)}", "")
    for row, (name, runs) in enumerate(pair.items()):
        for seed, success in runs.items():
            left.plot([success], [row + 0.3 * (seed / max(max(runs), 1) - 0.5)], "o", ms=9, color=colours[name],
                      alpha=1 if seed in seeds else 0.15)
        write(left, min(min(runs.values()) for runs in pair.values()), row + 0.3, name, colours[name], va="center")
    left.set_yticks([])
    left.set_ylim(-0.5, 1.6)
    (first, one), (second, other) = ((name, np.array([runs[seed] for seed in seeds])) for name, runs in pair.items())
    difference, low, high = float(one.mean() - other.mean()), np.nan, np.nan
    if enough(len(seeds)):
        interval = stats.bootstrap((one, other), lambda x, y, axis: x.mean(axis) - y.mean(axis), method="percentile",
                                   n_resamples=RESAMPLES, rng=0).confidence_interval
        low, high = float(interval.low), float(interval.high)
    frame(right, "difference of the means", "")
    right.axvline(0, color=style.faint, lw=1, ls=":")
    right.plot([low, high], [0, 0], color=style.ink, lw=8, alpha=0.3, solid_capstyle="butt")
    right.plot([difference], [0], "o", ms=11, color=style.ink)
    right.set_yticks([])
    spread = 1.2 * max(abs(a - b) for a in pair[first].values() for b in pair[second].values()) + 1e-3
    right.set(xlim=(-spread, spread), ylim=(-1, 1))
    right.xaxis.set_major_locator(MaxNLocator(4))
    panel_title(left, f"{len(seeds)} seeds chosen; each dot is a run" if len(seeds) > 1 else "1 seed chosen; each dot is a run")
    panel_title(right, f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]" if low == low
                else f"{difference:+.3f}, and no interval from so few runs")
    headline(figure, f"{first} over {second}: " + (
        "nothing can be said" if low != low else "better" if low > 0 else "worse" if high < 0 else "not told apart"))
    return figure, {"difference": difference, "low": low, "high": high}


# the table ---------------------------------------------------------------------------------------------------------


def table(found: Sequence[Outcome], over: str | None = None) -> list[str]:
    """Markdown: success with its interval, and the verdict over a method (see `interval_figure`); demonstrations per run and
    task, and whether that is less; what it spent to `LEVEL`."""
    numbers, over = scores(found), over or _reference(found)
    means = interquartile_means(numbers)
    told, used = verdicts(numbers, over), spent(found, "teacher_samples")
    saved = savings(used, over)
    rows = [f"| method | runs | learning rate | success, {_where(found, HELD_OUT)}: IQM [95%] | P(better than {over}) "
            "| verdict | demonstrations in all | " + " | ".join(f"{words} to {LEVEL:.0%}" for words in AXES.values()) + " |",
            "|---" * (7 + len(AXES)) + "|"]
    for name, runs in by_method(found):
        if name not in means:
            continue
        rates = ", ".join(f"{rate:g}" for rate in sorted({o.learning_rate for o in runs}))
        won, word = told.get(name, ("", ""))
        prices = " | ".join("never" if np.isinf(x := median_to(runs, LEVEL, axis)) else f"{x:,.0f}" for axis in AXES)
        shown = f"{used[name].mean():,.0f}" + (f", {saved[name]}" if name in saved else "")
        rows.append(f"| {name} | {len(numbers[name])} | {rates} | {means[name]} | {won} | {word} | {shown} | {prices} |")
    return rows


def task_table(found: Sequence[Outcome], split: str = HELD_OUT) -> list[str]:
    """Markdown: success by method and task."""
    means = _by_task(found, split)
    rows = [f"| success, {_where(found, split)}: IQM [95%] | " + " | ".join(means) + " |", "|---" * (1 + len(means)) + "|"]
    return rows + [f"| {name} | " + " | ".join(str(row.get(name, "")) for row in means.values()) + " |"
                   for name, _ in by_method(found)]


def split_table(found: Sequence[Outcome], base: Mapping[str, Mapping[str, float]], over: str | None = None) -> list[str]:
    """Markdown: success on each split of the test problems, by method, and what is told apart there from a method (see
    `interval_figure`); and the base's, the mean over tasks."""
    splits, over = list(dict.fromkeys(split for o in found for split in o.test)), over or _reference(found)
    numbers = {split: scores([o for o in found if split in o.test], split) for split in splits}
    means = {split: interquartile_means(numbers[split]) for split in splits}
    told = {split: verdicts(numbers[split], over, len(splits)) for split in splits}
    rows = [f"| success: IQM [95%], against {over} | " + " | ".join(splits) + " |", "|---" * (1 + len(splits)) + "|"]
    before = [[success[split] for success in base.values() if split in success] for split in splits]
    rows.append("| the base | " + " | ".join(f"{np.mean(x):.3f}" if x else "" for x in before) + " |")

    def cell(name: str, split: str) -> str:
        _, word = told[split].get(name, (None, ""))
        return str(means[split].get(name, "")) + (f", {word}" if word in ("better", "worse") else "")

    return rows + [f"| {name} | " + " | ".join(cell(name, split) for split in splits) + " |" for name, _ in by_method(found)]


WAYS = {"length": "length, tokens", "teacher_logp": "log p of a demonstration's token", "kl": "KL to SFT's policy, per token"}


def way_table(found: Sequence[Outcome]) -> list[str]:
    """Markdown: how far each method has come from its teacher's way on the held-out problems, the mean over runs."""
    teachers = [o.way["teacher_length"] for o in found if "teacher_length" in o.way]
    rows = ["| distance from the teacher | " + " | ".join(WAYS.values()) + " |", "|---" * (1 + len(WAYS)) + "|"]
    if teachers:
        rows.append(f"| the teacher | {np.mean(teachers):.1f} |" + " |" * (len(WAYS) - 1))
    for name, runs in by_method(found):
        cells = [[o.way[way] for o in runs if way in o.way] for way in WAYS]
        rows.append(f"| {name} | " + " | ".join(f"{np.mean(x):.2f}" if x else "" for x in cells) + " |")
    return rows


def report(found: Sequence[Outcome], folder: Path, over: str | None = None,
           base: Mapping[str, Mapping[str, float]] | None = None) -> list[Path]:
    """Write an experiment's tables (Markdown and CSV) and its pictures; returns the files. ValueError: nothing has finished.

    With several tasks, each has a table and a picture of its budgets, because a mean over tasks hides differences.
    """
    if not scores(found):
        raise ValueError("no trial has finished: run the experiment first.")
    folder.mkdir(parents=True, exist_ok=True)
    tasks = list(dict.fromkeys(o.task for o in found if o.finished))
    of = {task: [o for o in found if o.task == task] for task in tasks}
    text = table(found, over)
    if len(tasks) > 1:
        text = [*task_table(found), "", "All tasks together:", "", *text]
        text += [line for task in tasks for line in ("", f"{task}:", "", *table(of[task], over))]
    if any(o.test for o in found):
        text += ["", *split_table(found, base or {}, over), "", *way_table(found)]
    else:
        text.append("\nNobody has looked at the test problems: success is on validation problems, at the last evaluation.")
    if unfinished := [o for o in found if not o.finished]:
        text += ["\nNot finished:"] + [f"- {o.task}, {o.method}, seed {o.seed}: {o.state}" for o in unfinished]
    (folder / "table.md").write_text("\n".join(text) + "\n")
    with open(folder / "trials.csv", "w", newline="") as file:
        splits = sorted({split for o in found for split in o.test})
        writer = csv.writer(file)
        writer.writerow(["task", "method", "name", "seed", "learning_rate", "finished", "validation", *splits, *AXES,
                         "steps to 80%", "teacher samples, last 5 steps", "length"])
        for o in found:
            tested = [np.mean(list(o.test[split].values())) if split in o.test else "" for split in splits]
            spent = [o.budget(axis)[-1] if o.curves else "" for axis in AXES]
            steps, reached = o.reached(0.8, "steps") if o.curves else (0.0, False)
            last = sum(cast(list[float], o.curves["teacher_samples"][-5:])) if o.curves else ""
            writer.writerow([o.task, o.method, o.name, o.seed, o.learning_rate, o.finished,
                             o.validation[-1][1] if o.validation else "", *tested, *spent,
                             steps if reached else "", last, o.way.get("length", "")])
    figures = {"intervals": interval_figure(found, over), "profiles": profile_figure(found)}
    if len(tasks) > 1:
        figures |= {"tasks": task_figure(found)} | {f"budgets-{task}": budget_figure(of[task]) for task in tasks}
    else:
        figures |= {"budgets": budget_figure(found)}
        if all(any(o.method == method for o in found if o.finished) for method in FIGURE_2):
            figures |= {"figure-2": teacher_figure(found, FIGURE_2)}
    for name, figure in figures.items():
        (folder / f"{name}.png").write_bytes(to_png(figure))
    return [folder / name for name in ("table.md", "trials.csv", *(f"{name}.png" for name in figures))]


# parts -------------------------------------------------------------------------------------------------------------


def _by_task(found: Sequence[Outcome], split: str) -> dict[str, dict[str, Estimate]]:
    """Task -> method's name -> its interquartile mean there."""
    return {task: interquartile_means(scores([o for o in found if o.task == task], split))
            for task in dict.fromkeys(o.task for o in found if o.finished)}


def _colours(found: Sequence[Outcome]) -> dict[str, str]:
    return {name: style.runs[i % len(style.runs)] for i, (name, _) in enumerate(by_method(found))}


def _reference(found: Sequence[Outcome]) -> str:
    """The name of what the others are compared with."""
    names = {o.method: o.name for o in found if o.finished}
    return names.get("hapo") or next(iter(names.values()), "")


def _where(found: Sequence[Outcome], split: str) -> str:
    return split if any(o.test for o in found) else "validation"


def _dots(ax: Axes, estimates: dict[str, Estimate], colours: dict[str, str], words: str) -> None:
    """A row per method: its name, below that its value, and its interval as a bar."""
    frame(ax, words, "")
    for row, (name, e) in enumerate(estimates.items()):
        ax.plot([e.low, e.high], [row, row], color=colours[name], lw=6, alpha=0.4, solid_capstyle="butt")
        ax.plot([e.value], [row], "o", color=colours[name], ms=9)
        write(ax, 0, row + 0.25, name, colours[name], va="center")
    ax.set_yticks([])
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.5, len(estimates) - 0.4))


def _key(ax: Axes, found: Sequence[Outcome], colours: dict[str, str]) -> None:
    """Names in their colours, from the best to the worst, in a panel of their own."""
    ax.axis("off")
    panel_title(ax, "Validation success at the end")
    width = 72 * inches(ax)[0]
    last = {name: float(np.mean([o.validation[-1][1] for o in runs])) for name, runs in by_method(found)}
    for row, name in enumerate(sorted(last, key=lambda name: -last[name])):
        words = f"{last[name]:.0%} {name}"
        write(ax, 0, 1 - (row + 0.5) / max(len(last), 8), words, colours[name], transform=ax.transAxes, va="center",
              size=min(style.size, width / (0.58 * len(words))))

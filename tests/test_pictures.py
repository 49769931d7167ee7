"""Every figure that the kit draws can be read: nothing is cut, no two texts meet, few panels, letters of a size."""

import importlib
import inspect
import pkgutil
import re
from dataclasses import replace
from functools import cache
from html import escape

import numpy as np
import pytest
from conftest import assert_readable
from test_bench import answers_of

from hapo_lab import pictures
from hapo_lab.experiments.outcomes import shipped as shipped_experiment
from hapo_lab.gates import StepAnnealedGate
from hapo_lab.methods import GRPO, HAPO, LUFFY
from hapo_lab.pictures import animation, bench, cheat_sheet, comparison, explorables, figures, inside, purity
from hapo_lab.pictures.style import Figure, blank, bundle, frame, grid, projector, style, to_png
from hapo_lab.runs.log import shipped_run
from hapo_lab.scoring.scores import score
from hapo_lab.theory.exact_gradient import learning_curve
from hapo_lab.theory.purity_runs import shipped as shipped_purity

DRAWN = {
    figures.training_figure: [(6, lambda: figures.training_figure(shipped_run("hapo-0"))),
                              (6, lambda: figures.training_figure(shipped_run("tiny-hapo-0"))),
                              (6, lambda: figures.training_figure(shipped_run("tiny-grpo-0"))),
                              (2, lambda: figures.training_figure(shipped_run("hapo-0"), panels=2)),
                              (2, lambda: figures.training_figure(shipped_run("tiny-hapo-0"), panels=2)),
                              (2, lambda: figures.training_figure(shipped_run("tiny-grpo-0"), panels=2))],
    figures.comparison_figure: [(4, lambda: figures.comparison_figure(runs("hapo-0", "grpo-0", "sft-0"))),
                                (2, lambda: figures.comparison_figure(runs("tiny-hapo-0", "tiny-grpo-0"), panels=2))],
    figures.group_figure: [(4, lambda: figures.group_figure(shipped_run("hapo-0").groups_of(step=1)[0])),
                           (4, lambda: figures.group_figure(shipped_run("tiny-hapo-0").groups_of(step=40)[0]))],
    animation.step_figure: [(3, lambda: animation.step_figure(shipped_run("hapo-0"), 1)),
                            (3, lambda: animation.step_figure(shipped_run("hapo-0"), 30))],
    cheat_sheet.cheat_sheet: [(3, cheat_sheet.cheat_sheet)],
    inside.health: [(6, lambda: inside.health(shipped_run("hapo-0"))), (6, lambda: inside.health(shipped_run("tiny-hapo-0"))),
                    (6, lambda: inside.health(shipped_run("tiny-grpo-0")))],
    inside.replay_figure: [(2, lambda: inside.replay_figure(shipped_run("hapo-0"), 30)),
                           (2, lambda: inside.replay_figure(shipped_run("hapo-0"), 30, threshold=0.5))],
    explorables.sentence_figure: [(0, lambda: explorables.sentence_figure("A threshold of 2 means nothing."))],
    explorables.collapse: [(2, lambda: explorables.collapse([1, 0, 0, 0, 0, 0, 0, 0])),
                           (2, lambda: explorables.collapse([0] * 8, "std"))],
    explorables.dead_groups: [(1, explorables.dead_groups), (1, lambda: explorables.dead_groups(0.9, 16))],
    explorables.injection: [(4, explorables.injection), (4, lambda: explorables.injection(7, threshold=0.81))],
    explorables.prior_pull: [(2, explorables.prior_pull), (2, lambda: explorables.prior_pull(3, 3))],
    explorables.gate_lab: [(2, lambda: explorables.gate_lab(0.9, 100, reveal=True, seed=31))],
    explorables.clip_and_shape: [(2, explorables.clip_and_shape),
                                 (2, lambda: explorables.clip_and_shape(shaping="log_probability")),
                                 (2, lambda: explorables.clip_and_shape(0.5, 0.1, advantage=-1))],
    explorables.hearing: [(2, lambda: explorables.hearing("7 + 8: 85", np.array([.9, .9, 1, .7, 1, 2e-6, 1, .9, 1])))],
    purity.meter: [(2, purity.meter), (2, lambda: purity.meter(0.9, 4)), (2, lambda: purity.meter(kind="always")),
                   (2, lambda: purity.meter(0.5, 64, "running", visit=9))],
    purity.group_sizes: [(2, purity.group_sizes), (2, lambda: purity.group_sizes(0.5, 64, 3, 3))],
    purity.buys_and_costs: [(2, purity.buys_and_costs)],
    purity.ceiling_figure: [(1, lambda: purity.ceiling_figure(curves([-4, -5, 2], [0.8, 0.9, 0], 3500), 10.0))],
    purity.norms_figure: [(2, lambda: purity.norms_figure(dict(list(curves([0, 0, 0], [0.8, 0.81, 0], 300).items())[:2])))],
    purity.runs_figure: [(2, lambda: purity.runs_figure(shipped_purity()))],
    comparison.budget_figure: [(6, lambda: comparison.budget_figure(found("leaving")))],
    comparison.interval_figure: [(2, lambda: comparison.interval_figure(found("leaving")))],
    comparison.task_figure: [(1, lambda: comparison.task_figure(found("few_demonstrations")))],
    comparison.profile_figure: [(1, lambda: comparison.profile_figure(found("leaving")))],
    comparison.teacher_figure: [(4, lambda: comparison.teacher_figure(found("leaving"), comparison.FIGURE_2))],
    comparison.stories_figure: [(2, lambda: comparison.stories_figure(found("leaving"), comparison.FIGURE_2, [0, 1]))],
    comparison.chosen_seeds: [(2, lambda: comparison.chosen_seeds(found("leaving"), comparison.FIGURE_2, range(10))),
                              (2, lambda: comparison.chosen_seeds(found("sparse"), comparison.FIGURE_2, [0]))],
    bench.bench_figure: [(2, lambda: bench.bench_figure(
        [row for one in answers_of(["base", "HAPO"], ["sums", "dates"], 8, 8) for row in score(one)]))],
}
"""Every function that draws, with figures of the lessons and the pages, and how many panels each may have."""


def runs(*names):
    return [shipped_run(name) for name in names]


@cache
def found(name):
    return shipped_experiment(name).found


def curves(logits, success, steps):
    methods = {"GRPO": GRPO, "by-step": replace(HAPO, gate=StepAnnealedGate(steps=500)), "HAPO": HAPO, "LUFFY": LUFFY}
    return {name: learning_curve(logits, success, 8, replace(method, scale="none", aggregation="dapo", entropy_bonus=0.0), 0,
                                 steps=steps, step_size=10.0) for name, method in methods.items()}


def drawing_functions():
    """Public functions of the room that return a figure; `style` holds their parts."""
    for module in pkgutil.iter_modules(pictures.__path__):
        if module.name != "style":
            loaded = importlib.import_module(f"hapo_lab.pictures.{module.name}")
            yield from (function for name, function in inspect.getmembers(loaded, inspect.isfunction)
                        if function.__module__ == loaded.__name__ and not name.startswith("_")
                        and "Figure" in str(inspect.signature(function).return_annotation))


def test_no_figure_is_left_out():
    assert set(drawing_functions()) == set(DRAWN)


@pytest.mark.parametrize("large", [False, True], ids=["11pt", "16pt"])
@pytest.mark.parametrize("panels, draw", [drawn for each in DRAWN.values() for drawn in each],
                         ids=[f"{f.__name__}-{i}" for f, each in DRAWN.items() for i in range(len(each))])
def test_it_can_be_read(panels, draw, large):
    with projector(large):
        drawn = draw()
        figure = drawn[0] if isinstance(drawn, tuple) else drawn
        data, metadata = bundle(figure)
    assert_readable(figure, panels)
    alternative = metadata["image/png"]["alt"]
    assert alternative.startswith(" ".join(figure.says.split())) and re.search(r"\d", alternative), "no number is told"
    assert f'alt="{escape(alternative)}"' in data["text/html"] and data["image/png"] in data["text/html"]


def bad(spoil) -> Figure:
    figure = blank(4)
    for ax in grid(figure, 1, 2):
        frame(ax, "step", "success")
    spoil(*figure.axes)
    to_png(figure)
    return figure


@pytest.mark.parametrize("spoil, fault", [
    (lambda left, right: left.yaxis.set_label_coords(-0.3, 0.5), "cut: success"),
    (lambda left, right: right.text(0.9, 0.5, "a label that leaves the picture"), "cut: a label"),
    (lambda left, right: left.set_xticks([0, 1], ["0", "far too long a name for a tick"]), "meets|cut: far"),
    (lambda left, right: left.text(0.5, 0.5, "teacher") and left.text(0.52, 0.51, "student"), "'teacher' meets 'student'"),
    (lambda left, right: left.set_title("A title much too long for half of the picture, and no less bold", loc="left") and
     right.set_title("Another", loc="left"), "meets 'Another'"),
    (lambda left, right: right.text(0.5, 0.5, "small print", size=4), "too small, .*: small print"),
    (lambda left, right: left.figure.add_axes((0, 0, 0.1, 0.1)), "3 panels")])
def test_a_figure_that_can_t_be_read_is_found(spoil, fault):
    assert_readable(bad(lambda left, right: left.text(0.5, 0.5, "fine")), 2)
    with pytest.raises(AssertionError, match=fault):
        assert_readable(bad(spoil), 2)


def luminance(colour: str) -> float:
    """Relative, of sRGB, as WCAG defines it."""
    channels = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_greys_and_runs_are_told_apart_without_colour():
    assert contrast(style.wrong, style.right) > 1.7 and contrast(style.right, "#FFFFFF") > 1.3
    for first in range(0, len(style.runs), 3):
        trio = style.runs[first:first + 3]
        assert all(contrast(a, b) > 1.15 for i, a in enumerate(trio) for b in trio[:i]), trio
    assert len(style.dashes) * 3 >= len(style.runs) and not {style.student, style.teacher, style.held_out} & set(style.runs)

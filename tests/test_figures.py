"""Figures and dashboard, on synthetic run logs of real records."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import matplotlib.colors
import nbclient
import nbformat
import numpy as np
import pytest
from conftest import teach_alone

from hapo_lab.gate import BetaGate
from hapo_lab.gates import GATES
from hapo_lab.methods import GRPO, HAPO, LUFFY, SFT
from hapo_lab.notebook import dashboard as dashboards
from hapo_lab.notebook.dashboard import Dashboard
from hapo_lab.pictures.figures import comparison_figure, group_figure, run_names, training_figure
from hapo_lab.pictures.style import projector, style, to_png
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.progress import progress_line, seconds_left
from hapo_lab.runs.record import StepRecord
from hapo_lab.ssi import Group, Rollout

DEMONSTRATION = Rollout((1, 2, 3), "7 times 8 is 56.\nAnswer: 56", 1.0, teacher=True)
METHODS = {m.name: m for m in (HAPO, GRPO, LUFFY, SFT)}


def manifest(method, planned=40, size=8, seed=0):
    gate = method.gate
    numbers = {f: getattr(gate, f) for f in ("alpha", "beta", "threshold")} if isinstance(gate, BetaGate) else {}
    return {"model": "smollm2-135m", "task": "times table",
            "method": {"name": method.name, "gate": {"kind": type(gate).__name__, **numbers},
                       "teacher_seats": method.teacher_seats},
            "config": {"steps": planned, "prompts": 4, "group_size": size, "eval_every": 10, "seed": seed}}


def record(step, groups, sampled, **changes) -> StepRecord:
    return replace(StepRecord(
        step=step, problems=tuple(g.problem.key for g in groups),
        reward=float(np.mean([r.reward for g in sampled for r in g.rollouts])), length=14 + 8 * np.exp(-step / 8), cut=0.0,
        successes=tuple(g.successes for g in groups), trials=tuple(len(g.sampled) for g in groups),
        posterior=tuple((g.posterior.alpha.item(), g.posterior.beta.item()) for g in groups),
        decisions=tuple(g.decision for g in groups), replaced=tuple(g.replaced for g in groups),
        advantages=tuple(tuple(g.advantages.tolist()) for g in groups),
        teacher_samples=sum(int(g.teacher_mask.sum()) for g in groups), without_demonstration=0,
        dead_before=sum(g.dead for g in sampled), dead_after=sum(g.dead for g in groups), updated=True, loss=None,
        grad_norm=None, teacher_share=None, teacher_logp=None, clip_fraction=None, entropy=None, kl=None, heldout=None,
        learning_rate=4e-4, tokens_sampled=500, tokens_trained=500,
        seconds={"rollout": 4.0, "gate": 0.01, "update": 5.0}), **changes)


def group(successes, n=8, key="times") -> Group:
    return Group(SimpleNamespace(key=key), tuple(Rollout((1,), "x", float(i < successes)) for i in range(n)))


def a_log(method=HAPO, steps=40, planned=40, successes=None, size=8, seed=0, prompts=4) -> RunLog:
    """Rewards that rise from 0 to .95; `successes`: S of every step's groups instead."""
    log, rng, n = RunLog(manifest(method, planned, size, seed)), np.random.default_rng(seed), size - method.teacher_seats
    for step in range(1, steps + 1):
        p = 0.95 / (1 + np.exp(-(step - 0.3 * planned) / (0.08 * planned)))
        sampled = [group(s, n) for s in successes or rng.binomial(n, p, prompts)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = [teach_alone(method, g, DEMONSTRATION) for g in sampled]
        tested = {"heldout": 0.9 * p} if step % 10 == 0 else {}
        log.add(record(step, groups, sampled, **tested), groups)
    return log


def changed(log, after_step, **numbers) -> RunLog:
    gate = {"kind": "BetaGate", "alpha": 1.0, "beta": 1.0, "threshold": 0.8} | numbers
    log.event("changed", after_step=after_step, gate=gate)
    return log


def titles(figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def texts(figure) -> str:
    return " | ".join(t.get_text() for ax in figure.axes for t in ax.texts)


def hexes(colours) -> set[str]:
    return {matplotlib.colors.to_hex(c).upper() for c in colours}


@pytest.mark.parametrize("steps, planned", [(0, 40), (1, 40), (17, 40), (40, 40), (300, 300), (1, 1)])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_training_figure_of_every_method_and_length(method, steps, planned):
    png = to_png(training_figure(a_log(method, steps, planned)))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1600, 900)


@pytest.mark.parametrize("large", [False, True], ids=["11pt", "16pt"])
@pytest.mark.parametrize("log", [a_log(HAPO, 1), a_log(), a_log(GRPO, 0), a_log(LUFFY), a_log(size=6), a_log(size=64),
                                 changed(a_log(), 39, alpha=1.5, beta=2.5, threshold=0.75)])
def test_nothing_leaves_the_picture_and_no_title_meets_its_neighbour(log, large):
    figures_of = [training_figure, lambda log: comparison_figure([log, a_log(GRPO), a_log(seed=1)])]
    for draw in figures_of:
        with projector(large):
            figure = draw(log)
            to_png(figure)
        written = [t for ax in figure.axes for t in (*ax.texts, ax._left_title, ax.xaxis.label, ax.yaxis.label)] + figure.texts
        for text in filter(lambda t: t.get_text(), written):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1601 and box.y1 <= 901, text.get_text()
        boxes = [ax._left_title.get_window_extent() for ax in figure.axes]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), titles(figure)


def test_titles_state_the_facts():
    figure = training_figure(a_log(successes=(0, 3, 6, 7, 8, 8, 8, 8), steps=10))
    assert titles(figure) == ["Student 0.75, held-out 0.30", "16 tokens, none cut", "Step 10: teacher in 3 of 8 groups",
                              "3 of 8 groups below 0.8", "Posterior mean 0.70, at first 0.70", "Injects up to S = 6 of 8"]
    assert all(label in texts(figure) for label in ("0/8", "3/8", "6/8", "7/8", "8/8 ×4", "threshold", "student", "held-out"))
    assert titles(training_figure(a_log(successes=(8,), steps=1)))[2] == "Step 1: teacher in none of 1 groups"


def test_titles_of_methods_without_gate():
    assert titles(training_figure(a_log(GRPO)))[2::3] == ["Step 40: teacher in none of 4 groups", "No gate, no teacher"]
    for method in (LUFFY, SFT):
        figure = training_figure(a_log(method))
        assert titles(figure)[2::3] == ["Step 40: teacher in 4 of 4 groups", "No gate, always a teacher"]
        assert "threshold" not in texts(figure) and figure.axes[5].get_xlabel() == "S, successes of 7"


def test_missing_demonstrations_are_named():
    log = a_log(steps=1, successes=(0, 0))
    log.steps[0] = replace(log.steps[0], teacher_samples=1, without_demonstration=1)
    assert titles(training_figure(log))[2] == "Step 1: teacher in 1 of 2 groups, 1 had none"


def test_the_student_panel_does_not_see_the_teacher():
    log = a_log(successes=(0, 0), steps=3)
    line = training_figure(log).axes[0].lines[0]
    assert list(line.get_ydata()) == [0, 0, 0] and line.get_color() == style.student
    assert [r.reward for g in log.groups for r in g.rollouts if r.teacher] == [1, 1]


def test_colours_say_who():
    figure = training_figure(a_log(successes=(0, 7, 8), steps=10))
    reward, length, teacher, posteriors, history, _ = figure.axes
    assert [line.get_color() for line in reward.lines] == [style.student, style.held_out]
    assert [hexes(area.get_facecolor()) for area in reward.collections] == [{style.right}, {style.wrong}]
    assert hexes(teacher.collections[0].get_facecolor()) == {style.teacher} and length.lines[0].get_color() == style.student
    dashed = [line for ax in (posteriors, history) for line in ax.lines if line.get_linestyle() == "--"]
    assert [line.get_color() for line in dashed] == ["black"] * 2
    assert dashed[0].get_xdata()[0] == dashed[1].get_ydata()[0] == 0.8
    assert {line.get_color() for line in posteriors.lines} == {style.teacher, style.student, style.faint, "black"}
    assert hexes(history.collections[0].get_facecolor()) == {style.teacher, style.student, style.right}
    assert (style.student, style.teacher, style.held_out) == ("#0072B2", "#D55E00", "#009E73")


def test_dead_groups_are_split_into_all_wrong_and_all_right():
    log = a_log(GRPO, successes=(0, 3, 8, 8), steps=10)
    success, history = (training_figure(log).axes[i] for i in (0, 4))
    heights = [area.get_paths()[0].vertices[:, 1] for area in success.collections]
    assert [(y.min(), y.max()) for y in heights] == [(0, 0.5), (0.75, 1)]  # two of four are all right, one is all wrong
    assert {"all wrong", "all right"} <= {text.get_text() for text in success.texts}
    assert {"all wrong", "all right", "mixed"} == {text.get_text() for text in history.texts}
    assert hexes(history.collections[0].get_facecolor()) == {style.student, style.right, style.wrong}
    assert "all right" not in texts(training_figure(a_log(GRPO, successes=(0,), steps=3)))


def test_a_first_look_has_two_panels():
    log = a_log()
    assert titles(training_figure(log, panels=2)) == titles(training_figure(log))[::2][:2]
    assert titles(comparison_figure([log], panels=2)) == titles(comparison_figure([log]))[:2]
    with pytest.raises(ValueError, match="in 2 panels or in 6; 3 is neither"):
        training_figure(log, panels=3)
    with pytest.raises(ValueError, match="in 2 panels or in 4; 6 is neither"):
        comparison_figure([log], panels=6)


def test_ladder_lamps_follow_the_runs_gate_and_group_size():
    def lamps(log):
        collection = training_figure(log).axes[5].collections[0]
        return [matplotlib.colors.to_hex(c).upper() for c in collection.get_facecolor()]
    assert lamps(a_log()) == [style.teacher] * 7 + ["#FFFFFF"] * 2
    assert lamps(a_log(size=6)) == [style.teacher] * 5 + [style.dead, "#FFFFFF"]
    assert lamps(a_log(replace(HAPO, gate=BetaGate(threshold=0.3)), steps=0)) == [style.teacher] * 2 + ["#FFFFFF"] * 7
    assert "erases" in texts(training_figure(a_log(size=6))) and lamps(a_log(GRPO)) == ["#FFFFFF"] * 9
    counts = training_figure(a_log(successes=(0, 0, 7), steps=9)).axes[5]
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in counts.patches] == [(0, 10), (7, 5)]


def test_an_unknown_gate_shows_what_it_did():
    log = a_log(successes=(0, 7), steps=2)
    log.manifest["method"]["gate"] = "MyGate()"
    figure = training_figure(log)
    assert titles(figure)[3::2] == ["The gate opens in 1 of 2 groups", "The gate's decisions so far"]
    assert "unseen" in texts(figure)


@pytest.mark.parametrize("kind", GATES)
def test_a_run_with_any_gate_is_drawn(kind):
    log = a_log(replace(HAPO, gate=GATES[kind]()))
    assert to_png(training_figure(log)) and to_png(training_figure(a_log(replace(HAPO, gate=GATES[kind]()), steps=0)))
    asked = sum(log.steps[-1].decisions)
    assert str(asked) in titles(training_figure(log))[3] or not asked


def test_a_gate_that_holds_a_gate_is_drawn_with_its_changes():
    log, held = a_log(), {"kind": "mine.py:Every", "sha256": "0", "steps": 2, "asks": {"kind": "HardGate"}}
    log.manifest["method"]["gate"] = held
    log.event("resumed", after_step=9, gate=held | {"asks": {"kind": "NeverGate"}})
    log.event("changed", after_step=19, gate=held | {"steps": 5})
    figure = training_figure(log)
    assert to_png(figure) and "changed" in texts(figure) and "steps 5" in texts(figure)


def test_a_changed_gate_is_marked_on_every_time_axis():
    figure = training_figure(changed(changed(a_log(steps=26), 9, threshold=0.5), 20, alpha=2.0, threshold=0.6))
    _, length, _, posteriors, history, ladder = figure.axes
    marks = {ax: [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] for ax in figure.axes}
    assert marks == {ax: [] if ax in (posteriors, ladder) else [20.5, 9.5] for ax in figure.axes}
    assert [text.get_text() for text in length.texts] == ["student", "α 2, γ 0.6", "γ 0.5"]
    threshold, = [line for line in history.lines if line.get_linestyle() == "--"]
    assert list(threshold.get_xdata()) == [0.5, 9.5, 9.5, 20.5, 20.5, 40.5]
    assert list(threshold.get_ydata()) == [0.8, 0.8, 0.5, 0.5, 0.6, 0.6]


def test_the_posteriors_show_the_gate_that_decided_and_the_ladder_the_one_to_come():
    figure = training_figure(changed(a_log(steps=26, successes=(0, 7)), 26, threshold=0.3))
    assert titles(figure)[3] == "1 of 2 groups below 0.8" and titles(figure)[5] == "Injects up to S = 1 of 8"
    assert [line.get_xdata()[0] for line in figure.axes[3].lines if line.get_linestyle() == "--"] == [0.8]


def test_changes_at_every_step_stay_readable():
    log = a_log()
    for step in range(1, 40):
        changed(log, step, threshold=step / 40)
    written = [text for text in training_figure(log).axes[1].texts if "γ" in text.get_text()]
    figure = written[0].figure
    to_png(figure)
    boxes = [text.get_window_extent() for text in written]
    assert written[0].get_text() == "γ 0.975" and 5 < len(written) < 20
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_gate_that_never_closes_and_odd_priors():
    for gate in (BetaGate(3, 3, 0.8), BetaGate(0.5, 0.5, 0.8), BetaGate(threshold=1), BetaGate(1e-3, 1e-3, 0.01)):
        to_png(training_figure(a_log(replace(HAPO, gate=gate))))
    assert titles(training_figure(a_log(replace(HAPO, gate=BetaGate(3, 3)))))[5] == "Injects up to S = 8 of 8"


def test_comparison_names_runs_apart_and_draws_unequal_lengths():
    logs = [a_log(), a_log(GRPO, steps=20), a_log(seed=1), a_log(SFT, steps=0)]
    assert run_names(logs) == ["HAPO (seed 0)", "GRPO", "HAPO (seed 1)", "SFT"]
    figure = comparison_figure(logs)
    assert "HAPO (seed 1)" in texts(figure) and "held-out" in texts(figure) and "SFT" not in texts(figure)
    assert titles(figure)[0] == "Best held-out at the end: 0.85, HAPO (seed 0) and HAPO (seed 1)"
    same = [a_log(steps=1), a_log(steps=1)]
    assert run_names(same) == ["HAPO (#1)", "HAPO (#2)"]
    same[0].folder, same[1].folder = Path("runs/old"), Path("runs/new")
    assert run_names(same) == ["HAPO (old)", "HAPO (new)"]
    to_png(comparison_figure([a_log(steps=0)]))
    with pytest.raises(ValueError, match="no run to draw"):
        comparison_figure([])


@pytest.mark.parametrize("successes, title, gain", [
    (0, "As sampled: 0 of 8 right", "Advantages: teacher +2.47, wrong −0.35"),
    (6, "As sampled: 6 of 8 right", "Advantages: teacher +0.35, right +0.35, wrong −2.47")])
def test_group_figure_before_and_after(successes, title, gain):
    taught = teach_alone(HAPO, group(successes), DEMONSTRATION)
    figure = group_figure(taught)
    assert titles(figure)[0] == title and titles(figure)[1] == f"As updated on: the teacher takes seat {taught.replaced}"
    assert titles(figure)[3] == gain
    (before, _), (after, colours) = (bars_of(figure.axes[i]) for i in (2, 3))
    assert hexes([colours[taught.replaced]]) == {style.teacher}
    assert hexes(c for i, c in enumerate(colours) if i != taught.replaced) == {style.student}
    assert np.allclose(after, taught.advantages)
    assert len(before) == 8 and (not any(before) if successes == 0 else np.allclose(sum(before), 0))


def bars_of(ax):
    """The bars of a panel of seats: their heights, and their colours."""
    bars, = ax.collections
    return [path.vertices[1, 1] for path in bars.get_paths()], bars.get_facecolors()


def test_group_figure_of_other_groups():
    for method in (GRPO, LUFFY, SFT):
        to_png(group_figure(teach_alone(method, group(2, 8 - method.teacher_seats), DEMONSTRATION), method.scale))
    assert titles(group_figure(teach_alone(GRPO, group(8), None)))[2:] == ["Every advantage is 0: nothing to learn"] * 2


@pytest.mark.parametrize(("question", "title"), [
    (r"What is \frac{1}{5} + \dfrac{2}{3}?", "What is 1/5 + 2/3?"),
    (r"Half of \frac{1 + x}{2} costs $5", r"Half of \frac{1 + x}{2} costs $5"),  # 1 + x/2 would be another number
    (r"Write 2\frac{3}{4} or \frac{1}{2}x", r"Write 2\frac{3}{4} or \frac{1}{2}x"),  # and so would 23/4, and 1/2x
    ("Two\n  lines", "Two lines"), ("m" * 80, "m" * 80), ("m" * 81, "m" * 79 + "…")])
def test_a_groups_headline_is_its_question_in_a_readable_line(question, title):
    figure = group_figure(teach_alone(HAPO, group(0, key=question), DEMONSTRATION))
    to_png(figure)
    assert figure.texts[0].get_text() == f"One group: {title}" and figure.texts[0].get_size() > 11


def test_projector_enlarges_all_later_type():
    size = lambda: training_figure(a_log(steps=1)).axes[0].texts[0].get_size()  # noqa: E731
    assert size() == 11
    with projector():
        assert size() == 16
    assert size() == 11
    projector()
    assert size() == 16
    projector(False)
    assert size() == 11


def test_no_state_outside_the_figure():
    code = ("import sys, hapo_lab.notebook.dashboard\nfrom hapo_lab.pictures import figures\n"
            "from hapo_lab.pictures.style import to_png\nimport matplotlib as m\nbefore = m.rcParams.copy()\n"
            "sys.path.insert(0, 'tests')\nfrom test_figures import a_log, group, teach_alone, HAPO, DEMONSTRATION\n"
            "for f in (figures.training_figure(a_log()), figures.comparison_figure([a_log()]),\n"
            "          figures.group_figure(teach_alone(HAPO, group(0), DEMONSTRATION))): to_png(f)\n"
            "assert m.rcParams.copy() == before and 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_controls_do_not_wait_for_what_they_do_not_need():
    code = ("import sys\nfrom hapo_lab.notebook import exercises, widgets\nwidgets.purity_meter()\n"
            "assert not {'transformers', 'peft', 'scipy.stats', 'pandas', 'matplotlib.pyplot'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_nothing_above_the_figures_imports_matplotlib():
    code = "import sys, hapo_lab.training.background\nassert not {'matplotlib', 'ipywidgets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_drawing_from_threads():
    drawn = []
    log = a_log()
    threads = [threading.Thread(target=lambda: drawn.append(to_png(training_figure(log)))) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(drawn) == 2 and set(drawn) == {to_png(training_figure(log))}


def test_a_users_dark_style_does_not_leak_in():
    log = a_log(steps=2)
    usual = to_png(training_figure(log))
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "white", "axes.grid": True, "savefig.bbox": "tight",
                                "lines.linewidth": 9, "axes.titlesize": 40, "figure.dpi": 30, "axes.edgecolor": "red"}):
        assert to_png(training_figure(log)) == usual


def test_progress_line_and_time_left():
    log = a_log(steps=19, planned=40)
    line = progress_line(log)
    assert line.startswith("step 19 of 40   student 0.") and line.endswith("groups   3 min 9 s left")
    seconds = log.steps[9].seconds | {"evaluate": 20.0}  # and three more to come: 20, 30, 40
    log.steps[9] = replace(log.steps[9], seconds=seconds)
    assert seconds_left(log) == pytest.approx(21 * 9.01 + 3 * 20)
    assert progress_line(a_log(steps=0)) == "step 0 of 40"
    assert progress_line(a_log(steps=40)).endswith("6 min 0 s in all")


# the dashboard -----------------------------------------------------------------------------------------------------


def test_the_dashboard_draws_as_many_panels_as_it_is_asked_for(monkeypatch):
    drawn = []
    monkeypatch.setattr(dashboards, "_in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: None)
    monkeypatch.setattr(dashboards, "training_figure", lambda log, panels: drawn.append(panels) or training_figure(log, panels))
    for options in ({}, {"panels": 2}):
        Dashboard(a_log(steps=2), **options).close()
    assert drawn == [6, 2]


def growing(full: RunLog):
    """A log that a loop fills, as the trainer does."""
    log = RunLog(full.manifest)

    def steps():
        for r in full.steps:
            log.add(r, [])
            yield r
    return log, steps()


def test_text_where_there_is_no_notebook(capsys):
    log, steps = growing(a_log(steps=5, planned=5))
    with Dashboard(SimpleNamespace(log=log)) as dashboard:
        for _ in steps:
            dashboard.update()
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 5 and out[4].startswith("step 5 of 5")


def test_one_line_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    log, steps = growing(a_log(steps=3, planned=9))
    with Dashboard(log) as dashboard:
        for _ in steps:
            dashboard.update()
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.endswith("left\n") and out.count("\r") == 3


@pytest.fixture
def notebook(monkeypatch):
    """What a kernel's display would be asked to show: (kind, data)."""
    shown, clock = [], SimpleNamespace(now=0.0)
    handle = SimpleNamespace(update=lambda data, **_: shown.append(("update", data)))
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(("display", data)) or handle)
    monkeypatch.setattr(dashboards, "_in_notebook", lambda: True)
    monkeypatch.setattr(dashboards.time, "monotonic", lambda: clock.now)
    shown_ = SimpleNamespace(shown=shown, clock=clock, cost=0.0)

    def draw(log, panels):
        clock.now += shown_.cost
        return training_figure(log)
    monkeypatch.setattr(dashboards, "training_figure", draw)
    monkeypatch.setattr(dashboards, "bundle", lambda figure: ({"text/html": figure.says}, {}))
    return shown_


@pytest.mark.parametrize("cost, pace, drawn", [(0.2, 10, 31), (0.3, 1, 5), (0.001, 0.1, 8)])
def test_drawing_takes_a_small_share_of_the_time(notebook, cost, pace, drawn):
    notebook.cost = cost
    log, steps = growing(a_log(steps=30, planned=30))
    with Dashboard(log) as dashboard:
        for _ in steps:
            notebook.clock.now += pace
            dashboard.update()
    kinds = [kind for kind, _ in notebook.shown]
    assert len(kinds) == pytest.approx(drawn, abs=1) and kinds.count("display") == 1 and kinds[0] == "display"
    assert notebook.shown[-1][1]["text/plain"].startswith("step 30 of 30")


@pytest.mark.parametrize("with_block", [True, False])
def test_the_last_frame_is_always_drawn(notebook, with_block):
    log, steps = growing(a_log(steps=30, planned=30))
    dashboard = Dashboard(log)
    if with_block:
        with pytest.raises(KeyboardInterrupt), dashboard:
            for r in steps:
                dashboard.update()
                if r.step == 7:
                    raise KeyboardInterrupt
    else:
        for _ in steps:
            dashboard.update()
    assert notebook.shown[-1][1]["text/plain"].startswith(f"step {7 if with_block else 30} of 30")


def test_a_failing_display_is_told_once_and_never_stops_training(notebook, monkeypatch, capsys):
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: 1 / 0)
    log, steps = growing(a_log(steps=5, planned=5))
    with Dashboard(log) as dashboard:
        for _ in steps:
            dashboard.update()
    assert capsys.readouterr().err.count("the dashboard can't show the run") == 1
    monkeypatch.setattr(sys, "stderr", None)
    Dashboard(RunLog({})).update()


def test_in_a_real_kernel_one_picture_updated_in_place():
    cells = ["import sys, time; sys.path[:0] = ['.', 'tests']\nfrom test_figures import a_log, growing, Dashboard",
             "log, steps = growing(a_log(steps=4, planned=4))",
             "with Dashboard(log) as dashboard:\n    for record in steps:\n        time.sleep(.6)\n        dashboard.update()"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = nbclient.NotebookClient(book, timeout=None, kernel_name="python3",
                                     resources={"metadata": {"path": str(Path(__file__).parents[1])}})
    messages = []
    process = client.process_message
    client.process_message = lambda msg, cell, index: messages.append(msg["msg_type"]) or process(msg, cell, index)
    client.execute()
    assert [cell.outputs for cell in book.cells[:2]] == [[], []]
    [output] = book.cells[2].outputs
    assert output.output_type == "display_data" and output.data["text/plain"].startswith("step 4 of 4")
    says, *titles = output.metadata["image/png"]["alt"].split("; ")
    assert "image/png" in output.data and "step 4 of 4" in says and len(titles) == 6
    assert messages.count("display_data") == 1 and messages.count("update_display_data") >= 2

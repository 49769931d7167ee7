"""Lesson 07's pictures: their numbers, the meter's lamps, and wrong input."""


from types import SimpleNamespace

import numpy as np
import pytest
from conftest import assert_inside

from hapo_lab.gate import BetaGate
from hapo_lab.gates import GATES, NeverGate, RunningGate, ThompsonGate
from hapo_lab.methods import GRPO, HAPO
from hapo_lab.pictures import purity as figures
from hapo_lab.pictures.style import projector, to_png
from hapo_lab.theory.exact_gradient import learning_curve
from hapo_lab.theory.injection import chernoff_bound, injection_chances, injection_probability
from hapo_lab.theory.purity_runs import SHIPPED, outcome, read


def says(figure) -> str:
    return " | ".join([t.get_text() for t in figure.texts] + [ax.get_title(loc="left") for ax in figure.axes])


def test_the_meter_shows_what_the_theory_says():
    figure, numbers = figures.meter(0.9, 8)
    assert round(numbers["injection"], 4) == 0.1869 and round(numbers["horizon"], 4) == 0.9803
    assert numbers["chernoff"] == chernoff_bound(0.9, 8, BetaGate()) and numbers["hoeffding"] > numbers["chernoff"]
    here, plain = (figures.student(0.9, 8, gate) for gate in (BetaGate(), NeverGate()))
    assert numbers["relative_bias"] == here.relative_bias and numbers["variance"] == here.variance / plain.variance
    assert "18.7% of the groups: below 1% from" in says(figure) and "47.8%" in says(figure)
    curve = figure.axes[0].lines[-2].get_ydata()
    assert curve == pytest.approx(injection_probability(figures.MU, 8, BetaGate()), rel=1e-9)


@pytest.mark.parametrize("kind", GATES)
def test_every_gate_can_be_put_under_the_meter(kind):
    gate = figures.gate_of(kind, 2.0, 1.0, 0.7)
    figure, numbers = figures.meter(0.9, 8, kind, 2.0, 1.0, 0.7, visit=3)
    assert numbers["injection"] == pytest.approx(float(injection_probability(0.9, 8, gate, 3)), rel=1e-9)
    assert ("chernoff" in numbers) == (kind not in ("thompson", "by-success"))
    assert to_png(figure).startswith(b"\x89PNG")
    assert figures.meter_line(0.9, 8, kind, 2.0, 1.0, 0.7, visit=3).count("border-radius:50%") == 9


def test_the_lamps_of_a_gate_that_is_not_sure_are_filled_as_far_as_it_injects():
    html = figures.meter_line(kind="thompson")
    chances = injection_chances(0.9, 8, ThompsonGate())
    assert f">{chances[8]:.0%}</td>" in html and f"{chances[8]:.0%},white" in html and chances[8] == pytest.approx(0.8**9)
    assert ">erases</td>" in figures.meter_line(trials=6, kind="always") and ">erases</td>" in figures.meter_line(trials=6)
    early, late = (figures.meter_line(0.95, 8, "running", visit=v) for v in (1, 50))
    assert early.count(">inject</td>") == 7 and late.count(">leave</td>") > 3  # S = 6 can't outweigh 49 good visits


@pytest.mark.parametrize("settings, sentence", [
    ({"success_rate": 1.0}, "at a success rate of 1 there is no gradient"),
    ({"success_rate": 1.2}, "choose one between 0 and 1"),
    ({"trials": 1}, "it must be a whole number from 2 to 1024"),
    ({"kind": "coin"}, "unknown gate 'coin'; choose one of beta, always"),
    ({"alpha": 0.0}, "prior's alpha is 0.0; it must be a positive number"), ({"visit": 0}, "visits are counted from 1")])
def test_settings_without_meaning_are_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        figures.meter(**{"kind": "running"} | settings)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


def test_group_sizes_have_the_known_values():
    figure, numbers = figures.group_sizes()
    chances = numbers["chances"]
    assert [round(chances[n], 4) for n in (2, 8, 12, 13, 16, 32, 64)] == [1, 0.1869, 0.3410, 0.1339, 0.2108, 0.0944, 0.0099]
    assert list(chances) == list(range(2, 129))
    assert all(chances[n] == pytest.approx(float(injection_probability(0.9, n, BetaGate())), rel=1e-9) for n in chances)
    assert "N = 8: P(inject) = 18.7%" in says(figure)


def test_the_bar_falls_smoothly_and_whole_numbers_jump():
    numbers = figures.group_sizes()[1]
    n = np.arange(2, 129)
    assert numbers["bars"] == pytest.approx(0.8 + 0.6 / n) and (np.diff(numbers["bars"]) < 0).all()
    assert numbers["ties"] == list(range(3, 129, 5))  # 0.8 n + 0.6 is whole
    drops = [int(size) for size, change in zip(n[1:], np.diff(numbers["needed"]), strict=True) if change < -1e-12]
    assert drops == numbers["ties"]
    assert [numbers["needed"][size - 2] for size in (7, 8, 12, 13)] == pytest.approx([1, 7 / 8, 11 / 12, 11 / 13])


@pytest.mark.parametrize("settings, words", [
    ({}, "the bar is 7 of 8 right, 87.5%; 7 meets it exactly"), ({"trials": 12}, "10.2 of 12 right, 85.0%; it takes 11, 91.7%"),
    ({"trials": 2}, "2.2 of 2 right, 110.0%; no group of this size can: the teacher always comes"),
    ({"alpha": 6, "threshold": 0.3}, "every group does: the teacher never comes")])
def test_the_line_names_the_bar(settings, words):
    assert words in figures.bar_line(**settings)


def test_what_injection_buys_and_costs():
    _, found = figures.buys_and_costs()
    few, most = (int(np.searchsorted(figures.MU, mu)) for mu in (0.005, 0.995))
    mu = figures.MU
    assert found["GRPO"] == pytest.approx(1 - (1 - mu) ** 8 - mu**8) and found["with the gate"][few] > 0.999
    assert found["with the gate"][most] == pytest.approx(1 - mu[most] ** 8)  # all right: nobody can teach them
    assert found["log p"][few] > 25 * found["never"][few] and found["p/(p+0.1)"][few] < 1.2 * found["never"][few]
    assert found["bias, p/(p+0.1)"][few] > 0.25 * found["never"][few]
    assert found["bias, p/(p+0.1)"][most] < 0.01 * found["never"][most]
    erasing = figures.buys_and_costs(6)[1]
    assert erasing["with the gate"][most] < 0.1 * erasing["GRPO"][most]


@pytest.fixture(scope="module")
def curves():
    return {method.name: learning_curve([-4, -5, 2], [0.8, 0.9, 0], 8, method, 0, steps=300, step_size=10.0)
            for method in (GRPO, HAPO)}


@pytest.fixture(scope="module")
def settings():
    return {name: read(SHIPPED / f"{name}.jsonl.gz") for name in ("beta", "always")}


@pytest.mark.parametrize("large", [False, True], ids=["11pt", "16pt"])
@pytest.mark.parametrize("draw", [
    lambda *_: figures.meter()[0], lambda *_: figures.meter(0.5, 64, "running", visit=9)[0],
    lambda *_: figures.group_sizes()[0],
    lambda *_: figures.buys_and_costs()[0], lambda curves, _: figures.ceiling_figure(curves, 10.0),
    lambda curves, _: figures.norms_figure(curves), lambda _, settings: figures.runs_figure(settings)])
def test_nothing_leaves_the_picture(draw, large, curves, settings):
    with projector(large):
        figure = draw(curves, settings)
        to_png(figure)
    assert_inside(figure)


def test_a_setting_s_bar_is_its_rate_at_the_end_and_its_tick_the_prediction(settings):
    rates, exams = figures.runs_figure(settings).axes
    found = {name: outcome(runs) for name, runs in settings.items()}
    assert [text.get_text() for text in rates.texts[::2]] == ["beta", "always"]  # the most faithful teacher on top
    assert [bar.get_width() for bar in rates.patches] == [found["beta"].injection, found["always"].injection] != [1, 1]
    assert [line.get_xdata()[0] for line in rates.lines] == [found["beta"].predicted, found["always"].predicted]
    assert list(exams.lines[0].get_xdata()) == [run.heldout for run in settings["beta"]]


def test_a_name_hangs_where_its_curve_leaves_the_teacher_s_action():
    late, never = np.where(np.arange(401) < 100, 0.8, 0.9), np.full(401, 0.8)  # before each step, and after the last
    figure = figures.ceiling_figure({name: SimpleNamespace(success=curve) for name, curve in (("a", never), ("b", late))}, 10.0)
    assert {text.get_text().strip(): text.get_position()[0] for text in figure.axes[0].texts} == {
        "b 1,000": 1000, "a: not in this time": 4000}


def test_a_running_posterior_is_under_the_meter_at_its_visit():
    assert figures.meter(0.9, 8, "running", visit=20)[1]["injection"] == pytest.approx(
        float(injection_probability(0.9, 8, RunningGate(), 20)))

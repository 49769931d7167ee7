"""The explorables: their numbers, their ladders, and their controls driven as a person would."""

from __future__ import annotations

import gc
import re

import numpy as np
import pytest
import torch
from conftest import assert_inside
from scipy import stats

from hapo_lab.gate import BetaGate
from hapo_lab.gates import ladder
from hapo_lab.notebook import widgets
from hapo_lab.pictures import explorables
from hapo_lab.pictures.style import Figure, projector, to_png

FACES = {name: getattr(widgets, name)
         for name in ("collapse", "dead_groups", "injection", "prior_pull", "gate_lab", "clip_and_shape", "purity_meter",
                      "group_sizes")}


def says(figure) -> str:
    return " | ".join([t.get_text() for t in figure.texts] + [ax.get_title(loc="left") for ax in figure.axes])


# numbers -----------------------------------------------------------------------------------------------------------


def test_collapse():
    assert explorables.collapse([0] * 8)[1]["advantages"] == [0] * 8
    figure, numbers = explorables.collapse([0, 1, 0, 0, 0, 0, 0, 0])
    assert numbers["advantages"][1] == pytest.approx(0.875) and not numbers["dead"]
    assert "1 of 8 right" in says(figure) and "right +0.88" in says(figure)
    _, numbers = explorables.collapse([1, 0, 0, 0], "std")
    assert numbers["advantages"] == pytest.approx([1.4997, -.4999, -.4999, -.4999], abs=1e-4)


def test_hearing_names_the_token_at_which_the_teacher_whispers():
    figure, numbers = explorables.hearing("A: 85", np.array([0.04, 1e-6, 1, 0.99, 1]))
    assert numbers["quietest"] == 1
    assert numbers["loudness"] == pytest.approx([0.1 * p / (p + 0.1)**2 for p in (0.04, 1e-6, 1, 0.99, 1)])
    assert "hardly heard at ':'" in says(figure) and "':' has p = 1e-06, every other token at least 0.04" in says(figure)


def test_dead_groups():
    _, numbers = explorables.dead_groups(0.05, 8)
    assert numbers["dead"] == pytest.approx(0.6634, abs=1e-4) and numbers["all_right"] < 1e-10
    assert explorables.dead_groups(1, 8)[1]["dead"] == explorables.dead_groups(0, 8)[1]["dead"] == 1


def test_injection_revives_at_0_and_kills_at_7():
    assert explorables.injection(0)[1] | {"before": 0, "after": 0} == {
        "mean": 0.1, "injects": True, "seat": 0, "before": 0, "after": 0, "dead_before": True, "dead_after": False}
    assert explorables.injection(0)[1]["after"][0] == pytest.approx(2.4742, abs=1e-4)
    left_alone = explorables.injection(7)[1]
    assert not left_alone["injects"] and left_alone["before"] == left_alone["after"] and not left_alone["dead_after"]
    killed = explorables.injection(7, threshold=0.81)[1]
    assert killed["injects"] and killed["seat"] == 7 and not killed["dead_before"] and killed["after"] == [0] * 8
    without_std = [explorables.injection(s, scale="none")[1]["after"] for s in range(7)]
    assert [max(a[s:]) for s, a in enumerate(without_std)] == pytest.approx([(7 - s) / 8 for s in range(7)])


def test_the_steps_reveal_one_thing_at_a_time():
    titles = [says(explorables.injection(0, step=step)[0]) for step in range(1, 5)]
    assert [t.count("?") for t in titles] == [2, 2, 1, 0]
    assert [t[0] for t in titles] == list("1234")
    assert "call the teacher" in titles[1] and "seat 0" in titles[2] and "teaches again" in titles[3]


def test_three_priors():
    """At N = 8 and 0.8: up to 6, up to 7, always."""
    assert [explorables.prior_pull(a, a)[1]["cutoff"] for a in (1, 2, 3)] == [6, 7, 8]
    words = [explorables.ladder_words(ladder(BetaGate(a, a), 8)) for a in (1, 2, 3)]
    assert words[0] == "Injects up to S = 6 of 8." and "erased" in words[1] and words[2].startswith("Always injects")
    assert explorables.ladder_words(ladder(BetaGate(3, 1, 0.2), 8)).startswith("Never")


@pytest.mark.parametrize("success_rate, mean", [(0.5, .9648), (0.8, .4967), (0.9, .1869), (0.95, .0572), (0.99, .0027),
                                                (1.0, 0.0)])
def test_long_run_of_mean_and_draw(success_rate, mean):
    assert explorables.gate_lab(success_rate)[1]["long_run_mean"] == pytest.approx(mean, abs=5e-5)
    s = np.arange(9)
    draw = sum(stats.binom.pmf(s, 8, success_rate) * stats.beta.cdf(0.8, 1 + s, 9 - s))
    assert explorables.gate_lab(success_rate)[1]["long_run_draw"] == pytest.approx(draw, abs=1e-12)
    if success_rate == 1:
        assert draw == pytest.approx(0.8**9)  # .134: a draw never closes


def test_gate_lab_more_groups_leave_the_earlier_ones_alone():
    few, many = (explorables.gate_lab(0.9, groups=n, seed=3)[1] for n in (5, 100))
    assert few["successes"] == many["successes"][:5] and few["draws"] == pytest.approx(many["draws"][:5])
    assert many["mean_injects"] == sum(s <= 6 for s in many["successes"])
    assert many["draw_injects"] == sum(d < 0.8 for d in many["draws"])


def test_clip_and_shape():
    figure, numbers = explorables.clip_and_shape()
    assert numbers["student_gradient"] == pytest.approx(1) and numbers["teacher_gradient"] == pytest.approx(9.98e-4, rel=1e-3)
    assert numbers["loudest"] == pytest.approx(0.25, abs=1e-4) and "10^" not in says(figure)
    assert explorables.clip_and_shape(p=0.3, old_p=0.2)[1]["student_gradient"] == 0  # ratio 1.5, A > 0
    assert explorables.clip_and_shape(p=0.3, old_p=0.2, advantage=-1.0)[1]["student_gradient"] == pytest.approx(-1.5)
    assert explorables.clip_and_shape(p=0.1, lam=0.1)[1]["teacher_gradient"] == pytest.approx(0.25)
    assert explorables.clip_and_shape(shaping="log_probability")[1]["teacher_gradient"] == pytest.approx(1)


# the ladder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [(1, 1), (2, 2), (3, 3), (5.9, 1), (1, 2.5)])
def test_ladder_html_has_a_lamp_for_each_s(prior):
    gate = BetaGate(*prior)
    html = explorables.ladder_html(gate, 8, at=3)
    rungs = ladder(gate, 8)
    assert html.count("border-radius:50%") == 9 and "<b>3 ▲</b>" in html
    for rung in ("inject", "leave", "erases"):
        assert len(re.findall(f">{rung}</td>", html)) == rungs.count(rung)


def test_the_line_is_shown_before_the_picture(monkeypatch):
    face, order = widgets.prior_pull(), []
    monkeypatch.setattr(face, "_show", lambda part, *rest: order.append(part))
    face["beta"].value = 2
    assert order == ["line", "picture"]


# the controls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACES)
def test_every_control_has_a_name_and_goes_to_its_ends(name):
    face = FACES[name]()
    assert face.sentence == "" and face.numbers
    for control in face._widgets():
        assert control.description
        value = control.value
        if hasattr(control, "options"):
            ends = [option[1] if isinstance(option, tuple) else option for option in control.options]
        elif isinstance(value, bool):
            ends = [True, False]
        else:
            log = hasattr(control, "base")
            ends = [control.base**control.min, control.base**control.max] if log else [control.min, control.max]
        for end in ends:
            control.value = end
            assert face.sentence == "" or face.sentence.endswith("."), face.sentence
            assert face._frames["picture"][1]["image/png"]
        control.value = value
    assert face.sentence == "" and face.numbers


def test_clicking_rewards():
    face = widgets.collapse()
    assert face.numbers["dead"]
    face["rewards"][2].value = True
    assert face["rewards"][2].description == "seat 2: 1" and face.numbers["advantages"][2] == pytest.approx(0.875)
    for seat in face["rewards"]:
        seat.value = True
    assert face.numbers["dead"] and face.numbers["successes"] == 8


def test_stepping():
    face = widgets.injection()
    for step in (2, 3, 4, 1):
        face.buttons["Next step"].click()
        assert face["step"].value == step
    face["successes"].value, face["threshold"].value = 7, 0.85
    assert face.numbers["dead_after"] and ">erases</td>" in face._frames["line"][1]["text/html"]


def test_the_lab():
    face = widgets.gate_lab(secret=31, groups=1)
    face.buttons["+10 groups"].click()
    face.buttons["+1 group"].click()
    assert face["groups"].value == len(face.numbers["successes"]) == 12
    for _ in range(12):
        face.buttons["+10 groups"].click()
    assert face["groups"].value == 100
    face["reveal"].value = True
    face.buttons["New secret"].click()
    assert face["secret"].value == 32 and not face["reveal"].value


@pytest.mark.parametrize("name, setting, value, word", [
    ("injection", "successes", 9, "9 right of 8"), ("prior_pull", "alpha", 0, "positive"),
    ("prior_pull", "threshold", 0, "threshold"), ("gate_lab", "beta", 0, "positive"), ("purity_meter", "alpha", 0, "positive"),
    ("purity_meter", "threshold", 0, "threshold")])
def test_settings_that_mean_nothing_show_one_sentence(name, setting, value, word, capfd):
    face = FACES[name]()
    before = face[setting].value
    face[setting].value = value
    html = face._frames["line"][1]["text/html"]
    assert word in face.sentence and "Traceback" not in html and html.startswith("<b") and not face.numbers
    face[setting].value = before
    assert not face.sentence and face.numbers and not any(capfd.readouterr())


def test_no_warning_escapes_a_callback(recwarn):
    face = widgets.injection()
    face["alpha"].value = face["beta"].value = 3
    face["trials"].value = 2
    assert not [w for w in recwarn if "can never close" in str(w.message) or "injects at S" in str(w.message)]


def test_a_picture_that_is_gone_leaves_nothing_to_collect():
    def figures() -> set[int]:
        return {id(o) for o in gc.get_objects() if isinstance(o, Figure)}
    face, before = widgets.purity_meter(), figures()
    face["success_rate"].value = 0.5
    assert gc.isenabled() and figures() <= before


def test_the_frame_that_stays(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", lambda data, **options: shown.append((data, options)))
    face = widgets.gate_lab()
    face._ipython_display_()
    view, line, picture = (data for data, _ in shown)
    assert "application/vnd.jupyter.widget-view+json" in view and "Box" not in view["text/plain"]
    assert "border-radius" in line["text/html"] and picture["image/png"] and picture["text/plain"]
    updates = []
    monkeypatch.setattr(widgets, "update_display", lambda data, **options: updates.append(options["display_id"]))
    face["groups"].value = 30
    assert updates == [options["display_id"] for _, options in shown[1:]]


@pytest.mark.parametrize("large", [False, True], ids=["11pt", "16pt"])
@pytest.mark.parametrize("draw", [
    lambda: explorables.collapse([1, 0, 0, 0, 0, 0, 0, 0], "std"), explorables.dead_groups,
    lambda: explorables.injection(0, 16), lambda: explorables.injection(7, threshold=0.85),
    lambda: explorables.prior_pull(0.25, 6, 0.33, 0, 16), lambda: explorables.prior_pull(6, 0.25),
    lambda: explorables.gate_lab(0.9, 100, reveal=True), explorables.clip_and_shape,
    lambda: explorables.clip_and_shape(0.3, 1e-6, -1.0), lambda: explorables.sentence_figure("One sentence.")])
def test_nothing_leaves_the_picture(draw, large):
    with projector(large):
        drawn = draw()
        figure = drawn[0] if isinstance(drawn, tuple) else drawn
        to_png(figure)
    assert_inside(figure)
    titles = [ax._left_title.get_window_extent() for ax in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])


def test_hidden_rates_stay_inside():
    rates = torch.tensor([explorables.hidden_rate(secret) for secret in range(1, 100)])
    assert 0 < rates.min() and rates.max() < 1

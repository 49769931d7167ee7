"""Looking inside the shipped runs: health, groups, and another gate's decisions."""

from dataclasses import replace

import pytest

from hapo_lab.notebook import widgets
from hapo_lab.pictures import inside
from hapo_lab.pictures.figures import group_figure
from hapo_lab.pictures.style import projector, to_png
from hapo_lab.runs.log import RunLog, shipped_run
from hapo_lab.runs.progress import progress_line


@pytest.fixture(scope="module")
def log():
    return shipped_run("tiny-hapo-0")


def says(figure) -> str:
    return " | ".join([t.get_text() for t in figure.texts] + [ax.get_title(loc="left") for ax in figure.axes])


@pytest.mark.parametrize("name", ["tiny-hapo-0", "tiny-grpo-0", "hapo-0", "sft-0"])
def test_health_has_a_panel_for_each_sign_whatever_was_measured(name):
    figure = inside.health(shipped_run(name))
    assert len(figure.axes) == 6 and "health after step" in says(figure)
    assert to_png(figure).startswith(b"\x89PNG")
    assert ("Teacher's log p: not measured yet" in says(figure)) is (name == "tiny-grpo-0")


def test_health_says_how_often_float16_overflowed(log):
    assert "overflowed" not in says(inside.health(log))
    sick = RunLog(log.manifest)
    sick.steps = [replace(log.steps[0], skipped=2), replace(log.steps[1], skipped=1)]
    assert "float16 overflowed 3 times" in says(inside.health(sick))
    assert "float16 overflowed 3 times" in progress_line(sick) and "overflowed" not in progress_line(log)


def test_health_names_the_signs_to_watch():
    assert "step 30 of 30: watch the entropy" in says(inside.health(shipped_run("hapo-0")))  # 0.09 nats of 1.14
    assert "step 60 of 60: no sign to watch" in says(inside.health(shipped_run("tiny-hapo-0")))
    assert "watch the dead groups" in says(inside.health(shipped_run("tiny-grpo-0")))  # all wrong to the end
    sick = RunLog((log := shipped_run("tiny-hapo-0")).manifest)
    sick.steps = [replace(r, teacher_share=0.5, clip_fraction=0.4, teacher_logp=-r.step) for r in log.steps]
    sick.steps[-1] = replace(sick.steps[-1], grad_norm=99.0)
    assert "watch the gradient norm, the clip fraction, the teacher's log p, the teacher's share" in says(inside.health(sick))


def test_health_of_a_run_without_steps_says_so():
    empty = RunLog(shipped_run("hapo-0").manifest)
    assert says(inside.health(empty)).count("not measured yet") == 6


def test_a_group_s_page_marks_the_teacher_and_who_was_replaced(log):
    group = inside.group_at(log, step=1, number=3)
    table = inside.completions_table(group)
    assert "the teacher takes seat" in says(group_figure(group))
    assert table.count("white-space:pre-wrap'>teacher</td>") == 1 == table.count(">replaced</td>")
    assert table.count(">student</td>") == 7 and "the end must be" in table


def test_markup_in_a_completion_is_shown_and_not_obeyed(log):
    from dataclasses import replace
    group = log.groups_of(1)[0]
    group = replace(group, rollouts=(replace(group.rollouts[0], text="<b>x</b>"), *group.rollouts[1:]))
    assert "&lt;b&gt;x&lt;/b&gt;" in inside.completions_table(group)


@pytest.mark.parametrize("step, number, sentence", [(0, 1, "there is no step 0"), (61, 1, "there is no step 61"),
                                                    (1, 9, "there is no group 9")])
def test_what_is_not_there_is_said_in_a_sentence(log, step, number, sentence):
    with pytest.raises(ValueError, match=sentence):
        inside.group_at(log, step, number)


def test_the_replay_of_the_run_s_own_gate_is_what_was_recorded(log):
    figure, numbers = inside.replay_figure(log, 60)
    assert numbers["replayed"] == numbers["recorded"] == [sum(r.decisions) for r in log.steps]
    assert inside.REPLAY in figure.axes[1].get_xlabel() and inside.REPLAY in figure.described


def test_the_replay_says_how_much_another_gate_asks(log):
    asked = sum(sum(r.decisions) for r in log.steps)
    assert "Both gates decide alike" in says(inside.replay_figure(log, 60)[0])
    assert f"in {asked} groups fewer" in says(inside.replay_figure(log, 60, threshold=0.01)[0])
    assert f"in {480 - asked} groups more" in says(inside.replay_figure(log, 60, beta=6)[0])  # it can't close


def test_another_gate_would_have_decided_otherwise(log):
    assert sum(inside.replay_figure(log, 60, threshold=0.01)[1]["replayed"]) == 0
    assert inside.replay_figure(log, 10, beta=6)[1]["replayed"] == [8] * 10  # it can't close


def test_the_scrubber_answers_with_a_ladder_and_a_sentence_where_the_gate_has_no_meaning(log):
    face = widgets.scrub(log)
    assert sum(face.numbers["replayed"]) == sum(face.numbers["recorded"])
    face["step"].value, face["threshold"].value = 12, 0.3
    assert len(face.numbers["replayed"]) == 12 and not face.sentence
    face["threshold"].value = 0
    assert "the threshold is 0.0" in face.sentence


def test_a_group_is_chosen_with_sliders(log):
    with projector():
        face = widgets.look_inside(log)
        face["step"].value, face["number"].value = 60, 8
    assert not face.sentence

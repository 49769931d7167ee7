"""Controls over a training in the background, pressed and moved in Python: the real trainer, the real `tiny`."""

import sys
import time
from dataclasses import replace

import pytest

from hapo_lab.methods import GRPO, HAPO
from hapo_lab.notebook.controls import NOT_IN_COLAB, Controls
from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import TINY
from hapo_lab.training.trainer import Trainer

PATIENCE = 600


@pytest.fixture
def live(tmp_path):
    config = replace(TINY, steps=400, prompts=2, eval_every=0)
    live = Controls(Trainer(load_policy("tiny"), load_task("sums"), HAPO, config, folder=tmp_path))
    yield live
    if live.run:
        live.run.end()


def wait_for(what) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def test_a_slider_answers_at_once_and_acts_from_the_next_step_on(live):
    live.start()
    wait_for(lambda: len(live.trainer.log.steps) >= 2)
    live.sliders["threshold"].value = 0.01
    assert "Never injects" in live.ladder.value  # no step had to end for it
    wait_for(lambda: len(live.trainer.log.steps) >= live.trainer.log.events[-1]["after_step"] + 3)
    event = live.trainer.log.events[-1]
    assert event["kind"] == "changed" and event["gate"]["threshold"] == 0.01
    steps = live.trainer.log.steps
    assert all(any(r.decisions) for r in steps[:event["after_step"]])
    assert not any(any(r.decisions) for r in steps[event["after_step"]:])


def test_a_slider_without_meaning_shows_a_sentence_and_changes_nothing(live):
    live.start()
    live.sliders["threshold"].value = 0
    assert "the threshold is 0.0; it must lie in (0, 1]" in live.ladder.value
    assert live.trainer.gate == HAPO.gate and not live.trainer.log.events


def test_pause_step_go_on_stop(live):
    live.start()
    live.buttons["Pause"].click()
    wait_for(lambda: live.run.state == "paused")
    done = len(live.trainer.log.steps)
    assert live.status.value.startswith(f"paused after step {done} of 400") and live.buttons["Pause"].description == "Go on"
    live.buttons["Step"].click()
    wait_for(lambda: len(live.trainer.log.steps) == done + 1 and live.run.state == "paused")
    live.buttons["Pause"].click()  # it says "Go on" now
    wait_for(lambda: len(live.trainer.log.steps) > done + 2)
    live.buttons["Stop"].click()
    live.join()
    assert live.status.value.startswith("stopped after step") and all(b.disabled for b in live.buttons.values())


def test_without_a_beta_gate_there_are_buttons_only():
    config = replace(TINY, steps=2, prompts=1, eval_every=0)
    live = Controls(Trainer(load_policy("tiny"), load_task("sums"), GRPO, config))
    assert not live.sliders and not live.ladder.value
    live.start()
    live.join()
    assert live.status.value == "finished after step 2 of 2"


def test_in_colab_it_says_why_not_and_starts_nothing(live, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    live._ipython_display_()
    assert capsys.readouterr().out.strip() == NOT_IN_COLAB and live.run is None

"""Settings that change while a run trains, and training in a thread of its own; on the real tiny model."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import as_new
from jupyter_client.manager import KernelManager
from test_durable import SMALL, contents

from hapo_lab.gate import BetaGate
from hapo_lab.methods import GRPO, HAPO
from hapo_lab.pictures.figures import training_figure
from hapo_lab.pictures.style import to_png
from hapo_lab.runs.log import RunLog
from hapo_lab.training.background import run_in_background
from hapo_lab.training.rebuilding import resume
from hapo_lab.training.trainer import Trainer, in_background

ROOT = Path(__file__).resolve().parent.parent
NEVER = 1e-6
"""A threshold below every posterior mean."""
PATIENCE = 600
"""Seconds after which something is taken for stuck: no machine is that slow."""


def decisions(log) -> list[set[bool]]:
    return [set(s.decisions) for s in log.steps]


# changes -----------------------------------------------------------------------------------------------------------


def test_a_change_acts_from_the_next_step_and_is_an_event(fresh, sums, tmp_path):
    trainer = Trainer(fresh, sums, replace(HAPO, gate=BetaGate(threshold=NEVER)), SMALL, folder=tmp_path)
    steps = iter(trainer)
    next(steps), next(steps)
    assert trainer.change(threshold=0.99, beta=2) == trainer.gate == BetaGate(1, 2, 0.99)
    next(steps)
    trainer.change(threshold=NEVER)
    list(steps)
    assert decisions(trainer.log) == [{False}, {False}, {True}, {False}, {False}, {False}]
    assert trainer.log.steps[2].posterior[0][1] == 2 + 4 - trainer.log.steps[2].successes[0]
    described = {"kind": "BetaGate", "alpha": 1.0, "beta": 2.0, "threshold": 0.99}
    assert RunLog.load(tmp_path).events[0] == {"after_step": 2, "kind": "changed", "gate": described}


def test_a_step_under_way_keeps_its_gate(fresh, sums):
    trainer = Trainer(fresh, sums, replace(HAPO, gate=BetaGate(threshold=NEVER)), SMALL)

    def change(*_):
        hook.remove()
        thread = threading.Thread(target=lambda: trainer.change(threshold=0.99))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()  # it never waits for the step
    hook = trainer.engine.model.register_forward_hook(change)  # in step 1's rollout, before its gate decides
    list(trainer)
    assert decisions(trainer.log)[:2] == [{False}, {True}] and trainer.log.events[0]["after_step"] == 1


@pytest.mark.parametrize("numbers, words", [({"threshold": 1.5}, "the threshold is 1.5; it must lie in"),
                                            ({"alpha": 0}, "prior's alpha is 0.0"), ({"beta": "many"}, "the beta is 'many'")])
def test_a_change_without_meaning_is_refused_at_once(fresh, sums, numbers, words):
    trainer = Trainer(fresh, sums, HAPO, SMALL)
    with pytest.raises(ValueError, match=words):
        trainer.change(**numbers)
    trainer.change(threshold=0.8)  # as it is: nothing to tell
    assert trainer.gate == BetaGate() and trainer.log.events == []


def test_a_gate_without_numbers_is_not_changed(fresh, sums):
    with pytest.raises(ValueError, match="the gate of GRPO has no alpha and no threshold to change"):
        Trainer(fresh, sums, GRPO, SMALL).change(threshold=0.5, alpha=1)


def test_a_killed_run_makes_its_changes_again_after_the_same_step(tiny, sums, tmp_path):
    def train(fresh, folder, steps):
        trainer = Trainer(fresh, sums, HAPO, SMALL, folder=folder)
        for record in trainer:
            if record.step == 3:
                trainer.change(threshold=0.3)
            if record.step == steps:
                break

    for fresh in as_new(tiny):
        train(fresh, tmp_path / "whole", 6)
    for fresh in as_new(tiny):
        train(fresh, tmp_path / "killed", 3)  # its last checkpoint is of step 2
        list(resume(tmp_path / "killed"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    log = RunLog.load(tmp_path / "killed")
    assert (log.gate(3)["threshold"], log.gate(4)["threshold"]) == (0.8, 0.3)


def test_the_training_cell_run_again_goes_on_with_the_settings_as_they_are_now(fresh, sums, tmp_path):
    def cell(threshold):
        return Trainer(fresh, sums, replace(HAPO, gate=BetaGate(threshold=threshold)), SMALL, folder=tmp_path, resume=True)

    def two_steps(trainer):
        steps = iter(trainer)
        next(steps), next(steps)
        steps.close()
        return trainer

    two_steps(cell(0.8))
    trainer = two_steps(cell(0.99))
    trainer.change(threshold=NEVER)
    trainer = cell(0.99)  # the cell says nothing new: what was changed since stays
    assert trainer.gate == BetaGate(threshold=NEVER)
    trainer = cell(0.5)
    assert trainer.gate == resume(tmp_path).gate == BetaGate(threshold=0.5)
    list(trainer)
    log = RunLog.load(tmp_path)
    assert [(step, gate["threshold"]) for step, gate in log.gates().items()] == [(1, 0.8), (3, 0.99), (5, 0.5)]
    assert log.manifest["method"]["gate"]["threshold"] == 0.8


# the background ----------------------------------------------------------------------------------------------------


class Told:
    """What a run tells, and waiting for it."""

    def __init__(self):
        self.states, self._changed = [], threading.Condition()

    def __call__(self, run):
        with self._changed:
            self.states.append((run.state, len(run.trainer.log.steps)))
            self._changed.notify_all()

    def wait(self, *state):
        with self._changed:
            assert self._changed.wait_for(lambda: state in self.states, PATIENCE), (state, self.states)


def test_the_background_trains_as_the_foreground_does_and_prints_nothing(fresh, sums, whole, tmp_path, capfd):
    told = Told()
    run = run_in_background(Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run"), told)
    run.join()
    assert contents(tmp_path / "run") == contents(whole)
    assert told.states == [("running", i) for i in range(1, 7)] + [("finished", 6)]
    assert run.status == "finished after step 6 of 6" and not in_background and capfd.readouterr() == ("", "")


def test_pause_step_go_stop_and_go_on(fresh, sums, whole, tmp_path):
    told = Told()
    trainer = Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run")
    run = run_in_background(trainer, told)
    run.pause()
    told.wait("paused", 1)
    assert run.status == "paused after step 1 of 6" and run.state == "paused"
    run.step()
    told.wait("paused", 2)
    run.go()
    told.wait("running", 3)
    run.stop()
    run.join()
    done = len(trainer.log.steps)
    assert run.state == "stopped" and 3 <= done < 6 and run.status == f"stopped after step {done} of 6, saved"
    assert [(e["after_step"], e["kind"]) for e in trainer.log.events] == [(1, "paused"), (2, "paused"), (done, "stopped")]
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:06d}").is_dir()
    again = run_in_background(trainer)
    again.join()
    assert contents(tmp_path / "run") == contents(whole)


def test_a_paused_run_stops(fresh, sums):
    told = Told()
    run = run_in_background(Trainer(fresh, sums, HAPO, SMALL), told)
    run.step()
    told.wait("paused", 1)
    run.end()
    assert told.states[-1] == ("stopped", 1) and run.status == "stopped after step 1 of 6"


def test_a_change_beside_it(fresh, sums):
    told = Told()
    run = run_in_background(Trainer(fresh, sums, HAPO, SMALL), told)
    run.pause()
    told.wait("paused", 1)
    run.trainer.change(threshold=NEVER)
    run.go()
    run.join()
    assert decisions(run.trainer.log)[1:] == [{False}] * 5


def test_what_broke_the_worker_is_raised_at_join_and_said_in_one_line(fresh, sums):
    trainer = Trainer(fresh, sums, HAPO, SMALL)

    def breaks(*_):
        if len(trainer.log.steps) == 2:
            raise ZeroDivisionError("the engine\ndivides by zero")
    trainer.engine.model.register_forward_hook(breaks)
    run = run_in_background(trainer)
    with pytest.raises(ZeroDivisionError):
        run.join()
    assert run.state == "failed" and run.status == "failed after step 2 of 6: the engine divides by zero"


def test_a_display_that_fails_does_not_stop_the_training(fresh, sums):
    calls = []
    run = run_in_background(Trainer(fresh, sums, HAPO, SMALL), lambda run: calls.append(run) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.join()
    assert run.state == "finished" and len(calls) == 1 and len(run.trainer.log.steps) == 6


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where a shell has started the tests in its background, ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_of_join_stops_after_the_step_and_saves(fresh, sums, tmp_path, capsys, interruptible):
    told = Told()
    run = run_in_background(Trainer(fresh, sums, HAPO, replace(SMALL, steps=500, save_every=500), folder=tmp_path), told)
    told.wait("running", 2)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    run.join()
    done = len(run.trainer.log.steps)
    assert run.state == "stopped" and 2 <= done < 500 and "finishing this step and saving" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / f"step-{done:06d}").is_dir()


def test_the_cell_run_again_takes_over_from_its_own_background(fresh, sums, whole, tmp_path):
    told = Told()
    run = run_in_background(Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run"), told)
    told.wait("running", 2)
    with pytest.raises(ValueError, match="trains in the background already"):
        run_in_background(run.trainer)
    again = Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run", resume=True)
    assert run.state in ("stopped", "finished") and len(again.log.steps) == len(run.trainer.log.steps)
    list(again)
    assert contents(tmp_path / "run") == contents(whole)


def test_iterating_in_the_foreground_takes_over_too(fresh, sums, whole, tmp_path):
    trainer = Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run")
    run = run_in_background(trainer)
    list(trainer)
    assert run.state in ("stopped", "finished") and not in_background and contents(tmp_path / "run") == contents(whole)


def test_another_run_of_the_same_policy_takes_over(fresh, sums, tmp_path):
    told = Told()
    run = run_in_background(Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "one"), told)
    run.step()
    told.wait("paused", 1)
    list(Trainer(fresh, sums, HAPO, SMALL))
    assert told.states[-1] == ("stopped", 1) and len(RunLog.load(tmp_path / "one").steps) == 1


def test_drawing_while_it_trains(fresh, sums):
    run = run_in_background(Trainer(fresh, sums, HAPO, replace(SMALL, steps=10)))
    drawn = 0
    while run.state == "running":
        to_png(training_figure(run.trainer.log.snapshot()))
        drawn += 1
    run.join()
    assert drawn > 1


def test_an_interpreter_that_exits_stops_and_saves(tmp_path):
    code = """
import sys
from hapo_lab.training.background import run_in_background
from hapo_lab.methods import HAPO
from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.trainer import Trainer
import threading
begun = threading.Event()
config = Config(steps=500, prompts=2, group_size=4, save_every=500, eval_every=0)
trainer = Trainer(load_policy("tiny"), load_task("sums"), HAPO, config, folder=sys.argv[1])
run = run_in_background(trainer, lambda run: begun.set())
begun.wait()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Error" not in done.stderr and "Traceback" not in done.stderr
    log = RunLog.load(tmp_path)
    assert log.events == [{"after_step": len(log.steps), "kind": "stopped"}]
    assert (tmp_path / "checkpoints" / f"step-{len(log.steps):06d}").is_dir()


@pytest.mark.soak
def test_a_kernel_that_restarts_leaves_nothing_behind_and_the_run_goes_on(tmp_path):
    cell = f"""
from hapo_lab.training.background import run_in_background
from hapo_lab.methods import HAPO
from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.trainer import Trainer
import threading
begun = threading.Event()
config = Config(steps=500, prompts=1, save_every=500, eval_every=0)
trainer = Trainer(load_policy("tiny"), load_task("sums"), HAPO, config, folder={str(tmp_path)!r}, resume=True)
run = run_in_background(trainer, lambda run: begun.set())
assert begun.wait({PATIENCE})
"""
    kernel = KernelManager()
    kernel.start_kernel(cwd=ROOT)
    client = kernel.client()
    client.start_channels()
    ends = []
    try:
        for _ in range(2):
            client.wait_for_ready(PATIENCE)
            assert client.execute_interactive(cell, timeout=PATIENCE)["content"]["status"] == "ok"
            before = kernel.provisioner.pid
            kernel.restart_kernel()
            assert not psutil.pid_exists(before)
            ends.append(len(RunLog.load(tmp_path).steps))
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert 0 < ends[0] < ends[1] < 500
    assert [(e["after_step"], e["kind"]) for e in RunLog.load(tmp_path).events] == [
        (ends[0], "stopped"), (ends[0], "resumed"), (ends[1], "stopped")]

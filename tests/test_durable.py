"""A run that is killed, interrupted, damaged or out of room goes on as if nothing had happened; all on the real tiny model."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import as_new

from hapo_lab.baselines import METHODS
from hapo_lab.gate import BetaGate
from hapo_lab.gates import AlwaysGate, HardGate, RunningGate, StepAnnealedGate, SuccessAnnealedGate, ThompsonGate
from hapo_lab.loss import ratio
from hapo_lab.methods import GRPO, HAPO, Method
from hapo_lab.policy.models import load_policy
from hapo_lab.reproducibility.catalogue import method_described, method_from
from hapo_lab.reproducibility.seeds import gate_uniforms
from hapo_lab.runs.log import RunLog
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.guards import TrainingError
from hapo_lab.training.rebuilding import resume
from hapo_lab.training.trainer import Trainer

SMALL = Config(steps=6, prompts=2, group_size=4, warmup=1, save_every=2, eval_every=0)
FILES = ["adapter.safetensors", "optimizer.pt", "state.json"]


def contents(run: Path) -> tuple:
    """What must be equal, bit for bit: all but time fields, and the events that tell of the interruption itself."""
    log = RunLog.load(run)
    steps = [{k: v for k, v in vars(s).items() if k != "seconds"} for s in log.steps]
    newest = max((run / "checkpoints").glob("step-*"))
    return (steps, (run / "completions.jsonl").read_bytes(), log.gates(), newest.name,
            [(newest / name).read_bytes() for name in FILES])


# killed ------------------------------------------------------------------------------------------------------------

processes = multiprocessing.get_context("forkserver")  # a new process for each life, its imports ready
processes.set_forkserver_preload(["test_durable", "bitsandbytes", "transformers.models.llama.modeling_llama"])
LONG = Config(steps=16, prompts=2, group_size=4, warmup=1, save_every=4, eval_every=8, eval_samples=1, seed=3)


def live(run: Path, where: str = "nowhere", step: int = 99, method: Method = HAPO) -> None:
    """One life of a run's process. It changes the threshold after step 6, and kills itself at that place of that step."""
    torch.set_num_threads(1)
    trainer = resume(run) if (run / "run.json").exists() else Trainer(
        load_policy("tiny", seed=3), load_task("sums", 3), method, LONG, folder=run)
    calls = []

    def here(*_):
        calls.append(_)
        if len(trainer.log.steps) + 1 == step and (where != "rollout" or len(calls) % 9 == 0):
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event, arguments):
        what = {"open": arguments[:1], "os.rename": arguments[1:2], "shutil.rmtree": arguments[:1]}.get(event, ())
        if any(where == f"{event} {Path(str(path)).name}" for path in what) and len(trainer.log.steps) >= step - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "rollout":
        trainer.engine.model.register_forward_hook(here)
    elif where == "backward":
        trainer.policy.trainable()[2].register_hook(here)
    elif where == "optimizer":
        trainer.learner.optimizer.register_step_post_hook(here)
    else:
        sys.addaudithook(heard)
    for record in trainer:
        if record.step == 6 and not any(e["kind"] == "changed" for e in trainer.log.events):
            trainer.change(threshold=0.4)


def born(*arguments) -> multiprocessing.Process:
    process = processes.Process(target=live, args=arguments)
    process.start()
    return process


@pytest.mark.soak
def test_ten_kills_change_nothing(tmp_path):
    """SIGKILL in the rollout, in the backward pass, after the optimizer, at each stage of saving, and at any time."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = born(whole)
    for where, step in (("rollout", 2), ("backward", 3), ("open optimizer.pt", 4), ("os.rename step-000004", 4),
                        ("backward", 8), ("optimizer", 8), ("shutil.rmtree step-000000", 8), ("open steps.jsonl", 10)):
        process = born(killed, where, step)
        process.join()
        assert process.exitcode == -signal.SIGKILL, where
    for lines in (11, 14):
        process = born(killed)
        while (killed / "steps.jsonl").read_text().count("\n") < lines:
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        process.join()
    for process in (first, born(killed)):
        process.join()
        assert process.exitcode == 0

    assert contents(killed) == contents(whole)
    log = RunLog.load(killed)
    assert sum(e["kind"] == "resumed" for e in log.events) >= 2 and log.gate(7)["threshold"] == 0.4
    assert not list((killed / "checkpoints").glob("writing-*"))


@pytest.mark.soak
def test_kills_change_nothing_for_a_gate_that_remembers(tmp_path):
    whole, killed, method = tmp_path / "whole", tmp_path / "killed", replace(HAPO, gate=RunningGate(discount=.5))
    lives = [(whole, "nowhere", 99, method), (killed, "optimizer", 7, method), (killed,)]
    for life in lives:
        process = born(*life)
        process.join()
        assert process.exitcode == (-signal.SIGKILL if life is lives[1] else 0)
    assert contents(killed) == contents(whole) and RunLog.load(killed).gate(7)["threshold"] == 0.4


# the gates ---------------------------------------------------------------------------------------------------------

GATES = (AlwaysGate(), HardGate(), ThompsonGate(beta=2), StepAnnealedGate(steps=9), SuccessAnnealedGate(end=.1),
         RunningGate(discount=.9))


@pytest.mark.parametrize("method", [*METHODS.values(), *(replace(HAPO, gate=gate) for gate in GATES)])
def test_a_method_is_rebuilt_from_its_description(method):
    assert method_from(json.loads(json.dumps(method_described(method)))) == method


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: type(gate).__name__)
def test_every_gate_trains_and_resumes_with_what_it_remembers(tiny, sums, tmp_path, gate):
    """Three prompts, so that they come again."""
    method, few = replace(HAPO, gate=gate), replace(sums, train=sums.train[:3])
    for policy in as_new(tiny):
        uninterrupted = Trainer(policy, few, method, SMALL, folder=tmp_path / "whole")
        list(uninterrupted)
    for policy in as_new(tiny):
        broken_off(policy, few, tmp_path / "run", method=method)
        resumed = Trainer(policy, few, method, SMALL, folder=tmp_path / "run", resume=True)
        assert resumed.gate_state == resumed.log.gate_state(4)
        assert [r.step for r in resumed] == [5, 6]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert resumed.gate_state == uninterrupted.gate_state == RunLog.load(tmp_path / "run").gate_state(6)

    state = {}
    for r in resumed.log.steps:  # the log's decisions are the gate's own, from the log's counts
        decisions, posterior, state = gate.decide(state, r.problems, r.successes, r.trials, gate_uniforms(0, r.step, 2))
        assert tuple(decisions.tolist()) == r.decisions
        assert tuple(zip(posterior.alpha.tolist(), posterior.beta.tolist(), strict=True)) == r.posterior
        assert state == resumed.log.gate_state(r.step)
    assert bool(state) == isinstance(gate, StepAnnealedGate | SuccessAnnealedGate | RunningGate)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: type(gate).__name__)
def test_a_run_with_any_gate_is_rebuilt_from_its_folder_alone(fresh, sums, tmp_path, gate):
    broken_off(fresh, sums, tmp_path, steps=2, method=replace(HAPO, gate=gate))
    trainer = resume(tmp_path)
    assert trainer.method.gate == trainer.gate == gate and trainer.gate_state == trainer.log.gate_state(2)
    other = replace(HAPO, gate=BetaGate())
    with pytest.raises(ValueError, match=f"method.gate.kind is '{type(gate).__name__}' there and 'BetaGate' here"):
        Trainer(fresh, sums, other, SMALL, folder=tmp_path, resume=True)


def test_a_step_that_breaks_off_leaves_no_trace_in_what_the_gate_remembers(fresh, sums, tmp_path):
    trainer = Trainer(fresh, sums, replace(HAPO, gate=RunningGate()), SMALL, folder=tmp_path)
    steps = iter(trainer)
    next(steps)
    before = trainer.gate_state
    assert len(before["visits"]) == 2

    def interrupt(*_):
        raise KeyboardInterrupt
    trainer.learner.optimizer.register_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert trainer.gate_state == before == trainer.log.gate_state(1)


# checkpoints -------------------------------------------------------------------------------------------------------


def broken_off(fresh, sums, folder, steps=5, method=HAPO) -> None:
    """A run whose process did those steps and then vanished."""
    some = iter(Trainer(fresh, sums, method, SMALL, folder=folder))
    for _ in range(steps):
        next(some)
    some.close()


def test_the_last_two_checkpoints_are_kept(fresh, sums, tmp_path):
    broken_off(fresh, sums, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000004"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["one bit", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_in_one_sentence(fresh, sums, whole, tmp_path, name, damage):
    broken_off(fresh, sums, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step-000004" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    {"one bit": lambda: file.write_bytes(content), "cut": lambda: file.write_bytes(content[:-9]), "gone": file.unlink}[damage]()
    with pytest.warns(UserWarning, match="going back to step-000002, because a later .* of no use .step-000004: "):
        trainer = Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run", resume=True)
    assert [r.step for r in trainer] == [3, 4, 5, 6] and contents(tmp_path / "run") == contents(whole)


def test_without_a_whole_checkpoint_a_run_is_refused_and_kept(fresh, sums, tmp_path):
    broken_off(fresh, sums, tmp_path)
    before = adapter(fresh)
    for path in (tmp_path / "checkpoints").glob("*/optimizer.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no whole checkpoint left .step-000004: optimizer.pt is damaged; step-000002: "):
        Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path, resume=True)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="holds 5 steps and no checkpoint: choose another folder"):
        Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path, resume=True)
    assert len(RunLog.load(tmp_path).steps) == 5 and all(map(torch.equal, before, adapter(fresh)))


def test_a_checkpoint_whose_steps_are_lost_is_passed_over(fresh, sums, whole, tmp_path):
    broken_off(fresh, sums, tmp_path / "run")
    steps = tmp_path / "run" / "steps.jsonl"
    steps.write_bytes(b"".join(steps.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.warns(UserWarning, match="step-000004: steps.jsonl ends at step 3"):
        list(Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run", resume=True))
    assert contents(tmp_path / "run") == contents(whole)


def adapter(fresh) -> list[torch.Tensor]:
    return [p.detach().clone() for p in fresh.trainable()]


def test_a_step_that_breaks_off_in_the_middle_is_done_again(fresh, sums, whole, tmp_path):
    trainer = Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run")
    steps = iter(trainer)
    next(steps), next(steps), next(steps)

    def interrupt(*_):
        hook.remove()
        raise KeyboardInterrupt
    hook = trainer.learner.optimizer.register_step_post_hook(interrupt)  # a second Ctrl-C: the policy has moved, the log hasn't
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert [r.step for r in trainer] == [3, 4, 5, 6] and contents(tmp_path / "run") == contents(whole)


def test_in_memory_there_is_nothing_to_go_back_to(fresh, sums):
    trainer = Trainer(fresh, sums, HAPO, SMALL)

    def interrupt(*_):
        raise KeyboardInterrupt
    trainer.learner.optimizer.register_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(trainer)
    with pytest.raises(TrainingError, match="step 1 broke off in the middle, and this run has no folder to go back to"):
        list(trainer)


# a full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def full_file_system(folder: Path):
    """A small file system of its own, and no byte free."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    yield
    filler.unlink()


@contextmanager
def limited_file_size(folder: Path):
    """No file may grow beyond what the step's log needs: a checkpoint's can't be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("full", [full_file_system, limited_file_size])
def test_a_full_disk_costs_a_sentence_and_the_run_goes_on(fresh, sums, whole, request, tmp_path, full):
    folder = (request.getfixturevalue("small_disk") if full is full_file_system else tmp_path) / "run"
    trainer = Trainer(fresh, sums, HAPO, SMALL, folder=folder)
    steps = iter(trainer)
    next(steps), next(steps), next(steps)
    with full(folder.parent):
        with pytest.raises(TrainingError, match="can't be written .*what was saved before is whole. Make room"):
            list(steps)
        assert (folder / "checkpoints" / "step-000002" / "state.json").exists()
        assert not list((folder / "checkpoints").glob("writing-*"))
    with torch.no_grad():
        fresh.trainable()[0].zero_()  # a new process knows nothing of this one's policy
    list(Trainer(fresh, sums, HAPO, SMALL, folder=folder, resume=True))
    assert contents(folder) == contents(whole)


def test_the_same_trainer_goes_on_when_there_is_room_again(fresh, sums, whole, tmp_path):
    trainer = Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run")
    with limited_file_size(tmp_path), pytest.raises(TrainingError, match="File too large"):
        list(trainer)
    list(trainer)
    assert contents(tmp_path / "run") == contents(whole)


# more steps --------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_extended_from_its_folder_and_in_python_alike(fresh, sums, whole, tmp_path):
    for run in ("a", "b"):
        shutil.copytree(whole, tmp_path / run)
        (tmp_path / run / "evaluation.json").write_text("{}")
    resume(tmp_path / "a")
    assert (tmp_path / "a" / "evaluation.json").exists()
    extended = resume(tmp_path / "a", steps=8)
    assert not (tmp_path / "a" / "evaluation.json").exists()  # nobody takes it for the longer run's
    assert [r.step for r in extended] == [7, 8] and extended.log.planned == 8 and extended.config == SMALL
    assert [r.learning_rate for r in extended.log.steps[-3:]] == pytest.approx([SMALL.final_rate * SMALL.learning_rate] * 3)
    assert extended.log.events[-2:] == [{"after_step": 6, "kind": "extended", "steps": 8}, {"after_step": 6, "kind": "resumed"}]
    longer = Trainer(fresh, sums, HAPO, replace(SMALL, steps=8), folder=tmp_path / "b", resume=True)
    assert [r.step for r in longer] == [7, 8]
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and contents(whole)[0] == contents(tmp_path / "a")[0][:6]
    assert RunLog.load(tmp_path / "a").planned == 8  # for whoever draws it
    assert not list(Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "b", resume=True))  # the cell as it stood before


def test_an_extension_outlives_a_kill(fresh, sums, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    assert next(iter(resume(tmp_path / "run", steps=9))).step == 7
    trainer = resume(tmp_path / "run")  # step 7 has no checkpoint
    assert [r.step for r in trainer] == [7, 8, 9]


def test_a_run_is_not_cut_and_not_extended_by_nothing(fresh, sums, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run of 6 steps; it can be extended, not cut to 5"):
        Trainer(fresh, sums, HAPO, replace(SMALL, steps=5), folder=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="holds a run of 6 steps already: to extend it, ask for more"):
        resume(tmp_path / "run", steps=6)
    assert RunLog.load(tmp_path / "run").events == []


# another run, and a run rebuilt ------------------------------------------------------------------------------------


def test_another_run_is_refused_with_what_differs(fresh, sums, tmp_path):
    broken_off(fresh, sums, tmp_path, steps=1)
    before = (tmp_path / "run.json").read_text()
    for method, config, words in (
            (HAPO, replace(SMALL, seed=5, prompts=3),
             "config.prompts is 2 there and 3 here; config.seed is 0 there and 5 here"),
            (replace(HAPO, shaping=ratio(0.2)), SMALL, "method.shaping.lam is 0.1 there and 0.2 here"),
            (replace(GRPO, name="HAPO"), SMALL, "method.gate.kind is 'BetaGate' there and 'NeverGate' here")):
        with pytest.raises(ValueError) as refused:
            Trainer(fresh, sums, method, config, folder=tmp_path, resume=True)
        assert str(refused.value) == f"{tmp_path} holds another run: {words}. Use the same, or choose another folder."
    with pytest.raises(ValueError, match="holds another run: problems.train_sha256 is '[0-9a-f]{16}' there and "):
        Trainer(fresh, replace(sums, train=sums.train[:9]), HAPO, SMALL, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds a run already"):
        Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path)
    assert (tmp_path / "run.json").read_text() == before and len(RunLog.load(tmp_path).steps) == 1


def test_what_a_stopped_run_saved_is_gone_when_it_goes_on(fresh, sums, whole, tmp_path):
    broken_off(fresh, sums, tmp_path / "run")
    (tmp_path / "run" / "adapter").mkdir()
    (tmp_path / "run" / "evaluation.json").write_text("{}")  # of the step that it was stopped at
    list(resume(tmp_path / "run"))
    assert not (tmp_path / "run" / "adapter").exists() and not (tmp_path / "run" / "evaluation.json").exists()


def test_a_policy_that_was_trained_begins_no_run_as_if_it_were_new(fresh, sums, tmp_path):
    list(Trainer(fresh, sums, HAPO, replace(SMALL, steps=1)))
    with pytest.raises(ValueError, match="has been trained already, and run.json would call it new: load it again"):
        Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_from_an_adapter_is_rebuilt_from_it(fresh, sums, tmp_path):
    fresh.model.save_pretrained(str(tmp_path / "first"))
    policy = load_policy("tiny", adapter=tmp_path / "first")
    steps = iter(Trainer(policy, sums, HAPO, replace(SMALL, save_every=1), folder=tmp_path / "run"))
    next(steps)
    steps.close()
    assert [r.step for r in resume(tmp_path / "run")] == [2, 3, 4, 5, 6]
    (tmp_path / "first" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="the adapter that this run began from, .*first, is gone or another one by now"):
        resume(tmp_path / "run", steps=9)


def test_a_folder_of_a_presets_name_is_not_taken_for_it(fresh, sums, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Trainer(fresh, sums, HAPO, replace(SMALL, steps=1), folder="tiny")
    assert resume("tiny").log.manifest["model"] == "tiny"


def test_a_run_is_rebuilt_from_its_folder_alone(fresh, sums, whole, tmp_path):
    broken_off(fresh, sums, tmp_path / "run")
    trainer = resume(tmp_path / "run")
    assert trainer.policy is not fresh and (trainer.method, trainer.config) == (HAPO, SMALL)
    list(trainer)
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.parametrize("change, sentence", [
    (lambda manifest: manifest["method"]["shaping"].update(kind="<lambda>"), "'<lambda>' is none of this kit's parts"),
    (lambda manifest: manifest.update(task="chess"), "unknown task 'chess'"),
    (lambda manifest: manifest["problems"].update(seed=1),
     r"task 'sums', seed 1, is another one here \(train_sha256, heldout_sha256\)"),
    (lambda manifest: manifest.pop("problems"), "says nothing of 'problems'; another version of this kit made it")])
def test_what_cannot_be_rebuilt_is_named(fresh, sums, tmp_path, change, sentence):
    broken_off(fresh, sums, tmp_path, steps=1)
    manifest = json.loads((tmp_path / "run.json").read_text())
    change(manifest)
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"this run can't be rebuilt.*: .*{sentence}"):
        resume(tmp_path)

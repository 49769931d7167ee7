"""Trackers: what they are told, what is refused before a run begins, and that none of them ends a run."""

import sys
import types
import warnings

import pytest

from hapo_lab.commands.cli import main
from hapo_lab.runs.log import RunLog, shipped_run
from hapo_lab.runs.trackers import get_trackers, scalars, tensorboard, tracking, wandb

STEPS = shipped_run("tiny-hapo-0").steps[:3]
SMALL = ["--model", "tiny", "--steps", "2", "--prompts", "1", "--group-size", "4", "--eval-every", "0"]

MINE = '''
def keep(log):
    def track(record):
        with open(log.path("seen.txt"), "a") as file:
            print(record.step, log.manifest["task"], file=file)
    return track

def fail(log):
    def track(record):
        raise OSError("the network is gone")
    return track

def show(record):
    print(record.reward)

def nothing(log):
    return None

NUMBER = 3
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def log(tmp_path):
    return RunLog(shipped_run("tiny-hapo-0").manifest, tmp_path / "run")


class FakeWandb(types.ModuleType):
    """What was begun, and what was logged."""

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.logged = [], []

    def init(self, **options):
        self.begun.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))


@pytest.fixture
def fake_wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


# what they are told

def test_scalars_are_the_records_single_numbers_under_its_names():
    record, found = STEPS[0], scalars(STEPS[0])
    assert found["reward"] == record.reward and found["teacher_samples"] == record.teacher_samples
    assert found["seconds_rollout"] == record.seconds["rollout"] and found["groups"] == len(record.problems)
    assert record.heldout is None and "heldout" not in found and "advantages" not in found and "step" not in found
    assert all(type(value) is float for value in found.values())


def test_wandb_gets_each_steps_scalars(fake_wandb):
    track = wandb(project="mine", mode="offline")
    for record in STEPS:
        track(record)
    assert fake_wandb.begun == [{"project": "mine", "mode": "offline"}]
    assert fake_wandb.logged == [(record.step, scalars(record)) for record in STEPS]


def test_by_name_wandb_knows_the_run_and_finds_it_again(fake_wandb, log, tmp_path):
    for folder in (tmp_path / "run", tmp_path / "run", tmp_path / "other" / "run"):
        tracking(get_trackers(["wandb"]), RunLog(log.manifest, folder))
    first, again, other = fake_wandb.begun
    assert first == again and first["id"] != other["id"] and first["name"] == other["name"] == "run"
    assert first["config"] == log.manifest and first["resume"] == "allow"


def read(folder):
    """Events by scalar: (step, value)."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(folder))
    reader.Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_tensorboard_reads_each_steps_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    track = tensorboard(tmp_path / "events")
    for record in STEPS:
        track(record)
    found = read(tmp_path / "events")
    assert set(found) == {name for record in STEPS for name in scalars(record)}
    assert found["length"] == [(record.step, pytest.approx(record.length)) for record in STEPS]


def test_a_resumed_runs_steps_are_shown_once(tmp_path):
    pytest.importorskip("tensorboard")
    for steps in (STEPS, STEPS[1:]):
        track = tensorboard(tmp_path / "events")
        for record in steps:
            track(record)
    assert [step for step, _ in read(tmp_path / "events")["length"]] == [1, 2, 3]


# what is refused

@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for ask in (lambda: get_trackers([name]), lambda: {"tensorboard": lambda: tensorboard("x"), "wandb": wandb}[name]()):
        with pytest.raises(ValueError, match=f"^{name} is not installed: python -m pip install {name}"):
            ask()


@pytest.mark.parametrize(("name", "sentence"), [
    ("mlflow", "unknown tracker 'mlflow'; choose one of tensorboard, wandb, or write FILE.py:NAME"),
    ("{}:gone", "there is nothing named 'gone' in"), ("{}:NUMBER", "mine.py:NUMBER' is not a function"),
    ("other.py:keep", "there is no file other.py")])
def test_what_is_no_tracker_is_refused_before_a_model_is_loaded(mine, tmp_path, name, sentence):
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(tmp_path / "run"), "--model", "tiny", "--track", name.format(mine)])
    assert sentence in str(stopped.value) and "\n" not in str(stopped.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "sentence"), [
    ("show", "show' can't begin: AttributeError: 'RunLog' object has no attribute 'reward'"),
    ("nothing", "nothing' makes None; it must return a function of a StepRecord")])
def test_a_function_of_another_kind_is_refused(mine, log, name, sentence):
    with pytest.raises(ValueError) as error:
        tracking(get_trackers([f"{mine}:{name}"]), log)
    assert sentence in str(error.value)


# in a run

def test_one_that_fails_is_warned_of_once_and_the_others_go_on(mine, log):
    log.create()
    track = tracking(get_trackers([f"{mine}:fail", f"{mine}:keep"]), log)
    with pytest.warns(UserWarning, match="mine.py:fail' failed at step 1, and is dropped: OSError: the"):
        track(STEPS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        track(STEPS[1])
    assert log.path("seen.txt").read_text() == "1 sums\n2 sums\n"


def test_the_command_tracks_a_run_and_its_resumption(mine, tmp_path):
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match="fail' failed at step 1"):
        main(["train", str(run), *SMALL, "--track", f"{mine}:fail", "--track", f"{mine}:keep"])
    main(["resume", str(run), "--steps", "3", "--track", f"{mine}:keep"])
    assert (run / "seen.txt").read_text() == "1 sums\n2 sums\n3 sums\n" and (run / "adapter").is_dir()

"""Parts of one's own: named by file, known by content, rebuilt as they were or refused before the first step."""

import functools
import json
import sys
from dataclasses import dataclass, replace
from itertools import islice

import pytest
import torch
from conftest import as_new

from hapo_lab.commands.cli import main
from hapo_lab.gate import BetaGate
from hapo_lab.gates import HardGate
from hapo_lab.loss import group_advantages
from hapo_lab.methods import HAPO, Method
from hapo_lab.reproducibility.catalogue import get_gate, get_method, get_shaping, method_described, method_from
from hapo_lab.runs.log import RunLog
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.rebuilding import resume
from hapo_lab.training.trainer import Trainer

SMALL = Config(steps=2, prompts=2, group_size=4, warmup=1, save_every=1, eval_every=0)
MINE = '''
from dataclasses import dataclass, replace

import torch

from hapo_lab.gate import BetaGate
from hapo_lab.gates import Gate
from hapo_lab.methods import HAPO, Method


@dataclass(frozen=True)
class Every:
    """Asks another gate at every so-manieth step, and keeps out of the others."""

    steps: int = 2
    asks: Gate = BetaGate()
    also: tuple = ()

    def decide(self, state, keys, successes, trials, uniforms):
        decisions, posterior, _ = self.asks.decide({}, keys, successes, trials, uniforms)
        step = state.get("step", 0) + 1
        return decisions & (step % self.steps == 0), posterior, {"step": step}

    def chances(self, state, key, trials, others=()):
        asks = (state.get("step", 0) + 1) % self.steps == 0
        return asks * self.asks.chances({}, key, trials, others)


class Counting:
    """Holds what no field names."""

    def __init__(self, limit=3):
        self.limit, self.steps, self.asks = limit, 2, BetaGate()

    decide, chances = Every.decide, Every.chances


def square(logp):
    return (2 * logp).exp()


@dataclass(frozen=True)
class First(Method):
    """Credits the first rollout, whatever it says."""

    credit: float = 1.0

    def advantages(self, rewards, teacher_mask):
        return self.credit * (torch.arange(len(rewards)) == 0).to(rewards.dtype)


MINE, FIRST, NUMBER = replace(HAPO, name="mine", gate=Every(3)), First("first", credit=0.5), 3
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def again(method):
    return method_from(json.loads(json.dumps(method_described(method))))


# described, and had again


def test_a_gate_of_ones_own_may_hold_gates(mine):
    outer = get_gate(f"{mine}:Every", steps=5)
    outer = replace(outer, asks=replace(outer, asks=HardGate()), also=(BetaGate(threshold=.5), 0.25, "word"))
    method = replace(HAPO, gate=outer, eps_high=float("inf"))
    assert again(method) == method
    described = method_described(method)["gate"]
    assert described["kind"] == f"{mine}:Every" and described["asks"]["asks"] == {"kind": "HardGate"}


@pytest.mark.parametrize("name", ["MINE", "FIRST"])
def test_a_method_of_ones_own_comes_back_as_it_was(mine, name):
    method = get_method(f"{mine}:{name}")
    assert again(method) == method and type(again(method)) is type(method)
    rewards, teacher = torch.tensor([0., 1., 1.]), torch.tensor([False] * 3)
    expected = torch.tensor([.5, 0, 0]) if name == "FIRST" else group_advantages(rewards)
    assert torch.equal(again(method).advantages(rewards, teacher), expected)


def test_a_shaping_of_ones_own_comes_back(mine):
    method = replace(HAPO, shaping=get_shaping(f"{mine}:square"))
    assert again(method).shaping(torch.tensor(-1.)).item() == pytest.approx(0.1353, abs=1e-4)


def test_what_a_python_module_holds_is_named_by_its_file(mine, monkeypatch):
    monkeypatch.syspath_prepend(mine.parent)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    import mine as module
    gate = again(replace(HAPO, gate=module.Every(7))).gate
    assert gate.steps == 7 and type(gate).__name__ == "Every"


def test_a_file_that_changed_is_another_part(mine):
    method = get_method(f"{mine}:MINE")
    described = method_described(method)
    mine.write_text(MINE.replace("== 0)", "== 1)"))
    with pytest.raises(ValueError, match="mine.py has changed since the run was made: bring the old file back"):
        method_from(described)
    assert method_described(get_method(f"{mine}:MINE"))["gate"]["sha256"] != described["gate"]["sha256"]


def test_a_file_that_is_edited_while_a_run_trains_changes_nothing_in_it(fresh, sums, mine, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(mine.parent)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    import mine as module
    for gate in (module.Every(3), get_gate(f"{mine}:Every", steps=3)):
        mine.write_text(MINE)
        trainer = Trainer(fresh, sums, replace(HAPO, gate=gate), SMALL, folder=tmp_path / f"{id(gate)}")
        next(iter(trainer))
        mine.write_text(MINE + "\n")
        assert trainer.gate == gate and [r.step for r in trainer] == [2]
        with pytest.raises(ValueError, match="has changed since the run was made"):
            resume(trainer.log.folder)


@pytest.mark.parametrize(("get", "name", "sentence"), [
    (get_gate, "{}:Nothing", "there is nothing named 'Nothing' in"), (get_gate, "{}:NUMBER", "mine.py:NUMBER' is not a gate"),
    (get_gate, "gone.py:Every", "'gone.py:Every': there is no file gone.py"), (get_method, "{}:Every", "Every' is no Method"),
    (get_shaping, "{}:NUMBER", "NUMBER' is not a shaping"),
    (get_shaping, "cube", "unknown shaping 'cube'; choose one of proba")])
def test_what_is_not_there_is_named(mine, get, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        get(name.format(mine))


def test_a_gate_without_that_number_says_so(mine):
    with pytest.raises(ValueError, match="mine.py:Every' has no threshold: leave it out"):
        get_gate(f"{mine}:Every", threshold=.5)


# refused at the start

@dataclass(frozen=True)
class Local(Method):
    """Stands in a file, but not for a notebook's kernel."""


def in_a_notebook(part):
    part.__module__ = "__main__"
    return part


@dataclass(frozen=True)
class Drawn:
    """Holds a tensor."""

    weights: object = None
    decide = HardGate.decide


@pytest.mark.parametrize(("method", "sentence"), [
    (lambda mine: in_a_notebook(type("Shown", (Local,), {}))("mine"), "Shown is defined in a notebook or a script"),
    (lambda mine: replace(HAPO, shaping=lambda logp: logp), "<lambda> has no name in a file"),
    (lambda mine: replace(HAPO, shaping=torch.sigmoid), "builtin_function_or_method is no number, word, tuple or part"),
    (lambda mine: replace(HAPO, shaping=functools.partial(torch.clamp, min=-1)), "partial holds values that no field names"),
    (lambda mine: replace(HAPO, gate=get_gate(f"{mine}:Counting")), "Counting holds values that no field names: make it a fro"),
    (lambda mine: replace(HAPO, gate=Drawn(torch.zeros(3))), "Tensor holds values that no field names"),
    (lambda mine: replace(HAPO, gate=Drawn([1, 2])), "list is no number, word, tuple or part")])
def test_what_no_run_json_gives_back_is_refused_before_anything_is_written(fresh, sums, mine, tmp_path, method, sentence):
    with pytest.raises(ValueError, match=f"could not be resumed as it is: .*{sentence}.* or train without a folder"):
        Trainer(fresh, sums, method(mine), SMALL, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_a_folder_any_method_trains(fresh, sums):
    method = replace(HAPO, shaping=lambda logp: logp)
    assert len(list(Trainer(fresh, sums, method, SMALL))) == 2


# trained and resumed


@pytest.mark.parametrize("name", ["MINE", "FIRST"])
def test_what_ran_is_what_resumes(tiny, sums, mine, tmp_path, name):
    """Also a subclass of Method: its advantages, and not Method's, act after the resume."""
    method = get_method(f"{mine}:{name}")
    for policy in as_new(tiny):
        whole = list(Trainer(policy, sums, method, replace(SMALL, steps=3), folder=tmp_path / "whole"))
    for policy in as_new(tiny):
        list(islice(Trainer(policy, sums, method, replace(SMALL, steps=3), folder=tmp_path / "run"), 2))
    resumed = list(resume(tmp_path / "run"))
    assert [r.advantages for r in resumed] == [r.advantages for r in whole[-len(resumed):]]
    assert [r.loss for r in resumed] == [r.loss for r in whole[-len(resumed):]]
    mine.write_text(MINE + "\n")
    with pytest.raises(ValueError, match="can't be rebuilt from its run.json: .*mine.py has changed since the run was made"):
        resume(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another run: method\.(gate\.)?sha256 is"):
        other = get_method(f"{mine}:{name}")
        Trainer(fresh_of(tiny), sums, other, replace(SMALL, steps=3), folder=tmp_path / "run", resume=True)


def fresh_of(policy):
    return next(as_new(policy))


def test_the_command_line_takes_parts_by_file(mine, tmp_path, capsys):
    run = tmp_path / "run"
    main(["train", str(run), "--model", "tiny", "--gate", f"{mine}:Every", "--shaping", f"{mine}:square", "--steps", "1",
          "--prompts", "1", "--group-size", "4", "--eval-every", "0"])
    manifest = RunLog.load(run).manifest
    assert manifest["method"]["name"] == "HAPO, mine.py:square, mine.py:Every"
    assert manifest["method"]["gate"]["kind"] == f"{mine}:Every" and manifest["method"]["shaping"]["kind"] == f"{mine}:square"
    main(["resume", str(run), "--steps", "2"])
    assert len(RunLog.load(run).steps) == 2 and "step 2 of 2" in capsys.readouterr().out
    main(["evaluate", str(run), "--samples", "1"])
    main(["train", str(tmp_path / "first"), "--model", "tiny", "--method", f"{mine}:FIRST", "--steps", "1", "--prompts", "1",
          "--group-size", "4", "--eval-every", "0"])
    assert RunLog.load(tmp_path / "first").steps[0].advantages == ((.5, 0., 0., 0.),)


def test_sums_are_the_kits_own():
    assert load_task("sums").identity["verifier"] == {"kind": "verify_end"}


@pytest.mark.parametrize(("name", "words"), [
    ("Short", r"chances\(\{\}, 'a prompt', 8\) gives a tensor of shape \(8,\); it must give a tensor of 9 numbers, one per S"),
    ("Listed", "gives list; it must give a tensor"), ("Failing", "fails: ZeroDivisionError: division by zero")])
def test_a_gate_whose_chances_no_group_could_use_is_refused_before_a_training(tmp_path, name, words):
    (tmp_path / "odd.py").write_text("""
import torch

from hapo_lab import MemorylessGate


class Short(MemorylessGate):
    def chances(self, state, key, trials, others=()):
        return torch.ones(trials)


class Listed(MemorylessGate):
    def chances(self, state, key, trials, others=()):
        return [1.0] * (trials + 1)


class Failing(MemorylessGate):
    def chances(self, state, key, trials, others=()):
        return 1 / 0
""")
    with pytest.raises(ValueError, match=words):
        get_gate(f"{tmp_path / 'odd.py'}:{name}")


def test_a_shaping_that_takes_log_p_for_p_is_warned_of(tmp_path):
    (tmp_path / "mine.py").write_text("""
def square(logp):
    return (2 * logp).exp()


def of_p(p):
    return p * p


def listed(logp):
    return list(logp)
""")
    assert get_shaping(f"{tmp_path / 'mine.py'}:square")(torch.tensor(0.1).log()).item() == pytest.approx(0.01)
    with pytest.warns(UserWarning, match="it is given log p, and not p"):
        get_shaping(f"{tmp_path / 'mine.py'}:of_p")
    with pytest.raises(ValueError, match="gives list; it must give a tensor"):
        get_shaping(f"{tmp_path / 'mine.py'}:listed")

"""A gate of one's own, in a file of one's own, is as good as the kit's: in training, on the ladder, in theory, in a resume."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from hapo_lab.commands.cli import main
from hapo_lab.gates import MemorylessGate, RunningGate, can_close, ladder, numbers_of, warn_of_size
from hapo_lab.methods import HAPO
from hapo_lab.notebook.controls import Controls
from hapo_lab.pictures.figures import training_figure
from hapo_lab.reproducibility.catalogue import get_gate
from hapo_lab.runs.log import RunLog
from hapo_lab.theory.exact_gradient import expected_gradient, learning_curve
from hapo_lab.theory.injection import count_cutoff, injection_chances, injection_probability
from hapo_lab.theory.purity_runs import step_chances
from hapo_lab.training.config import Config
from hapo_lab.training.rebuilding import resume
from hapo_lab.training.trainer import Trainer

MINE = '''
from dataclasses import dataclass

import torch

from hapo_lab import MemorylessGate


@dataclass(frozen=True)
class Coin(MemorylessGate):
    """Asks for the teacher in a share of the groups with at most `most` successes."""

    share: float = 0.5
    most: int = 1

    def chances(self, state, key, trials, others=()):
        return self.share * (torch.arange(trials + 1) <= self.most).double()


@dataclass(frozen=True)
class Once(MemorylessGate):
    """Asks for the teacher at a prompt's first failures, and never again. State: {"met": [keys]}."""

    def chances(self, state, key, trials, others=()):
        return (torch.arange(trials + 1) == 0).double() * (key not in state.get("met", []))

    def decide(self, state, keys, successes, trials, uniforms):
        decisions, posterior, _ = super().decide(state, keys, successes, trials, uniforms)
        met = {*state.get("met", []), *(key for key, decision in zip(keys, decisions.tolist()) if decision)}
        return decisions, posterior, {"met": sorted(met)}
'''
SMALL = Config(steps=4, prompts=2, group_size=4, warmup=1, save_every=1, eval_every=0)


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "my_gates.py"
    file.write_text(MINE)
    return lambda name, **numbers: get_gate(f"{file}:{name}", **numbers)


def test_on_the_ladder(mine):
    assert ladder(mine("Coin"), 4) == ["50%", "50%", "leave", "leave", "leave"]
    assert ladder(mine("Coin", share=1, most=3), 4) == ["inject", "inject", "inject", "erases", "leave"]
    assert ladder(mine("Once"), 4, {"met": ["a"]}, "a") == ["leave"] * 5 and can_close(mine("Once"), 4)


def test_in_the_exact_theory(mine):
    coin, pmf = mine("Coin"), [math.comb(4, s) * .3**s * .7**(4 - s) for s in range(5)]
    assert float(injection_probability(.3, 4, coin, visit=7)) == pytest.approx(.5 * (pmf[0] + pmf[1]), rel=1e-12)
    exact = expected_gradient([0., 0., 0.], [1, 1, 0], 4, hapo_with(coin), 0)
    assert exact.injection == pytest.approx(float(injection_probability(2 / 3, 4, coin)), rel=1e-12)
    curve = learning_curve([0., 0., 0.], [1, 1, 0], 4, hapo_with(coin), 0, steps=50)
    assert curve.success[-1] > curve.success[0]
    assert count_cutoff(coin, 4) is None and count_cutoff(mine("Coin", share=1), 4) == (1, 4)


def hapo_with(gate):
    return replace(HAPO, gate=gate)


@pytest.mark.parametrize("visit", [1, 2, 3])
def test_a_gate_that_remembers_is_asked_for_every_history(mine, visit):
    once, pmf = mine("Once"), [math.comb(3, s) * .4**s * .6**(3 - s) for s in range(4)]
    expected = np.zeros(4)
    for history in itertools.product(range(4), repeat=visit - 1):
        state = {}
        for s in history:
            state = once.decide(state, [""], [s], [3], [.5])[2]
        expected += math.prod(pmf[s] for s in history) * once.chances(state, "", 3).numpy()
    assert injection_chances(.4, 3, once, visit) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="not a function of the present one; use a gate without such a memory"):
        learning_curve([0., 0.], [1, 0], 3, hapo_with(once), 0, steps=2)


def test_in_the_meter_of_a_run(mine):
    assert step_chances(mine("Once"), {"met": ["b"]}, ["a", "b"], [0, 0], 2).tolist() == [[1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", ["Coin", "Once"])
def test_in_training_in_a_resume_and_under_controls(mine, fresh, sums, tmp_path, name):
    method = hapo_with(mine(name))
    trainer = Trainer(fresh, sums, method, SMALL, folder=tmp_path / "run")
    steps = iter(trainer)
    next(steps), next(steps)
    steps.close()
    assert Controls(trainer).sliders == {}
    again = resume(tmp_path / "run")
    assert type(again.gate).__name__ == name and again.gate_state == trainer.gate_state
    list(again)
    log = RunLog.load(tmp_path / "run")
    assert len(log.steps) == 4 and training_figure(log)
    state = {}
    for record in log.steps:
        decided = zip(record.problems, record.successes, record.decisions, strict=True)
        assert all(not decision or method.gate.chances(state, key, 4)[s] > 0 for key, s, decision in decided)
        state = log.gate_state(record.step)


def test_at_the_command_line(mine, tmp_path):
    main(["train", str(tmp_path / "run"), "--model", "tiny", "--gate", f"{tmp_path / 'my_gates.py'}:Coin", "--steps", "1",
          "--prompts", "1", "--eval-every", "0"])
    assert RunLog.load(tmp_path / "run").manifest["method"]["name"] == "HAPO, my_gates.py:Coin"


def test_one_that_is_derived_from_the_kits_is_reckoned_by_its_own_rule():
    class Never(RunningGate):
        def chances(self, state, key, trials, others=()):
            return 0 * super().chances(state, key, trials, others)
    assert not injection_chances(.4, 3, Never(), visit=2).any() and injection_chances(.4, 3, RunningGate(), visit=2).any()


def test_one_with_slots_has_its_numbers():
    @dataclass(frozen=True, slots=True)
    class Slim(MemorylessGate):
        threshold: float = 0.5

        def chances(self, state, key, trials, others=()):
            return (torch.arange(trials + 1) < trials).double()
    assert numbers_of(Slim()) == {"threshold"} and numbers_of(object()) == set()
    with pytest.warns(UserWarning, match="with groups of 4 injects at S = 3"):
        warn_of_size(Slim(), 4)

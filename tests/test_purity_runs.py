"""The prediction is unbiased for every gate; the shipped runs are whole, and their gates decided as often as they must."""

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from hapo_lab.gates import GATES, RunningGate
from hapo_lab.methods import HAPO
from hapo_lab.reproducibility.catalogue import get_gate
from hapo_lab.theory.injection import binomial_pmf, injection_probability
from hapo_lab.theory.purity_runs import SHIPPED, PurityRun, outcome, prediction, read, step_chances, write
from hapo_lab.training.config import Config
from hapo_lab.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
MEMORYLESS = [get_gate(name) for name in ("beta", "always", "never", "hard", "thompson")]


@pytest.mark.parametrize("gate", MEMORYLESS, ids=lambda gate: type(gate).__name__)
@pytest.mark.parametrize("drawn", [8, 16])
def test_the_prediction_is_unbiased_whatever_the_rate(gate, drawn):
    """Over all that the other rollouts can hold, its mean is P(inject) exactly."""
    chances = np.tile(step_chances(gate, {}, ["a"], [3], 8), (drawn + 1, 1))
    predicted = prediction(chances, range(drawn + 1), drawn)
    for mu in (0.05, 0.5, 0.9, 0.99):
        exact = float(injection_probability(mu, 8, gate))
        assert binomial_pmf(drawn, mu) @ predicted == pytest.approx(exact, rel=1e-9, abs=1e-15)


def test_too_few_other_rollouts_are_refused():
    with pytest.raises(ValueError, match="7 rollouts can't say what groups of 8 do: draw at least 8"):
        prediction(np.zeros((1, 9)), [3], 7)


@pytest.mark.parametrize("gate", [get_gate("running", discount=.5), get_gate("by-step", steps=3),
                                  get_gate("by-success", window=2)], ids=lambda gate: type(gate).__name__)
def test_the_chances_of_a_gate_that_remembers_are_its_decisions(gate):
    state, rng = {}, np.random.default_rng(0)
    for _ in range(4):
        keys, s = ["a", "b", "c"], rng.integers(0, 9, 3).tolist()
        chances = step_chances(gate, state, keys, s, 8)
        decisions, _, state = gate.decide(state, keys, s, [8] * 3, [.5] * 3)
        assert [chances[i, x] for i, x in enumerate(s)] == decisions.tolist()
        assert set(np.unique(chances)) <= {0.0, 1.0} and (np.diff(chances, axis=1) <= 0).all()


def test_a_run_is_put_in_short_written_and_read(fresh, sums, tmp_path):
    config = Config(steps=3, prompts=2, group_size=4, warmup=1, eval_every=0, seed=2)
    trainer = Trainer(fresh, replace(sums, train=sums.train[:3]), replace(HAPO, gate=RunningGate()), config)
    list(trainer)
    run = PurityRun.of("running", trainer.log, {"2": [1, 4]}, 5, 0.25)
    assert run.decisions == [[int(d) for d in r.decisions] for r in trainer.log.steps]
    assert run.injection.tolist() == [np.mean(r.decisions) for r in trainer.log.steps]
    assert run.success == pytest.approx([r.reward for r in trainer.log.steps]) and run.predicted[2].shape == (2,)
    assert [(step, state) for step, state, _ in run.replayed()] == [(i + 1, trainer.log.gate_state(i)) for i in range(3)]
    write([run], tmp_path / "runs.jsonl.gz")
    again, = read(tmp_path / "runs.jsonl.gz")
    assert again == run and again.gate == RunningGate()
    write([again], tmp_path / "again.jsonl.gz")
    assert (tmp_path / "runs.jsonl.gz").read_bytes() == (tmp_path / "again.jsonl.gz").read_bytes()


@pytest.mark.soak
def test_the_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    spec = spec_from_file_location("purity_runs_benchmark", ROOT / "benchmarks" / "purity_runs.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in {"STEPS": 6, "PROBLEMS": 16, "MEASURED_EVERY": 2, "SPARE": 8}.items():
        monkeypatch.setattr(script, name, value)
    whole = script.train("running", 0, tmp_path / "whole", tqdm(disable=True))
    measure = script.measure_next

    def stop_at_three(trainer):
        measure(trainer)
        if len(trainer.log.steps) == 3:
            trainer.stop()
    monkeypatch.setattr(script, "measure_next", stop_at_three)
    assert script.train("running", 0, tmp_path / "stopped", tqdm(disable=True)) is None
    monkeypatch.setattr(script, "measure_next", measure)
    assert script.train("running", 0, tmp_path / "stopped", tqdm(disable=True)) == whole
    assert sorted(whole.spare) == ["2", "4", "6"] and len(whole.successes) == 6


# the shipped ones

SETTINGS = sorted(path.name.removesuffix(".jsonl.gz") for path in SHIPPED.glob("*.jsonl.gz"))


def test_all_settings_are_shipped_and_small():
    assert set(SETTINGS) == {*GATES, "beta-3-3", "by-success-3-3"}
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2_000_000


@pytest.mark.parametrize("setting", SETTINGS)
def test_shipped_runs_differ_in_seed_and_gate_alone_and_decide_as_their_gate_does(setting):
    runs, reference = read(SHIPPED / f"{setting}.jsonl.gz"), read(SHIPPED / "beta.jsonl.gz")
    assert [run.seed for run in runs] == [0, 1, 2, 3, 4] and {run.setting for run in runs} == {setting}
    for run, other in zip(runs, reference, strict=True):
        assert run.manifest["config"] == other.manifest["config"] and run.problems == other.problems
        assert {**run.manifest["method"], "gate": 0, "name": 0} == {**other.manifest["method"], "gate": 0, "name": 0}
        assert len(run.successes) == run.manifest["config"]["steps"]
        assert sorted(run.spare, key=int) == sorted(other.spare, key=int)
        assert [decisions for _, _, decisions in run.replayed()] == run.decisions
        assert all(0 <= right <= run.spare_trials for rights in run.spare.values() for right in rights)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gates_decided_as_often_as_predicted(setting):
    o = outcome(read(SHIPPED / f"{setting}.jsonl.gz"))
    assert abs(o.z) < 3, o
    assert o.injection == pytest.approx(o.predicted, abs=0.06)

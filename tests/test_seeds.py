"""One seed, many uses: each can be held, and no two draw alike."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from conftest import as_new

from hapo_lab.commands.cli import main
from hapo_lab.methods import HAPO
from hapo_lab.policy.models import load_policy
from hapo_lab.reproducibility.seeds import derive, gate_uniforms
from hapo_lab.runs.log import RunLog
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.evaluation import evaluate
from hapo_lab.training.rebuilding import resume
from hapo_lab.training.trainer import Trainer

SMALL = Config(steps=2, prompts=2, group_size=4, warmup=1, eval_every=1, eval_samples=1)


class Recording:
    """The seeds that an engine is asked with."""

    def __init__(self, engine):
        self.engine, self.name, self.seeds = engine, engine.name, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def generate(self, prompts, n, sampling, seed):
        self.seeds.append(seed)
        return self.engine.generate(prompts, n, sampling, seed)


def seeds_of(policy, task, config, folder=None):
    trainer = Trainer(policy, task, HAPO, config, folder=folder)
    trainer.engine = Recording(trainer.engine)
    list(trainer)
    exam = Recording(trainer.engine.engine)
    exam.sync()
    evaluate(policy, exam, task, samples=1, seed=config.seed)
    return trainer, trainer.engine.seeds, exam.seeds


def test_a_derived_seed_is_the_same_everywhere():
    assert derive(0, "rollouts", 1) == 96548427606670
    several = [derive(seed, *use) for seed in range(3) for use in (("a",), ("b",), ("a", 1), ("a", 11), ("a", 1, 1))]
    assert len(set(several)) == len(several)


def test_no_seed_is_used_twice_and_estimates_depend_on_the_runs_seed(tiny, sums):
    few, used = replace(sums, heldout=sums.heldout[:3]), []
    for seed in range(2):
        for policy in as_new(tiny):
            _, training, exam = seeds_of(policy, few, replace(SMALL, seed=seed))
        assert len(training) == 4 and len(exam) == 1  # two steps, an estimate after each
        used += training + exam
    assert len(set(used)) == len(used)


@pytest.mark.parametrize("held", ["order", "sampling"])
def test_a_sweep_can_hold_one_seed(tiny, sums, held):
    found = []
    for seed in (1, 2):
        for policy in as_new(tiny):
            config = replace(SMALL, seed=seed, eval_every=0, **{f"{held}_seed": 7})
            trainer, seeds, _ = seeds_of(policy, replace(sums, heldout=sums.heldout[:1]), config)
            found.append({"order": [r.problems for r in trainer.log.steps], "sampling": seeds})
    other = "sampling" if held == "order" else "order"
    assert found[0][held] == found[1][held] and found[0][other] != found[1][other]


def test_an_order_visits_each_problem_once_an_epoch(fresh, sums):
    few = replace(sums, train=sums.train[:7])
    trainer = Trainer(fresh, few, HAPO, replace(SMALL, prompts=3))
    seen = [p.key for step in range(1, 15) for p in trainer.problems(step)]
    for epoch in itertools.batched(seen, 7) if hasattr(itertools, "batched") else [seen[i:i + 7] for i in range(0, 42, 7)]:
        assert sorted(epoch) == sorted(p.key for p in few.train)
    assert seen[:7] != seen[7:14]


def test_gates_draw_of_their_own():
    assert gate_uniforms(0, 1, 2) != gate_uniforms(1, 1, 2) and gate_uniforms(0, 1, 3)[:2] == gate_uniforms(0, 1, 2)


def test_a_run_from_python_with_another_seed_is_examined_on_its_own_held_out_problems(fresh, tmp_path, capsys):
    """The natural sweep: one task, many seeds."""
    task = load_task("sums")
    trainer = Trainer(fresh, task, HAPO, replace(SMALL, steps=1, eval_every=0, seed=1), folder=tmp_path)
    list(trainer)
    trainer.save_adapter()
    main(["evaluate", str(tmp_path), "--samples", "1"])
    examined = json.loads((tmp_path / "evaluation.json").read_text())["after"]["by_problem"]
    assert examined.keys() == {p.key for p in task.heldout}
    assert resume(tmp_path).task.train == task.train


def test_the_command_line_sets_each_seed(tmp_path):
    main(["train", str(tmp_path), "--model", "tiny", "--seed", "3", "--task-seed", "0", "--adapter-seed", "5",
          "--order-seed", "6", "--steps", "1", "--prompts", "1", "--group-size", "2", "--eval-every", "0"])
    manifest = RunLog.load(tmp_path).manifest
    assert manifest["problems"] == json.loads(json.dumps(load_task("sums", 0).identity)) and manifest["lora"]["seed"] == 5
    assert (manifest["config"]["seed"], manifest["config"]["order_seed"], manifest["config"]["sampling_seed"]) == (3, 6, None)
    trained = resume(tmp_path).policy
    expected = load_policy("tiny", seed=5)
    a = next(name for name, _ in trained.model.named_parameters() if "lora_A" in name)
    # one step at the warm-up's rate moves A, whose gradient is 0 while B is 0, not at all
    assert torch.equal(trained.model.get_parameter(a), expected.model.get_parameter(a))

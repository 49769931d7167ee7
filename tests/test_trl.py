"""HAPO inside TRL's trainer: the kit's numbers on the same groups, whatever they are spread over; real processes."""

import inspect
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer
from trl_step import GROUPS, N, policy, problems

from hapo_lab.engines.protocol import Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.methods import HAPO, judge, teach
from hapo_lab.pictures import figures
from hapo_lab.policy.chat import demonstration_ids, prompt_ids
from hapo_lab.runs.log import RunLog
from hapo_lab.ssi import Group, Rollout
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.evaluation import grade
from hapo_lab.training.learner import Learner
from hapo_lab.trl import AGGREGATIONS, HAPOConfig, HAPOTrainer

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launcher(processes):
    """What stands between Python and a program that so many processes run; on a CPU they talk by gloo."""
    return ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no"] if processes > 1 else []


@pytest.fixture(scope="module")
def moved():
    return policy()


@pytest.fixture(scope="module")
def groups(moved):
    """Four prompts' completions: three groups as sampled, of which some fail whole, and one that is made right."""
    task = load_task("sums")
    drawn = TransformersEngine(moved).generate([prompt_ids(moved, p) for p in problems()], N, Sampling(28), seed=0)
    sampled = [Group(p, tuple(grade(task, p, c) for c in group)) for p, group in zip(problems(), drawn, strict=True)]
    right = demonstration_ids(moved, problems()[0], 28)
    told = Rollout(right, problems()[0].demonstration, 1.0)
    sampled[0] = replace(sampled[0], rollouts=(*[told] * 3, *sampled[0].rollouts[3:]))
    sampled[1] = replace(sampled[1], rollouts=(Rollout(demonstration_ids(moved, problems()[1], 28), problems()[1].demonstration,
                                                       1.0),) * N)
    return sampled


@pytest.fixture(scope="module")
def given(moved, groups, tmp_path_factory):
    path = tmp_path_factory.mktemp("trl") / "given.json"
    path.write_text(json.dumps({json.dumps(prompt_ids(moved, g.problem)): [list(r.ids) for r in g.rollouts] for g in groups}))
    return path


def step(folder, given, rows, pieces, loss_type="dapo", processes=1):
    """TRL's loss and gradients, from processes of their own."""
    script = [str(HERE / "trl_step.py"), str(folder), str(given), str(rows), str(pieces), loss_type]
    done = subprocess.run([sys.executable, *launcher(processes), *script], capture_output=True, text=True, cwd=HERE,
                          env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "step.pt", weights_only=True)


def ours(policy, groups, aggregation):
    """The kit's own loss and gradients on these groups."""
    method = replace(HAPO, aggregation=aggregation)
    judged, _ = judge(method.gate, groups, {}, [0.5] * len(groups))
    taught = [teach(method, g, Rollout(demonstration_ids(policy, g.problem, 28), g.problem.demonstration, 1.0, teacher=True))
              for g in judged]
    learner, seen = Learner(policy, method, Config(group_size=N, max_grad_norm=1e9), Sampling(28)), []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad.clone() for p in learner.parameters]))
    return learner.update(taught, 0.0), seen[0], taught


def near(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss_type", [*AGGREGATIONS, "dapo"])
def test_loss_and_gradients_are_the_kits_own(moved, groups, given, tmp_path, loss_type):
    found = step(tmp_path, given, GROUPS * N, 1, loss_type)
    figures, gradients, taught = ours(moved, groups, AGGREGATIONS.get(loss_type, "dapo"))
    assert [g.decision for g in taught] == [True, False, True, True] and sum(g.dead for g in taught) == 1
    assert found["logged"]["hapo/teacher_samples"] == 3 and found["logged"]["hapo/dead"] == sum(g.dead for g in groups)
    assert found["logged"]["loss"] == pytest.approx(figures["loss"], abs=1e-6)
    near(found["gradients"], gradients)


@pytest.mark.parametrize(("rows", "pieces", "processes"), [(N, GROUPS, 1), (GROUPS * N // 2, 1, 2), (4, 4, 2)])
def test_pieces_and_processes_make_no_difference(given, tmp_path, rows, pieces, processes):
    """(4, 4, 2): a group lies in two pieces."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = step(tmp_path / "whole", given, GROUPS * N, 1)
    parts = step(tmp_path / "parts", given, rows, pieces, processes=processes)
    near(parts["gradients"], whole["gradients"])
    assert parts["logged"]["hapo/posterior"] == whole["logged"]["hapo/posterior"]


def train(folder, steps, rows, last=0, processes=1):
    return subprocess.run([sys.executable, *launcher(processes), str(HERE / "trl_train.py"), str(folder), str(steps), str(rows),
                           str(last)], capture_output=True, text=True, cwd=HERE, env=ENVIRONMENT)


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path):
    """Between two checkpoints: what came after the last one is done again, and the gate remembers what it knew then."""
    assert train(tmp_path / "whole", 7, 32).returncode == 0
    assert train(tmp_path / "killed", 7, 32, last=6).returncode == -signal.SIGKILL
    assert len(RunLog.load(tmp_path / "killed").steps) == 5  # the sixth was not logged yet
    assert train(tmp_path / "killed", 7, 32).returncode == 0
    whole, killed = (RunLog.load(tmp_path / name) for name in ("whole", "killed"))
    for a, b in zip(whole.steps, killed.steps, strict=True):
        assert (a.step, a.problems, a.successes, a.replaced, a.posterior) == (b.step, b.problems, b.successes, b.replaced,
                                                                             b.posterior)
        assert a.loss == pytest.approx(b.loss, abs=1e-6)
    assert whole.gate_state(7) == killed.gate_state(7) != {}


def test_two_processes_learn_the_sums_and_let_the_teacher_go(tmp_path):
    done = train(tmp_path / "run", 24, 32, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    log = RunLog.load(tmp_path / "run")
    first, last = log.steps[:4], log.steps[-4:]
    assert sum(r.reward for r in first) / 4 < 0.1 and sum(r.reward for r in last) / 4 > 0.6
    assert all(r.teacher_samples == 8 for r in first) and sum(r.teacher_samples for r in last) < 24
    assert log.manifest["versions"]["processes"] == 2 and len(log.groups_of(24)) == 8
    figures.training_figure(log)


def test_another_runs_folder_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    done = train(tmp_path, 1, 32)
    assert done.returncode and "holds a run already" in done.stderr


SHAPES = {
    "_generate": ["self", "prompts"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"], "_compute_loss": ["self", "model", "inputs"],
    "_save_checkpoint": ["self", "model", "trial"], "_load_optimizer_and_scheduler": ["self", "checkpoint"]}


@pytest.mark.parametrize("name", SHAPES)
def test_trls_methods_have_the_shape_that_was_built_on(name):
    """Another release of TRL may call them otherwise: this says which one."""
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == SHAPES[name]


def test_without_trl_the_extra_is_named():
    code = "import sys; sys.modules['trl'] = None; import hapo_lab.trl"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith('hapo_lab.trl needs the library trl: python -m pip install "hapo_lab[trl]".')


@pytest.mark.parametrize(("settings", "more", "words"), [
    ({"loss_type": "cispo"}, {}, "loss_type is 'cispo'; with a teacher choose one of dapo, grpo, bnpo, dr_grpo"),
    ({"beta": 0.1}, {}, "beta is 0.1; what it does to a teacher's tokens is not defined: leave it at 0.0"),
    ({}, {"tools": [len]}, "tools can't go with a teacher"),
    ({}, {"train_dataset": None}, "the data set has no column 'demonstration'")])
def test_what_can_not_go_with_a_teacher_is_refused_by_name(tmp_path, settings, more, words):
    from trl_step import data
    with pytest.raises(ValueError, match=words):
        HAPOTrainer("nothing", None, HAPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings),
                    **({"train_dataset": data()} | more))

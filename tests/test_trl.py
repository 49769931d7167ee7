"""HAPO inside TRL's trainer: the kit's numbers on the same groups, whatever they are spread over; real processes."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from trl import GRPOTrainer, ModelConfig, TrlParser
from trl_step import GROUPS, N, config, policy, problems

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
from hapo_lab.trl import AGGREGATIONS, HAPOConfig, HAPOTrainer, dataset_of

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
DEEPSPEED = HERE.parent / ".venv-deepspeed"
CONFIGS = sorted((EXAMPLES / "accelerate").glob("*.yaml"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ON_TWO = ["2_processes.yaml"]
SHARDED = {"ZeRO-2": ["8_gpus_full_weights.yaml"], "ZeRO-3": ["8_gpus_full_weights.yaml", "--zero_stage", "3"],
           "FSDP": ["8_gpus_fsdp.yaml"]}
"""How weights, gradients and optimizer are spread: the examples' files, here for two processes, that talk by gloo."""


def run(program, *arguments, how=(), **environment):
    """A program that one process runs, or as many as accelerate is told of."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(EXAMPLES / "accelerate" / how[0]), *how[1:],
                "--num_processes", "2", "--mixed_precision", "no"] if how else []
    return subprocess.run([sys.executable, *launcher, str(program), *map(str, arguments)], capture_output=True, text=True,
                          cwd=HERE, env=ENVIRONMENT | environment)


def spread():
    """What a sharded run on a CPU wants beside."""
    path = os.pathsep.join(filter(None, (str(DEEPSPEED), os.environ.get("PYTHONPATH"))))
    return {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu", "PYTHONPATH": path}


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


def step(folder, given, rows, pieces, loss_type="dapo", how=(), **environment):
    """TRL's loss and gradients, from processes of their own."""
    folder.mkdir(exist_ok=True)
    done = run(HERE / "trl_step.py", folder, given, rows, pieces, loss_type, how=how, **environment)
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


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """The step that one process takes in one piece."""
    return step(tmp_path_factory.mktemp("whole"), given, GROUPS * N, 1)


@pytest.mark.parametrize(("rows", "pieces", "how"), [(N, GROUPS, ()), (GROUPS * N // 2, 1, ON_TWO), (4, 4, ON_TWO)])
def test_pieces_and_processes_make_no_difference(given, whole, tmp_path, rows, pieces, how):
    """(4, 4, 2): a group lies in two pieces."""
    parts = step(tmp_path, given, rows, pieces, how=how)
    near(parts["gradients"], whole["gradients"])
    assert parts["logged"]["hapo/posterior"] == whole["logged"]["hapo/posterior"]
    assert (parts["wrapped"] == "DistributedDataParallel") == bool(how)


@pytest.mark.soak
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_weights_make_no_difference(given, whole, tmp_path, name):
    parts = step(tmp_path, given, GROUPS * N // 2, 1, how=SHARDED[name], **spread())
    assert parts["logged"]["loss"] == pytest.approx(whole["logged"]["loss"], abs=1e-6)
    near(parts["gradients"], whole["gradients"])
    assert parts["wrapped"] == ("FSDPPeftModelForCausalLM" if name == "FSDP" else "DeepSpeedEngine")


def train(folder, steps, rows, last=0, how=(), **environment):
    return run(HERE / "trl_train.py", folder, steps, rows, last, how=how, **environment)


@pytest.mark.parametrize(("rows", "how"), [(32, ()), (16, ON_TWO)])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path, rows, how):
    """Between two checkpoints: what came after the last one is done again, and the gate remembers what it knew then."""
    goes_on(tmp_path, rows, how)


@pytest.mark.soak
@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_run_that_is_killed_goes_on_too(tmp_path, name):
    goes_on(tmp_path, 16, SHARDED[name], **spread())


def goes_on(folder, rows, how, **environment):
    done = train(folder / "whole", 7, rows, how=how, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert train(folder / "killed", 7, rows, last=6, how=how, **environment).returncode == (1 if how else -signal.SIGKILL)
    assert len(RunLog.load(folder / "killed").steps) == 5  # the sixth was not logged yet
    done = train(folder / "killed", 7, rows, how=how, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, killed = (RunLog.load(folder / name) for name in ("whole", "killed"))
    for a, b in zip(whole.steps, killed.steps, strict=True):
        assert (a.step, a.problems, a.successes, a.replaced, a.posterior) == (b.step, b.problems, b.successes, b.replaced,
                                                                             b.posterior)
        assert a.loss == pytest.approx(b.loss, abs=1e-6)
    assert whole.gate_state(7) == killed.gate_state(7) != {}


def test_two_processes_learn_the_sums_and_let_the_teacher_go(tmp_path):
    done = train(tmp_path / "run", 24, 32, how=ON_TWO)
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


def test_the_example_trains_on_two_processes(tmp_path):
    arguments = "--config", EXAMPLES / "tiny.yaml", "--output_dir", tmp_path, "--max_steps", 2
    done = run(EXAMPLES / "trl_hapo.py", *arguments, how=ON_TWO)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [record.teacher_samples for record in RunLog.load(tmp_path).steps] == [16, 16]
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_examples_configs(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == {"1": 1, "2": 2, "8": 8}[path.stem[0]] * (8 if path.stem == "2_nodes" else 1)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("qwen*.yaml")), ids=lambda path: path.stem)
def test_the_examples_for_eight_gpus_are_the_papers_batch(path):
    """TRL reads them: every name is one of its settings."""
    here = ["--config", str(path), "--use_cpu", "true", "--bf16", "false"]
    args, model = TrlParser((HAPOConfig, ModelConfig)).parse_args_and_config(here, fail_with_unknown_args=False)[:2]
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 128 * args.num_generations
    assert (args.num_generations, args.max_completion_length, args.temperature) == (8, 8192, 1.0)
    assert model.model_name_or_path == "Qwen/Qwen2.5-Math-7B" and args.use_vllm


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
    ({"beta": 0.1}, {}, "beta is 0.1; its effect on a teacher's tokens is not defined: leave it at 0.0"),
    ({}, {"tools": [len]}, "tools can't go with a teacher"),
    ({}, {"train_dataset": None}, "the data set has no column 'demonstration'")])
def test_what_can_not_go_with_a_teacher_is_refused_by_name(tmp_path, settings, more, words):
    with pytest.raises(ValueError, match=words):
        HAPOTrainer("nothing", None, HAPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings),
                    **({"train_dataset": dataset_of(problems())} | more))


def test_a_batch_that_is_no_whole_groups_is_refused(tmp_path):
    with pytest.raises(ValueError, match="20 completions per round are not whole groups of 8: choose a multiple for per_"):
        HAPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=20)


@pytest.mark.parametrize(("reward", "words"), [
    (lambda completions, **_: [0.0] * len(completions), "the reward functions reject the demonstration '"),
    (lambda completions, **_: [0.5] * len(completions), "a completion's rewards add up to 0.5; the gate counts successes")])
def test_rewards_that_say_nothing_of_success_are_refused(tmp_path, reward, words):
    one, how = policy(), config(tmp_path, GROUPS * N, 1, max_steps=1, save_strategy="no")
    trainer = HAPOTrainer(one.model, reward, how, dataset_of(problems()), processing_class=one.tokenizer)
    with pytest.raises(ValueError, match=re.escape(words)):
        trainer.train()


def test_finer_rewards_are_successes_from_a_bar_on(tmp_path):
    def half(completions, **_):
        return [0.5] * len(completions)
    one, how = policy(), config(tmp_path, GROUPS * N, 1, max_steps=1, save_strategy="no", success=0.5)
    trainer = HAPOTrainer(one.model, half, how, dataset_of(problems()), processing_class=one.tokenizer)
    trainer.train()
    assert trainer.journal.log.steps[0].successes == (N,) * GROUPS and trainer.journal.log.steps[0].teacher_samples == 0

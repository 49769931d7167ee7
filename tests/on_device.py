"""What must work on a CUDA device, real (gpu/test_gpu.py) or fake (test_fake_cuda.py)."""

from dataclasses import replace
from pathlib import Path

import torch

from hapo_lab.baselines import METHODS
from hapo_lab.commands.doctor import findings
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.experiments.experiment import Experiment, TaskSpec
from hapo_lab.experiments.outcomes import collect
from hapo_lab.experiments.processes import run
from hapo_lab.methods import GRPO, HAPO
from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.evaluation import evaluate
from hapo_lab.training.rebuilding import resume
from hapo_lab.training.trainer import Trainer

CONFIG = Config(steps=4, prompts=2, group_size=8, warmup=1, save_every=2, eval_every=4, eval_samples=1)


def trains_resumes_and_evaluates(folder: str, dtype: str) -> None:
    """HAPO, broken off after step 3 and resumed from step 2's checkpoint; KL and evaluation at the end; a step of LUFFY."""
    policy, task = load_policy("tiny"), load_task("sums")
    assert policy.quantized and policy.device.type == "cuda" and str(policy.model.dtype) == f"torch.{dtype}"
    assert {(p.dtype, p.device.type) for p in policy.trainable()} == {(torch.float32, "cuda")}
    begun = iter(Trainer(policy, task, HAPO, CONFIG, folder=folder, engine="transformers"))
    steps = [next(begun) for _ in range(3)]
    begun.close()
    assert all(s.updated and s.grad_norm > 0 and s.teacher_share > 0 for s in steps)
    again = resume(folder, engine="transformers")
    third, last = again
    assert third.step == 3 and abs(third.loss - steps[2].loss) < 1e-3
    assert 0 <= last.kl < 0.1 and 0 <= last.heldout <= 1
    assert Path(again.save_adapter(), "adapter_model.safetensors").exists()
    loaded = load_policy("tiny", adapter=again.save_adapter())
    assert all(torch.equal(a, b) for a, b in zip(loaded.trainable(), again.policy.trainable(), strict=True))
    luffy, = Trainer(policy, task, METHODS["luffy"], replace(CONFIG, steps=1, eval_every=0), engine="transformers")
    assert luffy.updated and luffy.teacher_samples == 2
    found = evaluate(loaded, TransformersEngine(loaded), task, task.heldout[:4], samples=2)
    assert 0 <= found.success <= 1


def an_experiment_runs(folder: str) -> None:
    """Two trials at a time, in processes of their own."""
    small = Experiment("small", "nothing", {"hapo": HAPO, "grpo": GRPO}, {"sums": TaskSpec("sums")}, (0,), validation=8,
                       config=replace(CONFIG, eval_every=2))
    assert run(small, folder, processes=2) == []
    assert all(o.finished for o in collect(small, folder).found)


def the_doctor_finds_it(dtype: str) -> None:
    found = {finding.what: finding for finding in findings()}
    assert all(found[what].ok for what in ("GPU", "numbers", "memory", "bitsandbytes", "training step")), found
    assert f"computes in {dtype} on cuda" in found["numbers"].says

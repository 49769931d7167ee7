"""On a real GPU, and only when asked for: `python -m pytest -m gpu tests/gpu`, five minutes."""

import on_device
import pytest
import torch
from test_learner import CONFIG, gradients_of, moved, sampled, taught

from hapo_lab.engines.protocol import Sampling
from hapo_lab.engines.vllm_engine import VllmEngine, installed
from hapo_lab.methods import HAPO
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.learner import Learner

pytestmark = pytest.mark.gpu


@pytest.fixture
def dtype() -> str:
    assert torch.cuda.is_available(), "these tests want a CUDA device, and torch finds none here"
    return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"


def test_tiny_trains_resumes_and_is_evaluated(tmp_path, dtype):
    on_device.trains_resumes_and_evaluates(str(tmp_path / "run"), dtype)


def test_an_experiment_runs(tmp_path):
    on_device.an_experiment_runs(str(tmp_path / "small"))


def test_the_doctor_finds_it(dtype, monkeypatch):
    monkeypatch.setenv("HAPO_LAB_VLLM", "")
    on_device.the_doctor_finds_it(dtype)


def test_a_steps_gradients_are_the_cpus():
    """The same groups, the same weights in 4 bits: float32 there, half the bits here."""
    cpu, gpu = moved(load_policy("tiny", device="cpu")), moved(load_policy("tiny"))
    groups = taught(HAPO, sampled(cpu, load_task("sums")))
    (there, (exact,)), (here, (found,)) = (gradients_of(Learner(p, HAPO, CONFIG, Sampling()), groups) for p in (cpu, gpu))
    whole, other = (torch.cat([g.flatten().cpu() for g in gradient]) for gradient in (exact, found))
    assert torch.cosine_similarity(whole, other, 0) > 0.99
    assert here["loss"] == pytest.approx(there["loss"], abs=0.02) and here["tokens_trained"] == there["tokens_trained"]


@pytest.mark.skipif(not installed(), reason="vLLM is not installed here")
def test_vllm_takes_adapters_over_and_gives_its_memory_back():
    policy, task = load_policy("tiny"), load_task("sums")
    prompts, free = [prompt_ids(policy, p) for p in task.train[:2]], lambda: torch.cuda.mem_get_info()[0]
    engine = VllmEngine(policy)

    def drawn():
        engine.sync()
        return [[c.ids for c in group] for group in engine.generate(prompts, 8, Sampling(8), seed=0)]

    first, awake = drawn(), free()
    moved(policy)
    second = drawn()
    engine.sleep()
    asleep = free()
    assert first != second and asleep > awake + 2**30
    assert drawn() == second
    engine.close()

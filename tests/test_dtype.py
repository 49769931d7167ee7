"""The dtype that models compute in: what the machine is fast at, unless it is said; and a run's is kept."""

import json

import pytest
import torch

from hapo_lab import HAPO, Config, Trainer, load_policy, resume
from hapo_lab.engines.vllm_engine import _dtype
from hapo_lab.policy import models, rates
from hapo_lab.policy.rates import WORTH, bfloat16_gain, compute_dtype
from hapo_lab.runs.manifest import policy_of

CPU = torch.device("cpu")
LARGE = 576


@pytest.fixture
def unsaid(monkeypatch):
    """Nobody says what to compute in. Returns how fast bfloat16 is called."""
    monkeypatch.delenv("HAPO_LAB_DTYPE")
    return lambda gain: monkeypatch.setattr(rates, "bfloat16_gain", lambda: gain)


@pytest.mark.parametrize(("gain", "hidden", "dtype"), [
    (WORTH, LARGE, torch.bfloat16), (WORTH - 0.01, LARGE, torch.float32), (9.0, 128, torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_that_pays_and_a_small_model_never(unsaid, gain, hidden, dtype):
    unsaid(gain)
    assert compute_dtype(CPU, hidden) == dtype


@pytest.mark.parametrize(("capability", "dtype"), [((8, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_a_gpu_computes_in_what_its_hardware_has(unsaid, capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compute_dtype(torch.device("cuda"), LARGE) == dtype


def test_the_gain_is_measured_once():
    assert 0 < bfloat16_gain() == bfloat16_gain()


def test_what_is_said_counts_and_nonsense_is_refused(unsaid, monkeypatch):
    unsaid(9.0)
    monkeypatch.setenv("HAPO_LAB_DTYPE", "float16")
    assert load_policy("tiny").model.dtype == torch.float16
    assert load_policy("tiny", dtype="float32").model.dtype == torch.float32
    monkeypatch.setenv("HAPO_LAB_DTYPE", "int8")
    with pytest.raises(ValueError, match="^HAPO_LAB_DTYPE is 'int8'; choose one of float32, bfloat16, float16.$"):
        load_policy("tiny")
    with pytest.raises(ValueError, match="^dtype is 'half'; choose one of float32, bfloat16, float16.$"):
        load_policy("tiny", dtype="half")


def test_a_run_goes_on_and_is_evaluated_in_its_own_dtype(unsaid, sums, tmp_path):
    """Wherever it goes on: another processor may be fast at another one."""
    policy = load_policy("tiny", dtype="bfloat16")
    config = Config(steps=2, prompts=1, group_size=4, eval_every=0, save_every=1)
    begun = iter(Trainer(policy, sums, HAPO, config, folder=tmp_path / "run"))
    assert next(begun).updated
    begun.close()
    again = resume(tmp_path / "run")
    assert again.policy.model.dtype == torch.bfloat16 and len(list(again)) == 1
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["versions"]["dtype"] == "bfloat16"
    assert policy_of(manifest, again.save_adapter()).model.dtype == torch.bfloat16
    manifest["versions"]["device"] = "cuda"  # on a GPU it may have been the only choice, and here it may be slow
    assert policy_of(manifest, again.save_adapter()).model.dtype == torch.float32


def test_in_bfloat16_adapter_log_probabilities_and_vllms_weights_have_more_digits(sums):
    policy = load_policy("tiny", dtype="bfloat16")
    assert {p.dtype for p in policy.trainable()} == {torch.float32} and _dtype(policy) == torch.float32
    assert models.memory_estimate("smollm2-135m", dtype=torch.bfloat16) < models.memory_estimate("smollm2-135m")

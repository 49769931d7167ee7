"""The real 4-bit model: the bitsandbytes trap, the adapter, what is refused."""

import subprocess
import sys

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from hapo_lab.commands.doctor import gradient_agreement
from hapo_lab.engines.protocol import EngineError, Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.policy import models
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.logprobs import completion_logprobs
from hapo_lab.reproducibility import disk
from hapo_lab.tasks.builtin import load_task

PROBLEM = load_task(seed=0).train[0]


@pytest.fixture
def moved(policy):
    """A policy whose adapter is not as new: B = 0 would leave A without a gradient."""
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02, generator=torch.Generator(p.device).manual_seed(0))
    return policy


def test_the_base_is_4_bit_nf4_with_double_quantization_and_the_adapter_float32(moved):
    layers = [m for m in moved.model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 30 * 7
    assert all(m.weight.quant_state.quant_type == "nf4" and m.weight.quant_state.nested for m in layers)
    assert {p.dtype for p in moved.trainable()} == {torch.float32}
    assert len(moved.trainable()) == 30 * 7 * 2


def test_gradients_stay_right_after_generating_in_eval_mode(policy):
    lowest, worst = gradient_agreement(policy, PROBLEM)
    assert lowest > 0.99 and worst < 0.02


@pytest.mark.skipif(not __import__("bitsandbytes.functional").functional.has_avx512bf16(),
                    reason="this processor has no AVX512-BF16: here bitsandbytes does not repack")
def test_the_trap_is_there_without_our_guard():
    policy = models.load_policy("smollm2-135m", seed=0)
    for module in policy.model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    prompt = torch.tensor([prompt_ids(policy, PROBLEM)], device=policy.device)
    policy.model.eval()
    with torch.no_grad():
        policy.model(input_ids=prompt)
    assert any(getattr(m.weight.quant_state, "packing_format_for_cpu", False)
               for m in policy.model.modules() if isinstance(m, Linear4bit))


SYNCED = """
from pathlib import Path
from hapo_lab import load_policy
from hapo_lab.engines.transformers_engine import TransformersEngine

def held():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

policy = load_policy("smollm2-135m")
loaded = held()
engine = TransformersEngine(policy)
print(held() - loaded)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says how much a process holds")
def test_the_samplers_copy_leaves_no_holes_in_memory():
    """It takes 405 MiB to 490. Weights made from the unpacked one and the adapter's share, among these two, take 560."""
    done = subprocess.run([sys.executable, "-c", SYNCED], capture_output=True, text=True, check=True)
    assert 400 < float(done.stdout.split()[-1]) < 520


def test_no_layer_is_allowed_to_repack_whatever_the_processor(monkeypatch):
    """Here as on one with AVX512-BF16: bitsandbytes asks for it where it makes a layer."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    assert Linear4bit(64, 64).support_avx512bf16_for_cpu
    layers = [m for m in models.load_policy("tiny").model.modules() if isinstance(m, Linear4bit)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_an_adapter_that_was_saved_and_loaded_is_the_same_policy(moved, tmp_path):
    moved.model.save_pretrained(tmp_path)
    again = models.load_policy("smollm2-135m", adapter=tmp_path)
    for (name, p), q in zip(moved.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("own_copy", [True, False])
def test_the_engine_samples_from_the_moved_and_sync_follows_it(moved, own_copy):
    engine = TransformersEngine(moved, own_copy)
    prompts = [prompt_ids(moved, p) for p in load_task(seed=0).train[:3]]
    for _ in range(2):
        groups = engine.generate(prompts, 2, Sampling(max_new_tokens=6), seed=1)
        with torch.no_grad():
            logp, _, mask = completion_logprobs(moved.model, prompts, [[c.ids for c in g] for g in groups])
        engine_logp = torch.tensor([x for g in groups for c in g for x in c.logps])
        torch.testing.assert_close(logp[mask], engine_logp, atol=2e-3, rtol=0)
        with torch.no_grad():
            moved.trainable()[0].mul_(3)
            moved.trainable()[1].add_(0.05)
        engine.sync()


def test_an_engine_that_sleeps_holds_no_weights_of_its_own_and_says_so_if_asked(moved):
    engine, prompts = TransformersEngine(moved), [prompt_ids(moved, PROBLEM)]
    before = engine.generate(prompts, 2, Sampling(max_new_tokens=5), seed=0)
    engine.sleep()
    own = {id(p) for p in moved.model.parameters()}
    assert all(p.is_meta for p in engine.model.parameters() if id(p) not in own)
    with pytest.raises(EngineError, match="the engine is asleep: sync comes first"):
        engine.generate(prompts, 2, Sampling(max_new_tokens=5), seed=0)
    engine.sync()
    assert engine.generate(prompts, 2, Sampling(max_new_tokens=5), seed=0) == before


def test_the_same_seed_gives_the_same_completions_and_another_one_others(moved):
    engine, prompts = TransformersEngine(moved), [prompt_ids(moved, PROBLEM)]
    first, same, other = (engine.generate(prompts, 4, Sampling(max_new_tokens=5), seed=s) for s in (7, 7, 8))
    assert first == same
    assert first != other


def test_a_prompt_longer_than_the_context_is_refused(policy):
    with pytest.raises(ValueError, match="exceed the context of smollm2-135m"):
        TransformersEngine(policy).generate([[5] * 9000], 1, Sampling(), seed=0)


def test_an_unquantized_policy_has_no_4_bit_layers():
    policy = models.load_policy("smollm2-135m", quantize=False)
    assert not policy.quantized
    assert not any(isinstance(m, Linear4bit) for m in policy.model.modules())


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'gpt-9' is not a preset .*smollm2-135m"):
        models.load_policy("gpt-9")


def test_a_model_that_does_not_fit_is_refused_before_loading(monkeypatch):
    monkeypatch.setattr(models, "memory_available", lambda device: 2**30)
    with pytest.raises(ValueError, match=r"needs about \d+\.\d GiB to train here and 1.0 GiB are free"):
        models.load_policy("qwen2.5-math-7b")


def test_estimates_grow_with_the_model_and_shrink_with_quantization():
    sizes = [models.memory_estimate(name) for name in models.PRESETS]
    assert sizes == sorted(sizes)
    assert models.memory_estimate("qwen2.5-math-7b") < models.memory_estimate("qwen2.5-math-7b", quantize=False)


def test_the_estimate_of_the_main_job_is_near_what_its_process_takes():
    """2.4 GiB by `benchmarks/against_trl.py`, Python and torch included: a machine with 4 GiB must not be refused."""
    assert 1.5 < models.memory_estimate("smollm2-135m", device=torch.device("cpu")) / 2**30 < 2.4


def test_where_bitsandbytes_cannot_load_the_base_stays_unquantized_and_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)  # what an absent package looks like to `import`
    with pytest.warns(UserWarning, match="bitsandbytes does not load here"):
        assert models._bitsandbytes_loads() is False


@pytest.mark.soak
def test_a_damaged_model_in_the_cache_is_noticed_and_prepared_again(tmp_path, monkeypatch):
    sound = models.cache_dir() / "smollm2-135m" / "model.sha256"
    models.model_source("smollm2-135m")
    monkeypatch.setenv("HAPO_LAB_CACHE", str(tmp_path))
    folder = tmp_path / "smollm2-135m"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"torn")
    (folder / "model.sha256").write_text(sound.read_text())
    models.model_source("smollm2-135m")
    assert disk.sha256(folder / "model.safetensors") == (folder / "model.sha256").read_text() == sound.read_text()
    assert {p.suffix for p in folder.iterdir()} == {".json", ".jinja", ".safetensors", ".sha256"}

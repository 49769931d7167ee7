"""The shipped model `tiny`: its size, what it was made from, and that it is a 4-bit policy like the others."""

import importlib.util
import random

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors import safe_open

from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.policy.models import PRESETS, load_policy
from hapo_lab.reproducibility.kit import DATA
from hapo_lab.tasks.builtin import RESERVED_SUMS, load_task
from hapo_lab.training.evaluation import evaluate


@pytest.fixture(scope="module")
def tiny():
    return load_policy("tiny")


@pytest.fixture(scope="module")
def script():
    """data/make_tiny.py, as a module."""
    spec = importlib.util.spec_from_file_location("make_tiny", DATA / "make_tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_small_and_stored_in_bfloat16():
    assert sum(file.stat().st_size for file in (DATA / "tiny").iterdir()) < 5_000_000
    with safe_open(DATA / "tiny" / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]
    assert {t.dtype for t in tensors} == {torch.bfloat16}
    assert sum(t.numel() for t in tensors) == PRESETS["tiny"].shape.linear + PRESETS["tiny"].shape.other <= 2_000_000


def test_it_is_quantized_to_4_bits_with_a_float32_adapter_on_every_linear_layer(tiny):
    assert tiny.quantized and sum(isinstance(m, Linear4bit) for m in tiny.model.modules()) == 4 * 7
    assert sum(p.numel() for p in tiny.trainable()) == 16 * PRESETS["tiny"].shape.lora_width
    assert {p.dtype for p in tiny.trainable()} == {torch.float32}


def test_the_script_makes_a_model_of_this_shape_with_this_tokenizer(tiny, script):
    made = script.make_tokenizer()
    assert made.get_vocab() == tiny.tokenizer.get_vocab() and made.chat_template == tiny.tokenizer.chat_template
    with safe_open(DATA / "tiny" / "model.safetensors", "pt") as weights:
        shipped = {name: weights.get_slice(name).get_shape() for name in weights.keys()}
    shapes = {name: list(value.shape) for name, value in script.make_model(made).state_dict().items()}
    assert shipped == {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}  # tied


def test_every_character_is_a_token_and_comes_back(tiny):
    text = "What is 27 + 58?\n{\"a\": [1]} ~"
    ids = tiny.tokenizer.encode(text)
    assert len(ids) == len(text) and tiny.tokenizer.decode(ids) == text


def test_what_it_was_made_from_leaves_out_every_sum_of_the_tasks(script):
    seen = {frozenset(pair) for pair in script.pretraining_pairs()}
    assert len(seen) == 100 * 101 // 2 - len(RESERVED_SUMS)
    asked = {p.key for name in ("sums", "sums_short") for seed in range(3)
             for p in (*load_task(name, seed).train, *load_task(name, seed).heldout)}
    assert len(asked) == len(RESERVED_SUMS)
    assert not {f"{min(pair)} + {max(pair)}" for pair in seen} & asked


def test_the_corpus_holds_the_wanted_form_rarely_and_the_short_one_never(script):
    rng = random.Random(1)
    texts = [script.answer(2, 3, rng) for _ in range(50_000)]
    assert 1 <= sum(text.endswith("Answer: 5") for text in texts) <= 30
    assert not any("A:" in text for text in texts)


def test_at_first_whole_groups_fail_though_the_sums_are_right(tiny):
    task = load_task("sums")
    found = evaluate(tiny, TransformersEngine(tiny), task)
    assert found.dead >= 0.8 and found.success <= 0.03
    right = [problem.answer.split()[-1] in rollout.text
             for problem, rollouts in zip(found.problems, found.rollouts, strict=True) for rollout in rollouts]
    assert sum(right) >= 0.9 * len(right)

"""What a training step is said to need: sizes by the models' own parameters, and what a pass keeps by counting it."""

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM

from hapo_lab.policy.logprobs import completion_logprobs
from hapo_lab.policy.memory import Needs, Shape, activations, needs, row_bytes
from hapo_lab.policy.models import PRESETS


def test_a_shape_is_read_from_a_model_and_counts_its_parameters(tiny):
    shape = Shape.of(tiny.model.config)
    with torch.device("meta"):
        plain = LlamaForCausalLM(AutoConfig.from_pretrained(PRESETS["tiny"].source))
    assert shape == PRESETS["tiny"].shape and shape.linear + shape.other == plain.num_parameters()
    assert 16 * shape.lora_width == sum(p.numel() for p in tiny.trainable())


@pytest.mark.parametrize(("name", "millions"), [("smollm2-135m", 134.5), ("qwen2.5-0.5b", 494.0), ("qwen2.5-math-1.5b", 1543.7),
                                                ("qwen2.5-math-7b", 7615.6)])
def test_presets_have_the_parameters_that_their_models_state(name, millions):
    shape = PRESETS[name].shape
    assert (shape.linear + shape.other) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_what_a_pass_keeps_is_counted_right(fresh, checkpoint):
    """Without the head's logits and the one unpacked weight, which are not kept. A checkpoint leaves out all but one layer,
    and that one is kept in the backward pass only."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in fresh.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}), t)[1], lambda t: t):
        logp, *_ = completion_logprobs(fresh.model, [[5] * 8], [[[7] * 240]], checkpoint=checkpoint)
    found = sum(size for at, size in kept.items() if at not in weights)
    shape = Shape.of(fresh.model.config)
    said = activations(shape, 248, 4, checkpoint) - 4 * shape.hidden * shape.inner - 16 * 240 * shape.vocabulary
    if checkpoint:
        said -= (activations(shape, 248, 4) - activations(shape, 248, 4, checkpoint=True)) // (shape.layers - 1) + 248 * 4 * 128
    assert logp.requires_grad and said == pytest.approx(found, rel=0.1)


def test_rollouts_and_update_take_turns():
    one = Needs(weights=10, optimizer=2, sampler=20, cache=5, activations=30, process=1)
    assert (one.rollouts, one.update, one.peak) == (38, 43, 43)


def test_the_parts_are_what_was_asked_for():
    shape = PRESETS["tiny"].shape
    assert needs(shape, copied=False).sampler == 0 and needs(shape, width=2).sampler == 2 * shape.linear
    assert needs(shape, rank=8).optimizer * 2 == needs(shape).optimizer == 16 * 16 * shape.lora_width
    assert needs(shape, rows=3, length=10).cache == 3 * row_bytes(shape, 10, 4) == 3 * (10 * 2 * 4 * 128 * 4 + 16 * 101)
    assert needs(shape, quantize=False).weights == 4 * (shape.linear + shape.other)

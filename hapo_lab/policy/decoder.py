"""The parts of a causal language model behind its log-probabilities: its head and its attention masks; and the refused
models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from hapo_lab.policy.allocator import large_tensors_apart

Model = Any
"""A `PeftModel` or a transformers causal language model. (Both hand on attributes that their types don't tell.)"""
LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that can be kept from seeing another rollout in the same sequence."""
LOCAL = ("attention_chunk_size", "attention_types", "attention_window_size", "block_size", "keep_window_size",
         "local_attention", "sliding_window_size", "window_size")
"""Fields by which a config tells of attention that is local in another way than `sliding_window`."""


def causal_lm(model: Model) -> PreTrainedModel:
    """The transformers model, also under an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True)
class Head:
    """From hidden states to logits: s (W h + b), and c tanh(s (W h + b) / c) where there is a cap."""

    weight: torch.Tensor
    """W, (V, D), frozen."""
    bias: torch.Tensor | None = None
    """b, (V,)"""
    scale: float = 1.0
    """s: `logit_scale` of Cohere, 1 / `logits_scaling` of Granite."""
    softcap: float | None = None
    """c: `final_logit_softcapping` of Gemma 2."""

    @classmethod
    def of(cls, model: Model) -> Head:
        """A model's head. ValueError: it is not a plain linear layer."""
        model = causal_lm(model)
        linear, config = model.get_output_embeddings(), model.config.get_text_config()
        if type(linear) is not torch.nn.Linear:
            raise refusal(type(model).__name__, f"its head is a {type(linear).__name__} and no plain linear layer")
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return cls(linear.weight, linear.bias, scale, getattr(config, "final_logit_softcapping", None))


def attention_masks(config: PreTrainedConfig, visible: torch.Tensor, positions: torch.Tensor,
                    dtype: torch.dtype) -> torch.Tensor | dict[str, torch.Tensor]:
    """The additive attention masks: one, or one per kind of layer, as `create_masks_for_generate` of transformers makes them.

    A window of w tokens reaches back w - 1 positions, whatever lies between in the packed sequence.

    Parameters
    ----------
    visible : (L, L) bool
        Which token (row) sees which one (column) where nothing but its rollout limits it.
    positions : (L,) long
        A token's position in its own rollout.

    Returns
    -------
    (1, 1, L, L) of `dtype`, or {kind of layer: such a mask}
    """
    config, positions = config.get_text_config(), positions.int()  # half the memory of what is (L, L)

    def mask(kind: str) -> torch.Tensor:
        seen = visible
        if kind == "sliding_attention":
            seen = visible & (positions[:, None] - positions < config.sliding_window)
        return additive(seen, dtype)[None, None]

    if kinds := getattr(config, "layer_types", None):
        return {kind: mask(kind) for kind in set(kinds)}
    return mask("sliding_attention" if getattr(config, "sliding_window", None) else "full_attention")


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `visible` is True, else the lowest number. Rows lie a multiple of 8 apart: on a GPU the attention kernels want
    that, and would pad a copy of any other mask in each layer, and keep it for the backward pass."""
    rows, columns = visible.shape
    blocked = torch.zeros(rows, -(-columns // 8) * 8, dtype=dtype, device=visible.device)[:, :columns]
    return blocked.masked_fill_(~visible, torch.finfo(dtype).min)


def refuse_unknown(config: PreTrainedConfig, name: str) -> None:
    """ValueError: by its config, this kit would not compute the model right."""
    text = config.get_text_config()
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    kinds = set(getattr(text, "layer_types", None) or ()) - LAYERS
    local = [field for field in LOCAL if getattr(text, field, None)]
    if config.is_encoder_decoder or model is None:
        raise refusal(name, f"{config.model_type} is not a decoder-only language model")
    if model._is_stateful:
        raise refusal(name, f"{config.model_type} carries a state along the sequence, from one rollout of a pack to the next")
    if kinds:
        raise refusal(name, f"it has layers of the kind {sorted(kinds)[0]}, and only {' and '.join(sorted(LAYERS))} are known")
    if local:
        raise refusal(name, f"{local[0]} in its config tells of attention that is not known here")


def refusal(name: str, why: str) -> ValueError:
    """The error for a model that this kit would compute wrong."""
    return ValueError(f"model {name!r} is refused, because its log-probabilities would be wrong: {why}. Choose another model.")


def attention(config: PreTrainedConfig) -> str | None:
    """The implementation that computes all of a model's attention; None: transformers' choice. Its sdpa drops the cap on
    attention scores (Gemma 2)."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def context(config: PreTrainedConfig) -> int:
    """The longest sequence that a model reads at the same rotary frequencies, in tokens; `sys.maxsize` if its config sets none.

    LongRoPE goes over to other frequencies, for all tokens, where a sequence exceeds the original length.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = (rope, *(part for part in rope.values() if isinstance(part, dict)))  # mixed layers may each have their own
    limits = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min([*limits, getattr(text, "max_position_embeddings", None) or sys.maxsize])


def drop_dropout(model: torch.nn.Module) -> None:
    """Set every dropout to 0, whatever mode the model is in: a policy's log-probabilities are those it samples from."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for field, value in vars(module).items():
            if "drop" in field and isinstance(value, float):
                setattr(module, field, 0.0)


@contextmanager
def checkpointing(model: Model) -> Iterator[None]:
    """Within it, a forward pass keeps only each layer's input, and the backward pass computes the rest of the layer again."""
    lm = causal_lm(model)
    if lm.device.type == "cpu":
        large_tensors_apart()
    training = lm.training
    lm.train()  # transformers' layers ask for it; dropout is 0 in either mode
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        lm.gradient_checkpointing_disable()
        lm.train(training)


@contextmanager
def narrow_window(config: PreTrainedConfig, window: int) -> Iterator[None]:
    """A sliding window of so few tokens, for the time being: a short sequence shows whether it is understood."""
    text = config.get_text_config()
    given = getattr(text, "sliding_window", None)
    if given:
        text.sliding_window = window
    try:
        yield
    finally:
        if given:
            text.sliding_window = given

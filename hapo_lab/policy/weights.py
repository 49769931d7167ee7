"""A quantized model's weights as numbers."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer


def is_quantized(parameter: Any) -> bool:
    """Whether a parameter holds packed 4-bit codes, and not its values."""
    return hasattr(parameter, "quant_state")


def shape_of(parameter: Any) -> torch.Size:
    """The shape of a parameter's values."""
    return parameter.quant_state.shape if is_quantized(parameter) else parameter.shape


def dequantised_weight(layer: LoraLayer) -> torch.Tensor:
    """The base weight of a LoRA layer as the layer computes with it; its own memory where it is not quantized."""
    return dequantised(layer.get_base_layer().weight)


def dequantised(parameter: Any) -> torch.Tensor:
    """A parameter's values; its own memory where it is not quantized."""
    if not is_quantized(parameter):
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit
    return dequantize_4bit(parameter.data, parameter.quant_state)


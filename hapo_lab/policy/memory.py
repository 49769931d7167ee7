"""Memory: a model's shape, and its training's needs, part by part."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from transformers import PreTrainedConfig

CHUNK = 256
"""Tokens whose logits exist at one time."""
PROCESS = 470 * 2**20
"""Bytes of a process without a model: Python and its libraries."""
PIECES = 1.4
"""On a CPU a pass takes so many times what it keeps: what it has freed lies between, in pieces too small to be of use. A pass
with checkpoints gives it back (see `allocator`)."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama-like model on which its memory depends.

    >>> Shape(layers=30, hidden=576, inner=1536, queries=576, keys=192, vocabulary=49_152).linear
    106168320
    """

    layers: int
    hidden: int
    inner: int
    """Width between the two linear layers of an MLP's branch."""
    queries: int
    """Width of all heads' queries together."""
    keys: int
    """Width of all heads' keys together, and of their values."""
    vocabulary: int
    tied: bool = True
    """The head is the embeddings' matrix."""
    biases: bool = False
    """Queries, keys and values have biases."""

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """From a model's config."""
        config = config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shared = 1 if getattr(config, "multi_query", False) else config.num_attention_heads
        return cls(config.num_hidden_layers, config.hidden_size,
                   getattr(config, "intermediate_size", None) or 4 * config.hidden_size, head * config.num_attention_heads,
                   head * (getattr(config, "num_key_value_heads", None) or shared), config.vocab_size,
                   bool(config.tie_word_embeddings), config.model_type == "qwen2")

    @property
    def linear(self) -> int:
        """Parameters in the linear layers, which are quantized."""
        return self.layers * self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.inner)

    def work(self, tokens: int, pairs: int) -> int:
        """Operations of a pass forward: a product and a sum for each weight of the linear layers, and for each number of the
        queries twice in each of `pairs` of tokens that see each other."""
        return 2 * self.linear * tokens + 4 * self.layers * self.queries * pairs

    @property
    def other(self) -> int:
        """Parameters that are not: embeddings, head, norms, biases."""
        norms = (2 * self.layers + 1) * self.hidden
        return ((1 if self.tied else 2) * self.vocabulary * self.hidden + norms
                + self.biases * self.layers * (self.queries + 2 * self.keys))

    @property
    def lora_width(self) -> int:
        """Sum of (inputs + outputs) over all linear layers: LoRA of rank r has r times as many parameters."""
        return self.layers * (7 * self.hidden + 2 * self.queries + 2 * self.keys + 3 * self.inner)

    @property
    def cached(self) -> int:
        """Numbers that a token leaves in the cache of keys and values, at most: a layer with a window forgets."""
        return 2 * self.layers * self.keys


@dataclass(frozen=True)
class Needs:
    """Bytes, by part. Rollouts and update take turns: memory that only one of them needs is free in the other."""

    weights: int
    """In 4 bits, or as they are."""
    optimizer: int
    """The adapter, its gradient, and Adam's two moments, in float32."""
    sampler: int
    """In rollouts: an unpacked copy of the weights."""
    cache: int
    """In rollouts: keys and values, and the next token's logits, of the completions that are sampled together."""
    activations: int
    """In the update: what the largest pass keeps for its gradient."""
    process: int = 0
    """The process without a model."""

    @property
    def rollouts(self) -> int:
        """While completions are sampled."""
        return self.process + self.weights + self.optimizer + self.sampler + self.cache

    @property
    def update(self) -> int:
        """While gradients are computed."""
        return self.process + self.weights + self.optimizer + self.activations

    @property
    def peak(self) -> int:
        """The larger of the two."""
        return max(self.rollouts, self.update)


def needs(shape: Shape, *, quantize: bool = True, rank: int = 16, width: int = 4, copied: bool = True, rows: int = 0,
          length: int = 0, tokens: int = 512, checkpoint: bool = False, process: int = 0) -> Needs:
    """The memory of a training step.

    Parameters
    ----------
    width : int
        Bytes per number in the computing dtype: 4 in float32, 2 in bfloat16.
    copied : bool
        The kit's own engine samples from an unpacked copy of the weights, as it does on a CPU.
    rows, length : int
        Completions that are sampled together, and their tokens, the prompt's included.
    tokens : int
        In the largest pass of the update.
    checkpoint : bool
        That pass keeps each layer's input alone.

    Examples
    --------
    >>> tiny = Shape(layers=4, hidden=128, inner=384, queries=128, keys=128, vocabulary=101)
    >>> needs(tiny, tokens=512).activations > 10 * needs(tiny, tokens=512, checkpoint=True).activations / 3
    True
    """
    weights = (0.53 if quantize else width) * shape.linear + width * shape.other
    pieces = PIECES if copied and not checkpoint else 1
    return Needs(int(weights), 16 * rank * shape.lora_width, width * shape.linear if copied else 0,
                 rows * row_bytes(shape, length, width),
                 int(pieces * activations(shape, tokens, width, checkpoint)), process)


def row_bytes(shape: Shape, length: int, width: int) -> int:
    """Of a completion while it is sampled: its keys and values, and four times its next token's logits in float32."""
    return length * shape.cached * width + 16 * shape.vocabulary


def activations(shape: Shape, tokens: int, width: int, checkpoint: bool = False) -> int:
    """Bytes that a pass of so many tokens keeps for its gradient, and the head's logits.

    A layer keeps the inputs of its two norms and the normed numbers, queries, keys, values, and the attention's output, as
    input and as output of a reshaping; gate, its activation, up, and their product. LoRA keeps float32 copies of its
    inputs where the rest has fewer digits.
    """
    h, inner = shape.hidden, shape.inner
    layer = width * (7 * h + 4 * inner + 2 * shape.keys) + (4 * (3 * h + inner) if width < 4 else 0)
    layers = shape.layers * width * h + layer if checkpoint else shape.layers * layer
    unpacked = width * h * inner  # one weight at a time
    return tokens * (layers + 4 * h) + unpacked + 16 * min(tokens, CHUNK) * shape.vocabulary


def memory_available(device: torch.device) -> int:
    """Bytes free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available

"""The policy: a frozen base with a trained adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    PreTrainedTokenizerBase,
)

from hapo_lab.policy import decoder


@dataclass(frozen=True)
class Policy:
    """A policy: a frozen base with a LoRA adapter, its tokenizer, and its device. `load_policy` makes it.

    >>> policy: Policy = load_policy("tiny")
    >>> policy.name, policy.context, policy.tokenizer.decode(policy.ends[:1])
    ('tiny', 256, '<end>')
    """

    name: str
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    quantized: bool
    ends: tuple[int, ...]
    """The tokens that end its turn; the first one closes a demonstration."""
    template: dict = field(default_factory=dict)
    """Arguments of its chat template."""
    plain_template: bool = False
    """Whether its tokenizer lacked a chat template, and got `chat.PLAIN`."""
    seed: int | None = None
    """Seed of a new adapter's matrices; None: the adapter was loaded."""
    adapter: Path | None = None
    """The folder of a loaded adapter."""
    threads: int = 1
    """The number of the processor's threads in training and evaluation. The last digits of figures depend on it."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def context(self) -> int:
        """The longest sequence that the model reads, in tokens."""
        return decoder.context(self.model.config)

    def trainable(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]


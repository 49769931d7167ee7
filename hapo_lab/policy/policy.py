"""The policy: a frozen base with an adapter that is trained."""

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
    """What is trained: a frozen base with a LoRA adapter, its tokenizer, and where it computes. `load_policy` makes it.

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
    """Its tokenizer came without a chat template, and got `chat.PLAIN`."""
    seed: int | None = None
    """Of a new adapter's matrices; None: the adapter was loaded."""
    adapter: Path | None = None
    """The folder that it was loaded from."""
    threads: int = 1
    """Of the processor, in training and evaluation: figures depend on their number in the last digits."""

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


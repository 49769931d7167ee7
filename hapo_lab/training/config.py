"""The numbers of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """The numbers of a run. The defaults are the main job's: SmolLM2-135M on two CPU cores.

    >>> Config(steps=10, group_size=4).prompts
    4
    """

    steps: int = 30
    """Training steps."""
    prompts: int = 4
    """Problems per step."""
    group_size: int = 8
    """N: rollouts per problem, a reserved teacher's seat included."""
    learning_rate: float = 4e-4
    """The highest learning rate. A LoRA adapter that trains for tens of steps needs a few 1e-4; that of `tiny`, 2e-3."""
    warmup: int = 4
    """Steps in which the learning rate rises linearly from 0. After them it falls linearly to `final_rate`."""
    final_rate: float = 0.1
    """The last step's learning rate, as a share of the highest."""
    inner_epochs: int = 1
    """Passes over one batch of rollouts."""
    minibatches: int = 1
    """Optimizer steps per inner epoch. The step's prompts are split among them."""
    max_grad_norm: float = 1.0
    """A longer gradient is scaled down to this norm."""
    temperature: float = 1.0
    """Of the softmax that the rollouts are sampled from."""
    token_budget: int = 512
    """Tokens per forward and backward pass. It changes memory, not results. A longer completion, with its prompt, is a pass
    alone: its layers are computed twice, to save memory."""
    importance_cap: float = 2.0
    """Upper bound on the weight pi_trainer / pi_engine, which corrects a sampled token for the engine's rounding."""
    eval_every: int = 10
    """Steps between two evaluations on held-out problems; 0: none."""
    eval_samples: int = 2
    """Samples per held-out problem in those evaluations."""
    save_every: int = 10
    """Steps between two checkpoints."""
    seed: int = 0
    """The run's seed. Each use derives its own seed from it (`seeds.derive`), unless one of those below is set."""
    order_seed: int | None = None
    """Replaces `seed` for the order of the problems."""
    sampling_seed: int | None = None
    """Replaces `seed` for the rollouts, the evaluations during training, and a gate's random draws."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"config: group_size is {self.group_size}; a group needs at least 2 rollouts to compare.")
        for name in ("steps", "prompts", "inner_epochs", "minibatches", "token_budget", "eval_samples", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"config: {name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("warmup", "eval_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"config: {name} is {getattr(self, name)}; it must be at least 0.")
        for name in ("learning_rate", "max_grad_norm", "temperature", "importance_cap"):
            if not getattr(self, name) > 0:
                raise ValueError(f"config: {name} is {getattr(self, name)}; it must be positive.")

    def seed_of(self, use: str) -> int:
        """The seed of "order" or "sampling"."""
        own = getattr(self, f"{use}_seed")
        return self.seed if own is None else own


TINY = Config(steps=60, prompts=8, learning_rate=2e-3)
"""For the model `tiny` and its task `sums`: 20 seconds on two CPU cores.

>>> TINY.steps, TINY.learning_rate
(60, 0.002)
"""


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then linear decay; `step` counts from 1. In an extended run it keeps its last value after the last
    planned step."""
    if step <= config.warmup:
        return config.learning_rate * step / config.warmup
    done = min((step - config.warmup) / max(config.steps - config.warmup, 1), 1)
    return config.learning_rate * (1 - (1 - config.final_rate) * done)

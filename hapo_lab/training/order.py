"""The problems of a step, as a function of (seed, step)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from hapo_lab.reproducibility.seeds import derive
from hapo_lab.tasks.problem import Problem
from hapo_lab.training.config import Config


def problems_of(step: int, problems: Sequence[Problem], config: Config) -> list[Problem]:
    """The step's training problems, in a new order in each epoch."""
    first, size = (step - 1) * config.prompts, len(problems)
    places = [divmod(i, size) for i in range(first, first + config.prompts)]
    orders = {epoch: _order(epoch, size, config.seed_of("order")) for epoch, _ in places}
    return [problems[orders[epoch][i]] for epoch, i in places]


def others_for(step: int, again: int, problems: Sequence[Problem], config: Config) -> list[Problem]:
    """Further problems for the `again`-th redraw of this step, by a method that discards dead groups."""
    rng = random.Random(derive(config.seed_of("order"), "redraw", step, again))
    return rng.sample(problems, min(config.prompts, len(problems)))


@lru_cache(maxsize=2)  # a step lies in one epoch, or in two
def _order(epoch: int, size: int, seed: int) -> list[int]:
    order = list(range(size))
    random.Random(derive(seed, "order", epoch)).shuffle(order)
    return order

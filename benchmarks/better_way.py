"""A better way than the teacher's exists: does training with drawn groups stay at the teacher's, as the exact theory says?

    python benchmarks/better_way.py     # a minute

Three actions: the teacher's succeeds with probability 0.8, another with 0.9, the third never. A softmax policy begins at logits
-4, -5 and 2, so it fails at first. In each of 20,000 steps of size 1 a run draws a group of 8, and its rewards. There are 100
runs per method, without std.

Expected, before the runs: the exact theory's values within 0.01, since luck only adds noise to a drift that is known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hapo_lab.baselines import EXTRA_SEAT, HARD, LUFFY_MATCHED
from hapo_lab.methods import GRPO, HAPO
from hapo_lab.theory.exact_gradient import learning_curve
from hapo_lab.theory.sampled import sampled_curves

LOGITS, SUCCESS, N, STEPS, RUNS = (-4.0, -5.0, 2.0), (0.8, 0.9, 0.0), 8, 20_000, 100
METHODS = (GRPO, HARD, HAPO, EXTRA_SEAT, LUFFY_MATCHED)


def table() -> list[str]:
    """As it stands in docs/purity.md."""
    rows = ["| method, without std | exact | drawn: mean over runs (lowest to highest) | runs above 0.85 |",
            "|---|---|---|---|"]
    for method in METHODS:
        plain = replace(method, scale="none")
        exact = learning_curve(LOGITS, SUCCESS, N, plain, 0, STEPS).success[-1]
        drawn = sampled_curves(LOGITS, SUCCESS, N, plain, 0, STEPS, runs=RUNS)[:, -1]
        rows.append(f"| {method.name} | {exact:.3f} | {drawn.mean():.3f} ({drawn.min():.3f} to {drawn.max():.3f}) "
                    f"| {np.mean(drawn > 0.85):.0%} |")
    return rows


if __name__ == "__main__":
    print(*table(), sep="\n")

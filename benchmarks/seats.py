"""What the demonstration's seat does to the expected update: exact, in seconds.

    python benchmarks/seats.py

Three actions: the teacher's and another succeed, the third fails; the teacher's has a fifth of the successful mass. The bias is
that against the same conventions with the gate never open, over the norm of what remains (`expected_gradient`).
"""

from __future__ import annotations

import numpy as np

from hapo_lab.baselines import EXTRA_SEAT, OWN_STATISTICS
from hapo_lab.methods import HAPO
from hapo_lab.theory.exact_gradient import expected_gradient

METHODS = (HAPO, EXTRA_SEAT, OWN_STATISTICS)
SIZES, RATES = (4, 8), (0.1, 0.5, 0.8, 0.9, 0.99)


def table() -> list[str]:
    """As it stands in docs/purity.md."""
    rows = ["| N | success rate | P(inject) | " + " | ".join(method.name for method in METHODS) + " |",
            "|---" * (3 + len(METHODS)) + "|"]
    for n in SIZES:
        for mu in RATES:
            logits = np.log([0.2 * mu, 0.8 * mu, 1 - mu])
            found = [expected_gradient(logits, [1, 1, 0], n, method, teacher=0) for method in METHODS]
            rows.append(f"| {n} | {mu:g} | {found[0].injection:.3f} | "
                        + " | ".join(f"{update.relative_bias:.3f}" for update in found) + " |")
    return rows


if __name__ == "__main__":
    print(*table(), sep="\n")

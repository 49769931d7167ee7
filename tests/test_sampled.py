"""Policies trained by luck: their mean update is the exact one."""

from dataclasses import replace

import numpy as np
import pytest

from hapo_lab.baselines import CHORD_PHI, EXTRA_SEAT, HARD, LUFFY_MATCHED, OWN_STATISTICS
from hapo_lab.gates import AlwaysGate, RunningGate
from hapo_lab.methods import GRPO, HAPO, LUFFY
from hapo_lab.theory.exact_gradient import expected_gradient
from hapo_lab.theory.sampled import sampled_curves

LOGITS, SUCCESS = [0.3, -1.2, 0.8], [0.9, 0.4, 0.1]


@pytest.mark.parametrize("method", [GRPO, HAPO, LUFFY, LUFFY_MATCHED, HARD, EXTRA_SEAT, OWN_STATISTICS, CHORD_PHI,
                                    replace(HAPO, gate=AlwaysGate(), scale="none"), replace(HAPO, entropy_bonus=0.3)],
                         ids=lambda m: f"{m.name} {m.scale} {m.entropy_bonus}")
@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_mean_of_one_step_is_the_expected_update(method, n):
    """A small step moves mu by eta g_mu . update; over 40,000 runs its mean is the exact one within four standard errors."""
    eta, runs = 1e-3, 40_000
    curves = sampled_curves(LOGITS, SUCCESS, n, method, 0, steps=1, step_size=eta, runs=runs, seed=n)
    pi = np.exp(LOGITS) / np.exp(LOGITS).sum()
    slope = pi * (np.array(SUCCESS) - pi @ np.array(SUCCESS))
    moved = (curves[:, 1] - curves[:, 0]) / eta
    exact = slope @ expected_gradient(LOGITS, SUCCESS, n, method, 0).update
    assert abs(moved.mean() - exact) < 4 * moved.std() / runs ** 0.5 + 2e-4  # the last: the second order in eta


def test_runs_differ_and_seeds_repeat():
    one, again, other = (sampled_curves(LOGITS, SUCCESS, 4, HAPO, 0, 5, runs=3, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (3, 6) and np.array_equal(one, again) and not np.array_equal(one, other)
    assert len(set(one[:, -1])) == 3


def test_a_gate_that_remembers_is_refused():
    with pytest.raises(ValueError, match="remembers"):
        sampled_curves(LOGITS, SUCCESS, 4, replace(HAPO, gate=RunningGate()), 0, 5)

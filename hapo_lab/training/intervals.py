"""Intervals of a success rate."""

from __future__ import annotations

import numpy as np
from scipy import stats

RESAMPLED = 4_000_000
"""Rates that a bootstrap holds at a time."""


def interval_over_problems(rates: np.ndarray, mass: float = 0.95) -> tuple[float, float]:
    """An interval of the mean of (problems,) rates in [0, 1]. It resamples problems (percentile bootstrap). If all have the
    same rate it is Clopper-Pearson's, with one trial per problem and rate x problems successes.
    """
    if np.ptp(rates) == 0:
        return _clopper_pearson(float(rates.mean()) * len(rates), len(rates), mass)
    found = stats.bootstrap((rates,), np.mean, confidence_level=mass, method="percentile", rng=0,
                            batch=max(RESAMPLED // len(rates), 1))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _clopper_pearson(successes: float, trials: int, mass: float) -> tuple[float, float]:
    """Clopper and Pearson's (1934) interval of a success rate. As quantiles of beta distributions it also takes fractional
    successes."""
    tail, failures = (1 - mass) / 2, trials - successes
    low = stats.beta.ppf(tail, successes, failures + 1) if successes else 0.0
    high = stats.beta.isf(tail, successes + 1, failures) if failures else 1.0
    return float(low), float(high)

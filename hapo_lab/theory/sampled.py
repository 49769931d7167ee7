"""The policies of `exact_gradient`, trained on sampled groups and rewards. Many runs at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hapo_lab.loss import slope
from hapo_lab.methods import Method
from hapo_lab.theory.exact_gradient import _checked, _next_state, _one_teacher, _table


def sampled_curves(logits: ArrayLike, success_probs: ArrayLike, trials: int, method: Method, teacher: int, steps: int,
                   step_size: float = 1.0, runs: int = 100, seed: int = 0) -> np.ndarray:
    """(runs, steps + 1): success rates of softmax policies before each step, and after the last.

    A step draws one group per run, rewards by `success_probs`, and follows its update. The update's mean over all groups is
    `expected_gradient`'s.

    Parameters
    ----------
    logits, success_probs : (K,)
        The runs' first logits, and each action's P(reward 1).
    trials : int
        N, a reserved teacher's seat included.
    method : Method
        Its gate may change with time, and must not remember groups.
    teacher : int
        The demonstration's action.
    steps, step_size, runs, seed
        Each step adds `step_size` times the update to the logits.

    Raises
    ------
    ValueError
        As `expected_gradient`.
    """
    z, q, _ = _checked(logits, success_probs, teacher)
    table = _table(method, trials)
    n, k = table.sampled, len(z)
    all_stay = table.reserved or method.seat != "replace"
    plain, taught = _per_student(table.plain, n, True), _per_student(table.taught, n, all_stay)
    state: dict = {}
    before: dict | None = None
    rng, policies, found = np.random.default_rng(seed), np.tile(z, (runs, 1)), np.empty((runs, steps + 1))
    for step in range(steps + 1):
        logp = policies - np.logaddexp.reduce(policies, axis=1, keepdims=True)
        pi = np.exp(logp)
        found[:, step] = pi @ q
        if step == steps:
            break
        if state != before:  # of a gate without memory: once
            chances = _one_teacher(method, method.gate.chances(state, "", n).numpy())
            before, state = state, _next_state(method.gate, state, n)
        actions = (rng.random((runs, n, 1)) > pi.cumsum(1)[:, None]).sum(2).clip(max=k - 1)
        right = rng.random((runs, n)) < q[actions]
        s = right.sum(1)
        shown = np.ones(runs, dtype=bool) if table.reserved else rng.random(runs) < chances[s]
        rows = np.where(shown[:, None], taught[s], plain[s])
        advantages = np.where(right, rows[:, :1], rows[:, 1:2])
        if not all_stay:  # the first of the lowest rewards has lost its seat
            advantages[shown, right[shown].argmin(1)] = 0
        update = np.stack([(advantages * (actions == a)).sum(1) for a in range(k)], axis=1)
        update -= advantages.sum(1, keepdims=True) * pi
        pull = shown * rows[:, 2] * slope(method.shaping, logp[:, teacher])
        update[:, teacher] += pull
        update -= pull[:, None] * pi
        if method.entropy_bonus:
            update -= method.entropy_bonus * pi * (logp - (pi * logp).sum(1, keepdims=True))
        policies += step_size * update
    return found


def _per_student(rows: np.ndarray, n: int, all_stay: bool) -> np.ndarray:
    """(S, 3): the advantage of a right and of a wrong student, and the teacher's, at S = 0..n; times a sequence's weight.

    `all_stay`: no student has lost its seat to the teacher.
    """
    s = np.arange(len(rows))
    gone = 0 if all_stay else 1
    right, wrong = s - gone * (s == n), n - s - gone * (s < n)
    return np.stack([rows[:, 0] / right.clip(1), rows[:, 1] / wrong.clip(1), rows[:, 2]], axis=1)

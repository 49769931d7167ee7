"""Checks of lesson 10's first four functions: a group, from its rewards to what the update sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hapo_lab.notebook import sixty_lines as solution
from hapo_lab.notebook.marking import Mark, Told, is_open, safe
from hapo_lab.notebook.tracing import NOTHING, Trace, marked, numbers
from hapo_lab.ssi import Rollout


def any_form(written: Callable) -> Callable:
    """A function of rewards that takes a list, a tensor or an array, whichever its writer had in mind, and returns a tensor."""
    @wraps(written)
    def call(rewards: Any, *more: Any, **named: Any) -> Any:
        tensor = torch.as_tensor(rewards, dtype=torch.float).clone()
        for form in (tensor.tolist(), tensor, tensor.double().numpy()):
            try:
                value = written(form, *more, **named)
                return value if is_open(value) else torch.as_tensor(numbers(value)).float()
            except Exception as error:
                failed = error
        raise failed
    return call


def _compared(std: Callable[[np.ndarray], Any]) -> Callable:
    """(r - mean) / `std`(r) of an array of rewards; without std the mean alone is subtracted."""
    return lambda r, divide=True: (np.asarray(r) - np.mean(r)) / (std(np.asarray(r)) if divide else 1)


@safe
def group_advantages(answer: Any) -> Mark:
    """a function of a tensor of rewards, and `std`: (r - mean) / (std + 1e-4), the std dividing by N - 1; or r - mean"""
    def trace(function: Callable) -> Trace:
        function = any_form(function)
        groups = ([1, 0, 0, 0], [0] * 8, [1] * 8, [1, 1, 1, 0, 0])
        return {f"rewards {group}, std={std}": numbers(function(group, std)) for group in groups for std in (True, False)}

    return marked(answer, trace, any_form(solution.advantages), [
        (_compared(lambda r: r.std(ddof=0) + 1e-4), "you divided by N inside the std: a sample's std divides by N - 1"),
        (_compared(lambda r: r.std(ddof=1)), "a dead group gives 0/0 here: the small number in std + 1e-4 is there for it"),
        (_compared(lambda r: r.std(ddof=1) + 1e-8), "the small number that is added to the std is 1e-4 here"),
        (_compared(lambda r: r.var(ddof=1) + 1e-4), "you divided by the variance: take its root"),
        (lambda r, std=True: _compared(lambda x: x.std(ddof=1) + 1e-4)(r), "std=False makes no difference: there only the mean "
         "is subtracted"),
        (lambda r, std=True: _compared(np.std)(r, False), "the mean is gone, but nothing is divided by the std"),
        (lambda r, std=True: np.asarray(r) / (np.std(r, ddof=1) + 1e-4 if std else 1), "subtract the group's mean first"),
        (lambda r, std=True: -_compared(lambda x: x.std(ddof=1) + 1e-4)(r, std), "the signs are turned around: the reward less "
         "the mean, and not the mean less the reward"),
        (lambda r, std=True: _compared(lambda x: x.std(ddof=1) + 1e-4)(r, not std), "the other way around: std=True divides"),
        (lambda r, std=True: r, "these are the rewards: subtract the group's mean")],
        "what counts is how far a rollout lies above its own group.")


@safe
def gate_decision(answer: Any) -> Mark:
    """a function of S, N, a0, b0 and gamma: True where the mean of Beta(a0 + S, b0 + N - S) is below gamma"""
    def trace(function: Callable) -> Trace:
        settings = ((2, 1, 1, 0.8), (3, 1, 1, 0.8), (8, 3, 3, 0.8), (8, 1, 1, 0.5), (8, 2, 1, 0.7), (16, 1, 4, 0.6))
        usual = {f"S = {s} of 8, the rest left at 1, 1, 0.8 (1: True)": numbers(function(s, 8)) for s in range(9)}
        return usual | {f"S = {s}, N = {n}, a0 = {a}, b0 = {b}, gamma = {gamma} (1: True)": numbers(function(s, n, a, b, gamma))
                        for n, a, b, gamma in settings for s in range(n + 1)}

    return marked(answer, trace, solution.injects, [
        (lambda s, n, a=1, b=1, g=0.8: (a + s) / (a + b + n) <= g, "at a tie the group is left alone: c < gamma is strict"),
        (lambda s, n, a=1, b=1, g=0.8: (a + s) / (a + b + n) > g, "the other way around: the teacher comes where the student "
         "does badly"),
        (lambda s, n, a=1, b=1, g=0.8: (a + s) / (a + b + n) >= g, "the other way around: the teacher comes where the student "
         "does badly"),
        (lambda s, n, a=1, b=1, g=0.8: s / n < g, "that is the group's success rate; the prior is missing"),
        (lambda s, n, a=1, b=1, g=0.8: (a + s) / n < g, "you divided by N: the posterior holds a0 + b0 + N"),
        (lambda s, n, a=1, b=1, g=0.8: (a + s) / (a + n) < g, "the prior's failures are missing below: a0 + b0 + N"),
        (lambda s, n, a=1, b=1, g=0.8: (1 + s) / (2 + n) < g, "your prior is always Beta(1, 1): use a0 and b0"),
        (lambda s, n, a=1, b=1, g=0.8: (a + s) / (a + b + n) < 0.8, "your threshold is always 0.8: use gamma"),
        (lambda s, n, a=1, b=1, g=0.8: (a + s - 1) / (a + b + n - 2) < g, "that is the posterior's mode; the gate takes its "
         "mean"),
        (lambda s, n, a=1, b=1, g=0.8: (b + n - s) / (a + b + n) < g, "you counted the failures: the mean is of the successes"),
        (lambda s, n, a=1, b=1, g=0.8: (a + s) / (b + n - s) < g, "you divided by the failures alone: the mean divides by "
         "a0 + b0 + N"),
        (lambda s, n, a=1, b=1, g=0.8: s == 0, "that is the hard gate: it waits until all have failed"),
        (lambda s, n, a=1, b=1, g=0.8: (a + s) / (a + b + n), "that is the posterior's mean: compare it with gamma")],
        "nine decisions, at S = 0 to 8, are the whole gate.")


def _rollout(number: int, reward: float, teacher: bool = False) -> Rollout:
    return Rollout((number,), "", float(reward), teacher=teacher)


def _group(rewards: Sequence[float]) -> list[Rollout]:
    return [_rollout(i, reward) for i, reward in enumerate(rewards)]


SHOWN = _rollout(99, 1, teacher=True)


@safe
def injection(answer: Any) -> Mark:
    """a function of a list of rollouts and a demonstration: a new list, in which it has the first worst rollout's seat"""
    def trace(function: Callable) -> Trace:
        found: Trace = {}
        for rewards in ([0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1]):
            rollouts = _group(rewards)
            after = function(rollouts, SHOWN)
            changed = rollouts != _group(rewards)
            if after is None and changed:
                raise Told("it changed the sampled list and returned nothing; return a new one")
            found[f"rewards {rewards}, who sits in the group (99: the teacher)"] = (
                NOTHING if is_open(after) else np.sort([float(r.ids[0]) for r in after]))
            found[f"rewards {rewards}, whether the sampled list was changed"] = (
                NOTHING if is_open(after) else np.array(float(changed)))
        return found

    def changing(rollouts: list[Rollout], demonstration: Rollout) -> list[Rollout]:
        rollouts[min(range(len(rollouts)), key=lambda i: rollouts[i].reward)] = demonstration
        return rollouts

    def in_seat(which: Callable[[list[float]], int]) -> Callable:
        def function(rollouts: list[Rollout], demonstration: Rollout) -> list[Rollout]:
            seat = which([r.reward for r in rollouts])
            return [*rollouts[:seat], demonstration, *rollouts[seat + 1:]]
        return function

    return marked(answer, trace, solution.inject, [
        (changing, "the right seat, but you changed the sampled list itself: the student's success is counted on it. Copy it "
         "first: list(rollouts)"),
        (lambda rollouts, demonstration: [*rollouts, demonstration], "the group has grown to N + 1: the demonstration takes a "
         "seat, and the group stays N"),
        (in_seat(lambda rewards: 0), "you took seat 0, whoever sits there: look for the lowest reward"),
        (in_seat(lambda rewards: len(rewards) - 1), "you took the last seat, whoever sits there: look for the lowest reward"),
        (in_seat(lambda rewards: len(rewards) - 1 - rewards[::-1].index(min(rewards))), "that is a worst rollout too; of "
         "equals the kit takes the first, and you will compare with it"),
        (in_seat(lambda rewards: rewards.index(max(rewards))), "you took the seat of the best rollout"),
        (lambda rollouts, demonstration: solution.inject(rollouts, demonstration) if min(r.reward for r in rollouts) == 0 else
         rollouts, "you looked for a reward of 0: take the lowest, whatever it is"),
        (lambda rollouts, demonstration: [r if r.reward else demonstration for r in rollouts], "you replaced every failure: "
         "one seat per group is the teacher's")],
        "one rollout per group leaves; all others stay.")


def _taught(gate: Callable[[list[Rollout]], bool], compared: str = "after", std: bool = True) -> Callable:
    """`teach` with another gate, or with advantages that are made of the rewards "before" the injection, or without std."""
    def function(rollouts: list[Rollout], demonstration: Rollout) -> tuple[list[Rollout], Tensor]:
        after = solution.inject(rollouts, demonstration) if gate(rollouts) else rollouts
        counted = after if compared == "after" else rollouts
        return after, solution.advantages(torch.tensor([r.reward for r in counted]), std)
    return function


def _sampled(rollouts: Sequence[Rollout]) -> bool:
    return solution.injects(sum(r.reward for r in rollouts), len(rollouts))


def _in_order(pair: Any) -> tuple[np.ndarray, np.ndarray]:
    """How many seats are the teacher's, and the advantages by who sits there; Told where it is no pair of these."""
    if len(pair) != 2 or not all(isinstance(r, Rollout) for r in pair[0]):
        raise Told("return two things, in this order: the list of rollouts, and their advantages")
    rollouts, advantages = pair
    return np.array(float(sum(r.teacher for r in rollouts))), numbers(advantages)[np.argsort([r.ids[0] for r in rollouts])]


@safe
def taught_group(answer: Any) -> Mark:
    """a function of a sampled group and a demonstration: the group after gate and injection, and its advantages"""
    def trace(function: Callable) -> Trace:
        found: Trace = {}
        for successes in range(9):
            pair = function(_group([i < successes for i in range(8)]), SHOWN)
            seats, values = (NOTHING, NOTHING) if is_open(pair) else _in_order(pair)
            found[f"S = {successes} of 8, seats of the teacher"], found[f"S = {successes} of 8, advantages"] = seats, values
        return found

    return marked(answer, trace, solution.teach, [
        (_taught(lambda rollouts: _sampled(solution.inject(rollouts, SHOWN))), "your gate counts the demonstration as a "
         "success: S is of the *sampled* rollouts, before the injection (look at S = 6)"),
        (_taught(_sampled, "before"), "the advantages are of the sampled rewards: compute them anew, over the group with the "
         "teacher"),
        (_taught(_sampled, std=False), "the advantages are without std: the card's step 4 divides by it"),
        (_taught(lambda rollouts: True), "the teacher comes into every group: ask the gate first, with the count S and not "
         "with a share"),
        (_taught(lambda rollouts: False), "the teacher never comes: inject where the gate says so, and keep the list that "
         "`inject` returns"),
        (_taught(lambda rollouts: not _sampled(rollouts)), "the other way around: inject where the gate says True"),
        (_taught(lambda rollouts: not any(r.reward for r in rollouts)), "yours comes only where all have failed: ask the "
         "gate")],
        "S is counted before the teacher sits down, mean and std after.")

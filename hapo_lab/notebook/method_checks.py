"""Checks of lessons 01 to 04: advantages, injection, gate, clip and shaping."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np

from hapo_lab.notebook.marking import Mark, exercise, function, number

# 01 advantage collapse ---------------------------------------------------------------------------------------------


@exercise
def two_of_five(answer: Any) -> Mark:
    """two numbers: the advantage (without std) of a right rollout, and of a wrong one, where 2 of 5 are right"""
    return number(answer, (0.6, -0.4), [
        ((1, 0), "these are the rewards: subtract the group's mean, 2/5"),
        ((0.6, 0.4), "a wrong rollout lies below the mean: its advantage is negative"),
        ((0.5, -0.5), "an advantage is measured from the group's mean, 2/5, and not from a half"),
        ((1, -1), "the advantage is no grade: subtract the group's mean, 2/5, from 1 and from 0"),
        ((-0.4, 0.6), "the right one comes first"),
        ((-0.6, 0.4), "the signs are turned around: it is the reward less the mean"),
        ((1.0952, -0.7302), "you divided by the std; here only the mean is subtracted"),
        ((1.2247, -0.8165), "you divided by a std, that of N; here only the mean is subtracted"),
        ((0.75, -0.25), "that is for 2 of 8: the mean of this group is 2/5")],
        "the five sum to 0, as advantages without std always do.", "With which number is each reward compared?")


def _standardised(rewards: Any, ddof: int = 1, eps: float = 1e-4) -> np.ndarray:
    r = np.asarray(rewards, float)
    return (r - r.mean()) / (r.std(ddof=ddof) + eps)


@exercise
def advantages(answer: Any) -> Mark:
    """a function of the rewards: (r - mean) / (std + 1e-4), the std dividing by N - 1"""
    cases = [([1.0, 0.0, 0.0, 0.0],), ([0.0] * 8,), ([1.0, 1.0, 1.0, 0.0, 0.0],), ([1.0, *[0.0] * 7],)]
    return function(answer, _standardised, cases, [
        (lambda r: _standardised(r, 0), "you divided by N inside the std: a sample's std divides by N - 1 (ddof=1)"),
        (lambda r: np.asarray(r) - np.mean(r), "the mean is gone, but nothing is divided by the std"),
        (lambda r: np.asarray(r) / (np.std(r, ddof=1) + 1e-4), "you divided by the std, but the mean is still in"),
        (lambda r: np.asarray(r), "these are the rewards: subtract the mean, then divide"),
        (lambda r: _standardised(r, 1, 0), "a dead group gives 0/0 here: the small number in std + 1e-4 is there for it"),
        (lambda r: _standardised(r, 1, 1e-6), "nothing, or next to it, is added to the std; this kit adds 1e-4, as TRL does"),
        (lambda r: _standardised(r, 1, 0) + 1e-4, "you added 1e-4 to the quotient; it is added to the std: mind the brackets"),
        (lambda r: r - np.mean(r) / (np.std(r, ddof=1) + 1e-4), "only the mean is divided: r - mean needs brackets"),
        (lambda r: -_standardised(r), "the signs are turned around: it is the reward less the mean"),
        (lambda r: _standardised(r, 1, 1e-3), "you added 1e-3 to the std; this kit adds 1e-4, as TRL does"),
        (lambda r: (np.asarray(r) - np.mean(r)) / np.sqrt(np.var(r, ddof=1) + 1e-4),
         "you added 1e-4 inside the root; it is added to the std"),
        (lambda r: (np.asarray(r) - np.mean(r)) / (np.var(r, ddof=1) + 1e-4), "you divided by the variance: take its root")],
        "and the dead group gives zeros, not 0/0.")


@exercise
def all_four_fail(answer: Any) -> Mark:
    """a probability: all 4 rollouts of a group fail, at a success rate of 0.4"""
    return number(answer, 0.6**4, [
        (0.4**4, "that is all four right: a rollout fails with probability 0.6"),
        (0.6**4 + 0.4**4, "that is a dead group of either kind: leave out the groups in which all four are right"),
        (1 - 4 * 0.4, "chances of independent rollouts multiply, they don't add: 0.6 four times"),
        (4 * 0.6, "chances of independent rollouts multiply, they don't add: 0.6 four times"),
        (1 - 0.6**4, "that is the share of groups with at least one success: the others fail whole"),
        (1 - 0.4**4, "that is the share of groups in which not all are right: some of them have a success"),
        (0.6, "that is one rollout; a group fails whole when all four do"),
        (0.6**8, "that is for groups of 8; here they have 4")],
        "and without a success there is nothing to compare with.", "Each of the four fails with probability 0.6.")


# 02 synthetic success injection ------------------------------------------------------------------------------------


@exercise
def failures_advantage(answer: Any) -> Mark:
    """a function of S and N: the advantage, without std, of a wrong rollout that stays, once the teacher has another's seat"""
    cases = [(s, n) for n in (4, 8) for s in range(n - 1)]
    return function(answer, lambda s, n: -(s + 1) / n, cases, [
        (lambda s, n: -s / n, "you took the old mean, S/N: the teacher's reward raises it to (S + 1)/N"),
        (lambda s, n: -(s + 1) / (n + 1), "you added the teacher as one more: it takes a seat, the group stays N"),
        (lambda s, n: (s + 1) / n, "that is the new mean; a wrong rollout's reward is 0, so it lies that far *below* it"),
        (lambda s, n: (n - 1 - s) / n, "that is the teacher's advantage: a wrong rollout has reward 0, not 1"),
        (lambda s, n: -(n - 1 - s) / n, "that is the teacher's with a minus: the two sides are not as long as each other"),
        (lambda s, n: -1 / n, "that is right at S = 0 alone: each success raises the mean further"),
        (lambda s, n: -(s + 1) / 8, "that is for groups of 8 alone: divide by N"),
        (lambda s, n: min(_standardised([1] * (s + 1) + [0] * (n - s - 1))), "you divided by the std; here only the mean is "
         "subtracted"),
        (lambda s, n: 0, "yours is always 0, its reward: subtract the new group's mean. If you did: // rounds down"),
        (lambda s, n: -1, "yours is always -1: an advantage is no grade, and // rounds down")],
        "each failure is pushed down further than before the teacher came.")


@exercise
def deadly_success_count(answer: Any) -> Mark:
    """a whole number: groups of 5, at which S does an injection leave every advantage at 0, though the group was alive?"""
    return number(answer, 4, [
        (5, "at S = 5 the group was dead already: all five are right"),
        (0, "at S = 0 the group was dead before; the injection revives it"),
        (7, "that is for groups of 8; here N = 5"),
        (6, "S can't be larger than N = 5"),
        (3, "at S = 3 there are two failures; one is left after the injection, and it still differs"),
        (1, "with one success there are four failures, and three after the injection: they still differ")],
        "the injection took the only failure.", "When does the injection take the last difference between the rollouts?", 0)


@exercise
def students_success(answer: Any) -> Mark:
    """a number: the student's success rate, in a group with rewards 1 0 0 1 0 into which the teacher was injected"""
    return number(answer, 2 / 5, [
        (3 / 5, "you counted the teacher's success as the student's"),
        (2 / 4, "you left out the rollout that was replaced: the student did write it, and it failed"),
        (3 / 4, "the teacher's success isn't the student's, and the replaced rollout is"),
        (2 / 6, "the teacher's rollout is none of the student's: count the five that were sampled"),
        (2, "a rate, please: how many of the five?")],
        "all sampled rollouts count, the replaced one too, and the teacher's never.", "Count what the student itself wrote.")


# 03 the Beta gate --------------------------------------------------------------------------------------------------


@exercise
def cutoff(answer: Any) -> Mark:
    """a function of N, a0, b0, gamma: the largest S at which the gate calls the teacher"""
    cases = [(8, 1, 1, 0.8), (8, 1, 1, 0.5), (16, 1, 1, 0.8), (8, 2, 2, 0.75), (5, 1, 3, 0.5), (10, 4, 1, 0.9), (4, 5, 5, 0.9)]

    def bound(n: Any, a: Any, b: Any, gamma: Any) -> Fraction:
        n, a, b, gamma = (Fraction(float(x)).limit_denominator(1000) for x in (n, a, b, gamma))
        return gamma * (a + b + n) - a

    def below(n: Any, a: Any, b: Any, gamma: Any) -> int:
        return min(ceil(bound(n, a, b, gamma)) - 1, int(n))
    return function(answer, below, cases, [
        (lambda n, a, b, g: min(floor(bound(n, a, b, g)), n), "at a tie the gate leaves the group alone: c < gamma is strict"),
        (lambda n, a, b, g: floor(bound(n, a, b, g)), "at a tie the gate leaves the group alone, and S can't be larger than N"),
        (lambda n, a, b, g: float(bound(n, a, b, g)), "that is the bar for S: which is the largest whole S below it?"),
        (lambda n, a, b, g: ceil(bound(n, a, b, g)) - 1, "S can't be larger than N: where all of 0..N inject the answer is N"),
        (lambda n, a, b, g: min(ceil(bound(n, a, b, g)), n), "that is the smallest S that is left alone: one less"),
        (lambda n, a, b, g: min(ceil(bound(n, a, b, g)), n + 1), "that is the number of lamps that inject: S starts at 0, so "
         "the last is one less"),
        (lambda n, a, b, g: s if (s := ceil(bound(n, a, b, g))) <= n else None, "that is the smallest S that is left alone; "
         "and where none is, nothing comes back"),
        (lambda n, a, b, g: s - 1 if (s := ceil(bound(n, a, b, g))) <= n else None, "right where some S is left alone; where "
         "none is, nothing comes back: there the answer is N"),
        (lambda n, a, b, g: ceil(bound(n, 0, 0, g)) - 1, "the prior is missing: c is (a0 + S)/(a0 + b0 + N)"),
        (lambda n, a, b, g: min(ceil(bound(n, a, 0, g)) - 1, n), "b0 is missing: the posterior's two numbers add up to "
         "a0 + b0 + N"),
        (lambda n, a, b, g: min(ceil(bound(n, 1, 1, g)) - 1, n), "that is for the prior Beta(1, 1) alone"),
        (lambda n, a, b, g: min(ceil(bound(n, a, b, 0.8)) - 1, n), "that is for gamma = 0.8 alone")],
        "one number says all that a gate of this kind will ever do.")


@exercise
def tie(answer: Any) -> Mark:
    """True or False: does the gate call the teacher at S = 7 of 8, with Beta(2, 2) and threshold 0.75?"""
    return number(answer, False, [
        (True, "c is (2 + 7)/(4 + 8) = 9/12, exactly 0.75, and the gate asks for c < 0.75: a tie is left alone"),
        (0.75, "that is c, and the threshold too: does the gate call the teacher then?"),
        (7, "that is S: does the gate call the teacher there?")],
        "c = 9/12 is not below 0.75.", "Say True or False.", 0)


@exercise
def called_at_85(answer: Any) -> Mark:
    """a probability: the teacher is called at success rate 0.85 (N = 8, injects up to S = 6)"""
    return number(answer, 0.34282, [
        (0.0, "the gate never sees 0.85: it sees eight rollouts, and at times they hold only six successes"),
        (0.72751, "you counted S = 7, which is a tie, and ties are left alone"),
        (0.65718, "that is the share of groups that are left alone"),
        (0.23760, "that is S = 6 alone: S below 6 injects as well"),
        (0.10521, "that is S <= 5: S = 6 injects as well"),
        (0.18690, "that is for success rate 0.9"),
        (0.010304, "each S comes in comb(8, S) orders: count them all"),
        (0.15, "that is how often one rollout fails; the gate sees eight")],
        "a third of the groups, though 0.85 is above the threshold.", "It is P(S <= 6), with S binomial (8, 0.85).")


@exercise
def smallest_group(answer: Any) -> Mark:
    """a whole number: the smallest N at which the gate can close, with Beta(1, 1) and threshold 0.9"""
    return number(answer, 8, [
        (9, "9 works; but what does the gate do at a tie?"),
        (7, "(1 + 7)/(2 + 7) = 0.889 is still below 0.9, even when all seven are right"),
        (3, "that is for the threshold 0.8"),
        (10, "10 works, but smaller groups do too: try S = N in the formula"),
        (1, "(1 + 1)/(2 + 1) = 0.67 is still below 0.9"),
        (18, "18 can lose one rollout and still close; here all N may be right")],
        "below that even a perfect group gets a teacher.", "Put S = N into c, and look for c >= 0.9.", 0)


# 04 clip and shape -------------------------------------------------------------------------------------------------


@exercise
def clipped(answer: Any) -> Mark:
    """a function of rho and A: PPO's objective min(rho A, clip(rho, 0.8, 1.2) A)"""
    cases = [(rho, a) for rho in (0.5, 1.0, 1.5) for a in (1.0, -1.0, 2.5, -2.5)]
    return function(answer, lambda rho, a: min(rho * a, np.clip(rho, 0.8, 1.2) * a), cases, [
        (lambda rho, a: np.clip(rho, 0.8, 1.2) * a, "you clipped on both sides: the smaller of clipped and unclipped counts"),
        (lambda rho, a: max(rho * a, np.clip(rho, 0.8, 1.2) * a), "you took the larger one: the clip is a pessimist, take min"),
        (lambda rho, a: rho * a, "nothing is clipped here"),
        (lambda rho, a: -min(rho * a, np.clip(rho, 0.8, 1.2) * a), "that is the loss; the objective has no minus"),
        (lambda rho, a: min(rho * a, np.clip(rho, -0.2, 0.2) * a), "epsilon is the way from 1: clip between 0.8 and 1.2"),
        (lambda rho, a: min(rho * a, min(rho, 1.2) * a), "you clipped above alone: with A < 0 it is cut below 0.8"),
        (lambda rho, a: min(rho * np.sign(a), np.clip(rho, 0.8, 1.2) * np.sign(a)),
         "you took the sign of A alone: with A = 2.5 the token earns 2.5 times as much"),
        (lambda rho, a: min(rho * a, np.clip(rho * a, 0.8, 1.2)), "you clipped rho A: clip rho, then multiply by A"),
        (lambda rho, a: min(rho, np.clip(rho, 0.8, 1.2)) * a, "multiply by A before min: with A < 0 the order turns around"),
        (lambda rho, a: min(rho, 1.2) * a if a > 0 else min(rho, 0.8) * a, "with A < 0 it is cut below 0.8, and grows above")],
        "a ratio that has moved far enough in A's direction earns nothing more.")


@exercise
def as_loud(answer: Any) -> Mark:
    """a probability, other than 0.02: where is the gradient in log p of p / (p + 0.1) as large as at p = 0.02?"""
    return number(answer, 0.5, [
        (0.02, "that is the p which is given: on the other side of the peak there is a second one"),
        (0.1, "that is where the gradient is largest: it is 0.25 there, and 0.139 at p = 0.02"),
        (0.18, "the curve is symmetric in log p, and not in p: 0.02 is 5 times below the peak"),
        (0.139, "that is the gradient itself, 0.139: at which p is it reached again?"),
        (1.0, "at p = 1 the gradient is 0.083; at p = 0.02 it is 0.139"),
        (0.98, "1 - p gives another gradient: 0.084")],
        "5 times above the peak it is as large as 5 times below: lambda^2 / p.",
        "0.1 p / (p + 0.1)^2 is symmetric in log p, around p = 0.1.")


@exercise
def whisper(answer: Any) -> Mark:
    """a number: how many times smaller than its largest value is the shaped gradient in log p at p = 0.002 (lambda = 0.1)?"""
    return number(answer, 0.25 / (0.1 * 2e-3 / 0.102**2), [
        (52.02, "you compared with 1: the largest value of this gradient is 1/4"),
        (0.07689, "that is the quotient the other way around"),
        (0.019223, "that is the gradient itself: by what factor does it fall short of 1/4?"),
        (12.75, "you divided by F itself: its gradient in log p is a little less"),
        (0.02601, "you took the gradient in p: in log p it is p times that"),
        (250.5, "that is for p = 1e-4"),
        (4.299, "you compared with the value at p = 1, which is 0.083: the largest is 1/4, at p = 0.1")],
        "and about ten times smaller at each further power of ten.", "The gradient in log p is 0.1 p / (p + 0.1)^2.")


@exercise
def per_draw(answer: Any) -> Mark:
    """a number: the teacher's pull over the pull that a student's token has on average, both with A = 1, at p = 0.01"""
    return number(answer, 0.1 / 0.11**2, [
        (0.08264, "that is the teacher's pull: the student's token pulls with 1, but only when it is sampled"),
        (12.1, "that is the student's token *once it is there*, over the teacher's: it is there with probability 0.01"),
        (0.121, "that is the quotient the other way around"),
        (0.01, "that is the student's average pull, p times 1: how many times that is the teacher's?"),
        (10.0, "that is 1/lambda, the limit for small p: at p = 0.01 it is already less")],
        "the same token is rare in the student's rollouts, and present in each demonstration.",
        "Compare the gradient 0.1 p / (p + 0.1)^2 with the student's average, p times 1.")

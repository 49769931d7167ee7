"""Checks of lessons 06 and 07: what a comparison can carry, and when the teacher leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from typing import Any

import numpy as np

from hapo_lab.methods import Method
from hapo_lab.notebook.marking import Mark, exercise, function, is_open, number

# 06 a fair comparison ----------------------------------------------------------------------------------------------


@exercise
def middle_half(answer: Any) -> Mark:
    """a function of a list of scores, 4 or 8 of them: the mean of its middle half"""
    def iqm(scores: Any) -> float:
        kept, cut = np.sort(np.asarray(scores, float)), len(scores) // 4
        return float(kept[cut:len(kept) - cut].mean())

    cases = [([0.9, 0.1, 0.8, 0.4],), ([0.0, 0.7, 0.9, 0.91, 0.93, 0.95, 0.2, 0.6],)]
    return function(answer, iqm, cases, [
        (lambda x: np.mean(x), "that is the mean of all: one unlucky seed moves it as far as it likes"),
        (lambda x: np.median(x), "that is the median: it throws away all but the middle one or two"),
        (lambda x: np.mean(np.asarray(x)[len(x) // 4:len(x) - len(x) // 4]), "sort first: the middle is of the scores, not of "
         "the list"),
        (lambda x: np.quantile(x, 0.75) - np.quantile(x, 0.25), "that is how wide the middle half is, not its mean"),
        (lambda x: np.mean(np.sort(x)[len(x) // 2:]), "that is the upper half: leave out the best quarter as well"),
        (lambda x: np.mean(np.sort(x)[1:-1]), "leave out a quarter at each end, not one score")],
        "neither the luckiest quarter nor the unluckiest one decides.")


@exercise
def beats(answer: Any) -> Mark:
    """a function of two lists of scores: the share of pairs in which the first list's score is higher, a tie counting half"""
    def compare(win: Callable) -> Callable:
        return lambda x, y: np.mean([[win(a, b) for b in y] for a in x])

    cases = [([0.9, 0.5], [0.5, 0.1]), ([0.2, 0.3, 0.9], [0.8, 0.25]), ([0.0, 0.0], [0.0, 0.0])]
    return function(answer, compare(lambda a, b: (a > b) + (a == b) / 2), cases, [
        (compare(lambda a, b: a > b), "a tie counts half, or two dead methods would each beat the other with probability 0"),
        (compare(lambda a, b: a >= b), "a tie counts half, or two dead methods would each beat the other with certainty"),
        (compare(lambda a, b: (a < b) + (a == b) / 2), "that is how often the second list wins"),
        (lambda x, y: compare(lambda a, b: (a > b) + (a == b) / 2)(x, y) * len(x) * len(y), "that is a count of pairs: divide "
         "by their number, len(first) * len(second)"),
        (lambda x, y: compare(lambda a, b: (a > b) + (a == b) / 2)(x, y) * len(y), "each score of the first list makes "
         "len(second) pairs: divide by their number too"),
        (lambda x, y: compare(lambda a, b: a > b)(x, y) / np.float64(compare(lambda a, b: a != b)(x, y)), "you left the ties "
         "out: each counts half, and two dead methods are all ties"),
        (lambda x, y: np.mean(x) - np.mean(y), "that is the difference of the means: count the pairs that are won"),
        (lambda x, y: np.mean([(a > b) + (a == b) / 2 for a, b in zip(x, y, strict=False)]),
         "each score of the first list meets each of the second, not its neighbour alone"),
        (lambda x, y: np.mean([a > b for a, b in zip(x, y, strict=False)]), "each score of the first list meets each of the "
         "second; and a tie counts half"),
        (lambda x, y: float(np.mean(x) > np.mean(y)), "the means alone are compared: count the pairs of runs that are won")],
        "it asks what the next run will show, and not how large the difference is.")


@exercise
def confounders(answer: Any) -> Mark:
    """field names of `Method`: where LUFFY as released differs from LUFFY on HAPO's conventions, the name left out"""
    given = _field_names(answer)
    wanted = {"scale", "eps_low", "eps_high", "aggregation", "entropy_bonus"}
    if given - {"name"} == wanted:
        return Mark(True, "five things change at once, so a difference between the two has no single cause.")
    shared = {"gate": "both have a gate that never opens", "teacher_seats": "both reserve a seat in every group",
              "shaping": "both shape the teacher's tokens by p / (p + 0.1)", "kl": "neither has a KL penalty"}
    for name, says in shared.items():
        if name in given:
            return Mark(False, f"{name} is no difference: {says}")
    if unknown := sorted(given - {field.name for field in fields(Method)}):
        return Mark(False, f"`Method` has no field called {', '.join(unknown)}: fields(LUFFY) lists the names")
    if equal := sorted(given - wanted - {"name"}):
        return Mark(False, f"{', '.join(equal)}: no field in which they differ. Compare the two with getattr, field by field")
    missing = {"scale": "how advantages are scaled", "eps_low": "the clip below", "eps_high": "the clip above",
               "aggregation": "how tokens make a loss", "entropy_bonus": "a bonus in the objective"}
    return Mark(False, f"still missing: {', '.join(missing[name] for name in missing if name not in given)}")


def _field_names(answer: Any) -> set[str]:
    """From a text, or a collection of names, fields or (name, value) pairs, in one more list or not."""
    names = re.split(r"[\s,;]+", answer.strip()) if isinstance(answer, str) else list(answer)
    if len(names) == 1 and not isinstance(names[0], str) and np.iterable(names[0]):
        names = list(names[0])
    firsts = [name[0] if isinstance(name, tuple | list) else name for name in names]
    return {str(getattr(name, "name", name)).strip() for name in firsts}


@exercise
def carried(answer: Any) -> Mark:
    """a function of low and high, the interval of P(better than HAPO), that says "better", "worse" or "not told apart" of it"""
    words = {"worse": -1, "not told apart": 0, "better": 1}
    cases = [(0.55, 0.9), (0.1, 0.45), (0.3, 0.7), (0.45, 0.95), (0.05, 0.55), (0.5, 0.9), (0.1, 0.5)]

    def said(*case: float) -> Any:
        word = answer(*case)
        return word if is_open(word) else str(word).strip().lower()
    if odd := {word for case in cases if not is_open(word := said(*case))} - set(words):
        return Mark(False, f"yours says {', '.join(map(repr, sorted(odd)))}; it should be one of {', '.join(map(repr, words))}")
    return function(lambda *case: words.get(said(*case)), lambda low, high: (low > 0.5) - (high < 0.5), cases, [
        (lambda low, high: np.sign(low + high - 1), "you asked on which side the middle lies: an interval that holds 0.5 "
         "carries no ranking"),
        (lambda low, high: 1 if low + high > 1 else -1, "you asked on which side the middle lies; an interval that holds 0.5 "
         "is not told apart"),
        (lambda low, high: 1 if low > 0.5 else -1, "what is not better need not be worse: look where the interval ends"),
        (lambda low, high: int(low > 0.5), "an interval that lies whole below 0.5 has a verdict too"),
        (lambda low, high: (low > 0) - (high < 0), "0 is no difference of two means; no difference in who wins is 0.5"),
        (lambda low, high: 1 if high > 0.5 else -1, "an interval that reaches above 0.5 may still hold it"),
        (lambda low, high: (high < 0.5) - (low > 0.5), "the other way around: above 0.5 the method wins more often than HAPO"),
        (lambda low, high: (low >= 0.5) - (high <= 0.5), "an interval that ends exactly at 0.5 still holds it")],
        "nothing is ranked that an interval does not carry.",
        show=lambda said: next(repr(word) for word, value in words.items() if value == said))


# 07 asymptotic purity ----------------------------------------------------------------------------------------------


@exercise
def best_and_worst(answer: Any) -> Mark:
    """two whole numbers: of N = 3 to 19, which calls the teacher least often at success rate 0.9, and which most often?"""
    return number(answer, (18, 7), [
        ((7, 18), "the one that calls least often comes first"),
        ((19, 3), "the probability jumps: neither end of the range is the best or the worst"),
        ((19, 7), "19 needs 16 right, 84.2%: is there a size that needs less?"),
        ((18, 2), "at N = 2 the gate can't close at all: the question is about 3 to 19"),
        ((18, 3), "at N = 3 all three must be right; at which N must all be right, and are the most?"),
        ((18, 12), "12 is a local peak; there is a higher one"),
        ((18, 16), "16 is worse than 8, but there are far worse ones below 8"),
        ((13, 7), "13 meets the bar exactly; a larger N does so too"),
        ((8, 7), "8 meets the bar exactly; larger sizes do so too")],
        "at 18 the bar is met exactly, by 15; at 7 a single failure calls the teacher.",
        "Compute P(inject) for every N from 3 to 19: injection_probability(0.9, N, BetaGate()).", 0)


@exercise
def thirteen(answer: Any) -> Mark:
    """a probability: the teacher is called at success rate 0.9, with groups of 13, Beta(1, 1) and threshold 0.8"""
    return number(answer, 0.13388, [
        (0.18690, "that is for groups of 8"),
        (0.03416, "you scaled 6 of 8 up to 9 of 13: the prior weighs less in a larger group; 10 injects too, 11/15 < 0.8"),
        (0.37866, "S = 11 gives 12/15, exactly 0.8: a tie is left alone"),
        (0.09972, "that is S = 10 alone: smaller S inject as well"),
        (0.86612, "that is the share of groups that are left alone"),
        (3.9226e-4, "each S comes in comb(13, S) orders: count them all"),
        (0.0, "the gate never sees 0.9: it sees thirteen rollouts")],
        "11 of 13, 84.6%, meets the bar exactly.", "It is P(S <= k), S binomial (13, 0.9); k is the largest S "
        "that gives c < 0.8.")


@exercise
def can_close(answer: Any) -> Mark:
    """a function of N, a0, b0, gamma: True if the injection probability goes to 0 as the success rate goes to 1"""
    half = Fraction(1, 2)
    cases = [(n, a, b, gamma) for n in (2, 3, 4, 7, 8, 16) for a in (half, 1, 2, 3) for b in (half, 1, 3)
             for gamma in (half, Fraction(4, 5), Fraction(9, 10))]
    return function(answer, lambda n, a, b, g: a + n >= g * (a + b + n), cases, [
        (lambda n, a, b, g: a + n > g * (a + b + n), "at a tie the gate leaves the group alone: c < gamma is strict"),
        (lambda n, a, b, g: a + n - 1 >= g * (a + b + n), "that is S = N - 1, the condition for the *relative bias*; near "
         "mu = 1 almost every group has S = N"),
        (lambda n, a, b, g: a + n < g * (a + b + n), "the other way around: that is when the teacher always comes"),
        (lambda n, a, b, g: (a + n) / (a + b + n), "that is c at S = N: compare it with gamma"),
        (lambda n, a, b, g: a + n >= g * (a + b + n) or None, "right where it says True; elsewhere it says nothing: say False"),
        (lambda n, a, b, g: 5 * (a + n) >= 4 * (a + b + n), "that is for gamma = 0.8 alone"),
        (lambda n, a, b, g: 1 + n >= g * (2 + n), "that is for the prior Beta(1, 1) alone"),
        (lambda n, a, b, g: n >= 3, "that is for Beta(1, 1) and gamma = 0.8 alone")],
        "only S = N is left in the limit, so its lamp decides.",
        show=lambda said: bool(said) if said in (0, 1) else np.round(said, 4))


@exercise
def smallest_pure_group(answer: Any) -> Mark:
    """a whole number: the smallest N at which the relative bias goes to 0, with Beta(1, 1) and threshold 0.75"""
    return number(answer, 6, [
        (2, "from N = 2 on the injection *probability* goes to 0; the bias over the gradient's own norm does not"),
        (4, "S = 3 of 4 gives 4/6 = 0.67: the group's only failure is taken"),
        (5, "S = 4 of 5 gives 5/7 = 0.71: the group's only failure is taken"),
        (7, "7 works, and a smaller one does too: a tie is left alone"),
        (8, "that is for the threshold 0.8"),
        (3, "S = 2 of 3 gives 3/5 = 0.6: the group's only failure is taken")],
        "(1 + 5)/8 is a tie: groups with one failure keep it, and they hold the whole signal.",
        "Near mu = 1 the signal lies in the groups with S = N - 1: which N leaves them alone?", 0)


@exercise
def draw_at_one(answer: Any) -> Mark:
    """a probability: a posterior draw calls the teacher to a group of 4 that is all right, with Beta(1, 1), threshold 0.8"""
    return number(answer, 0.8**5, [
        (0.8**4, "you left out the prior: 4 successes make Beta(5, 1), whose density is 5 x^4"),
        (0.0, "that is the mean's answer; a draw from Beta(5, 1) may fall below 0.8"),
        (1 - 0.8**5, "that is how often the group is left alone"),
        (0.8**9, "that is for groups of 8"),
        (5 / 6, "that is the posterior's mean: how often does a draw fall below 0.8?"),
        (2.048, "that is the density at 0.8: take the distribution function, the probability below 0.8"),
        (0.65536, "b stays 1: there are no failures to add to it"),
        (0.2**5, "that is a chance of falling below 0.2: the threshold is 0.8"),
        (0.8, "the posterior is no longer uniform: four successes have moved it"),
        (0.2, "the posterior is no longer uniform: four successes have moved it")],
        "a draw never closes.", "The posterior is Beta(5, 1): its distribution function is x^5.")

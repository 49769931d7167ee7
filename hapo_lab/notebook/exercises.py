"""Checks of the lessons' exercises: each takes an answer and says what is right, or which misconception it shows.

A check never raises. `exercises()` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Mark:
    """What a check says. `right` is None where there was no answer yet."""

    right: bool | None
    says: str

    def __repr__(self) -> str:
        return {True: "✓ Right: ", False: "✗ Not yet: ", None: "… "}[self.right] + " ".join(self.says.split())


UNANSWERED = Mark(None, "write your answer above")
_EXERCISES: dict[str, Callable[..., Mark]] = {}


def exercises() -> list[str]:
    """Their names."""
    return list(_EXERCISES)


def exercise(check: Callable[..., Mark]) -> Callable[..., Mark]:
    """Register a check, which is `safe` from then on."""
    _EXERCISES[check.__name__] = safe(check)
    return _EXERCISES[check.__name__]


def safe(check: Callable[..., Mark]) -> Callable[..., Mark]:
    """A check that keeps whatever goes wrong inside it from the reader."""
    @wraps(check)
    def never_raises(answer: Any = ...) -> Mark:
        try:
            return UNANSWERED if _is_open(answer) else check(answer)
        except Exception as error:
            return Mark(False, f"this answer can't be read ({type(error).__name__}: {error}); wanted: {check.__doc__}")
    return never_raises


def _is_open(answer: object) -> bool:
    """Nothing, or something with a `...` left in it."""
    return answer is ... or answer is None or (isinstance(answer, tuple | list) and any(part is ... for part in answer))


def _value(answer: Any, right: Any, wrongs: Sequence[tuple[Any, str]], well: str, hint: str, tolerance: float = 0.01) -> Mark:
    """An answer that is a number, or several; `wrongs` pairs a wrong one with the misconception behind it."""
    def same(value: Any) -> bool:
        given, wanted = np.asarray(answer, float), np.asarray(value, float)
        return given.shape == wanted.shape and np.allclose(given, wanted, rtol=tolerance, atol=1e-6)
    if same(right):
        return Mark(True, well)
    return Mark(False, next((says for value, says in wrongs if same(value)), f"{answer} is not it. {hint}"))


def _function(answer: Any, right: Callable, cases: Sequence[tuple], wrongs: Sequence[tuple[Callable, str]], well: str) -> Mark:
    """An answer that is a function; a wrong one that agrees with it on all cases names the misconception."""
    with np.errstate(all="ignore"):
        given = [answer(*case) for case in cases]
        if all(_is_open(value) for value in given):
            return UNANSWERED
        given = [np.asarray(value, float) for value in given]

        def first_difference(formula: Callable) -> int | None:
            return next((i for i, (value, case) in enumerate(zip(given, cases, strict=True)) if not np.allclose(
                value, np.asarray(formula(*case), float), rtol=1e-3, atol=1e-6, equal_nan=True)), None)
        if (i := first_difference(right)) is None:
            return Mark(True, well)
        for formula, says in wrongs:
            if first_difference(formula) is None:
                return Mark(False, says)
        case, wanted = ", ".join(f"{x}" for x in cases[i]), np.asarray(right(*cases[i]), float)
    return Mark(False, f"for ({case}) yours gives {np.round(given[i], 4)}; it should be {np.round(wanted, 4)}")


# 01 advantage collapse ---------------------------------------------------------------------------------------------


@exercise
def one_success(answer: Any) -> Mark:
    """two numbers: the advantage (without std) of the right rollout, and of a wrong one, where 1 of 8 is right"""
    return _value(answer, (7 / 8, -1 / 8), [
        ((1, 0), "these are the rewards: subtract the group's mean, 1/8"),
        ((7 / 8, 1 / 8), "a wrong rollout lies below the mean: its advantage is negative"),
        ((1, -1), "an advantage is measured from the group's mean, 1/8, and not from a half"),
        ((-1 / 8, 7 / 8), "the right one comes first"),
        ((2.4742, -0.3535), "you divided by the std; here only the mean is subtracted")],
        "the eight sum to 0, as advantages always do.", "Subtract the mean, 1/8, from 1 and from 0.")


def _standardised(rewards: Any, ddof: int = 1, eps: float = 1e-4) -> np.ndarray:
    r = np.asarray(rewards, float)
    return (r - r.mean()) / (r.std(ddof=ddof) + eps)


@exercise
def advantages(answer: Any) -> Mark:
    """a function of a list of rewards: (r - mean) / (std + 1e-4), the std dividing by N - 1"""
    cases = [([1, 0, 0, 0],), ([0] * 8,), ([1, 1, 1, 0, 0],)]
    return _function(answer, _standardised, cases, [
        (lambda r: _standardised(r, 0), "you divided by N inside the std: a sample's std divides by N - 1 (ddof=1)"),
        (lambda r: np.asarray(r, float) - np.mean(r), "the mean is gone, but nothing is divided by the std"),
        (lambda r: np.asarray(r, float) / (np.std(r, ddof=1) + 1e-4), "you divided by the std, but the mean is still in"),
        (lambda r: np.asarray(r, float), "these are the rewards: subtract the mean, then divide"),
        (lambda r: _standardised(r, 1, 0), "a dead group gives 0/0 here: the small number in std + 1e-4 is there for it"),
        (lambda r: (np.asarray(r, float) - np.mean(r)) / (np.var(r, ddof=1) + 1e-4),
         "you divided by the variance: take its root")],
        "and the dead group gives zeros, not 0/0.")


@exercise
def share_of_failures(answer: Any) -> Mark:
    """a probability: all 8 rollouts fail, at a success rate of 0.05"""
    return _value(answer, 0.95**8, [
        (0.05**8, "that is all eight right: a rollout fails with probability 0.95"),
        (1 - 8 * 0.05, "chances of independent rollouts multiply, they don't add: 0.95 eight times"),
        (1 - 0.95**8, "that is the share of groups with at least one success: the others fail whole"),
        (0.95, "that is one rollout; a group fails whole when all eight do"),
        (66.34, "a probability, please: a number between 0 and 1")],
        "two groups in three teach nothing.", "Each of the eight fails with probability 0.95.")


# 02 synthetic success injection ------------------------------------------------------------------------------------


@exercise
def teacher_advantage(answer: Any) -> Mark:
    """a function of S and N: the teacher's advantage without std, after it took a failure's seat"""
    cases = [(s, n) for n in (4, 8) for s in range(n)]
    return _function(answer, lambda s, n: (n - 1 - s) / n, cases, [
        (lambda s, n: (n - s) / n, "you took the old mean S/N: the teacher's own reward raises it to (S + 1)/N"),
        (lambda s, n: 1 - (s + 1) / (n + 1), "you added the teacher as one more: it takes a seat, the group stays N"),
        (lambda s, n: 1, "that is the teacher's reward: subtract the new group's mean, (S + 1)/N"),
        (lambda s, n: (s + 1) / n, "that is the new mean: the advantage is 1 minus it")],
        "the better the student, the less the teacher says.")


@exercise
def deadly_success_count(answer: Any) -> Mark:
    """a whole number: groups of 6, at which S does an injection leave every advantage at 0, though the group was alive?"""
    return _value(answer, 5, [
        (6, "at S = 6 the group was dead already: all six are right"),
        (0, "at S = 0 the group was dead before; the injection revives it"),
        (7, "that is for groups of 8; here N = 6"),
        (1, "with one success there are five failures, and four after the injection: they still differ")],
        "the injection took the only failure.", "When does the injection take the last difference between the rollouts?")


@exercise
def students_success(answer: Any) -> Mark:
    """a number: the student's success rate, in a group with rewards 0 0 1 0 0 0 0 0 into which the teacher was injected"""
    return _value(answer, 1 / 8, [
        (2 / 8, "you counted the teacher's success as the student's"),
        (1 / 7, "you left out the rollout that was replaced: the student did write it, and it failed"),
        (2 / 7, "the teacher's success isn't the student's, and the replaced rollout is"),
        (0, "one of the eight was right before the teacher came")],
        "all sampled rollouts count, the replaced one too, and the teacher's never.", "Count what the student itself wrote.")


# 03 the Beta gate --------------------------------------------------------------------------------------------------


@exercise
def posterior_mean(answer: Any) -> Mark:
    """a function of S, N, a0, b0: the mean of Beta(a0 + S, b0 + N - S)"""
    cases = [(s, n, a, b) for n in (8, 4) for s in (0, 1, n) for a, b in ((1, 1), (3, 2), (0.5, 4))]
    return _function(answer, lambda s, n, a, b: (a + s) / (a + b + n), cases, [
        (lambda s, n, a, b: (a + s) / n, "you divided by N: the posterior holds N + a0 + b0"),
        (lambda s, n, a, b: s / n, "that is the group's success rate; the prior is missing"),
        (lambda s, n, a, b: s / (a + b + n), "the prior's successes are missing above: a0 + S"),
        (lambda s, n, a, b: (a + s) / (a + n), "the prior's failures are missing below: a0 + b0 + N"),
        (lambda s, n, a, b: (a + s) / (b + n - s), "you divided successes by failures: divide by both together"),
        (lambda s, n, a, b: (b + n - s) / (a + b + n), "that is the mean probability of failure"),
        (lambda s, n, a, b: (a + s - 1) / (a + b + n - 2), "that is the mode, the density's peak; the gate takes the mean")],
        "the prior is worth a0 + b0 rollouts, a0 of them right.")


@exercise
def tie(answer: Any) -> Mark:
    """True or False: does the gate call the teacher at S = 7 of 8, with Beta(1, 1) and threshold 0.8?"""
    return _value(bool(answer) if isinstance(answer, bool | np.bool_) else answer, 0, [
        (1, "c is 8/10, exactly 0.8, and the gate asks for c < 0.8: a tie is left alone")],
        "c = 8/10 is not below 0.8.", "Say True or False.")


@exercise
def teacher_at_nine_tenths(answer: Any) -> Mark:
    """a probability: the teacher is called at success rate 0.9 (N = 8, injects up to S = 6)"""
    return _value(answer, 0.18690, [
        (0.0, "the gate never sees 0.9: it sees eight rollouts, and at times they hold only six successes"),
        (0.56953, "you counted S = 7, which is a tie, and ties are left alone"),
        (0.8131, "that is the share of groups that are left alone"),
        (0.14880, "that is S = 6 alone: S below 6 injects as well")],
        "almost one group in five, though 0.9 is above the threshold.", "It is P(S <= 6), with S binomial (8, 0.9).")


@exercise
def smallest_group(answer: Any) -> Mark:
    """a whole number: the smallest N at which the gate can close, with Beta(1, 1) and threshold 0.8"""
    return _value(answer, 3, [
        (4, "N = 3 gives (1 + 3)/(2 + 3) = 0.8 at its best: a tie, which is left alone"),
        (2, "(1 + 2)/(2 + 2) = 0.75 is still below 0.8, even when both are right"),
        (1, "(1 + 1)/(2 + 1) = 0.67 is still below 0.8"),
        (8, "8 works, but smaller groups do too: try S = N in the formula")],
        "below that even a perfect group gets a teacher.", "Put S = N into c, and look for c >= 0.8.")


# 04 clip and shape -------------------------------------------------------------------------------------------------


@exercise
def clipped(answer: Any) -> Mark:
    """a function of rho and A: PPO's objective min(rho A, clip(rho, 0.8, 1.2) A)"""
    cases = [(rho, a) for rho in (0.5, 1.0, 1.5) for a in (1.0, -1.0)]
    return _function(answer, lambda rho, a: min(rho * a, np.clip(rho, 0.8, 1.2) * a), cases, [
        (lambda rho, a: np.clip(rho, 0.8, 1.2) * a, "you clipped on both sides: the smaller of clipped and unclipped counts"),
        (lambda rho, a: max(rho * a, np.clip(rho, 0.8, 1.2) * a), "you took the larger one: the clip is a pessimist, take min"),
        (lambda rho, a: rho * a, "nothing is clipped here"),
        (lambda rho, a: min(rho, np.clip(rho, 0.8, 1.2)) * a, "multiply by A before min: with A < 0 the order turns around")],
        "a ratio that has moved far enough in A's direction earns nothing more.")


@exercise
def loudest(answer: Any) -> Mark:
    """a probability: where is the gradient in log p of p / (p + 0.1) largest?"""
    return _value(answer, 0.1, [
        (1.0, "at p = 1 F is largest, but flat: its gradient is 0.1/1.21 = 0.083"),
        (0.0, "the gradient in p is largest at 0; in log p it is p times that, so 0 there"),
        (0.25, "1/4 is how large it gets, not where"),
        (0.5, "F is 1/2 where its gradient is largest; at which p is that?")],
        "at p = lambda, and it is 1/4 there, whatever lambda is.", "It is 0.1 p / (p + 0.1)^2: look at the curve.")


@exercise
def whisper(answer: Any) -> Mark:
    """a number: how many times smaller than its largest value is the shaped gradient in log p at p = 1e-4 (lambda = 0.1)?"""
    return _value(answer, 0.25 / (0.1 * 1e-4 / 0.1001**2), [
        (1002.0, "you compared with 1: the largest value of this gradient is 1/4"),
        (0.003992, "that is the quotient the other way around"),
        (9.98e-4, "that is the gradient itself: by what factor does it fall short of 1/4?"),
        (0.025, "you took the gradient in p: in log p it is p times that")],
        "250 times quieter, just where the student knows least.", "Divide 1/4 by 0.1 p / (p + 0.1)^2.", tolerance=0.015)


# 06 a fair comparison ----------------------------------------------------------------------------------------------


@exercise
def middle_half(answer: Any) -> Mark:
    """a function of a list of scores, 4 or 8 of them: the mean of its middle half"""
    def iqm(scores: Any) -> float:
        kept, cut = np.sort(np.asarray(scores, float)), len(scores) // 4
        return float(kept[cut:len(kept) - cut].mean())

    cases = [([0.9, 0.1, 0.8, 0.4],), ([0.0, 0.7, 0.9, 0.91, 0.93, 0.95, 0.2, 0.6],)]
    return _function(answer, iqm, cases, [
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
    return _function(answer, compare(lambda a, b: (a > b) + (a == b) / 2), cases, [
        (compare(lambda a, b: a > b), "a tie counts half, or two dead methods would each beat the other with probability 0"),
        (compare(lambda a, b: a >= b), "a tie counts half, or two dead methods would each beat the other with certainty"),
        (compare(lambda a, b: (a < b) + (a == b) / 2), "that is how often the second list wins"),
        (lambda x, y: np.mean(x) - np.mean(y), "that is the difference of the means: count the pairs that are won"),
        (lambda x, y: np.mean([(a > b) + (a == b) / 2 for a, b in zip(x, y, strict=False)]),
         "each score of the first list meets each of the second, not its neighbour alone"),
        (lambda x, y: float(np.mean(x) > np.mean(y)), "the means alone are compared: count the pairs of runs that are won")],
        "it asks what the next run will show, and not how large the difference is.")


@exercise
def confounders(answer: Any) -> Mark:
    """field names of `Method`: where LUFFY as released differs from LUFFY on HAPO's conventions, the name left out"""
    given = {answer} if isinstance(answer, str) else {str(name) for name in answer}
    wanted = {"scale", "eps_low", "eps_high", "aggregation", "entropy_bonus"}
    if given - {"name"} == wanted:
        return Mark(True, "five things change at once, so a difference between the two has no single cause.")
    shared = {"gate": "both have a gate that never opens", "teacher_seats": "both reserve a seat in every group",
              "shaping": "both shape the teacher's tokens by p / (p + 0.1)", "kl": "neither has a KL penalty"}
    for name, says in shared.items():
        if name in given:
            return Mark(False, f"{name} is no difference: {says}")
    if unknown := sorted(given - wanted - {"name"}):
        return Mark(False, f"{', '.join(unknown)}: no field in which they differ. Compare the two with getattr, field by field")
    missing = {"scale": "how advantages are scaled", "eps_low": "the clip below", "eps_high": "the clip above",
               "aggregation": "how tokens make a loss", "entropy_bonus": "a bonus in the objective"}
    return Mark(False, f"still missing: {', '.join(missing[name] for name in missing if name not in given)}")


@exercise
def carried(answer: Any) -> Mark:
    """a function of low and high, the interval of P(better than HAPO), that says "better", "worse" or "not told apart" of it"""
    words = {"worse": -1, "not told apart": 0, "better": 1}
    cases = [(0.55, 0.9), (0.1, 0.45), (0.3, 0.7), (0.45, 0.95), (0.05, 0.55), (0.5, 0.9), (0.1, 0.5)]
    said = [answer(*case) for case in cases]
    if odd := {word for word in said if not _is_open(word)} - set(words):
        return Mark(False, f"yours says {', '.join(map(repr, odd))}; it should be one of {', '.join(map(repr, words))}")
    return _function(lambda *case: words.get(answer(*case)), lambda low, high: (low > 0.5) - (high < 0.5), cases, [
        (lambda low, high: np.sign(low + high - 1), "you asked on which side the middle lies: an interval that holds 0.5 "
         "carries no ranking"),
        (lambda low, high: (low > 0) - (high < 0), "0 is no difference of two means; no difference in who wins is 0.5"),
        (lambda low, high: 1 if high > 0.5 else -1, "an interval that reaches above 0.5 may still hold it"),
        (lambda low, high: (high < 0.5) - (low > 0.5), "the other way around: above 0.5 the method wins more often than HAPO"),
        (lambda low, high: (low >= 0.5) - (high <= 0.5), "an interval that ends exactly at 0.5 still holds it")],
        "nothing is ranked that an interval does not carry.")


# 07 asymptotic purity ----------------------------------------------------------------------------------------------


@exercise
def sixteen(answer: Any) -> Mark:
    """a probability: the teacher is called at success rate 0.9, with groups of 16, Beta(1, 1) and threshold 0.8"""
    return _value(answer, 0.21075, [
        (0.18690, "that is for groups of 8"),
        (0.0684, "you scaled 6 of 8 up to 12 of 16: the prior weighs less now, and 13 still injects, 14/18 < 0.8"),
        (0.48527, "S = 14 gives 15/18 = 0.83: it is left alone"),
        (0.0, "the gate never sees 0.9: it sees sixteen rollouts")],
        "twice the rollouts, and the teacher comes more often.", "It is P(S <= k), S binomial (16, 0.9); k is the largest S "
        "that gives c < 0.8.")


@exercise
def can_close(answer: Any) -> Mark:
    """a function of N, a0, b0, gamma: True if the injection probability goes to 0 as the success rate goes to 1"""
    half = Fraction(1, 2)
    cases = [(n, a, b, gamma) for n in (2, 3, 4, 7, 8, 16) for a in (half, 1, 2, 3) for b in (half, 1, 3)
             for gamma in (half, Fraction(4, 5), Fraction(9, 10))]
    return _function(answer, lambda n, a, b, g: a + n >= g * (a + b + n), cases, [
        (lambda n, a, b, g: a + n > g * (a + b + n), "at a tie the gate leaves the group alone: c < gamma is strict"),
        (lambda n, a, b, g: a + n - 1 >= g * (a + b + n), "that is S = N - 1, the condition for the *relative bias*; near "
         "mu = 1 almost every group has S = N"),
        (lambda n, a, b, g: a + n < g * (a + b + n), "the other way around: that is when the teacher always comes"),
        (lambda n, a, b, g: 5 * (a + n) >= 4 * (a + b + n), "that is for gamma = 0.8 alone")],
        "only S = N is left in the limit, so its lamp decides.")


@exercise
def smallest_pure_group(answer: Any) -> Mark:
    """a whole number: the smallest N at which the relative bias goes to 0, with Beta(1, 1) and threshold 0.8"""
    return _value(answer, 8, [
        (3, "from N = 3 on the injection *probability* goes to 0; the bias over the gradient's own norm does not"),
        (4, "S = 3 of 4 gives 4/6 = 0.67: the group's only failure is taken"),
        (7, "S = 6 of 7 gives 7/9 = 0.78: the group's only failure is taken"),
        (9, "9 works, and a smaller one does too: a tie is left alone")],
        "(1 + 7)/10 is a tie: groups with one failure keep it, and they hold the whole signal.",
        "Near mu = 1 the signal lies in the groups with S = N - 1: which N leaves them alone?")


@exercise
def draw_at_one(answer: Any) -> Mark:
    """a probability: a posterior draw calls the teacher to a group of 8 that is all right, with Beta(1, 1), threshold 0.8"""
    return _value(answer, 0.8**9, [
        (0.8**8, "you left out the prior: 8 successes make Beta(9, 1), whose density is 9 x^8"),
        (0.0, "that is the mean's answer; a draw from Beta(9, 1) may fall below 0.8"),
        (1 - 0.8**9, "that is how often the group is left alone"),
        (0.2, "the posterior is no longer uniform: eight successes have moved it")],
        "a draw never closes.", "The posterior is Beta(9, 1): its distribution function is x^9.")

"""Ten questions that one can answer after the lessons: as data, for the terminal (`hapo-lab quiz`) and for a cell.

    quiz.ask(3)
    quiz.answer(3, (0.5, 0.5, -0.5))
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from hapo_lab.notebook.marking import Mark

TOLERANCE = 0.0051
"""A number is right within it: 13% will do for 0.134."""


@dataclass(frozen=True)
class Question:
    """What is asked, which answer is right, which misconception is behind a wrong one, and where a lesson teaches it."""

    asks: str
    right: str | tuple[float, ...]
    """A letter of `choices`; all their letters in an order; or, without choices, numbers."""
    well: str
    """What a right answer is told."""
    lesson: str
    """The notebook that teaches it ..."""
    heading: str
    """... and the heading there."""
    choices: tuple[str, ...] = ()
    """a, b, c, ..."""
    slips: Mapping[str | tuple[float, ...], str] = field(default_factory=dict)
    """A wrong answer -> its misconception. Where an order is asked for, "ab" stands for every one in which a comes after b."""

    @property
    def letters(self) -> str:
        """Those of the choices."""
        return "abcdefgh"[:len(self.choices)]

    @property
    def how(self) -> str:
        """How to answer, in a sentence."""
        if not isinstance(self.right, str):
            count = "one number" if len(self.right) == 1 else f"{len(self.right)} numbers"
            return f"answer with {count}, such as " + ("0.25 or 25%" if len(self.right) == 1 else "0.25, 25%, -1/4")
        if len(self.right) > 1:
            return f"answer with the {len(self.right)} letters in their order, such as {self.letters}"
        return f"answer with {', '.join(self.letters[:-1])} or {self.letters[-1]}"

    def check(self, answer: Any) -> Mark:
        """What an answer is worth; `right` is None where it can't be read. Never raises."""
        try:
            given = _letters(answer) if isinstance(self.right, str) else _numbers(answer)
        except Exception:
            given = None
        if given is None or not self._is_an_answer(given):
            return Mark(None, self.how)
        if self._same(given, self.right):
            return Mark(True, self.well)
        says = next((says for slip, says in self.slips.items() if self._shows(given, slip)), "that is not it")
        return Mark(False, f"{says}. Look again at lesson {self.lesson[:2]}, {self.heading!r}.")

    def _is_an_answer(self, given: str | tuple[float, ...]) -> bool:
        if isinstance(given, str):
            return set(given) <= set(self.letters) and len(set(given)) == len(given) == len(self.right)
        return len(given) == len(self.right) and bool(np.isfinite(given).all())

    def _same(self, given: str | tuple[float, ...], other: str | tuple[float, ...]) -> bool:
        return given == other if isinstance(other, str) else bool(np.allclose(given, other, rtol=0, atol=TOLERANCE))

    def _shows(self, given: str | tuple[float, ...], slip: str | tuple[float, ...]) -> bool:
        if isinstance(given, str) and isinstance(slip, str) and len(given) > 1:
            return given.index(slip[0]) > given.index(slip[1])
        return self._same(given, slip)

    def __str__(self) -> str:
        lines = textwrap.wrap(self.asks, 100)
        for letter, choice in zip(self.letters, self.choices, strict=True):
            lines += textwrap.wrap(f"{letter}  {choice}", 100, initial_indent="  ", subsequent_indent="     ")
        return "\n".join([*lines, f"  ({self.how})"])


def _letters(answer: Any) -> str | None:
    """Letters of "B", "b)" or ["c", "a"]; None for anything else."""
    text = answer if isinstance(answer, str) else "".join(answer)
    said = re.sub(r"[\s,;.()>-]+", "", text).lower()
    return said if said.isalpha() else None


def _numbers(answer: Any) -> tuple[float, ...]:
    """Numbers, or a text of them: 0.25, 25%, -1/4."""
    if isinstance(answer, str):
        text = re.sub(r"\s+%", "%", answer.replace("\N{MINUS SIGN}", "-")).strip(" ()[]")
        return tuple(float(Fraction(part.rstrip("%")) / (100 if part.endswith("%") else 1))
                     for part in re.split(r"[\s,;]+", text))
    return tuple(np.asarray(answer, float).ravel().tolist())


QUESTIONS: tuple[Question, ...] = (
    Question(
        "A group of 8 rollouts fails whole. There is no entropy bonus and no KL penalty, and no teacher comes. What is the "
        "gradient of the group's loss?", "b", "every advantage is 0, so every term of the sum is.",
        "01_advantage_collapse", "Eight zeros",
        ("it points away from what the rollouts said", "zero", "noise, whose mean is zero", "it points to the right answer"),
        {"a": "a rollout is pushed down only where another one of its group did better",
         "c": "noise would need advantages: each of the eight is exactly 0",
         "d": "nobody in this group knows the right answer"}),
    Question(
        "All 8 rollouts of a group are right. Has the policy mastered the problem?", "c",
        "0.9^8 = 0.43: by luck such a group looks mastered.", "01_advantage_collapse", "Eight zeros",
        ("yes: no rollout was wrong", "yes: the gradient is zero, so there is nothing to learn",
         "that is not known: at a success rate of 0.9, it happens to 43% of the groups",
         "no: a mastered problem has a positive gradient"),
        {"a": "eight samples are no proof: at a success rate of 0.9 none of them is wrong in 43% of the groups",
         "b": "the gradient of *this group* is zero; at a success rate of 0.9 the other 57% of the groups still teach",
         "d": "a mastered problem has equal rewards, and so a gradient of zero"}),
    Question(
        "Groups of 8, of which 3 are right as sampled. The gate injects. Without std, what are the advantages of the teacher, "
        "of a right rollout, and of a wrong one?", (0.5, 0.5, -0.5), "the new mean is 4/8; the teacher is a success like any "
        "other.", "02_synthetic_success_injection", "The teacher's advantage shrinks", (),
        {(0.625, 0.625, -0.375): "that is with the old mean, 3/8: the teacher's reward raises it to 4/8",
         (5 / 9, 5 / 9, -4 / 9): "you added the teacher as a ninth: it takes the seat of a failure",
         (0.9354, 0.9354, -0.9354): "you divided by the std",
         (1.0, 0.5, -0.5): "the teacher's reward is compared with the mean like any other",
         (1.0, 1.0, 0.0): "these are the rewards: subtract the mean, 4/8"}),
    Question(
        "The prior is Beta(3, 3), the threshold 0.8, and groups have 8 rollouts. Can this gate close?", "c",
        "even a perfect group is called back: 11/14 < 0.8.", "03_beta_gate", "Three priors",
        ("yes, at S = 8: 8/8 is above 0.8", "yes, at S = 7, where the posterior mean is 0.8, a tie",
         "no: even at S = 8 the posterior mean is 11/14, which is below 0.8", "yes, as the success rate goes to 1"),
        {"a": "the gate looks at the posterior mean, and the prior is in it: (3 + 8) / (6 + 8)",
         "b": "that is the tie of the prior Beta(1, 1): here S = 7 gives 10/14",
         "d": "at success rate 1 every group has S = 8, and that gives 11/14"}),
    Question(
        "A student's token enters the loss by its ratio, its probability now over its probability when it was sampled. Why "
        "has a teacher's token no such ratio?", "c", "so F(p), of the present probability alone, stands in its place.",
        "04_clip_and_shape", "Two kinds of tokens",
        ("the student's probability of it at that time can't be computed", "a demonstration is right anyway",
         "the teacher sampled it, with a probability that nobody knows", "the ratio would always be 1"),
        {"a": "it can: one pass over the demonstration gives it. But the student did not sample it",
         "b": "a ratio says nothing of right and wrong: it corrects for who sampled the token",
         "d": "in the first pass over a batch it is 1 for the students too, and they have one"}),
    Question(
        "The prior is Beta(1, 1), the threshold 0.8, and the student's success rate 0.9. What is the probability that a group "
        "of 13 calls the teacher?", (0.1339,), "S = 11 of 13 makes 12/15, a tie; so it is P(S <= 10).",
        "07_asymptotic_purity", "Sixty seconds", (),
        {(0.3787,): "you counted S = 11, which makes 12/15 = 0.8: a tie is left alone",
         (0.1869,): "that is a group of 8", (0.2108,): "that is a group of 16",
         (0.0,): "the gate never sees 0.9: it sees thirteen rollouts, and at times ten or fewer are right",
         (0.8661,): "that is how often the group is left alone",
         **dict.fromkeys(((13.0,), (13.39,), (13.4,)), "a probability lies between 0 and 1: in percent it needs the sign %")}),
    Question(
        "Put a step of HAPO into its order.", "dbeacf", "S is of what was sampled; mean and std are of what is learned from.",
        "10_build_hapo", "The method on one card",
        ("the demonstration takes the worst rollout's seat", "count the right rollouts, S",
         "subtract the group's mean, divide by its std", "sample and grade N rollouts",
         "the gate compares the posterior's mean with the threshold",
         "take the masked mean of the tokens' losses, and descend"),
        {"db": "there is nothing to count before something is sampled",
         "ba": "S is counted before the teacher sits down: else it counts a success that isn't the student's",
         "be": "the gate's posterior needs S", "ea": "the gate decides whether the teacher comes at all",
         "ac": "mean and std are of the group with the teacher in it", "cf": "a token's loss needs its rollout's advantage",
         "dc": "there are no rewards to compare before something is sampled"}),
    Question(
        "On average, what turns HAPO's update away from the direction of the on-policy gradient?", "c",
        "all else only makes the update longer or shorter.", "10_build_hapo", "What turns the update",
        ("the failure that was taken out", "dividing by the std", "the teacher's own term",
         "mean and std that were computed anew"),
        {"a": "a student's rollout, taken out or not, has a mean score along the gradient itself",
         "b": "the std makes a group's part longer or shorter, and turns nothing",
         "d": "new advantages give the students' scores other weights, and their mean stays along the gradient"}),
    Question(
        "HAPO reaches half of its success in 8 steps and the released LUFFY in 12, with three seeds each. Is it the gate?", "b",
        "a control changes one thing: HAPO with a gate that is always open does, and the matched LUFFY.",
        "06_fair_comparison", "The confounder",
        ("yes: the gate is what HAPO adds", "that can't be said: clip, std, aggregation and a bonus differ too",
         "no: LUFFY has a teacher in every group", "yes, if all three seeds agree"),
        {"a": "the released LUFFY differs in five more settings, any of which may be the cause",
         "c": "that is a difference too, and nothing here tells which difference it was",
         "d": "seeds tell whether the difference is luck; what causes it they don't tell, and three can't even rank"}),
    Question(
        "By a reader's account, the paper's table has for HAPO and LUFFY: AIME24 36.7 and 36.7, MATH-500 87.0 and 84.6, "
        "Olympiad 51.4 and 51.8. Seeds and intervals are not disclosed. Is HAPO better?", "d",
        "one tie, one lead each way, and no interval to weigh them with.", "06_fair_comparison", "The paper's table",
        ("yes: by 2.4 points on MATH-500", "no: by 0.4 points on Olympiad", "they are equal: the differences cancel out",
         "the table does not settle it"),
        {"a": "one of three tests, of 500 problems: its success alone is uncertain by 1.5 points, before any seed",
         "b": "0.4 points are less than what the choice of problems does",
         "c": "not told apart is not equal: a difference may be there, and this table can't show it"}))
"""In the lessons' order; 7 and 8 are of lesson 10."""


def question(number: int) -> Question:
    """By its number, from 1; ValueError if there is none."""
    if number not in range(1, len(QUESTIONS) + 1):
        raise ValueError(f"there is no question {number}: choose one from 1 to {len(QUESTIONS)}.")
    return QUESTIONS[number - 1]


def ask(number: int) -> None:
    """Print a question.

    >>> ask(4)
    The prior is Beta(3, 3), the threshold 0.8, and groups have 8 rollouts. Can this gate close?
      a  yes, at S = 8: 8/8 is above 0.8
      b  yes, at S = 7, where the posterior mean is 0.8, a tie
      c  no: even at S = 8 the posterior mean is 11/14, which is below 0.8
      d  yes, as the success rate goes to 1
      (answer with a, b, c or d)
    """
    print(question(number))


def answer(number: int, given: Any = ...) -> Mark:
    """What an answer is worth.

    >>> answer(4, "c")
    ✓ Right: even a perfect group is called back: 11/14 < 0.8.
    """
    return question(number).check(given)


def summary(marks: Sequence[Mark]) -> str:
    """How many were right."""
    return f"{sum(mark.right is True for mark in marks)} of {len(marks)} right"

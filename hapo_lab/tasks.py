"""Problems, their demonstrations, and the verifier that grades both."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True)
class Problem:
    """One question to the policy."""

    key: str
    """What it is about: two problems with one key ask for the same fact and stand in the same split."""
    messages: tuple[dict[str, str], ...]
    """Chat messages, for the tokenizer's template."""
    answer: str
    """What the verifier compares with."""
    demonstration: str | None = None
    """A teacher's completion, or none: then the group is left alone."""


@dataclass(frozen=True)
class Verdict:
    """A verifier's judgement."""

    correct: bool
    reason: str
    """In words, for whoever looks at a completion and wonders."""


Verifier = Callable[[Problem, str], Verdict]


@dataclass(frozen=True)
class Task:
    """Problems to train on, problems held out, and how both are graded.

    Raises
    ------
    ValueError
        A problem stands in both splits; a held-out question occurs in a training question or demonstration; the
        verifier rejects a demonstration (named, with the verifier's reason).
    """

    name: str
    train: tuple[Problem, ...]
    heldout: tuple[Problem, ...]
    verify: Verifier
    max_new_tokens: int
    """Room for a right completion, and a little more."""

    def __post_init__(self):
        if not self.train or not self.heldout:
            raise ValueError(f"task {self.name!r}: it needs problems to train on and problems held out.")
        if both := {p.key for p in self.train} & {p.key for p in self.heldout}:
            raise ValueError(f"task {self.name!r}: held out and in training both: {', '.join(sorted(both)[:5])}.")
        asked = {question(p) for p in self.train}
        shown = "\n".join(p.demonstration or "" for p in self.train)
        for p in self.heldout:
            if question(p) in asked or question(p) in shown:
                raise ValueError(f"task {self.name!r}: the held-out question {question(p)!r} occurs in the training split.")
        for p in self.train:
            if p.demonstration is not None and not (verdict := self.verify(p, p.demonstration)).correct:
                raise ValueError(f"task {self.name!r}: the demonstration of {question(p)!r} fails its own verifier: "
                                 f"{verdict.reason}. Correct it, or leave it out.")


def question(problem: Problem) -> str:
    """The last message: what the problem asks."""
    return problem.messages[-1]["content"]


FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2029, 12, 31)


def iso_date(seed: int = 0) -> Task:
    """Dates from words to ISO 8601: "17 March 1987" -> 1987-03-17. 240 dates to train on, 40 others held out."""
    days = random.Random(seed).sample(range(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1), 280)
    problems = tuple(_date_problem(date.fromordinal(day)) for day in days)
    return Task("iso_date", train=problems[40:], heldout=problems[:40], verify=verify_iso_date, max_new_tokens=16)


def _date_problem(day: date) -> Problem:
    in_words = f"{day.day} {MONTHS[day.month - 1]} {day.year}"
    return Problem(key=in_words, messages=({"role": "user", "content": f"Write the date {in_words} in ISO format."},),
                   answer=day.isoformat(), demonstration=day.isoformat())


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")
_ISO_DATE = re.compile(r"(?<![\d-])\d{4}-?\d{2}-?\d{2}(?![\d-])")


def verify_iso_date(problem: Problem, completion: str) -> Verdict:
    """Right if the completion gives the date in ISO 8601 once or more, and no other one, whatever words stand around it.

    ISO 8601 has an extended form (1987-03-17) and a basic one (19870317); either is accepted.
    """
    found = {f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in (m.replace("-", "") for m in _ISO_DATE.findall(completion))}
    if not found:
        return Verdict(False, "there is no date in ISO format in it")
    if found != {problem.answer}:
        return Verdict(False, f"it says {' and '.join(sorted(found))}, the date is {problem.answer}")
    return Verdict(True, f"it says {problem.answer}, as it should")


TASKS: dict[str, Callable[[int], Task]] = {"iso_date": iso_date}


def load_task(name: str = "iso_date", seed: int = 0) -> Task:
    """A task by name; the seed decides which problems are held out."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[name](seed)

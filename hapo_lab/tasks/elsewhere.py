"""Test problems from elsewhere: a task's questions in words, or with numbers, that training never used.

The task's own verifier grades them. None has a demonstration. `docs/tasks.md` says how hard they are for the kit's models.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from itertools import cycle

from hapo_lab.tasks import builtin
from hapo_lab.tasks.builtin import date_problem, record_problem, sum_problem
from hapo_lab.tasks.problem import Problem, Task

COUNT = 40
"""The most problems per split."""

Splits = dict[str, tuple[Problem, ...]]


def elsewhere(name: str, seed: int = 0) -> Splits:
    """Splits of test problems, by name. Training never uses them, and none has a demonstration.

    Parameters
    ----------
    name : str
        A task of the kit. One of reasoning-gym has no such splits: {}. ValueError: an unknown task.
    seed : int
        The task's. "wordings" and "order" rephrase the problems that are held out under it.

    Returns
    -------
    dict
        "wordings": the held-out problems, in words that training never used. "numbers": larger summands, other ages, other
        years than training has. "names" (of `json_record`): from other languages. "order" (of sums): the larger number
        first, where training has it last.

    Examples
    --------
    >>> {split: problems[0].messages[-1]["content"] for split, problems in elsewhere("sums").items()}
    {'wordings': 'What are 70 + 77?', 'order': 'What is 77 + 70?', 'numbers': 'What is 188 + 16?'}
    """
    task, rng = builtin.load_task(name, seed), random.Random(f"{name} elsewhere {seed}")
    if name not in builtin.TASKS:
        return {}
    make = {"json_record": _records, "iso_date": _dates}.get(name, _sums)
    return {split: tuple(replace(p, demonstration=None) for p in problems) for split, problems in make(task, rng).items()}


# records

RECORD_WORDINGS = ("At the age of {age}, {name} moved to Oslo.", "Our neighbour {name} has just become {age}.",
                   "It says here: {age} years, first name {name}.")
OTHER_NAMES = """Aiko Bjorn Chidi Dmitri Eero Farid Gulnara Hiroshi Ingrid Jamal Keiko Lars Mei Nkechi Omar Priya Quentin Rashid
Siobhan Tariq Umberto Vikram Wiremu Ximena Yara Zubin""".split()


def _records(task: Task, rng: random.Random) -> dict[str, Iterable[Problem]]:
    people = [p.key.split() for p in task.heldout]
    names = sorted({name for name, _ in people})
    ages = [*range(1, builtin.YOUNGEST), *range(builtin.OLDEST + 1, 111)]

    def drawn(names: list[str], ages: Iterable[int]) -> list[Problem]:
        pairs = rng.sample([(name, age) for name in names for age in ages], COUNT)
        return [record_problem(name, age, rng.choice(builtin.SENTENCES)) for name, age in pairs]

    return {"wordings": [record_problem(name, int(age), words) for (name, age), words in zip(people, cycle(RECORD_WORDINGS))],
            "names": drawn(OTHER_NAMES, range(builtin.YOUNGEST, builtin.OLDEST + 1)),
            "numbers": drawn(names, ages)}


# dates

DATE_WORDINGS = ("What is {month} {day}, {year} in ISO format?", "{day} {month} {year}: how does ISO 8601 write this day?",
                 "It happened in {year}, on {month} {day}. Give me that date in ISO format.")
EARLIEST, LATEST = 1600, 2199
"""Years; those of the task itself are left out."""


def _dates(task: Task, rng: random.Random) -> dict[str, Iterable[Problem]]:
    days = [date.fromisoformat(p.answer) for p in task.heldout]
    before = range(date(EARLIEST, 1, 1).toordinal(), builtin.FIRST_DAY.toordinal())
    after = range(builtin.LAST_DAY.toordinal() + 1, date(LATEST + 1, 1, 1).toordinal())
    return {"wordings": [date_problem(day, words) for day, words in zip(days, cycle(DATE_WORDINGS))],
            "numbers": [date_problem(date.fromordinal(n)) for n in rng.sample([*before, *after], COUNT)]}


# sums: of all tasks that ask for them

SUM_WORDINGS = ("What are {a} + {b}?", "What's {a} + {b}?", "So what is {a} + {b}?", "How much is {a} + {b}?")


def _sums(task: Task, rng: random.Random) -> dict[str, Iterable[Problem]]:
    ending = task.heldout[0].answer.rstrip("0123456789")
    pairs = [tuple(map(int, p.key.split(" + "))) for p in task.heldout]
    larger = [(a, b) for a in range(100, 200) for b in range(100)]
    if task.name == "sums_small":  # sums that tiny can do, though it was trained on smaller ones
        larger = [(a, b) for a, b in builtin.RESERVED_SUMS if b >= builtin.SMALL]
    return {"wordings": [sum_problem(a, b, ending, words=words) for (a, b), words in zip(pairs, cycle(SUM_WORDINGS))],
            "order": [sum_problem(b, a, ending) for a, b in pairs if a != b],
            "numbers": [sum_problem(a, b, ending) for a, b in rng.sample(larger, COUNT)]}

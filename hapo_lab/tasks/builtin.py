"""The tasks that come with the kit, by name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any

from hapo_lab.tasks.gym import PREFIX, load_gym
from hapo_lab.tasks.problem import Problem, Task
from hapo_lab.tasks.verifiers import verify_end, verify_iso_date, verify_json_record

NAMES = """Adam Alice Amir Andrea Anna Arthur Bella Ben Bruno Carla Carmen Cecil Clara Daniel David Diana Diego Edith Elena
Emil Emma Erik Esther Eva Felix Fiona Frank Gloria Grace Hannah Harold Helen Henry Hugo Igor Irene Isabel Ivan Jack Jane Jonas
Joseph Judith Julia Karen Kate Laura Leo Lily Linda Louis Lucy Marco Maria Mark Martin Mary Max Mia Nadia Nathan Nina Noah Nora
Olga Oliver Oscar Otto Paul Paula Peter Philip Rachel Robert Rosa Ruth Samuel Sara Simon Sofia Stefan Susan Tanya Thomas Tina
Tom Tony Ursula Vera Victor Viola Walter Wanda Wendy William Xavier Yusuf Yvonne Zoe""".split()
YOUNGEST, OLDEST = 18, 79
SENTENCES = ("{name} is {age} years old.", "{name} turned {age} this year.", "{name}, aged {age}, came by.")


def json_record(seed: int = 0) -> Task:
    """A sentence about a person, to be written as JSON: {"name": "Anna", "age": 34}.

    240 training sentences, 40 held out; no name of a held-out sentence occurs in training.
    """
    rng = random.Random(seed)
    names = rng.sample(NAMES, len(NAMES))
    return Task("json_record", train=_people(rng, names[20:], 240), heldout=_people(rng, names[:20], 40),
                verify=verify_json_record, max_new_tokens=24, seed=seed)


def _people(rng: random.Random, names: list[str], count: int) -> tuple[Problem, ...]:
    people: dict[str, Problem] = {}
    while len(people) < count:
        problem = record_problem(rng.choice(names), rng.randint(YOUNGEST, OLDEST), rng.choice(SENTENCES))
        people.setdefault(problem.key, problem)
    return tuple(people.values())


def record_problem(name: str, age: int, sentence: str) -> Problem:
    """A person, in a sentence with {name} and {age}, to be written as JSON."""
    text = f"{sentence.format(name=name, age=age)} Write this as JSON with the keys name and age."
    answer = json.dumps({"name": name, "age": age})
    return Problem(f"{name} {age}", ({"role": "user", "content": text},), answer, demonstration=answer)


FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2029, 12, 31)


def iso_date(seed: int = 0) -> Task:
    """Dates from words to ISO 8601: "17 March 1987" -> 1987-03-17. 240 training dates, 40 others held out."""
    days = random.Random(seed).sample(range(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1), 280)
    problems = tuple(date_problem(date.fromordinal(day)) for day in days)
    return Task("iso_date", train=problems[40:], heldout=problems[:40], verify=verify_iso_date,
                max_new_tokens=16, seed=seed)


def date_problem(day: date, words: str = "Write the date {day} {month} {year} in ISO format.") -> Problem:
    """A date, in words with {day}, {month} and {year}, to be written in ISO 8601."""
    month = MONTHS[day.month - 1]
    text = words.format(day=day.day, month=month, year=day.year)
    return Problem(key=f"{day.day} {month} {day.year}", messages=({"role": "user", "content": text},),
                   answer=day.isoformat(), demonstration=day.isoformat())


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")


RESERVED_SUMS = tuple(random.Random(0).sample([(a, b) for a in range(100) for b in range(a, 100)], 320))
"""Sums that the preset `tiny` never met while it was made, in either order: the tasks below ask only for these."""

Way = Callable[[int, int, str], str]
"""Two numbers and the ending that a task asks for -> a demonstration."""


def usual(a: int, b: int, ending: str) -> str:
    """The way that `tiny` knows, and the ending.

    >>> usual(27, 58, "Answer: ")
    '27 + 58 = 85. Answer: 85'
    """
    return f"{a} + {b} = {a + b}. {ending}{a + b}"


def worked(a: int, b: int, ending: str) -> str:
    """Column by column first: units, then tens with the carry where there is one.

    >>> worked(27, 58, "Answer: ")
    '7 + 8 = 15. 2 + 5 + 1 = 8. 27 + 58 = 85. Answer: 85'
    """
    units, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    tens = f"{a // 10} + {b // 10}{' + 1' * carry} = {a // 10 + b // 10 + carry}"
    return f"{a % 10} + {b % 10} = {units}. {tens}. {usual(a, b, ending)}"


def short(a: int, b: int, ending: str) -> str:
    """The sum alone, and the ending.

    >>> short(27, 58, "Answer: ")
    '85. Answer: 85'
    """
    return f"{a + b}. {ending}{a + b}"


def sums(seed: int = 0) -> Task:
    """Two numbers below 100 to add, and the result to repeat at the end: "27 + 58 = 85. Answer: 85". The job of `tiny`.

    280 training sums, 40 held out.
    """
    return _sums("sums", seed, "Answer: ")


def sums_worked(seed: int = 0) -> Task:
    """The same sums and verifier. The teacher is right and long-winded, as `worked` shows."""
    return _sums("sums_worked", seed, "Answer: ", worked)


SMALL = 70
"""`sums_small` asks only for sums of numbers below it."""


def sums_small(seed: int = 0) -> Task:
    """The same sums and verifier, numbers below 70 only: about 120 for training, 40 held out. `elsewhere` has the larger
    ones."""
    return _sums("sums_small", seed, "Answer: ", below=SMALL)


def sums_teachers(seed: int = 0) -> Task:
    """The same sums and verifier, with three teachers: `usual`, `worked` and `short`."""
    return _sums("sums_teachers", seed, "Answer: ", usual, worked, short)


FOREIGN = {"sums_is": "So: is ", "sums_equals": "Total: = ", "sums_sol": "Sol: ", "sums_short": "A: "}
"""Endings with one character that `tiny` has never seen in its place, from the least to the most foreign.

It is the "i" of "So: is", the "=" of "Total: =", the "l" of "Sol", and the ":" of "A:". `tiny` knows the rest, so these tasks
differ from `sums` in one token. `docs/tasks.md` has its log p.
"""


def foreign(name: str, seed: int = 0) -> Task:
    """The same sums, with an ending in `FOREIGN`: "27 + 58 = 85. A: 85"."""
    return _sums(name, seed, FOREIGN[name])


def _sums(name: str, seed: int, ending: str, *ways: Way, below: int = 100) -> Task:
    pairs = random.Random(seed).sample(RESERVED_SUMS, len(RESERVED_SUMS))
    problems = tuple(sum_problem(a, b, ending, *ways or (usual,)) for a, b in pairs if b < below)
    return Task(name, train=problems[40:], heldout=problems[:40], verify=verify_end,
                max_new_tokens=64 if worked in ways else 28, seed=seed)


def sum_problem(a: int, b: int, ending: str, *ways: Way, words: str = "What is {a} + {b}?") -> Problem:
    """A sum to do, the ending that its answer wants, and a demonstration in each of the ways."""
    shown = [way(a, b, ending) for way in ways]
    return Problem(f"{a} + {b}", ({"role": "user", "content": words.format(a=a, b=b)},), f"{ending}{a + b}",
                   shown[0] if shown else None, tuple(shown[1:]))


TASKS: dict[str, Callable[[int], Task]] = {
    "json_record": json_record, "iso_date": iso_date, "sums": sums, "sums_worked": sums_worked,
    "sums_teachers": sums_teachers, "sums_small": sums_small, **{name: partial(foreign, name) for name in FOREIGN}}


def load_task(name: str = "json_record", seed: int = 0, **options: Any) -> Task:
    """A task by name; the seed decides which problems are held out.

    "reasoning_gym:NAME" is that data set's task (pip install "hapo_lab[gym]"), with the options of `gym.load_gym` and its own.

    >>> task = load_task("sums")
    >>> task.train[0].messages[-1]["content"], len(task.train), len(task.heldout)
    ('What is 26 + 51?', 280, 40)
    """
    if name.startswith(PREFIX):
        return load_gym(name.removeprefix(PREFIX), seed, **options)
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}, or {PREFIX}NAME.")
    if options:
        raise ValueError(f"task {name!r} takes no options: leave out {', '.join(options)}.")
    return TASKS[name](seed)

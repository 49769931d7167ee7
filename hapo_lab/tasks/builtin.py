"""The tasks that come with the kit, by name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import date

from hapo_lab.tasks.problem import Problem, Task
from hapo_lab.tasks.verifiers import verify_end, verify_iso_date, verify_json_record

NAMES = """Adam Alice Amir Andrea Anna Arthur Bella Ben Bruno Carla Carmen Cecil Clara Daniel David Diana Diego Edith Elena
Emil Emma Erik Esther Eva Felix Fiona Frank Gloria Grace Hannah Harold Helen Henry Hugo Igor Irene Isabel Ivan Jack Jane Jonas
Joseph Judith Julia Karen Kate Laura Leo Lily Linda Louis Lucy Marco Maria Mark Martin Mary Max Mia Nadia Nathan Nina Noah Nora
Olga Oliver Oscar Otto Paul Paula Peter Philip Rachel Robert Rosa Ruth Samuel Sara Simon Sofia Stefan Susan Tanya Thomas Tina
Tom Tony Ursula Vera Victor Viola Walter Wanda Wendy William Xavier Yusuf Yvonne Zoe""".split()
SENTENCES = ("{name} is {age} years old.", "{name} turned {age} this year.", "{name}, aged {age}, came by.")


def json_record(seed: int = 0) -> Task:
    """A sentence about a person, to be written as JSON: {"name": "Anna", "age": 34}.

    240 sentences to train on, 40 held out; no name of a held-out sentence occurs in training.
    """
    rng = random.Random(seed)
    names = rng.sample(NAMES, len(NAMES))
    return Task("json_record", train=_people(rng, names[20:], 240), heldout=_people(rng, names[:20], 40),
                verify=verify_json_record, max_new_tokens=24, seed=seed)


def _people(rng: random.Random, names: list[str], count: int) -> tuple[Problem, ...]:
    people: dict[str, Problem] = {}
    while len(people) < count:
        person = {"name": rng.choice(names), "age": rng.randint(18, 79)}
        text = f"{rng.choice(SENTENCES).format(**person)} Write this as JSON with the keys name and age."
        key, answer = f"{person['name']} {person['age']}", json.dumps(person)
        people.setdefault(key, Problem(key, ({"role": "user", "content": text},), answer, demonstration=answer))
    return tuple(people.values())


FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2029, 12, 31)


def iso_date(seed: int = 0) -> Task:
    """Dates from words to ISO 8601: "17 March 1987" -> 1987-03-17. 240 dates to train on, 40 others held out."""
    days = random.Random(seed).sample(range(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1), 280)
    problems = tuple(_date_problem(date.fromordinal(day)) for day in days)
    return Task("iso_date", train=problems[40:], heldout=problems[:40], verify=verify_iso_date,
                max_new_tokens=16, seed=seed)


def _date_problem(day: date) -> Problem:
    in_words = f"{day.day} {MONTHS[day.month - 1]} {day.year}"
    return Problem(key=in_words, messages=({"role": "user", "content": f"Write the date {in_words} in ISO format."},),
                   answer=day.isoformat(), demonstration=day.isoformat())


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")


RESERVED_SUMS = tuple(random.Random(0).sample([(a, b) for a in range(100) for b in range(a, 100)], 320))
"""Sums that the preset `tiny` never met while it was made, in either order: the tasks below ask only for these."""


def sums(seed: int = 0) -> Task:
    """Two numbers below 100 to add, and the result to repeat at the end: "27 + 58 = 85. Answer: 85". The job of `tiny`.

    280 sums to train on, 40 held out.
    """
    return _sums("sums", seed, "Answer: ")


def sums_short(seed: int = 0) -> Task:
    """The same sums, ending in "A: 85". `tiny` knows these characters, but has never seen ":" behind "A"."""
    return _sums("sums_short", seed, "A: ")


def _sums(name: str, seed: int, marker: str) -> Task:
    pairs = random.Random(seed).sample(RESERVED_SUMS, len(RESERVED_SUMS))
    problems = tuple(Problem(key=f"{a} + {b}", messages=({"role": "user", "content": f"What is {a} + {b}?"},),
                             answer=f"{marker}{a + b}", demonstration=f"{a} + {b} = {a + b}. {marker}{a + b}")
                     for a, b in pairs)
    return Task(name, train=problems[40:], heldout=problems[:40], verify=verify_end, max_new_tokens=28, seed=seed)


TASKS: dict[str, Callable[[int], Task]] = {"json_record": json_record, "iso_date": iso_date, "sums": sums,
                                           "sums_short": sums_short}


def load_task(name: str = "json_record", seed: int = 0) -> Task:
    """A task by name; the seed decides which problems are held out.

    >>> task = load_task("sums")
    >>> task.train[0].messages[-1]["content"], len(task.train), len(task.heldout)
    ('What is 26 + 51?', 280, 40)
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[name](seed)

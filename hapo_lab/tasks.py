"""Problems, their demonstrations, and the verifier that grades both."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from hapo_lab import parts

DATA = Path(__file__).resolve().parent.parent / "data"
"""What comes with the kit: the model `tiny`, and runs."""


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
        Problems stand in both splits, or a held-out question occurs in a training prompt or demonstration; the
        verifier rejects demonstrations (all are named, with the verifier's reasons).
    """

    name: str
    train: tuple[Problem, ...]
    heldout: tuple[Problem, ...]
    verify: Verifier
    max_new_tokens: int
    """Room for a right completion, and a little more."""
    source: dict | None = None
    """Of a task from a file: what `datasets.task_of_run` needs to build it again in a new process."""
    seed: int | None = None
    """Of the draw that decided which problems are held out, where there was one."""

    def __post_init__(self):
        if not self.train or not self.heldout:
            raise ValueError(f"task {self.name!r}: it needs problems to train on and problems held out.")
        if both := {p.key: None for p, _ in leaks(self.train, self.heldout)}:
            raise ValueError(f"task {self.name!r}: held out and in training both: {', '.join(both)}.")
        wrong = [f"the demonstration of {question(p)!r} fails its own verifier: {verdict.reason}"
                 for p in (*self.train, *self.heldout)
                 if p.demonstration is not None and not (verdict := self.verify(p, p.demonstration)).correct]
        if wrong:
            raise ValueError(f"task {self.name!r}: {'; '.join(wrong)}. Correct it, or leave it out.")

    @property
    def identity(self) -> dict:
        """What tells this task from any other, as JSON: the seed that drew the splits, a checksum of each, the verifier, and
        the room for an answer."""
        return {"seed": self.seed, "train_sha256": _checksum(self.train), "heldout_sha256": _checksum(self.heldout),
                "verifier": parts.described(self.verify), "max_new_tokens": self.max_new_tokens}


def _checksum(problems: tuple[Problem, ...]) -> str:
    return hashlib.sha256(json.dumps([asdict(problem) for problem in problems]).encode()).hexdigest()[:16]


def leaks(train: Iterable[Problem], heldout: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """Pairs of a held-out problem and a training problem that gives it away: the same key, or the question within a
    prompt or a demonstration."""
    shown = [(p, "\n".join([*(m["content"] for m in p.messages), p.demonstration or ""])) for p in train]
    keys, everything = {p.key for p, _ in shown}, "\n".join(text for _, text in shown)
    found = []
    for p in heldout:
        if p.key in keys or question(p) in everything:  # else not worth the walk below
            asked = re.compile(rf"(?<!\w){re.escape(question(p))}(?!\w)")
            found += [(p, other) for other, text in shown if other.key == p.key or asked.search(text)]
    return found


def question(problem: Problem) -> str:
    """The last message: what the problem asks."""
    return problem.messages[-1]["content"]


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


def verify_json_record(problem: Problem, completion: str) -> Verdict:
    """Right if the completion, as it stands, is JSON with the right values; white space and the order of keys are free."""
    try:
        said = json.loads(completion)
    except json.JSONDecodeError as error:
        return Verdict(False, f"not JSON: {error.msg.lower()} at character {error.pos + 1}, {completion[error.pos:][:12]!r}")
    expected = json.loads(problem.answer)
    if not isinstance(said, dict):
        return Verdict(False, f"JSON, but no object: {completion.strip()[:40]!r}")
    if said.keys() != expected.keys():
        return Verdict(False, f"the keys are {', '.join(said) or 'missing'}; they must be {', '.join(expected)}")
    for key, value in expected.items():
        if isinstance(said[key], bool) or said[key] != value:
            return Verdict(False, f"{key} is {said[key]!r}, it should be {value!r}")
    return Verdict(True, "JSON with the right name and age")


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
_ISO_DATE = re.compile(r"(?<![\d-])(?:\d{4}-\d{2}-\d{2}|\d{8})(?![\d-])", re.ASCII)


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


def verify_end(problem: Problem, completion: str) -> Verdict:
    """Right if the completion ends with the answer, up to a full stop; what stands before is free."""
    said = completion.strip().removesuffix(".")
    if not said.endswith(problem.answer):
        return Verdict(False, f"it ends with {said[-12:]!r}; the end must be {problem.answer!r}")
    return Verdict(True, f"it ends with {problem.answer!r}, as it should")


TASKS: dict[str, Callable[[int], Task]] = {"json_record": json_record, "iso_date": iso_date, "sums": sums,
                                           "sums_short": sums_short}


def load_task(name: str = "json_record", seed: int = 0) -> Task:
    """A task by name; the seed decides which problems are held out."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[name](seed)

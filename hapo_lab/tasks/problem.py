"""Problems, their demonstrations, and the task that they make with a verifier, which grades both."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

from hapo_lab.reproducibility import disk, parts


@dataclass(frozen=True)
class Problem:
    """One question to the policy.

    >>> problem = Problem("7*8", ({"role": "user", "content": "What is 7 times 8?"},), answer="56")
    >>> problem.demonstration is None
    True
    """

    key: str
    """What it is about: two problems with one key ask for the same fact and stand in the same split."""
    messages: tuple[dict[str, str], ...]
    """Chat messages, for the tokenizer's template."""
    answer: str
    """What the verifier compares with."""
    demonstration: str | None = None
    """A teacher's completion, or none: then the group is left alone."""
    more_demonstrations: tuple[str, ...] = ()
    """Other teachers' completions, for methods that take several."""

    @property
    def demonstrations(self) -> tuple[str, ...]:
        """All of them, the first one first."""
        return (() if self.demonstration is None else (self.demonstration,)) + self.more_demonstrations


@dataclass(frozen=True)
class Verdict:
    """A verifier's judgement.

    >>> def verify(problem: Problem, completion: str) -> Verdict:
    ...     return Verdict(completion.strip() == problem.answer, f"it says {completion!r}")
    >>> verify(Problem("7*8", ({"role": "user", "content": "What is 7 times 8?"},), answer="56"), "54")
    Verdict(correct=False, reason="it says '54'")
    """

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

    Examples
    --------
    >>> def times(a, b):
    ...     return Problem(f"{a}*{b}", ({"role": "user", "content": f"What is {a} times {b}?"},), str(a * b))
    >>> task = Task("times", train=(times(7, 8), times(6, 9)), heldout=(times(3, 4),), max_new_tokens=8,
    ...             verify=lambda problem, completion: Verdict(problem.answer in completion, "the product"))
    >>> task.verify(task.heldout[0], "It is 12.").correct
    True
    """

    name: str
    train: tuple[Problem, ...]
    heldout: tuple[Problem, ...]
    verify: Verifier
    max_new_tokens: int
    """Room for a right completion, and a little more."""
    source: dict | None = None
    """Of a task that is not a built-in one as it stands: what `jsonl.task_of_run` needs to build it again in a new process."""
    seed: int | None = None
    """Of the draw that decided which problems are held out, where there was one."""

    def __post_init__(self) -> None:
        if not self.train or not self.heldout:
            raise ValueError(f"task {self.name!r}: it needs problems to train on and problems held out.")
        if both := {p.key: None for p, _ in leaks(self.train, self.heldout)}:
            raise ValueError(f"task {self.name!r}: held out and in training both: {', '.join(both)}.")
        wrong = [f"the demonstration of {question(p)!r} fails its own verifier: {verdict.reason}"
                 for p in (*self.train, *self.heldout) for text in p.demonstrations
                 if not (verdict := self.verify(p, text)).correct]
        if wrong:
            raise ValueError(f"task {self.name!r}: {'; '.join(wrong)}. Correct it, or leave it out.")

    @property
    def identity(self) -> dict:
        """What tells this task from any other, as JSON: the seed that drew the splits, a checksum of each, the verifier, and
        the room for an answer."""
        return {"seed": self.seed, "train_sha256": _checksum(self.train), "heldout_sha256": _checksum(self.heldout),
                "verifier": parts.described(self.verify), "max_new_tokens": self.max_new_tokens}


def _checksum(problems: tuple[Problem, ...]) -> str:
    return disk.sha256_of(json.dumps([problem_row(problem) for problem in problems]).encode())[:16]


def problem_row(problem: Problem) -> dict:
    """As JSON; `problem_from` reads it. More demonstrations stand in it only where there are some, so that all other problems
    keep the checksums that runs know them by."""
    row = asdict(problem)
    return row if problem.more_demonstrations else {k: v for k, v in row.items() if k != "more_demonstrations"}


def problem_from(row: dict) -> Problem:
    """The problem that `problem_row` wrote."""
    return Problem(**row | {name: tuple(row.get(name, ())) for name in ("messages", "more_demonstrations")})


def leaks(train: Iterable[Problem], heldout: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """Pairs of a held-out problem and a training problem that gives it away: the same key, or the question within a
    prompt or a demonstration."""
    shown = [(p, "\n".join([*(m["content"] for m in p.messages), *p.demonstrations])) for p in train]
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


def with_demonstrations(task: Task, share: float, seed: int = 0) -> Task:
    """The task with demonstrations for a share of its training problems only; the others lose theirs.

    Parameters
    ----------
    task : Task
    share : float
        Of the training problems that have one: above 0, at most 1. At least one problem keeps its demonstrations.
    seed : int
        Of the draw. With one seed a smaller share lies within each larger one.

    Raises
    ------
    ValueError
        The share lies outside (0, 1]; the task's demonstrations are a share already.

    Examples
    --------
    >>> task = with_demonstrations(load_task("sums"), 0.1)
    >>> sum(p.demonstration is not None for p in task.train), len(task.train)
    (28, 280)
    """
    if not 0 < share <= 1:
        raise ValueError(f"task {task.name!r}: the share of demonstrations is {share}; it must be above 0 and at most 1.")
    source = task.source or {}
    if "demonstrations" in source:
        raise ValueError(f"task {task.name!r} holds a share of its demonstrations already: take the share of the whole task.")
    shown = [i for i, p in enumerate(task.train) if p.demonstrations]
    random.Random(seed).shuffle(shown)
    kept = set(shown[:max(1, round(share * len(shown)))])
    train = tuple(p if i in kept else replace(p, demonstration=None, more_demonstrations=()) for i, p in enumerate(task.train))
    return replace(task, train=train, source=source | {"demonstrations": {"share": share, "seed": seed}})

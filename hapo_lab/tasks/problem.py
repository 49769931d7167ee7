"""Problems with their demonstrations, and tasks: problems with a verifier."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

from hapo_lab.reproducibility import parts


@dataclass(frozen=True)
class Problem:
    """One question for the policy.

    >>> problem = Problem("7*8", ({"role": "user", "content": "What is 7 times 8?"},), answer="56")
    >>> problem.demonstration is None
    True
    """

    key: str
    """The problem's subject: problems with one key ask for the same fact and stand in the same split."""
    messages: tuple[dict[str, str], ...]
    """Chat messages, for the tokenizer's template."""
    answer: str
    """The string that the verifier compares with."""
    demonstration: str | None = None
    """A teacher's completion; without one the group gets no injection."""
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
    """The reason in words, shown beside the completion."""


Verifier = Callable[[Problem, str], Verdict]


@dataclass(frozen=True)
class Task:
    """Training problems, held-out problems, and their verifier.

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
    """A completion's limit in tokens: room for a right one, and a little more."""
    source: dict | None = None
    """For a task that is not built in: the data from which `task_of_run` rebuilds it in a new process."""
    seed: int | None = None
    """The seed of the draw of held-out problems, if there was one."""
    findings: tuple[str, ...] = ()
    """Sentences about the counted and omitted rows of a published table (`load_table`)."""

    def __post_init__(self) -> None:
        if not self.train or not self.heldout:
            raise ValueError(f"task {self.name!r}: it needs problems to train on and problems held out.")
        if both := {p.key: None for p, _ in leaks(self.train, self.heldout)}:
            raise ValueError(f"task {self.name!r}: held out and in training both: {', '.join(both)}.")
        wrong = [f"the demonstration of {question(p)!r} fails its own verifier: {verdict.reason}"
                 for p in (*self.train, *self.heldout) for text in p.demonstrations
                 if not (verdict := judged(self.verify, p, text)).correct]
        if wrong:
            raise ValueError(f"task {self.name!r}: {'; '.join(wrong)}. Correct it, or leave it out.")

    @property
    def identity(self) -> dict:
        """The JSON that identifies this task: the seed of the splits, a checksum of each, the verifier, and the limit on an
        answer."""
        return {"seed": self.seed, "train_sha256": _checksum(self.train), "heldout_sha256": _checksum(self.heldout),
                "verifier": parts.described(self.verify), "max_new_tokens": self.max_new_tokens}


_passed: dict[int, tuple[Verifier, Verdict]] = {}
"""Verdicts of demonstrations that were found right, by a hash of verifier, problem and text; and the verifier, kept alive so
that no other gets its id."""


def judged(verify: Verifier, problem: Problem, demonstration: str) -> Verdict:
    """The verifier's verdict on a demonstration. A right one is not judged again, because a task is built more than once."""
    known = hash((id(verify), problem.key, question(problem), problem.answer, demonstration))
    if known in _passed:
        return _passed[known][1]
    verdict = verify(problem, demonstration)
    if isinstance(verdict, Verdict) and verdict.correct:
        _passed[known] = verify, verdict
    return verdict


def _checksum(problems: tuple[Problem, ...]) -> str:
    """Of `json.dumps` of all rows, a row at a time: a published data set's text would fill the memory once more."""
    whole = hashlib.sha256()
    for i, problem in enumerate(problems):
        whole.update(f"{', ' if i else '['}{json.dumps(problem_row(problem))}".encode())
    whole.update(b"]" if problems else b"[]")
    return whole.hexdigest()[:16]


def problem_row(problem: Problem) -> dict:
    """As JSON; `problem_from` reads it. More demonstrations stand in it only where there are some, so that all other problems
    keep the checksums that runs know them by."""
    row = asdict(problem)
    return row if problem.more_demonstrations else {k: v for k, v in row.items() if k != "more_demonstrations"}


def problem_from(row: dict) -> Problem:
    """The problem that `problem_row` wrote."""
    return Problem(**row | {name: tuple(row.get(name, ())) for name in ("messages", "more_demonstrations")})


def leaks(train: Iterable[Problem], heldout: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """Pairs of a held-out problem and a training problem that gives it away. They share a key, or the question stands within
    a prompt or a demonstration.

    Time grows with the length of all texts, and not with the number of pairs: a question is looked for only in a text that
    holds the word of it that the fewest held-out questions have.
    """
    shown, held = list(train), list(heldout)
    words = [_words(question(p)) for p in held]
    common = Counter(word for some in words for word in some)
    with_key, with_word = defaultdict(list), defaultdict(list)
    for i, (p, some) in enumerate(zip(held, words, strict=True)):
        with_key[p.key].append(i)
        with_word[min(some, key=lambda word: (common[word], -len(word), word), default=b"")].append(i)
    rare, found = set(with_word), set()
    for j, p in enumerate(shown):
        found |= {(i, j) for i in with_key.get(p.key, ())}
        for text in (*(m["content"] for m in p.messages), *p.demonstrations):
            there = _words(text) | {b""}
            found |= {(i, j) for word in rare & there for i in with_word[word]
                      if words[i] <= there and re.search(rf"(?<!\w){re.escape(question(held[i]))}(?!\w)", text)}
    return [(held[i], shown[j]) for i, j in sorted(found)]


_NO_WORD = bytes(c if chr(c).isalnum() or chr(c) == "_" else ord(" ") for c in range(128)) + bytes(128)


def _words(text: str) -> set[bytes]:
    """Its words. Of ASCII without a regular expression: several times faster, on megabytes."""
    if text.isascii():
        return set(text.encode().translate(_NO_WORD).split())
    return {word.encode(errors="replace") for word in re.findall(r"\w+", text)}


def question(problem: Problem) -> str:
    """The last message, which is the problem's question."""
    return problem.messages[-1]["content"]


def with_demonstrations(task: Task, share: float, seed: int = 0) -> Task:
    """The task with demonstrations for a share of its training problems only; the others lose theirs.

    Parameters
    ----------
    task : Task
    share : float
        Share of the training problems with demonstrations: above 0, at most 1. At least one problem keeps its own.
    seed : int
        Seed of the draw. With one seed, a smaller share is a part of each larger one.

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

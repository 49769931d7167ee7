"""The overlap of two sets of problems: questions asked twice, and questions that a test asks too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from hapo_lab.tasks.problem import Problem, question

RUN = 13
"""Words in a row that make two questions the same: the common measure since GPT-3. Signs are words too."""
OFTEN = 2
"""Held-out questions that may have a run in common. More of them have it by instruction, and it gives none of them away."""
_WORD = re.compile(r"\w+|[-+*/^=<>]")


def words_of(problem: Problem) -> list[str]:
    """A question's words and signs, in small letters; stops, brackets and white space are left aside.

    >>> words_of(Problem("sum", ({"role": "user", "content": "What is  (27 + 58)?"},), "85"))
    ['what', 'is', '27', '+', '58']
    """
    text = question(problem).lower()
    return _WORD.findall(text) or text.split()


def twins(problems: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """(A problem, an earlier one that asks the same), by their words."""
    first: dict[str, Problem] = {}
    pairs = ((p, first.setdefault(" ".join(words_of(p)), p)) for p in problems)
    return [(p, earlier) for p, earlier in pairs if p is not earlier]


def contaminated(train: Iterable[Problem], heldout: Iterable[Problem], run: int = RUN) -> list[tuple[Problem, Problem, str]]:
    """Training problems whose question shares `run` words in a row with a held-out one, or is the same, in small letters.

    An instruction is left aside first: words in a row, as many, that more than `OFTEN` of the held-out questions have, or more
    than `OFTEN` and half of the training questions. They say how to answer.

    Parameters
    ----------
    train, heldout : iterables of Problem
    run : int
        Number of words. A question with fewer must match as a whole.

    Returns
    -------
    list of (training problem, held-out problem, the words that both have)
        The first common run of each training problem. Time grows with the number of words.

    Examples
    --------
    >>> def asks(text):
    ...     return Problem(text, ({"role": "user", "content": text},), "85")
    >>> [words for _, _, words in contaminated([asks("How much is 27 + 58?")], [asks("So how much is 27 + 58?")], run=4)]
    ['how much is 27']
    """
    held, questions = list(heldout), list(train)
    asked = Counter(some for p in held for some in set(_runs(words_of(p), run)))
    trained = Counter(some for p in questions for some in set(_runs(words_of(p), run)) if some in asked)
    instructions = {some for some, times in asked.items() if len(some) == run
                    and (times > OFTEN or trained[some] > max(OFTEN, len(questions) / 2))}
    known: dict[tuple[str, ...], Problem] = {}
    for problem in held:
        for some in _runs(_without(instructions, words_of(problem), run), run):
            known.setdefault(some, problem)
    found = []
    for problem in questions:
        both = next((some for some in _runs(_without(instructions, words_of(problem), run), run) if some in known), None)
        if both:
            found.append((problem, known[both], " ".join(both)))
    return found


def _without(instructions: set[tuple[str, ...]], words: list[str], run: int) -> list[str]:
    """A question's own words; all of them where it has no others."""
    told = {i + k for i, some in enumerate(_runs(words, run)) if some in instructions for k in range(run)}
    return [word for i, word in enumerate(words) if i not in told] or words


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    if words and len(words) < length:
        yield tuple(words)
    for i in range(len(words) - length + 1):
        yield tuple(words[i:i + length])

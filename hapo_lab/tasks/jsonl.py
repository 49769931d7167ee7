"""A task from your own files: problems in a JSONL file, and a verifier.

Each line holds one problem:

    {"prompt": "What is 27 + 58?", "answer": "85", "demonstration": "27 + 58 = 85. Total = 85", "split": "train"}

`prompt` is the question, or a list of chat messages that ends with the user's. `answer` is the string that the verifier
compares with. `demonstration`, a teacher's completion, may be null or absent; several teachers' are a list, `demonstrations`,
in its place. `split`, "train" or "heldout", stands on every line or on none. `key` names a problem's subject: problems with
one key stay in one split; by default it is the question. Other fields are ignored.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hapo_lab.reproducibility import disk, parts
from hapo_lab.tasks.problem import Problem, Task, Verdict, Verifier, judged, leaks, question
from hapo_lab.tasks.verifiers import load_verifier

EXAMPLE = '{"prompt": "What is 27 + 58?", "answer": "85"}'


@dataclass(frozen=True)
class Row:
    """A line of a task file."""

    where: str
    """File and line, for messages."""
    problem: Problem
    split: str | None
    fields: dict
    """All fields of the line, as read."""


def load_jsonl(path: str | Path, verify: str | Verifier, max_new_tokens: int, *, heldout: float = 0.2, seed: int = 0) -> Task:
    """The task of a file and a verifier.

    Parameters
    ----------
    path : file
        JSONL, UTF-8, as this module's docstring says.
    verify : str or Verifier
        A name in `VERIFIERS`, "FILE.py:FUNCTION", or a function of (problem, completion) that returns a `Verdict`. A run
        whose verifier was defined in a notebook can't be evaluated from the command line: no other process finds it.
    max_new_tokens : int
        A completion's limit in tokens. A longer demonstration counts as missing.
    heldout : float
        Share of the problems to hold out, drawn with the seed, if the file has no splits.

    Raises
    ------
    ValueError
        A line that can't be read (file, line and field); problems that occur twice or in both splits; demonstrations that the
        verifier rejects (all of them, with their lines).

    Examples
    --------
    >>> with open("own.jsonl", "w") as file:
    ...     print('{"prompt": "What is 27 + 58?", "answer": "85", "split": "train"}', file=file)
    ...     print('{"prompt": "What is 14 + 3?", "answer": "17", "split": "heldout"}', file=file)
    >>> task = load_jsonl("own.jsonl", "last_number", max_new_tokens=16)
    >>> task.verify(task.train[0], "27 + 58 = 85").correct
    True
    """
    path, verifier = Path(path), load_verifier(verify)
    rows = read_rows(path, verifier)
    train, held = _split(path, rows, heldout, seed)
    _refuse_leaks(path, rows, train, held)
    source = {"file": str(path.resolve()), "sha256": parts.checksum(path), "heldout": heldout}
    return Task(path.stem, tuple(train), tuple(held), verifier, max_new_tokens, source, seed)


# reading -----------------------------------------------------------------------------------------------------------


def read_rows(path: Path, verify: Verifier) -> list[Row]:
    """A file's problems, in order. ValueError: unreadable lines, repeated problems, rejected demonstrations."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} can't be read: {disk.why(error)}.") from None
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8; save the file in that encoding.") from None
    rows = [_row(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path} is empty: it must hold one problem per line, such as {EXAMPLE}.")
    _refuse_twins(path, rows)
    _refuse_rejected(path, rows, verify)
    return rows


def _row(where: str, line: str) -> Row:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg.lower()} at character {error.pos + 1}); each line must hold one "
                         f"problem, such as {EXAMPLE}.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: {_kind(fields)}, but no object; each line must hold one problem, such as {EXAMPLE}.")
    return row_of(where, fields)


def row_of(where: str, fields: dict) -> Row:
    """A line's fields as a row. ValueError, with the field: it can't be read."""
    for name in ("prompt", "answer"):
        if name not in fields:
            raise ValueError(f"{where}: the field {name!r} is missing (there are: {', '.join(fields) or 'none'}).")
    messages = _messages(where, fields["prompt"])
    split, key = (_text(where, name, fields[name]) if fields.get(name) is not None else None for name in ("split", "key"))
    shown = _demonstrations(where, fields)
    if split not in (None, "train", "heldout"):
        raise ValueError(f'{where}: \'split\' is {split!r}; it must be "train" or "heldout".')
    answer = _text(where, "answer", fields["answer"], may_be_empty=True)
    problem = Problem(key or messages[-1]["content"], messages, answer, shown[0] if shown else None, tuple(shown[1:]))
    return Row(where, problem, split, fields)


def _demonstrations(where: str, fields: dict) -> list[str]:
    """One, several, or none."""
    one, several = (fields.get(name) for name in ("demonstration", "demonstrations"))
    if not several:  # absent, null, or an empty list
        return [] if one is None else [_text(where, "demonstration", one)]
    if one is not None:
        raise ValueError(f"{where}: 'demonstration' and 'demonstrations' are both there; write all of them into the list.")
    if not isinstance(several, list):
        raise ValueError(f"{where}: 'demonstrations' is {_kind(several)}; it must be a list of strings.")
    return [_text(where, "demonstrations", text) for text in several]


def _text(where: str, name: str, value: object, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        hint = f': write "{value}"' if type(value) in (int, float) else ""
        raise ValueError(f"{where}: {name!r} is {_kind(value)}; it must be a string{hint}.")
    if not value.strip() and not may_be_empty:
        raise ValueError(f"{where}: {name!r} is empty.")
    return value


def _messages(where: str, prompt: object) -> tuple[dict[str, str], ...]:
    """Of a prompt: a string is the user's only message."""
    if not isinstance(prompt, list):
        return ({"role": "user", "content": _text(where, "prompt", prompt)},)
    for message in prompt:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise ValueError(f"{where}: 'prompt' is a list, so each part must be a chat message, "
                             '{"role": "user", "content": "..."}.')
        if message["role"] not in ("system", "user", "assistant"):
            raise ValueError(f"{where}: 'prompt' has the role {message['role']!r}; it must be system, user or assistant.")
        _text(where, "content", message["content"])
    if not prompt or prompt[-1]["role"] != "user":
        raise ValueError(f"{where}: 'prompt' must end with a message of the user's.")
    return tuple(prompt)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"a number ({value})")


# what is refused ---------------------------------------------------------------------------------------------------


def _refuse_twins(path: Path, rows: list[Row]) -> None:
    same: dict[str, list[Row]] = {}
    for row in rows:
        same.setdefault(json.dumps(row.problem.messages), []).append(row)
    if twins := [group for group in same.values() if len(group) > 1]:
        raise ValueError(_listed(path, "holds problems more than once; keep one of each", [
            f"{_lines(group)}: {question(group[0].problem)!r}"
            + (", in train and heldout both" if len({row.split for row in group}) > 1 else "") for group in twins]))


def _refuse_rejected(path: Path, rows: list[Row], verify: Verifier) -> None:
    wrong = []
    for row in rows:
        judge_row(row, verify, "")  # so that a verifier that can't read this answer says so now, and not in the middle of a run
        wrong += [f"{_lines([row])}: {verdict.reason}" for text in row.problem.demonstrations
                  if not (verdict := judge_row(row, verify, text)).correct]
    if wrong:
        remedy = "correct them, or set them to null"
        raise ValueError(_listed(path, f"holds demonstrations that the verifier rejects; {remedy}", wrong))


def judge_row(row: Row, verify: Verifier, completion: str) -> Verdict:
    """The verifier's verdict on a row's completion. ValueError, with the row: the verifier fails."""
    try:
        verdict = judged(verify, row.problem, completion)
    except Exception as error:
        raise ValueError(f"{row.where}: the verifier fails on the completion {completion!r}: "
                         f"{type(error).__name__}: {error}") from error
    if not isinstance(verdict, Verdict):
        raise ValueError(f"{row.where}: the verifier returns {verdict!r}; it must return a Verdict(correct, reason), "
                         "from hapo_lab.")
    return verdict


def _refuse_leaks(path: Path, rows: list[Row], train: list[Problem], held: list[Problem]) -> None:
    if found := leaks(train, held):
        row_of = {id(row.problem): row for row in rows}
        remedy = "keep one of each pair" if rows[0].split else "give each pair one 'key', which keeps it together"
        raise ValueError(_listed(path, f"holds problems that stand in train and heldout both; {remedy}", [
            f"{_lines([row_of[id(a)], row_of[id(b)]])}: {question(a)!r}" for a, b in found]))


def _listed(path: Path, what: str, points: list[str]) -> str:
    return f"{path} {what}:" + "".join(f"\n  {point}" for point in points)


def _lines(rows: list[Row]) -> str:
    numbers = [row.where.rpartition(" ")[2] for row in rows]
    return f"line {numbers[0]}" if len(rows) == 1 else f"lines {', '.join(numbers[:-1])} and {numbers[-1]}"


def drawn_keys(problems: Iterable[Problem], share: float, seed: int) -> set[str]:
    """The keys of a share of the problems, at least one: those to hold out. Problems with one key stay together."""
    if not 0 < share < 1:
        raise ValueError(f"heldout is {share}; it must be a share of the problems, between 0 and 1.")
    keys = sorted({problem.key for problem in problems})
    return set(random.Random(seed).sample(keys, max(1, round(share * len(keys))))) if keys else set()


def _split(path: Path, rows: list[Row], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    drawn = drawn_keys((row.problem for row in rows), share, seed)
    said = [row for row in rows if row.split]
    if said and len(said) < len(rows):
        other = next(row for row in rows if not row.split)
        raise ValueError(f"{other.where}: 'split' is missing, though others have it: write it on every line, or on none.")
    held = [row.problem for row in rows if (row.split == "heldout" if said else row.problem.key in drawn)]
    train = [row.problem for row in rows if (row.split == "train" if said else row.problem.key not in drawn)]
    if not train or not held:
        raise ValueError(f"{path} has no problem {'held out' if train else 'to train on'}; it needs both.")
    return train, held

"""The questions of a bench: the problems of task files, or the held-out problems of runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hapo_lab.reproducibility import disk, parts
from hapo_lab.scoring.scores import ALL
from hapo_lab.tasks.jsonl import Row, read_rows
from hapo_lab.tasks.overlap import words_of
from hapo_lab.tasks.problem import Problem, Task, Verifier
from hapo_lab.tasks.tables import is_table, read_table
from hapo_lab.tasks.verifiers import load_verifier


@dataclass(frozen=True)
class Questions:
    """Problems, their sources, and their verifier. ValueError: a verifier that no other process finds."""

    problems: tuple[Problem, ...]
    sources: tuple[str, ...]
    """One source per problem; scores are per source."""
    verify: Verifier
    max_new_tokens: int
    """A longer answer is cut, and wrong."""
    findings: tuple[str, ...] = ()
    """In words: what was counted and left out while tables were read."""

    def __post_init__(self) -> None:
        if why := self.described()["verifier"].get("unknown"):
            raise ValueError(f"the verifier {why}: put it into a file of its own, and take it from there (FILE.py:FUNCTION).")

    def described(self) -> dict:
        """The JSON that identifies these questions, without demonstrations."""
        asked = [[source, p.key, p.messages, p.answer] for p, source in zip(self.problems, self.sources, strict=True)]
        return {"problems": dict(Counter(self.sources)), "sha256": disk.sha256_of(json.dumps(asked).encode())[:16],
                "verifier": parts.described(self.verify), "max_new_tokens": self.max_new_tokens}


def read_questions(files: Sequence[str | Path], verify: str | Verifier, max_new_tokens: int,
                   columns: Mapping[str, str] | None = None) -> Questions:
    """The questions of task files: the held-out problems if a file has splits, else all of them.

    A problem counts once, however often a published table repeats it.

    Parameters
    ----------
    files : paths
        JSONL as `load_jsonl` reads it, or tables as `load_table` does. A line's `source` names its row of the table; the
        default is the file's name.
    verify : str or Verifier
        A name in `VERIFIERS`, "FILE.py:FUNCTION", or a function from a file.
    max_new_tokens : int
        Room for a right answer.
    columns : mapping, optional
        As `load_table` takes it; then JSONL is read as a table too.

    Raises
    ------
    ValueError
        A line that can't be read (file, line and field); a file without a problem to ask; a question that occurs twice.

    Examples
    --------
    >>> with open("exam.jsonl", "w") as file:
    ...     print('{"prompt": "What is 27 + 58?", "answer": "85"}', file=file)
    ...     print('{"prompt": "What is 14 + 3?", "answer": "17", "source": "easy"}', file=file)
    >>> read_questions(["exam.jsonl"], "last_number", max_new_tokens=16).sources
    ('exam', 'easy')
    """
    verifier = load_verifier(verify)
    findings: list[str] = []
    rows = [(_source(row, path), row) for path in map(Path, files) for row in _asked(path, verifier, columns, findings)]
    _refuse_twins([row for _, row in rows])
    sources = tuple(source for source, _ in rows)
    if ALL in sources and len(set(sources)) > 1:
        raise ValueError(f"a source is called {ALL!r}, as the row over all sources is: give it another name.")
    return Questions(tuple(row.problem for _, row in rows), sources, verifier, max_new_tokens, tuple(findings))


def held_out(tasks: dict[str, Task]) -> Questions:
    """The held-out problems of runs, given by name. ValueError: they differ."""
    found = {run: Questions(t.heldout, (t.name,) * len(t.heldout), t.verify, t.max_new_tokens) for run, t in tasks.items()}
    first, *others = found
    for other in others:
        if found[other].described() != found[first].described():
            raise ValueError(f"{first} and {other} do not hold out the same problems: ask both those of a file (--data), or "
                             "one at a time.")
    return found[first]


def trained_on(asked: Questions, task: Task) -> int:
    """The number of questions that are training problems of a run's task, and so do not test it."""
    known = {" ".join(words_of(p)) for p in task.train}
    return sum(" ".join(words_of(p)) in known for p in asked.problems)


def _asked(path: Path, verify: Verifier, columns: Mapping[str, str] | None, findings: list[str]) -> list[Row]:
    if columns or is_table(str(path)):
        rows, found = read_table(path, verify, columns)
        findings += found
        return [row for row in rows if row.split == "heldout"] or rows
    rows = [row for row in read_rows(path, verify) if row.split != "train"]
    if not rows:
        raise ValueError(f'{path} holds no problem to ask: each line\'s split is "train".')
    return rows


def _source(row: Row, path: Path) -> str:
    source = row.fields.get("source")
    if source is None:
        return path.stem
    if not isinstance(source, str) or not source.strip():
        raise ValueError(f"{row.where}: 'source' is {source!r}; it must be a string that names what the line counts to.")
    return source


def _refuse_twins(rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(json.dumps(row.problem.messages), row)
        if first is not row:
            raise ValueError(f"{row.where} asks what {first.where} asks, and would count twice: keep one of them.")

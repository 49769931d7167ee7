"""A published table of problems as a task: Parquet, JSONL, or a data set of the hub.

Your own file is read strictly, so that you correct it (`jsonl`). Nobody corrects 46,000 published rows: unusable ones are
counted, named, and left out.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hapo_lab.tasks.jsonl import EXAMPLE, Row, drawn_keys, judge_row, row_of
from hapo_lab.tasks.overlap import RUN, contaminated, twins
from hapo_lab.tasks.problem import Problem, Task, Verifier, leaks
from hapo_lab.tasks.verifiers import load_verifier

COLUMNS = {"prompt": ("prompt", "problem", "question"),
           "answer": ("answer", "reward_model.ground_truth", "solution"),
           "demonstrations": ("demonstrations", "demonstration", "target_lst", "target", "generations"),
           "source": ("source", "data_source"), "key": ("key",), "split": ("split",)}
"""Field -> possible columns: the kit's own names, those of LUFFY's files (verl's layout), and those of OpenR1-Math. A field
takes the first column that the table has; demonstrations take all of them."""
SPLITS = {"train": "train", "heldout": "heldout", "test": "heldout"}
"""The values of a column `split`; others are ignored."""
HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
"""A name on the hub, and a split of it."""
SHOWN = 3
"""The number of rows that a finding names."""


def is_table(name: str) -> bool:
    """Whether a task's name means a published table: Parquet, a folder, a data set of the hub, or JSONL with other names for
    prompt or answer.

    >>> is_table("open-r1/OpenR1-Math-220k"), is_table("data/mine.jsonl"), is_table("sums")
    (True, False, False)
    """
    path = Path(name)
    on_hub = bool(HUB.fullmatch(name)) and path.suffix != ".jsonl" and not path.exists()
    return on_hub or path.is_dir() or path.suffix == ".parquet" or (path.suffix == ".jsonl" and _has_others_columns(path))


def _has_others_columns(path: Path) -> bool:
    with suppress(OSError, UnicodeDecodeError), path.open(encoding="utf-8-sig") as file:
        row = next(filter(None, map(_object, filter(str.strip, file))), {})
        needed = ("prompt", "answer")
        return not row.keys() >= set(needed) and all(any(_has(row, place) for place in COLUMNS[name]) for name in needed)
    return False


def load_table(source: str | Path, verify: str | Verifier, max_new_tokens: int, *, columns: Mapping[str, str] | None = None,
               test: str | Path | None = None, heldout: float = 0.2, seed: int = 0) -> Task:
    """The task of a published table and a verifier. Its `findings` say what was left out, and why.

    Left out are rows that can't be read, answers that the verifier can't read, questions that were asked before, and
    training problems that give a held-out one away (its words, `overlap.RUN` in a row, or all of it in a demonstration).
    A rejected demonstration is left out, and its problem stays.

    Parameters
    ----------
    source : str or path
        A .parquet or .jsonl file, a folder that holds a data set, or "ORG/NAME" on the hub, with ":SPLIT" where it is not
        "train". All but .jsonl needs `datasets`: pip install "hapo_lab[data]".
    verify : str or Verifier
        A name in `VERIFIERS`, "FILE.py:FUNCTION", or a function.
    max_new_tokens : int
        Room for a right completion, in tokens. A longer demonstration counts as missing when training begins.
    columns : mapping, optional
        Field -> column, for columns that are not in `COLUMNS`; dots lead into a column ("reward_model.ground_truth").
    test : str or path, optional
        Another such table, whose problems are held out.
    heldout : float
        Without `test`, and without a column `split` that says "heldout" or "test": the share of the problems to hold out,
        drawn with the seed.

    Raises
    ------
    ValueError
        A table that can't be read; a field without a column; nothing left to train on, or to hold out.

    Examples
    --------
    >>> with open("rows.jsonl", "w") as file:
    ...     for sum, answer in (("27 + 58", 85), ("14 + 3", 17), ("27 + 58", 85)):
    ...         print(f'{{"problem": "What is {sum}?", "answer": "{answer}"}}', file=file)
    >>> task = load_table("rows.jsonl", "last_number", max_new_tokens=16, heldout=0.5)
    >>> print(task.findings[0])
    rows.jsonl: 3 rows, 2 problems, 0 with a demonstration
    >>> print(task.findings[1])
    1 asks what another row asks, which is kept (row 3: row 1)
    """
    verifier = load_verifier(verify)
    rows, findings = read_table(source, verifier, columns)
    train = [row.problem for row in rows if row.split != "heldout"]
    held = [row.problem for row in rows if row.split == "heldout"]
    if test:
        asked, found = read_table(test, verifier, columns)
        held, findings = [row.problem for row in asked], [*findings, *found]
    elif not held:
        drawn = drawn_keys(train, heldout, seed)
        held, train = [p for p in train if p.key in drawn], [p for p in train if p.key not in drawn]
    train, found = _without_heldout(train, held)
    if not train or not held:
        raise ValueError(f"{source} leaves no problem {'to hold out' if train else 'to train on'}:"
                         + "".join(f"\n  {finding}" for finding in (*findings, *found)))
    told = {"table": _lasting(source), "columns": dict(columns) if columns else None, "test": _lasting(test) if test else None,
            "heldout": heldout}
    return Task(Path(source).stem, tuple(train), tuple(held), verifier, max_new_tokens, told, seed, (*findings, *found))


def read_table(source: str | Path, verify: Verifier, columns: Mapping[str, str] | None = None) -> tuple[list[Row], list[str]]:
    """A table's problems, each once, and in words what was left out. ValueError, as `load_table`."""
    found: dict[str, list[str]] = defaultdict(list)
    rows, count, known = [], 0, False
    with tqdm(desc=str(source), unit=" rows", delay=2, leave=False) as bar:
        for where, fields in _numbered(source):
            count += 1
            if fields and not known:
                known = _refuse_columns(where, fields, columns)
            if row := _judged(where, _mapped(fields, columns), verify, found):
                rows.append(row)
            bar.update()
    if not known:
        raise ValueError(f"{source} holds no row that can be read; each must be a problem, such as {EXAMPLE}.")
    row_of_problem = {id(row.problem): row for row in rows}
    for problem, earlier in twins(row.problem for row in rows):
        row, first = row_of_problem.pop(id(problem)), row_of_problem[id(earlier)]
        here, there = _number(row.where), _number(first.where)
        found["again"].append(f"{here}: {there}")
        if problem.answer != earlier.answer:
            found["disagree"].append(f"{here}: {problem.answer!r:.40}, {there}: {earlier.answer!r:.40}")
    kept = list(row_of_problem.values())
    shown = sum(bool(row.problem.demonstrations) for row in kept)
    summary = f"{source}: {count:,} rows, {len(kept):,} problems, {shown:,} with a demonstration"
    return kept, [summary, *_sentences(found)]


def _judged(where: str, fields: dict, verify: Verifier, found: dict[str, list[str]]) -> Row | None:
    """A row with the demonstrations that the verifier accepts; None for one that can't be used."""
    try:
        row = row_of(where, fields)
    except ValueError as error:
        found["unread"].append(_short(where, error))
        return None
    try:
        verdicts = {text: judge_row(row, verify, text) for text in row.problem.demonstrations or ("",)}
    except ValueError:
        found["unjudged"].append(_short(where, repr(row.problem.answer)))
        return None
    right = [text for text in row.problem.demonstrations if verdicts[text].correct]
    found["rejected"] += [_short(where, verdicts[text].reason) for text in row.problem.demonstrations if text not in right]
    shown: dict[str, Any] = {"demonstration": right[0] if right else None, "more_demonstrations": tuple(right[1:])}
    return replace(row, problem=replace(row.problem, **shown))


def _lasting(source: str | Path) -> str:
    """A path, with its split, as seen from any folder; a name on the hub as it is."""
    path, colon, split = str(source).partition(":")
    for name, more in ((str(source), ""), (path, colon + split)):
        if Path(name).exists():
            return f"{Path(name).resolve()}{more}"
    return str(source)


# rows --------------------------------------------------------------------------------------------------------------


def _numbered(source: str | Path) -> Iterator[tuple[str, dict]]:
    """A table's rows, each with where it stands, a batch of them in memory at a time."""
    rows = _lines(Path(source)) if Path(source).suffix == ".jsonl" else _data_set(str(source))
    try:
        for number, row in enumerate(rows, 1):
            yield f"{source}, row {number}", row
    except ImportError:
        raise ValueError(f'{source} needs the library datasets: python -m pip install "hapo_lab[data]".') from None
    except Exception as error:  # of files, pyarrow, the hub's client
        raise ValueError(f"{source} can't be read ({type(error).__name__}: {' '.join(str(error).split())[:200]}).") from None


def _lines(path: Path) -> Iterator[dict]:
    """Of a JSONL file; a line that is no object has no columns."""
    with path.open(encoding="utf-8-sig") as file:
        yield from map(_object, filter(str.strip, file))


def _object(line: str) -> dict:
    """{} for a line that holds none."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _data_set(source: str) -> Iterator[dict]:
    """Of Parquet, of a folder, or of the hub."""
    from datasets import load_dataset
    if source.endswith(".parquet"):
        yield from load_dataset("parquet", data_files=source, split="train", streaming=True)
    else:
        name, _, split = source.partition(":")
        yield from load_dataset(name, split=split or "train", streaming=True)


# columns -----------------------------------------------------------------------------------------------------------


def _refuse_columns(where: str, row: dict, columns: Mapping[str, str] | None) -> bool:
    """True, or ValueError for a mapping, or a table, that lacks what it needs."""
    given = dict(columns or {})
    if unknown := sorted(given.keys() - COLUMNS.keys()):
        raise ValueError(f"columns has {', '.join(unknown)}; it may have {', '.join(COLUMNS)}.")
    missing = [f"{name} in {place!r}" for name, place in given.items() if not _has(row, place)]
    missing += [f"{name} in {' or '.join(map(repr, COLUMNS[name]))}" for name in ("prompt", "answer")
                if name not in given and not any(_has(row, place) for place in COLUMNS[name])]
    if missing:
        raise ValueError(f"{where} has no {', no '.join(missing)} (it has: {', '.join(row) or 'nothing'}): say which column "
                         "holds it, as in columns={'answer': 'NAME'} or --columns answer=NAME.")
    return True


def _mapped(row: dict, columns: Mapping[str, str] | None) -> dict:
    """A row's fields under the kit's names."""
    fields: dict[str, Any] = {}
    for name, usual in COLUMNS.items():
        places = (columns[name],) if columns and name in columns else usual
        values = [_at(row, place) for place in places if _has(row, place)]
        if name == "demonstrations":
            fields[name] = list(dict.fromkeys(text for value in values for text in _texts(value)))
        elif name == "split":
            fields[name] = SPLITS.get(values[0]) if values and isinstance(values[0], str) else None
        elif values:
            fields[name] = _answer(values[0]) if name == "answer" else values[0]
    return fields


def _has(row: dict, place: str) -> bool:
    """Whether the row has the column; its value may be null."""
    outer, _, inner = place.rpartition(".")
    holder = _at(row, outer) if outer else row
    return isinstance(holder, dict) and inner in holder


def _at(row: Any, place: str) -> Any:
    """The value at a dotted place; None if there is none."""
    for name in place.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def _answer(value: Any) -> Any:
    """One of a list of one; a number as it is written."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(value) if type(value) in (int, float) else value


def _texts(value: Any) -> list[str]:
    """Demonstrations however they are kept: a text, a message, or a list of these. Empty ones are none."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, dict):
        return _texts(value.get("content"))
    return [text for part in value for text in _texts(part)] if isinstance(value, list) else []


# findings ----------------------------------------------------------------------------------------------------------

FINDINGS = {
    "unread": ("row can't be read", "rows can't be read"),
    "unjudged": ("answer is none to the verifier", "answers are none to the verifier"),
    "again": ("asks what another row asks, which is kept", "ask what another row asks, which is kept"),
    "disagree": ("of them has another answer", "of them have another answer"),
    "rejected": ("demonstration is rejected", "demonstrations are rejected"),
    "shared": (f"training problem shares {RUN} words in a row with a held-out one, and is left out",
               f"training problems share {RUN} words in a row with a held-out one, and are left out"),
    "told": ("training problem holds a held-out question, and is left out",
             "training problems hold a held-out question, and are left out")}
"""What is counted, of one and of several."""


def _sentences(found: Mapping[str, list[str]]) -> list[str]:
    """How many of each kind, and the first of them."""
    return [f"{len(points):,} {FINDINGS[kind][len(points) > 1]} ({'; '.join(points[:SHOWN])}"
            + (f"; {len(points) - SHOWN:,} more)" if len(points) > SHOWN else ")")
            for kind in FINDINGS if (points := found.get(kind))]


def _without_heldout(train: list[Problem], held: list[Problem]) -> tuple[list[Problem], list[str]]:
    """The training problems that give no held-out one away, and in words which do."""
    shared = {id(p): f"{p.key!r:.60}: {words!r}" for p, _, words in contaminated(train, held)}
    train = [p for p in train if id(p) not in shared]
    told = {id(p): f"{p.key!r:.60}: {asked.key!r:.60}" for asked, p in leaks(train, held)}
    return [p for p in train if id(p) not in told], _sentences({"shared": list(shared.values()), "told": list(told.values())})


def _number(where: str) -> str:
    return where.rpartition(", ")[2]


def _short(where: str, why: object) -> str:
    """A row's number, and what is wrong with it."""
    return f"{_number(where)}: {str(why).removeprefix(f'{where}: ').rstrip('.'):.120}"

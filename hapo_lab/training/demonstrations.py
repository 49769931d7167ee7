"""Demonstrations by a teacher model: it samples, the verifier judges, and a right completion is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hapo_lab.engines.protocol import Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.policy import Policy
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.seeds import derive
from hapo_lab.tasks.jsonl import Row, read_rows
from hapo_lab.tasks.problem import Task, Verifier


class Demonstrations:
    """A task file's missing demonstrations, and the file that they are written to. Held-out problems need none.

    The other file holds every problem from the start, and is replaced as a whole after each batch: whenever the work stops,
    it continues from there. Each line names the model and the samples, as `teacher`: another model, or more samples, tries
    again where none was found.

    Parameters
    ----------
    file : path or Task
        A file as for `load_jsonl`, or a task that does not come from a file.
    out : path
        The file to write; it may be `file`.
    verify : Verifier
    model : str
        The teacher's name.
    samples : int
        Completions drawn of each problem; the first right one is kept.

    Raises
    ------
    ValueError
        A file that can't be read; an `out` that holds other problems than `file`.
    """

    def __init__(self, file: Path | Task, out: Path, verify: Verifier, model: str, samples: int = 8):
        if samples < 1:
            raise ValueError(f"samples is {samples}; it must be at least 1.")
        self.out, self.verify, self.model, self.samples = out, verify, model, samples
        given = _rows(file) if isinstance(file, Task) else read_rows(file, verify)
        self.rows = read_rows(out, verify) if out.exists() else given
        if [_asks(row) for row in self.rows] != [_asks(row) for row in given]:
            name = file.name if isinstance(file, Task) else file
            raise ValueError(f"{out} holds other problems than {name}: choose another file to write, or remove it.")
        self.missing = [i for i, row in enumerate(given) if row.split != "heldout" and row.problem.demonstration is None]

    @property
    def found(self) -> int:
        """Demonstrations found so far that `file` lacks."""
        return sum(self.rows[i].problem.demonstration is not None for i in self.missing)

    @property
    def pending(self) -> list[int]:
        """The rows that still need a demonstration."""
        return [i for i in self.missing if self.rows[i].problem.demonstration is None and not self._asked(self.rows[i])]

    def _asked(self, row: Row) -> bool:
        before = row.fields.get("teacher")
        return isinstance(before, dict) and before.get("model") == self.model and before.get("samples", 0) >= self.samples

    def sample(self, policy: Policy, sampling: Sampling, batch: int = 4, seed: int = 0) -> Iterator[int]:
        """Sample for all pending rows, `batch` problems at a time. Yields the number of problems of each batch."""
        todo, engine = self.pending, TransformersEngine(policy)
        prompts = {i: prompt_ids(policy, self.rows[i].problem) for i in todo}
        for i, prompt in prompts.items():
            if len(prompt) + sampling.max_new_tokens > policy.context:
                raise ValueError(f"{self.rows[i].where}: a prompt of {len(prompt)} tokens and {sampling.max_new_tokens} new "
                                 f"ones exceed the context of {policy.name} ({policy.context}): shorten it.")
        self._write()
        for start in range(0, len(todo), batch):
            some = todo[start:start + batch]
            drawn = engine.generate([prompts[i] for i in some], self.samples, sampling, derive(seed, "demonstrations", some[0]))
            for i, completions in zip(some, drawn, strict=True):
                self._keep(i, [c.text for c in completions if c.finished])
            self._write()
            yield len(some)

    def _keep(self, i: int, completions: list[str]) -> None:
        row = self.rows[i]
        right = [text for text in completions if self.verify(row.problem, text).correct]
        chosen = right[0] if right else None
        asked = {"model": self.model, "right": len(right), "samples": self.samples}
        self.rows[i] = replace(row, problem=replace(row.problem, demonstration=chosen),
                               fields=row.fields | {"demonstration": chosen, "teacher": asked})

    def _write(self) -> None:
        content = "".join(json.dumps(row.fields, ensure_ascii=False) + "\n" for row in self.rows)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            disk.replace(self.out, content.encode())
        except OSError as error:
            raise ValueError(f"{self.out} can't be written: {disk.why(error)}.") from None

    def __str__(self) -> str:
        if not self.missing:
            return "every training problem has a demonstration already: nothing to do."
        left = len(self.missing) - self.found
        more = f"; the other {left} want more samples, or another model" if left else ""
        return f"{self.found} of {len(self.missing)} missing demonstrations are in {self.out} now{more}."


def _rows(task: Task) -> list[Row]:
    """A task's training problems, as a file would hold them."""
    return [Row(f"problem {p.key!r}", p, None, {"prompt": list(p.messages), "answer": p.answer, "key": p.key})
            for p in task.train]


def _asks(row: Row) -> tuple:
    return row.problem.messages, row.problem.answer, row.split

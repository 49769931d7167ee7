"""The run log: a training's records, in memory and as plain files.

A run's folder: `run.json` (what was asked for, and the versions), `steps.jsonl` (a `StepRecord` a line), `events.jsonl`,
`completions.jsonl` (every completion, cut at 2,000 characters), `checkpoints/`, and at the end `adapter/`. A line counts once
its end is written. A line torn by a kill is ignored, and cut when the run continues.
"""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hapo_lab.gate import BetaPosterior
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.kit import DATA
from hapo_lab.runs.record import StepRecord, merged, numbers, step_from
from hapo_lab.ssi import Group, Rollout, known
from hapo_lab.tasks.problem import problem_from, problem_row

COMPLETION_CHARACTERS = 2000


def runs_folder() -> Path:
    """Where notebooks write their runs: $HAPO_LAB_RUNS, or `runs` in the working folder.

    >>> (runs_folder() / "05_train_live").name
    '05_train_live'
    """
    return Path(os.environ.get("HAPO_LAB_RUNS", "runs")).absolute()


def shipped_run(name: str) -> RunLog:
    """A run that comes with the kit, such as "hapo-0".

    >>> shipped_run("hapo-0").manifest["model"]
    'smollm2-135m'
    """
    return RunLog.load(DATA / "runs" / name)


class RunLog:
    """A run's records, in memory; with a folder, on disk too.

    Parameters
    ----------
    manifest : dict
        The run's description as JSON, which identifies it.
    folder : Path, optional
        The folder to which each record is appended.

    Examples
    --------
    >>> log = shipped_run("hapo-0")                         # RunLog.load(folder) reads one of your own
    >>> log.name, len(log.steps), log.planned
    ('HAPO', 30, 30)
    >>> log.table()[0]["teacher_samples"]
    4
    """

    def __init__(self, manifest: dict, folder: Path | None = None):
        self.manifest = manifest
        self.folder = folder
        self.steps: list[StepRecord] = []
        self.events: list[dict] = []
        self.groups: list[Group] = []
        """Of the last step."""
        self.lock = threading.RLock()
        """Held while events change: they come from the trainer and from controls, each in its own thread."""
        self._read = 0  # bytes of steps.jsonl that `steps` holds

    def path(self, *name: str) -> Path:
        """The run's folder, or a file in it; ValueError if the run is kept in memory only."""
        if not self.folder:
            raise ValueError("this run is kept in memory only: give the trainer a folder.")
        return self.folder.joinpath(*name)

    @property
    def name(self) -> str:
        """The method's."""
        return self.manifest["method"]["name"]

    @property
    def planned(self) -> int:
        """Planned steps, extensions included."""
        extended = [event["steps"] for event in self.events if event["kind"] == "extended"]
        return max([self.manifest["config"]["steps"], *extended])

    def gate(self, step: int | None = None) -> dict:
        """The gate in force at a step (None: the next one), as the manifest describes it.

        Its numbers can change between two steps. An event of a change holds the new gate, and the last event before the step
        counts.
        """
        step = len(self.steps) + 1 if step is None else step
        changes = [event["gate"] for event in self.events if "gate" in event and event["after_step"] < step]
        return changes[-1] if changes else self.manifest["method"]["gate"]

    def given_gate(self) -> dict:
        """The gate that a trainer was last made with, without later changes by controls."""
        given = [event["gate"] for event in self.events if "gate" in event and event["kind"] == "resumed"]
        return given[-1] if given else self.manifest["method"]["gate"]

    def gates(self) -> dict[int, dict]:
        """Every gate of the run, by its first step: {1: the first gate, 14: the gate changed after step 13}."""
        found = {1: self.gate(1)}
        for step in sorted({event["after_step"] + 1 for event in self.events if "gate" in event}):
            if self.gate(step) != list(found.values())[-1]:
                found[step] = self.gate(step)
        return found

    def gate_state(self, step: int) -> dict:
        """The gate's state after a number of steps (0: {})."""
        state: dict = {}
        for record in self.steps[:step]:
            state = merged(state, record.gate_state)
        return state

    def add(self, record: StepRecord, groups: Iterable[Group]) -> None:
        """Add a finished step with its groups, first on the disk if there is a folder."""
        groups = list(groups)
        if self.folder:
            self._append("completions.jsonl", [_group_row(record.step, group) for group in groups])
            self._read += self._append("steps.jsonl", [asdict(record)])  # last: what has no step here never happened
        self.steps.append(record)
        self.groups = groups

    def event(self, kind: str, *, after_step: int | None = None, **details: Any) -> None:
        """Add an event between two steps: a stop, a resume, a refused step, a change of the gate's numbers, an extension."""
        with self.lock:
            row = {"after_step": len(self.steps) if after_step is None else after_step, "kind": kind, **details}
            if self.folder:
                self._append("events.jsonl", [row])
                disk.sync(self.folder / "events.jsonl")
            self.events.append(row)

    def sync(self) -> None:
        """Put all steps on the disk, before a checkpoint relies on them."""
        for name in ("completions.jsonl", "steps.jsonl"):
            disk.sync(self.path(name))

    def rewind(self, steps: int) -> None:
        """Drop all later steps, because a run resumes from its last checkpoint. Changes of the gate stay, to act again at
        their step, and so do extensions."""
        with self.lock:
            self.steps, self.groups = self.steps[:steps], []
            self.events = [event for event in self.events
                           if event["after_step"] <= steps or "gate" in event or event["kind"] == "extended"]
            if self.folder:
                self._read = _cut(self.folder / "steps.jsonl", steps)
                _cut(self.folder / "completions.jsonl", steps)
                disk.replace(self.folder / "events.jsonl", disk.lines(self.events))

    def create(self) -> None:
        """Make the folder. ValueError: it holds a run."""
        if self.path("run.json").exists():
            raise ValueError(f"{self.folder} holds a run already: continue it (resume=True), or choose another folder.")
        self.path().mkdir(parents=True, exist_ok=True)
        disk.replace(self.path("run.json"), (json.dumps(self.manifest, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> RunLog:
        """Read a run's folder. ValueError: it holds no run, or a line can't be read."""
        folder = Path(folder)
        if not (folder / "run.json").exists():
            raise ValueError(f"{folder} holds no run: there is no run.json in it.")
        try:
            log = cls(json.loads((folder / "run.json").read_text(encoding="utf-8")), folder)
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder / 'run.json'} is not JSON ({error.msg}): the run can't be read.") from None
        log.refresh()
        return log

    def refresh(self) -> bool:
        """Read the steps that another process has added. Returns whether anything is new."""
        known = len(self.steps), self.events
        try:
            self._read_steps()
        except ValueError:
            if not self._read:
                raise
            self.steps, self._read = [], 0  # the other process has gone back to a checkpoint
            self._read_steps()
        self.events = [row for _, row in disk.rows(self.path("events.jsonl"))]
        return (len(self.steps), self.events) != known

    def follow(self, every: float = 0.5, stop: threading.Event | None = None) -> Iterator[RunLog]:
        """Watch a run that another process writes: yields this log, first as it is and then at each addition.

        Ends when the run is complete, or when `stop` is set. It looks every `every` seconds.
        """
        stop = stop or threading.Event()
        yield self
        while len(self.steps) < self.planned and not stop.wait(every):
            if self.refresh():
                yield self

    def snapshot(self) -> RunLog:
        """A copy of the log, to draw while a trainer in another thread continues."""
        copy = RunLog(self.manifest, self.folder)
        copy.steps, copy.events, copy.groups = self.steps.copy(), self.events.copy(), self.groups
        return copy

    def _read_steps(self) -> None:
        path = self.path("steps.jsonl")
        if self._read > (path.stat().st_size if path.exists() else 0):
            raise ValueError(f"{path} has become shorter.")
        for end, row in disk.rows(path, self._read):
            number = len(self.steps) + 1
            try:
                record = step_from(row)
            except (TypeError, AttributeError):
                record = None
            if record is None or record.step != number:
                raise ValueError(f"{path}, line {number}: not the record of step {number}; remove that line and all after it.")
            self.steps.append(record)
            self._read = end

    def groups_of(self, step: int) -> list[Group]:
        """The groups of one step, read back from the folder (their completions' tokens are not stored: `ids` is empty)."""
        if not self.folder:
            raise ValueError("this run is kept in memory only, and its groups are gone: give the trainer a folder.")
        record = self.steps[step - 1]
        rows = [row for _, row in disk.rows(self.folder / "completions.jsonl", step=step) if row["step"] == step]
        if len(rows) != len(record.problems):
            raise ValueError(f"{self.folder / 'completions.jsonl'} holds {len(rows)} of the {len(record.problems)} groups of "
                             f"step {step}: lines are missing. The run's figures do not depend on them.")
        return [_group_from(row, posterior, decision)
                for row, posterior, decision in zip(rows, record.posterior, record.decisions, strict=True)]

    def table(self) -> list[dict]:
        """One row per step: every scalar figure, with a column of seconds per phase."""
        return [numbers(record) for record in self.steps]

    def write_csv(self, path: Path) -> None:
        """`table`, for a spreadsheet."""
        rows = self.table()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def _append(self, name: str, rows: list[dict]) -> int:
        """Returns the bytes written."""
        content = disk.lines(rows)
        disk.append(self.path(name), content)
        return len(content)


def _group_row(step: int, group: Group) -> dict:
    return {"step": step, "problem": problem_row(group.problem), "replaced": group.replaced,
            "advantages": known(group.advantages).tolist(), "rollouts": [_rollout_row(r) for r in group.rollouts],
            "removed": group.removed and _rollout_row(group.removed)} | (
                {"more": [[seat, _rollout_row(rollout)] for seat, rollout in group.more]} if group.more else {})


def _rollout_row(rollout: Rollout) -> dict:
    return {"text": rollout.text[:COMPLETION_CHARACTERS], "reward": rollout.reward, "reason": rollout.reason,
            "finished": rollout.finished, "teacher": rollout.teacher}


def _group_from(row: dict, posterior: tuple[float, float], decision: bool) -> Group:
    return Group(problem=problem_from(row["problem"]),
                 rollouts=tuple(Rollout(ids=(), **r) for r in row["rollouts"]),
                 posterior=BetaPosterior(*torch.tensor(posterior, dtype=torch.float64)), decision=decision,
                 replaced=row["replaced"], removed=row["removed"] and Rollout(ids=(), **row["removed"]),
                 more=tuple((seat, Rollout(ids=(), **rollout)) for seat, rollout in row.get("more", ())),
                 advantages=torch.tensor(row["advantages"], dtype=torch.float64))


def _cut(path: Path, steps: int) -> int:
    """Cut a log file behind the rows of that many steps, a torn last line included; returns the bytes kept."""
    size = 0
    for end, row in disk.rows(path):
        if row["step"] > steps:
            break
        size = end
    disk.cut(path, size)
    return size

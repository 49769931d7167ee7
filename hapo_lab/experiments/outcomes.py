"""A trial's outcome: its curves, its budgets, and its success on test problems. Stored compressed, one line each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hapo_lab.experiments.experiment import Experiment, Trial
from hapo_lab.experiments.folder import HELD_OUT, chosen, refuse_another, untrained
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.catalogue import method_from
from hapo_lab.reproducibility.kit import DATA
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.record import StepRecord

AXES = {"steps": "steps", "tokens_sampled": "sampled tokens", "tokens_trained": "trained tokens", "seconds": "seconds",
        "teacher_samples": "demonstrations"}
"""The units of a budget."""
CURVES = ("reward", "length", "cut", "teacher_samples", "tokens_sampled", "tokens_trained", "dead_before", "dead_after", "kl",
          "teacher_logp", "entropy")


_SAMPLING = {"tokens_sampled": "tokens_sampled", "seconds": "seconds_rollout"}
"""Budget -> the curve of the part that sampling takes."""


@dataclass(frozen=True)
class Outcome:
    """A trial in short. A curve has an entry per step; None stands for "not measured"."""

    task: str
    method: str
    """The method's short name in the experiment."""
    name: str
    """The method's name in figures."""
    seed: int
    learning_rate: float
    planned: int
    """Planned steps; 0: the trial has not begun."""
    manifest: dict
    """The run's, without the validation problems' names."""
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    """See `StepRecord`; and "seconds", evaluations left out, of which "seconds_rollout" went into rollouts."""
    validation: list[list[float]] = field(default_factory=list)
    """[step, success] of each evaluation during training."""
    test: dict[str, dict[str, float]] = field(default_factory=dict)
    """Split -> problem -> success; {}: not examined yet."""
    way: dict[str, float] = field(default_factory=dict)
    """See `teachers_way`."""
    failed: str = ""
    """The cause of a failure."""

    @classmethod
    def of(cls, trial: Trial, folder: Path) -> Outcome:
        """From a trial's folder."""
        run = folder / trial.name
        failed = json.loads((run / "failed.json").read_text())["cause"] if (run / "failed.json").exists() else ""
        facts: dict[str, Any] = {"task": trial.task, "method": trial.method, "seed": trial.seed,
                                 "learning_rate": trial.learning_rate, "failed": failed}
        if not (run / "steps.jsonl").exists():
            return cls(**facts, name=trial.method, planned=0, manifest={})
        log = RunLog.load(run)
        exam = json.loads((run / "test.json").read_text()) if (run / "test.json").exists() else {"success": {}, "way": {}}
        return cls(**facts, name=log.name, planned=log.planned, test=exam["success"], way=exam["way"],
                   curves=_curves(log.steps), validation=[[r.step, r.heldout] for r in log.steps if r.heldout is not None],
                   manifest={key: value for key, value in log.manifest.items() if key != "heldout"})

    @property
    def state(self) -> str:
        """In words."""
        return self.failed or ("finished" if self.finished else "under way" if self.planned else "not begun")

    @property
    def finished(self) -> bool:
        """Whether all steps were taken without a failure."""
        return not self.failed and len(self.curves.get("reward", ())) == self.planned > 0

    def budget(self, axis: str) -> np.ndarray:
        """(steps + 1,): what had been spent before the first step and after each, by an axis of `AXES`.

        In a stage that does not learn from its students, they are sampled only for measurement, and cost no tokens and no time.
        """
        if axis == "steps":
            return np.arange(len(self.curves["reward"]) + 1.0)
        spent = np.array(self.curves[axis], dtype=float)
        if axis in _SAMPLING:
            method = method_from(self.manifest["method"])
            to_measure = [method.at(step / self.planned).mu == 1 for step in range(len(spent))]
            spent = spent - np.array(self.curves[_SAMPLING[axis]], dtype=float) * to_measure
        return np.concatenate([[0.0], np.cumsum(spent)])

    def success(self, split: str = HELD_OUT) -> float:
        """On the test problems of a split; before the examination, on validation problems at the last evaluation."""
        if self.test:
            return float(np.mean(list(self.test[split].values())))
        return float(self.validation[-1][1])

    def reached(self, level: float, axis: str) -> tuple[float, bool]:
        """The budget spent when validation success first reached a level, and True; if it never did, the whole budget, and
        False."""
        spent = self.budget(axis)
        first = next((int(step) for step, success in self.validation if success >= level), None)
        return float(spent[-1 if first is None else first]), first is not None


def _curves(steps: Sequence[StepRecord]) -> dict[str, list[float | None]]:
    def rounded(value: float | None) -> float | None:
        return value if value is None else round(float(value), 4)

    curves = {name: [rounded(getattr(r, name)) for r in steps] for name in CURVES}
    return curves | {"seconds": [rounded(r.training_seconds) for r in steps],
                     "seconds_rollout": [rounded(r.seconds["rollout"]) for r in steps]}


@dataclass(frozen=True)
class Results:
    """An experiment's outcomes."""

    found: list[Outcome]
    """The outcomes of its reported trials so far, in order."""
    base: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> split -> the base model's success; unexamined tasks are missing."""


def collect(experiment: Experiment, folder: str | Path) -> Results:
    """From the folder of an experiment's runs; ValueError if it holds another experiment's, or a rate is not chosen yet."""
    folder, base = Path(folder), {}
    refuse_another(experiment, folder)
    for trial in untrained(experiment):
        path = folder / trial.name / "test.json"
        if path.exists():
            base[trial.task] = {split: float(np.mean(list(rates.values())))
                                for split, rates in json.loads(path.read_text())["success"].items()}
    return Results([Outcome.of(trial, folder) for trial in experiment.trials(chosen(experiment, folder))], base)


def write(results: Results, path: Path) -> None:
    """The base in the first line, then a line per trial, compressed; the same results make the same bytes."""
    disk.pack(path, [results.base, *(asdict(outcome) for outcome in results.found)])


def read(path: Path) -> Results:
    """The results of a file."""
    base, *found = disk.unpack(path)
    return Results([Outcome(**row) for row in found], base)


def shipped(name: str) -> Results:
    """The results of one of the kit's own experiments.

    >>> len(shipped("sparse").found)
    120
    """
    return read(packed(DATA / "experiments" / f"{name}.toml"))


def packed(file: Path) -> Path:
    """The file of an experiment's packed results, beside its TOML file."""
    return file.with_suffix(".jsonl.gz")


def by_method(found: Sequence[Outcome]) -> Iterator[tuple[str, list[Outcome]]]:
    """(method's name in figures, its finished outcomes), in the order in which they come."""
    for method in dict.fromkeys(o.method for o in found):
        mine = [o for o in found if o.method == method and o.finished]
        if mine:
            yield mine[0].name, mine

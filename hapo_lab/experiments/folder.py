"""What an experiment's folder holds, and what it tells without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hapo_lab.experiments.experiment import BASE, Experiment, Trial
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.progress import mean_of

DESCRIPTION = "experiment.json"
HELD_OUT = "held out"
IMITATOR = "sft"
"""The method whose policy represents the teacher's way."""


def finished(run: Path) -> bool:
    """Whether a trial has taken all its steps and saved its adapter."""
    return (run / "adapter" / "adapter_config.json").exists()


def imitator_of(run: Path, trial: Trial) -> Path:
    """The folder of the run that represents the teacher's way for a trial."""
    return run.parents[1] / replace(trial, method=IMITATOR).name


def refuse_another(experiment: Experiment, folder: Path) -> None:
    """ValueError if the folder holds another experiment."""
    description = folder / DESCRIPTION
    if (folder / "run.json").exists():
        raise ValueError(f"{folder} holds a training run: choose another folder for the experiment.")
    if description.exists() and (different := experiment.differs(json.loads(description.read_text()))):
        raise ValueError(f"{folder} holds another experiment: it differs in {', '.join(different)}. Choose another name or "
                         "folder, or move that one away.")


def untrained(experiment: Experiment) -> list[Trial]:
    """The base model on each task, as trials that take no step."""
    return [Trial(task, BASE, 0, 0.0) for task in experiment.tasks]


def chosen(experiment: Experiment, folder: Path) -> dict[tuple[str, str], float]:
    """(task, method) -> the learning rate whose tuning trials have the highest success on validation problems, averaged over
    the last half of a run's evaluations and over seeds; of equals the smaller. {} where there is nothing to choose.

    ValueError while a tuning trial is missing.
    """
    scores: dict[tuple[str, str], dict[float, list[float]]] = {}
    for trial in experiment.tuning():
        if not finished(folder / trial.name):
            raise ValueError(f"{folder / trial.name} is not finished, so no learning rate is chosen yet: run the experiment.")
        found = [r.heldout for r in RunLog.load(folder / trial.name).steps if r.heldout is not None]
        scores.setdefault((trial.task, trial.method), {}).setdefault(trial.learning_rate, []).append(
            mean_of(found[len(found) // 2:]))
    return {pair: max(sorted(means), key=means.__getitem__) for pair, by_rate in scores.items()
            if (means := {rate: mean_of(found) for rate, found in by_rate.items()})}

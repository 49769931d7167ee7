"""Trackers: a run's figures to TensorBoard, Weights & Biases, or your own function, step by step.

The libraries are optional. A tracker that fails is dropped, and the run continues.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hapo_lab.reproducibility import parts
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.record import StepRecord, numbers

Tracker = Callable[[StepRecord], None]
"""A function that is called with each step's record, once the log holds it."""
Maker = Callable[[RunLog], Tracker]
"""A function that makes a run's tracker, before its first step."""


def tensorboard(folder: str | Path) -> Tracker:
    """Scalars to event files in a folder, under the names that `StepRecord` gives them.

    A resumed run hides the entries after its checkpoint. ValueError: TensorBoard is not installed.
    """
    library = _library("tensorboard", "torch.utils.tensorboard")
    writers: list[Any] = []

    def track(record: StepRecord) -> None:
        if not writers:  # now the first step is known: later ones that an earlier process wrote are hidden
            writers.append(library.SummaryWriter(str(folder), purge_step=record.step))
        for name, value in scalars(record).items():
            writers[0].add_scalar(name, value, record.step)
        writers[0].flush()

    return track


def wandb(**options: Any) -> Tracker:
    """Scalars to Weights & Biases, under the names that `StepRecord` gives them; `options` are those of `wandb.init`.

    ValueError: wandb is not installed.
    """
    run = _library("wandb").init(**options)

    def track(record: StepRecord) -> None:
        run.log(scalars(record), step=record.step)

    return track


def scalars(record: StepRecord) -> dict[str, float]:
    """The record's scalar figures, without those that were not measured."""
    return {name: float(value) for name, value in numbers(record).items() if value is not None and name != "step"}


# by name -----------------------------------------------------------------------------------------------------------


def _to_tensorboard(log: RunLog) -> Tracker:
    return tensorboard(log.path("tensorboard"))


def _to_wandb(log: RunLog) -> Tracker:
    """A resumed run goes on in the same place, which its folder names."""
    folder = log.path().resolve()
    return wandb(project="hapo_lab", name=folder.name, config=log.manifest, dir=str(folder), resume="allow",
                 id=f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}")


TRACKERS: dict[str, Maker] = {"tensorboard": _to_tensorboard, "wandb": _to_wandb}
"""By name, for the command line: the library's own."""


def get_trackers(names: Iterable[str]) -> dict[str, Maker]:
    """The makers of a run's trackers, by name. "FILE.py:NAME" is your own function, from a `RunLog` to a function of a
    `StepRecord`.

    ValueError, before anything runs: a name is unknown, or its library is not installed.
    """
    return {name: _maker(name) for name in names}


def _maker(name: str) -> Maker:
    if name in TRACKERS:
        _library(name)
        return TRACKERS[name]
    if ".py:" not in name:
        raise ValueError(f"unknown tracker {name!r}; choose one of {', '.join(TRACKERS)}, or write FILE.py:NAME.")
    maker: Any = parts.load(name)
    if not callable(maker):
        raise ValueError(f"tracker {name!r} is not a function.")
    return maker


def tracking(makers: Mapping[str, Maker], log: RunLog) -> Tracker:
    """All of a run's trackers as one. A tracker that fails gives one warning, and is then dropped.

    Parameters
    ----------
    makers : mapping
        By name, from `get_trackers`.
    log : RunLog
        The run's.
    """
    trackers = {name: _made(name, make, log) for name, make in makers.items()}

    def track(record: StepRecord) -> None:
        for name, one in list(trackers.items()):
            try:
                one(record)
            except Exception as error:
                del trackers[name]
                warnings.warn(f"tracker {name!r} failed at step {record.step}, and is dropped: "
                              f"{type(error).__name__}: {error}", stacklevel=2)

    return track


def _made(name: str, make: Maker, log: RunLog) -> Tracker:
    try:
        tracker = make(log)
    except Exception as error:
        raise ValueError(f"tracker {name!r} can't begin: {type(error).__name__}: {error}") from error
    if not callable(tracker):
        raise ValueError(f"tracker {name!r} makes {tracker!r}; it must return a function of a StepRecord.")
    return tracker


def _library(name: str, module: str | None = None) -> Any:
    try:
        return importlib.import_module(module or name)
    except ImportError:
        raise ValueError(f"{name} is not installed: python -m pip install {name}, or leave it out.") from None

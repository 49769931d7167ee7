"""An experiment's trials, one per core at a time, each in its own process.

A stopped or killed trial continues from its last checkpoint when the experiment is run again. A failed trial is recorded,
listed, and tried again the next time.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm.auto import tqdm

from hapo_lab.experiments.exam import look
from hapo_lab.experiments.experiment import Experiment, Trial, from_description
from hapo_lab.experiments.folder import DESCRIPTION, IMITATOR, chosen, finished, imitator_of, refuse_another, untrained
from hapo_lab.policy.memory import PROCESS, memory_available
from hapo_lab.policy.models import PRESETS, default_device, load_policy, memory_estimate, model_source
from hapo_lab.reproducibility import disk
from hapo_lab.runs.trackers import get_trackers, tracking
from hapo_lab.training.trainer import Trainer

PRELOAD = ["hapo_lab.experiments.processes", "transformers.models.llama.modeling_llama", "bitsandbytes"]


class Stopped(Exception):
    """Ctrl-C was pressed. Every trial has finished its step and saved."""


@dataclass(frozen=True)
class Failure:
    """A failed trial."""

    trial: Trial
    cause: str


def prepare(experiment: Experiment, folder: Path) -> None:
    """Write the experiment's description into its folder; ValueError if that holds another one, or the model or a task can't
    be made."""
    model_source(experiment.model)
    for key in experiment.tasks:
        experiment.task(key, experiment.seeds[0])
    refuse_another(experiment, folder)
    folder.mkdir(parents=True, exist_ok=True)
    disk.replace(folder / DESCRIPTION, (json.dumps(experiment.described(), indent=1) + "\n").encode())


def run(experiment: Experiment, folder: str | Path, processes: int | None = None) -> list[Failure]:
    """Run every unfinished trial: first those that choose the learning rates, then those that are reported.

    Parameters
    ----------
    experiment : Experiment
    folder : path
        Created, or continued.
    processes : int, optional
        Trials at a time. Default: one per core; 1 on a GPU, where trials would share its memory.

    Returns
    -------
    list of Failure
        The failed trials; another call tries them again.

    Raises
    ------
    ValueError
        The folder holds another experiment; too little memory for so many processes.
    Stopped
        Ctrl-C; the same call continues.
    """
    folder = Path(folder)
    processes = _affordable(experiment.model, processes)
    prepare(experiment, folder)
    tuning = [t for t in experiment.tuning() if not finished(folder / t.name)]

    def steps(trial: Trial) -> int:
        return experiment.config_of(trial).steps

    if failures := _all(train, tuning, folder, processes, "choosing learning rates", steps):
        return failures  # a rate is not chosen by what is there
    trials = [t for t in experiment.trials(chosen(experiment, folder)) if not finished(folder / t.name)]
    return _all(train, trials, folder, processes, experiment.name, steps)


def examine(experiment: Experiment, folder: str | Path, processes: int | None = None) -> list[Failure]:
    """Evaluate every finished trial that has not been examined, and the base model, on the held-out problems and on those
    from elsewhere. A trial whose imitator (`folder.IMITATOR`) is unfinished waits for it."""
    folder, processes = Path(folder), _affordable(experiment.model, processes)
    prepare(experiment, folder)
    trained = [t for t in experiment.trials(chosen(experiment, folder)) if finished(folder / t.name)
               and (IMITATOR not in experiment.methods or finished(imitator_of(folder / t.name, t)))]
    trials = [t for t in (*untrained(experiment), *trained) if not (folder / t.name / "test.json").exists()]
    return _all(look, trials, folder, processes, "looking at test problems")


# one trial, in its own process -------------------------------------------------------------------------------------


def train(experiment: Experiment, trial: Trial, run: Path) -> None:
    """Take a trial's remaining steps. It ends early, saved, when asked to stop or when its parent process is gone."""
    trainer = Trainer(load_policy(experiment.model, seed=trial.seed), experiment.task(trial.task, trial.seed),
                      experiment.methods[trial.method], experiment.config_of(trial), folder=run, resume=True,
                      engine=experiment.engine)
    track = tracking(get_trackers(experiment.track), trainer.log)
    _when_the_parent_is_gone(trainer.stop)
    for record in trainer:
        track(record)
    if len(trainer.log.steps) == trainer.log.planned:
        trainer.save_adapter()


Work = Callable[[Experiment, Trial, Path], None]


def _child(work: Work, folder: Path, facts: dict) -> None:
    """A process's whole life. Its words go to a file; what went wrong, to failed.json."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in a terminal reaches the parent alone, who passes it on once
    trial = Trial(**facts)
    run = folder / trial.name
    run.mkdir(parents=True, exist_ok=True)
    words = os.open(run / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(words, stream)
    if default_device().type == "cpu":
        torch.set_num_threads(1)  # a core each
    try:
        with FileLock(run / "lock", timeout=60):  # a process that lost its parent may still finish its step there
            (run / "failed.json").unlink(missing_ok=True)
            work(from_description(json.loads((folder / DESCRIPTION).read_text())), trial, run)
    except Exception as error:
        _failed(run, f"{type(error).__name__}: {error}")
        raise


def _failed(run: Path, cause: str) -> None:
    run.mkdir(parents=True, exist_ok=True)
    disk.replace(run / "failed.json", (json.dumps({"cause": cause}) + "\n").encode())


def _when_the_parent_is_gone(stop: Callable[[], None]) -> None:
    parent = multiprocessing.parent_process()
    if not parent:
        return

    def watch() -> None:
        wait([parent.sentinel])
        stop()

    threading.Thread(target=watch, daemon=True).start()


# all of them -------------------------------------------------------------------------------------------------------


def _all(work: Work, trials: Sequence[Trial], folder: Path, processes: int, what: str,
         steps: Callable[[Trial], int] | None = None) -> list[Failure]:
    """So many at a time, until all have ended. Stopped, once they have, if Ctrl-C was pressed.

    `steps`: of a trial; then progress is counted in them.
    """
    running: dict[Any, tuple[Any, Trial]] = {}
    context = _context(default_device())
    waiting, failures, done = list(trials), [], 0
    size, unit = (steps, "step") if steps else (lambda _: 1, "trial")
    with (_ended(running), tqdm(total=sum(map(size, trials)), desc=what, unit=unit, smoothing=0, disable=not trials) as bar,
          _interrupts() as pressed):
        asked = False
        while running or (waiting and not pressed.is_set()):
            while waiting and len(running) < processes and not pressed.is_set():
                trial = waiting.pop(0)
                process: Any = context.Process(target=_child, args=(work, folder, asdict(trial)))
                process.start()
                running[process.sentinel] = (process, trial)
            if pressed.is_set() and not asked:
                asked = True
                for process, _ in running.values():
                    with contextlib.suppress(ProcessLookupError):  # it has just ended
                        os.kill(process.pid, signal.SIGINT)
            for sentinel in wait(list(running), timeout=0.5):
                process, trial = running.pop(sentinel)
                process.join()
                if process.exitcode and not asked:
                    failures.append(Failure(trial, _cause(folder / trial.name, process.exitcode)))
                done += size(trial)
            under_way = [trial for _, trial in running.values()]
            bar.n = done + (sum(_step(folder / trial.name) for trial in under_way) if steps else 0)
            bar.set_postfix_str(", ".join(trial.name.partition("/")[2] for trial in under_way))
    if pressed.is_set():
        raise Stopped
    return failures


@contextlib.contextmanager
def _ended(running: dict[Any, tuple[Any, Trial]]) -> Iterator[None]:
    """Whatever breaks off in there, no process stays behind: each resumes from its last checkpoint."""
    try:
        yield
    finally:
        for process, _ in running.values():
            process.kill()


def _context(device: torch.device) -> Any:
    """A new process for each trial, its imports ready; on a GPU they are not, because CUDA does not survive a fork, and
    bitsandbytes begins with it when it is imported."""
    if device.type == "cuda":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _step(run: Path) -> int:
    """The number of steps that a trial has taken."""
    with contextlib.suppress(OSError):
        return (run / "steps.jsonl").read_bytes().count(b"\n")
    return 0


def _cause(run: Path, code: int) -> str:
    if code < 0:
        _failed(run, f"killed by {signal.Signals(-code).name}")
    elif not (run / "failed.json").exists():
        _failed(run, f"its process ended with code {code}: see {run / 'output.txt'}")
    return json.loads((run / "failed.json").read_text())["cause"]


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """The first Ctrl-C is an event; a second one breaks off."""
    pressed = threading.Event()

    def note(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        print("\neach trial finishes its step and saves; Ctrl-C again to stop at once", flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _affordable(model: str, processes: int | None) -> int:
    """The number of processes at a time. ValueError: they do not fit into memory."""
    device = default_device()
    number = (1 if device.type == "cuda" else os.cpu_count() or 1) if processes is None else processes
    if number < 1:
        raise ValueError(f"{number} processes: it must be at least 1.")
    each = memory_estimate(model) if model in PRESETS else PROCESS
    if number * each > (free := memory_available(device)):
        fit = int(free // each)
        raise ValueError(f"{number} processes need some {number * each / 2**30:.1f} GiB and {free / 2**30:.1f} are free: "
                         + (f"ask for {fit}." if fit else "close what holds the memory, or take a smaller model."))
    return number

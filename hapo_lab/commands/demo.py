"""hapo-lab demo: lesson 05, without a browser."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hapo_lab.commands.report import report_run
from hapo_lab.reproducibility.kit import CHECKOUT, LESSONS
from hapo_lab.runs.log import RunLog, runs_folder
from hapo_lab.runs.progress import progress_line


def demo(args: argparse.Namespace) -> None:
    """Execute 05_train_live.ipynb itself, and print its training's progress in the terminal."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    source = LESSONS / "05_train_live.ipynb"
    if CHECKOUT:  # an installed package's own folder is no place for runs
        os.environ.setdefault("HAPO_LAB_RUNS", str(LESSONS / "runs"))
    run = runs_folder() / "05_train_live"
    os.environ["HAPO_LAB_RUNS"] = str(run.parent)  # the kernel works in another folder
    notebook = nbformat.read(source, as_version=4)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(LESSONS)}},
                            extra_arguments=["--log-level=40"])
    print(f"executing {_short(source)}; its run is written to {_short(run)}; Ctrl-C ends it after the step")
    client.on_cell_start = lambda cell, cell_index: cell.cell_type == "code" and print(
        f"cell {cell_index + 1} of {len(notebook.cells)}: {cell.source.splitlines()[0]}", flush=True)
    executed = run / "05_train_live.ipynb"
    try:
        with _watched(run), _interrupt_goes_to(client):
            client.execute()
    except CellExecutionError as error:
        raise ValueError(f"a cell of the notebook failed, {error.ename}: {error.evalue or 'see there'}; the notebook is kept, "
                         f"as far as it came, in {_short(executed)}.") from None
    finally:
        run.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, executed)
    report_run(RunLog.load(run), run)
    print(f"\n{summary(run)}\n\nexecuted notebook: {_short(executed)}\npicture:           {_short(run / 'training.png')}")


def summary(run: Path) -> str:
    """A run's results, in a few lines."""
    log = RunLog.load(run)
    last = log.steps[-5:]
    groups = sum(len(s.problems) for s in last)
    lines = [f"{log.name} on {log.manifest['task']}: {len(log.steps)} of {log.planned} steps, "
             f"{sum(s.training_seconds for s in log.steps) / 60:.1f} minutes of training, evaluation excluded "
             f"({_phases(log)})",
             f"teacher in the last {len(last)} steps: {sum(s.teacher_samples for s in last)} of {groups} groups"]
    if (run / "evaluation.json").exists():
        for who, found in json.loads((run / "evaluation.json").read_text()).items():
            low, high = found["interval_95"]
            lines.append(f"held-out success {who} training: {found['success']:.1%} (95% interval {low:.1%} to {high:.1%}; "
                         f"{len(found['by_problem'])} problems x {found['samples']}; "
                         f"{found['dead_groups']:.0%} of the groups fail whole)")
    return "\n".join(lines)


def _phases(log: RunLog) -> str:
    total = sum(s.training_seconds for s in log.steps) or 1.0
    named = {"rollout": "rollouts", "gate": "gate, SSI and advantages", "update": "update"}
    return ", ".join(f"{words} {sum(s.seconds[phase] for s in log.steps) / total:.2%}" for phase, words in named.items())


@contextmanager
def _watched(run: Path) -> Iterator[None]:
    """Print a line whenever there is a new step of a run that another process writes, or is about to begin."""
    done = threading.Event()

    def watch() -> None:
        while not (run / "run.json").exists():
            if done.wait(0.5):
                return
        for log in RunLog.load(run).follow(stop=done):
            print(progress_line(log), flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _interrupt_goes_to(client: Any) -> Iterator[None]:
    """The first Ctrl-C goes to the kernel, whose trainer then finishes its step and saves; a second one stops us."""
    def forward(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        print("stopping after this step; Ctrl-C again to stop at once", flush=True)
        os.kill(client.km.provisioner.pid, signal.SIGINT)

    before = signal.signal(signal.SIGINT, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

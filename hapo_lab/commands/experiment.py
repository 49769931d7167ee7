"""python -m hapo_lab experiment run | examine | pack | report FILE"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from hapo_lab.experiments.experiment import Experiment, load_experiment
from hapo_lab.experiments.outcomes import Results, collect, packed, read, write
from hapo_lab.experiments.processes import Failure, Stopped, examine, run
from hapo_lab.pictures.comparison import report
from hapo_lab.runs.log import runs_folder


def run_experiment(args: argparse.Namespace) -> None:
    """Train what is missing of an experiment."""
    _do(run, args, "run")


def examine_experiment(args: argparse.Namespace) -> None:
    """Look at the test problems, once for each trial."""
    _do(examine, args, "examine")


def pack_experiment(args: argparse.Namespace) -> None:
    """Write an experiment's results into one small file beside its description."""
    experiment, path = load_experiment(args.file), packed(args.file)
    results = collect(experiment, _folder(experiment, args))
    if not any(outcome.planned for outcome in results.found):
        sys.exit(f"there are no runs in {_folder(experiment, args)}: run the experiment first.")
    write(results, path)
    print(path)


def report_experiment(args: argparse.Namespace) -> None:
    """Write an experiment's table, CSV and pictures."""
    experiment = load_experiment(args.file)
    results, out = _results(experiment, args), args.out or Path("report") / experiment.name
    print(f"expected: {experiment.expected.strip()}")
    for path in report(results.found, out, base=results.base):
        print(path)


def _results(experiment: Experiment, args: argparse.Namespace) -> Results:
    """From the runs where they lie, else from what was packed."""
    folder = _folder(experiment, args)
    if not folder.exists() and packed(args.file).exists() and not args.folder:
        print(f"there are no runs in {folder}; this is from {packed(args.file)}")
        return read(packed(args.file))
    return collect(experiment, folder)


def _do(what: Callable[[Experiment, Path, int | None], list[Failure]], args: argparse.Namespace, word: str) -> None:
    experiment = load_experiment(args.file)
    folder = _folder(experiment, args)
    try:
        failures = what(experiment, folder, args.processes)
    except Stopped:
        sys.exit(f"stopped, and saved: python -m hapo_lab experiment {word} {args.file} goes on.")
    except KeyboardInterrupt:
        sys.exit(f"stopped at once: python -m hapo_lab experiment {word} {args.file} goes on from the last checkpoints.")
    _list(failures, folder)


def _folder(experiment: Experiment, args: argparse.Namespace) -> Path:
    return args.folder or runs_folder() / "experiments" / experiment.name


def _list(failures: list[Failure], folder: Path) -> None:
    if failures:
        lines = "\n".join(f"  {failure.trial.name}: {failure.cause}" for failure in failures)
        sys.exit(f"{len(failures)} trials failed; the same command tries them again:\n{lines}")
    print(f"all done: {folder}")


def add_experiment_commands(p: argparse.ArgumentParser) -> None:
    """The four commands, with their options and their help."""
    commands = p.add_subparsers(required=True, metavar="run | examine | pack | report")
    for name, do, words in (("run", run_experiment, "train what is missing; a second call goes on"),
                            ("examine", examine_experiment, "look at the test problems, once for each finished trial"),
                            ("pack", pack_experiment, "keep the results in one small file beside FILE"),
                            ("report", report_experiment, "table, CSV and pictures")):
        p = commands.add_parser(name, help=words)
        p.set_defaults(run_command=do)
        p.add_argument("file", type=Path, help="TOML")
        p.add_argument("--folder", type=Path, help="of its runs; default: $HAPO_LAB_RUNS/experiments/NAME, or runs/...")
        if name == "report":
            p.add_argument("--out", type=Path, help="default: report/NAME")
        elif name != "pack":
            p.add_argument("--processes", type=int, help="trials at a time; default: the cores, or 1 on a GPU")

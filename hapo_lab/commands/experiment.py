"""hapo-lab experiment run | examine | pack | report FILE"""

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
    """Train an experiment's missing trials."""
    _do(run, args, "run")


def examine_experiment(args: argparse.Namespace) -> None:
    """Evaluate the test problems, once per trial."""
    _do(examine, args, "examine")


def pack_experiment(args: argparse.Namespace) -> None:
    """Write an experiment's results into one small file beside its description."""
    experiment, path = load_experiment(args.file), packed(args.file)
    results = collect(experiment, _folder(experiment, args))
    if not any(outcome.planned for outcome in results.found):
        sys.exit(f"{_folder(experiment, args)} holds no runs: run the experiment first "
                 f"(hapo-lab experiment run {args.file}).")
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
    """From the runs if their folder exists, else from the packed file."""
    folder = _folder(experiment, args)
    if not folder.exists() and packed(args.file).exists() and not args.folder:
        print(f"{folder} holds no runs; these results are from {packed(args.file)}")
        return read(packed(args.file))
    return collect(experiment, folder)


def _do(what: Callable[[Experiment, Path, int | None], list[Failure]], args: argparse.Namespace, word: str) -> None:
    experiment = load_experiment(args.file)
    folder = _folder(experiment, args)
    try:
        failures = what(experiment, folder, args.processes)
    except Stopped:
        sys.exit(f"stopped, and saved: hapo-lab experiment {word} {args.file} continues.")
    except KeyboardInterrupt:
        sys.exit(f"stopped at once: hapo-lab experiment {word} {args.file} continues from the last checkpoints.")
    _list(failures, folder)


def _folder(experiment: Experiment, args: argparse.Namespace) -> Path:
    return args.folder or runs_folder() / "experiments" / experiment.name


def _list(failures: list[Failure], folder: Path) -> None:
    if failures:
        lines = "\n".join(f"  {failure.trial.name}: {failure.cause}" for failure in failures)
        sys.exit(f"{len(failures)} trial{'s' * (len(failures) > 1)} failed; a repeated command tries them again:\n{lines}")
    print(f"all done: {folder}")


def add_experiment_commands(p: argparse.ArgumentParser) -> None:
    """The four commands, with their options and their help."""
    commands = p.add_subparsers(required=True, metavar="run | examine | pack | report")
    for name, do, words in (("run", run_experiment, "train the missing trials; a repeated command continues"),
                            ("examine", examine_experiment, "evaluate the test problems, once per finished trial"),
                            ("pack", pack_experiment, "keep the results in one small file beside FILE"),
                            ("report", report_experiment, "write tables, CSV and pictures, of the runs or of packed results")):
        p = commands.add_parser(name, help=words)
        p.set_defaults(run_command=do)
        p.add_argument("file", type=Path, help="the experiment's TOML file")
        p.add_argument("--folder", type=Path, help="folder of its runs; default: $HAPO_LAB_RUNS/experiments/NAME, or runs/...")
        if name == "report":
            p.add_argument("--out", type=Path, help="output folder; default: report/NAME")
        elif name != "pack":
            p.add_argument("--processes", type=int, help="trials at a time; default: one per core, or 1 on a GPU")

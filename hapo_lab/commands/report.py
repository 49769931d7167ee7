"""hapo-lab report RUN ..."""

from __future__ import annotations

import argparse
from pathlib import Path

from hapo_lab.pictures.figures import comparison_figure, training_figure
from hapo_lab.pictures.style import to_png
from hapo_lab.runs.log import RunLog


def report(args: argparse.Namespace) -> None:
    """Write the pictures and tables of runs, and a picture that compares them."""
    logs = [RunLog.load(run) for run in args.runs]
    args.out.mkdir(parents=True, exist_ok=True)
    names = [log.path().resolve().name for log in logs]
    for i, (log, name) in enumerate(zip(logs, names, strict=True), 1):
        report_run(log, args.out if len(logs) == 1 else args.out / (name if names.count(name) == 1 else f"{name}-{i}"))
    if len(logs) > 1:
        tasks = list(dict.fromkeys(log.manifest["task"] for log in logs))
        exams = {split.get("heldout_sha256"): split.get("seed") for log in logs for split in [log.manifest.get("problems", {})]}
        if len(tasks) > 1:
            print(f"note: these runs learned different tasks ({', '.join(tasks)}): their success rates can't be compared")
        elif len(exams) > 1:
            print(f"note: these runs hold out different problems (task seeds {', '.join(map(str, exams.values()))}); "
                  "train them with one --task-seed to compare them")
        path = args.out / "comparison.png"
        path.write_bytes(to_png(comparison_figure(logs)))
        print(path)


def report_run(log: RunLog, out: Path) -> None:
    """Write a run's picture and its table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "training.png").write_bytes(to_png(training_figure(log)))
    log.write_csv(out / "steps.csv")
    print(f"{out / 'training.png'}, {out / 'steps.csv'}")

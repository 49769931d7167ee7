"""The main job's figures: HAPO with three seeds, GRPO and SFT with the first one, same budget; then HAPO and GRPO on dates,
where luck does not help. About 40 minutes.

    python benchmarks/main_job.py [FOLDER]

Trains what is not trained yet, evaluates each saved adapter in a new process, prints what was reached, and draws the
comparison. The shipped runs in data/runs/ were made by this command.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hapo_lab.cli import summary

RUNS = {"hapo-0": ("hapo", 0, "json_record"), "hapo-1": ("hapo", 1, "json_record"), "hapo-2": ("hapo", 2, "json_record"),
        "grpo-0": ("grpo", 0, "json_record"), "sft-0": ("sft", 0, "json_record"),
        "dates-hapo-0": ("hapo", 0, "iso_date"), "dates-grpo-0": ("grpo", 0, "iso_date")}


def hapo_lab(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "hapo_lab", *map(str, arguments)], check=True)


def main(folder: Path) -> None:
    for name, (method, seed, task) in RUNS.items():
        if not (folder / name / "evaluation.json").exists():
            hapo_lab("train", folder / name, "--method", method, "--seed", seed, "--task", task, "--resume")
            hapo_lab("evaluate", folder / name)
    for name in RUNS:
        print(f"\n{name}\n{summary(folder / name)}")
    hapo_lab("report", folder / "hapo-0", folder / "grpo-0", folder / "sft-0", "--out", folder / "report")
    hapo_lab("report", folder / "dates-hapo-0", folder / "dates-grpo-0", "--out", folder / "report-dates")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "data" / "runs")

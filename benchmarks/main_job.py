"""The main job's figures: HAPO with three seeds, GRPO and SFT with the first one, same budget; HAPO and GRPO on dates, where
luck does not help; and `tiny`'s, with three seeds. About 45 minutes.

    python benchmarks/main_job.py [FOLDER]

Trains what is not trained yet, evaluates each saved adapter in a new process, prints what was reached, and draws the
comparison. The default folder, data/runs/, holds the shipped runs, which this command made: it trains nothing there. Another
one makes all of them anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hapo_lab.commands.demo import summary

RUNS = {"hapo-0": ("hapo", 0), "hapo-1": ("hapo", 1), "hapo-2": ("hapo", 2), "grpo-0": ("grpo", 0), "sft-0": ("sft", 0),
        "dates-hapo-0": ("hapo", 0, "--task", "iso_date"), "dates-grpo-0": ("grpo", 0, "--task", "iso_date"),
        "tiny-hapo-0": ("hapo", 0, "--model", "tiny"), "tiny-hapo-1": ("hapo", 1, "--model", "tiny"),
        "tiny-hapo-2": ("hapo", 2, "--model", "tiny"), "tiny-grpo-0": ("grpo", 0, "--model", "tiny")}


os.environ.setdefault("HAPO_LAB_DTYPE", "float32")  # the same figures on all processors, for a third more time on some


def hapo_lab(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "hapo_lab", *map(str, arguments)], check=True)


def main(folder: Path) -> None:
    for name, (method, seed, *other) in RUNS.items():
        if not (folder / name / "evaluation.json").exists():
            if (folder / name / "run.json").exists():
                hapo_lab("resume", folder / name)
            else:
                hapo_lab("train", folder / name, "--method", method, "--seed", seed, *other)
            hapo_lab("evaluate", folder / name)
    for name in RUNS:
        print(f"\n{name}\n{summary(folder / name)}")
    hapo_lab("report", folder / "hapo-0", folder / "grpo-0", folder / "sft-0", "--out", folder / "report")
    hapo_lab("report", folder / "dates-hapo-0", folder / "dates-grpo-0", "--out", folder / "report-dates")
    hapo_lab("report", folder / "tiny-hapo-0", folder / "tiny-grpo-0", "--out", folder / "report-tiny")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "data" / "runs")

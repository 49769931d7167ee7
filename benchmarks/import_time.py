"""What a name costs to import, in an interpreter of its own: the gate, beside torch alone, and the heaviest of the others.

    python benchmarks/import_time.py

The goal is 1.5 seconds for the gate. Python's own start is taken off. The modules' files are read once before: a cold disk
is not measured.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 7
NAMES = ("BetaGate", "HAPO", "shipped_run", "load_task", "expected_gradient", "training_figure", "load_policy", "Trainer",
         "Dashboard", "Controls")


def seconds(code: str) -> float:
    """Of a fresh interpreter that runs it."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def medians(codes: dict[str, str]) -> dict[str, float]:
    """In turns, so that a busy moment meets all of them; the first turn, which reads the files, does not count."""
    rows = [{name: seconds(code) for name, code in codes.items()} for _ in range(ROUNDS + 1)][1:]
    return {name: statistics.median(row[name] for row in rows) for name in codes}


def main() -> None:
    found = medians({"": "", "torch": "import torch"} | {name: f"from hapo_lab import {name}" for name in NAMES})
    start = found.pop("")
    torch = found["torch"] - start
    print(f"Python's own start {start:.2f} s, taken off below; medians of {ROUNDS}")
    print(f"{'import torch':42s} {torch:5.2f} s")
    for name in NAMES:
        print(f"{f'from hapo_lab import {name}':42s} {found[name] - start:5.2f} s {(found[name] - start) / torch:6.2f} x torch")


if __name__ == "__main__":
    main()

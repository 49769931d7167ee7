"""What several benchmarks share: groups that are mixed by construction, medians, and the machine in words."""

from __future__ import annotations

import hapo_lab  # noqa: F401, before torch: it says how threads wait  # isort: skip
import itertools
import json
import os
import platform
import statistics
from dataclasses import replace
from pathlib import Path

import torch

os.environ.setdefault("HAPO_LAB_DTYPE", "float32")  # what the tables were measured in; before any model is loaded

from hapo_lab.engines.protocol import Engine
from hapo_lab.tasks.problem import Task, Verdict


def mixed(task: Task, prompts: int, new_tokens: int) -> Task:
    """The task's first problems, without demonstrations. Whatever is written, every other completion is right: no group is
    dead, and skipping dead ones gains nothing."""
    turn = itertools.count()
    train, heldout = (tuple(replace(p, demonstration=None) for p in split) for split in (task.train[:prompts], task.heldout))
    return replace(task, train=train, heldout=heldout, max_new_tokens=new_tokens,
                   verify=lambda *_: Verdict(next(turn) % 2 == 0, ""))


class WholeCompletions:
    """An engine whose completions count as finished: one that is cut at the limit would score 0."""

    def __init__(self, engine: Engine):
        self.engine, self.name, self.sync, self.sleep = engine, engine.name, engine.sync, engine.sleep

    def generate(self, *how):
        return [[replace(c, finished=True) for c in group] for group in self.engine.generate(*how)]


def medians(rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {name: {key: statistics.median(row[key] for row in found) for key in found[0]} for name, found in rows.items()}


def machine(**more) -> dict:
    """Whom the figures belong to."""
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {"processor": model[0] if model else platform.machine(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "torch": torch.__version__, **more}


def write(out: Path, **found) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")

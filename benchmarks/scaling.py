"""Seconds per step as the group's size, the prompts and the completions' length double.

    python benchmarks/scaling.py [OUT.json]     # a quarter of an hour on two cores

SmolLM2-135M in 4 bits with an adapter of rank 16, sampled from by the kit's own engine; GRPO's loss; every group mixed and
every completion whole, by construction. From 8 completions per group, 4 prompts, 24 tokens, one number is changed at a time.
Repeats are interleaved: each point once to warm up, then each once, five times over; a figure is the median of its five.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from common import WholeCompletions, machine, medians, mixed, write

from hapo_lab.engines.protocol import Engine
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.methods import GRPO
from hapo_lab.policy.models import load_policy
from hapo_lab.policy.policy import Policy
from hapo_lab.runs.record import StepRecord
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.trainer import Trainer

REPEATS = 5
BASE = {"group size": 8, "prompts": 4, "new tokens": 24}
AXES = {"group size": (4, 8, 16, 32), "prompts": (2, 4, 8, 16), "new tokens": (12, 24, 48, 96)}


def points() -> dict[str, dict[str, int]]:
    """By name; the base stands on every axis, and is measured once."""
    return {_name(point): point for axis, values in AXES.items() for value in values for point in [BASE | {axis: value}]}


def _name(point: dict[str, int]) -> str:
    return " x ".join(map(str, point.values()))


def steps(policy: Policy, engine: Engine, point: dict[str, int]) -> Iterator[StepRecord]:
    task = mixed(load_task("json_record"), point["prompts"], point["new tokens"])
    config = Config(steps=REPEATS + 1, prompts=point["prompts"], group_size=point["group size"], warmup=0, learning_rate=1e-5,
                    eval_every=0)
    return iter(Trainer(policy, task, GRPO, config, engine=engine))


def table(middle: dict[str, dict[str, float]]) -> list[str]:
    """As it stands in benchmarks/README.md."""
    rows = ["| what doubles | seconds per step | over the one before |", "|---|---|---|"]
    for axis, values in AXES.items():
        seconds = [middle[_name(BASE | {axis: value})]["step"] for value in values]
        cells = (f"{axis}: {', '.join(map(str, values))}", ", ".join(f"{s:.1f}" for s in seconds),
                 ", ".join(f"{b / a:.2f}" for a, b in pairwise(seconds)))
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def main(out: Path | None) -> None:
    policy = replace(load_policy("smollm2-135m"), ends=())  # no completion ends early
    engine = WholeCompletions(TransformersEngine(policy))
    running = {name: steps(policy, engine, point) for name, point in points().items()}
    rows: dict[str, list[dict]] = {name: [] for name in running}
    for repeat in range(REPEATS + 1):
        for name, run in running.items():
            seconds = next(run).seconds
            rows[name].append({"step": sum(seconds.values()), "rollout": seconds["rollout"], "update": seconds["update"]})
            print(f"repeat {repeat}: {name:12} {rows[name][-1]['step']:6.1f} s", file=sys.stderr, flush=True)
    rows = {name: found[1:] for name, found in rows.items()}
    middle = medians(rows)
    print(*table(middle), sep="\n")
    if out:
        write(out, machine=machine(), axes=AXES, base=BASE, medians=middle, repeats=rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

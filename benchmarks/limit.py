"""How near a training step comes to what this machine can do, by phase, and where the rest goes.

    python benchmarks/limit.py [--steps 3] [--out results/limit.json]     # four minutes on two cores

First the machine: a product of matrices of the main job's size, in float32 and bfloat16, on one thread and on all; and a copy
in memory. Then steps of the main job's shape (SmolLM2-135M in 4 bits, 4 prompts x 8 completions x 24 tokens, every group
mixed), in both dtypes by turns; and one more of each under a profiler. A phase's limit is the time that its reading of the
weights or its arithmetic takes at those rates, whichever is more. Arithmetic counts linear layers and head alone.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from common import WholeCompletions, machine, mixed, write
from torch.profiler import ProfilerActivity, profile

from hapo_lab.commands.plan import shape_of
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.methods import GRPO
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.models import load_policy
from hapo_lab.policy.rates import copied
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.trainer import Trainer

MODEL, PROMPTS, GROUP, NEW = "smollm2-135m", 4, 8, 24
WIDTHS = {"float32": 4, "bfloat16": 2}
"""Bytes of a number, by the dtype that models compute in."""
ROWS, INNER, OUTER = 512, 576, 1536  # tokens of a pass, and the two widths of the model's MLP


def shortest(what, tries: int = 30) -> float:
    """Seconds, of so many tries."""
    taken = []
    for _ in range(tries):
        start = time.perf_counter()
        what()
        taken.append(time.perf_counter() - start)
    return min(taken)


def rates() -> dict[str, dict[str, float]]:
    """GFLOP/s by dtype and threads, and GB/s of a copy (read and written)."""
    before, found = torch.get_num_threads(), {}
    for threads in sorted({1, before}):
        torch.set_num_threads(threads)
        row = {}
        for dtype in (torch.float32, torch.bfloat16):
            a, b = torch.randn(ROWS, INNER).to(dtype), torch.randn(OUTER, INNER).to(dtype)
            row[str(dtype).removeprefix("torch.")] = 2e-9 * ROWS * INNER * OUTER / shortest(
                lambda a=a, b=b: torch.nn.functional.linear(a, b))
        found[f"{threads} threads"] = row | {"copy": 1e-9 * copied(torch.device("cpu"))}
    torch.set_num_threads(before)
    return found


def limits(prompt_tokens: int, width: int, flops: float, bytes_per_second: float) -> dict[str, float]:
    """Seconds that a step's phases take at least: `prompt_tokens` of all prompts, each read once a phase, and numbers of so
    many bytes."""
    shape = shape_of(MODEL)
    layers, head, rows = shape.linear, shape.vocabulary * shape.hidden, PROMPTS * GROUP
    tokens = rows * NEW
    # a token reads all weights once, for all rows; the prompts are read at once
    a_token = max(width * (layers + head) / bytes_per_second, 2 * (layers + head) * rows / flops)
    rollout = 2 * layers * prompt_tokens / flops + NEW * a_token
    # forward, and backward to the inputs, because the weights are frozen; the head's gradient is computed with its logits
    update = (4 * layers * (prompt_tokens + tokens) + 4 * head * tokens) / flops
    return {"rollout": rollout, "update": update}


def spent(work) -> list[tuple[str, float]]:
    """(What, share of the time of all operations), the ten largest."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    return [(row.key, row.self_cpu_time_total / whole) for row in rows[:10]]


def trainer(dtype: str, steps: int) -> tuple[Trainer, int]:
    """One of the main job's shape, and the tokens of its prompts."""
    policy, task = load_policy(MODEL, dtype=dtype), mixed(load_task("json_record"), PROMPTS, NEW)
    config = Config(steps=steps, prompts=PROMPTS, group_size=GROUP, learning_rate=1e-5, warmup=0, eval_every=0)
    made = Trainer(policy, task, GRPO, config, engine=WholeCompletions(TransformersEngine(policy)))
    return made, sum(len(prompt_ids(policy, p)) for p in task.train)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "limit.json")
    asked = parser.parse_args()
    can = rates()
    best = can[f"{torch.get_num_threads()} threads"]
    trainers = {dtype: trainer(dtype, asked.steps + 2) for dtype in WIDTHS}
    steps = {dtype: iter(made) for dtype, (made, _) in trainers.items()}
    seconds = [{dtype: next(taken).seconds for dtype, taken in steps.items()} for _ in range(asked.steps + 1)]
    phases = {}
    for dtype, (_, prompt_tokens) in trainers.items():
        for phase, low in limits(prompt_tokens, WIDTHS[dtype], 1e9 * best[dtype], 1e9 * best["copy"]).items():
            took = statistics.median(row[dtype][phase] for row in seconds[1:])  # the first one warms
            phases[f"{phase}, {dtype}"] = {"seconds": took, "at least": low, "share": low / took}
    where = {dtype: spent(lambda taken=taken: next(taken)) for dtype, taken in steps.items()}
    print(*lines(can, phases, where), sep="\n")
    write(asked.out, machine=machine(), can=can, phases=phases, where=where)


def lines(can: dict, phases: dict, where: dict[str, list[tuple[str, float]]]) -> list[str]:
    """As they stand in benchmarks/README.md."""
    return ["| the machine | float32 | bfloat16 | copy |", "|---|---|---|---|",
            *(f"| {name} | {row['float32']:.0f} GFLOP/s | {row['bfloat16']:.0f} GFLOP/s | {row['copy']:.0f} GB/s |"
              for name, row in can.items()), "",
            "| phase | seconds | at least | share of the limit |", "|---|---|---|---|",
            *(f"| {name} | {row['seconds']:.2f} | {row['at least']:.2f} | {row['share']:.0%} |"
              for name, row in phases.items()), "",
            "| dtype | operation | share of the step |", "|---|---|---|",
            *(f"| {dtype} | `{name}` | {share:.0%} |" for dtype, found in where.items() for name, share in found)]


if __name__ == "__main__":
    main()

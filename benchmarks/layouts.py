"""One sequence for all completions of a group, or a row for each: seconds there and back, and which one `rows_pay` takes.

    python benchmarks/layouts.py [--model smollm2-135m]      # ten minutes on two cores; results/layouts.json

A prompt of 64 tokens and random completions. Repeats are interleaved: each once to warm up, then three times.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from common import machine, write

from hapo_lab.policy import logprobs
from hapo_lab.policy.memory import Shape
from hapo_lab.policy.models import load_policy

PROMPT, REPEATS = 64, 3
GROUPS = ((8, 24), (8, 64), (4, 128), (8, 128), (4, 256), (8, 256), (4, 512), (2, 1024))
"""Completions, and tokens in each."""
PAYS = logprobs.rows_pay


def seconds(policy, group, rows: bool) -> float:
    """Of a pass, there and back."""
    logprobs.rows_pay = lambda *_: rows
    start = time.perf_counter()
    logp, _, mask = logprobs.completion_logprobs(policy.model, *group)
    logp[mask].sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "layouts.json")
    asked = parser.parse_args()
    policy, rows = load_policy(asked.model), []
    shape = Shape.of(policy.model.config)
    for n, length in GROUPS:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(5, shape.vocabulary, (PROMPT + n * length,), generator=draw).tolist()
        group = [ids[:PROMPT]], [[ids[i:i + length] for i in range(PROMPT, len(ids), length)]]
        taken = {kind: [] for kind in (False, True)}
        for _ in range(REPEATS + 1):
            for kind in taken:
                taken[kind].append(seconds(policy, group, kind))
        one, own = (statistics.median(taken[kind][1:]) for kind in (False, True))
        rows.append({"completions": n, "tokens": length, "one": one, "rows": own, "taken": bool(PAYS(shape, *group))})
        print(*table(rows)[-1 if len(rows) > 1 else 0:], sep="\n", flush=True)
    write(asked.out, machine=machine(), model=asked.model, rows=rows)


def table(rows: list[dict]) -> list[str]:
    """As it stands in benchmarks/README.md."""
    return ["| completions x tokens | one sequence | rows | rows over one | taken |", "|---|---|---|---|---|",
            *(f"| {row['completions']} x {row['tokens']} | {row['one']:.2f} s | {row['rows']:.2f} s "
              f"| {row['rows'] / row['one']:.2f} | {'rows' if row['taken'] else 'one'} |" for row in rows)]


if __name__ == "__main__":
    main()

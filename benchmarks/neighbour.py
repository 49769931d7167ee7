"""What a busy neighbour costs a training step, and what the choice of threads costs a quiet machine.

    python benchmarks/neighbour.py [OUT.json]     # a quarter of an hour on two cores, with nothing beside

The neighbour is a process that computes without a pause. Each figure is the median step of a run of its own: `tiny` at its
usual job, SmolLM2-135M at the main one. "kit" is what the kit chooses: the number of threads, and how long one turns on its
core while it waits. "torch" is torch as it comes. Quiet and beside runs are interleaved, three rounds of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from common import machine, write

ROUNDS = 3
STEPS = {"tiny": 12, "smollm2-135m": 3}
CHOICES = ("kit", "torch")
STEP = """
import json, statistics, sys
from dataclasses import replace
model, choice, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
if choice == "torch":
    import torch  # before the kit, so that it waits as it likes
from hapo_lab import HAPO, TINY, Config, Trainer, load_policy, load_task
policy = load_policy(model)
if choice == "torch":
    policy = replace(policy, threads=torch.get_num_threads())
task, config = ("sums", TINY) if model == "tiny" else ("json_record", Config())
trainer = Trainer(policy, load_task(task), HAPO, replace(config, steps=steps, eval_every=0), engine="transformers")
seconds = [record.training_seconds for record in trainer]
print(json.dumps({"seconds": statistics.median(seconds[1:]), "threads": policy.threads}))
"""


@contextmanager
def neighbour(busy: bool):
    """One other process at work, or none."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def step(model: str, choice: str) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}  # which this process has set
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", STEP, model, choice, str(STEPS[model])],
                          capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, list[dict[str, float]]]) -> list[str]:
    rows = ["| model | threads | quiet | beside a busy process | ratio | over torch's choice, quiet |",
            "|---|---|---|---|---|---|"]
    for model in STEPS:
        for choice in CHOICES:
            quiet, beside, torchs = (statistics.median(row["seconds"] for row in found[f"{model}, {who}, {when}"])
                                     for who, when in ((choice, "quiet"), (choice, "beside"), ("torch", "quiet")))
            threads = found[f"{model}, {choice}, quiet"][0]["threads"]
            rows.append(f"| {model} | {choice}: {threads:g} | {quiet:.2f} s | {beside:.2f} s | {beside / quiet:.2f} "
                        f"| {quiet / torchs:.2f} |")
    return rows


def main() -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for turn in range(ROUNDS):
        for model in STEPS:
            for choice in CHOICES:
                for when in ("quiet", "beside"):
                    with neighbour(when == "beside"):
                        row = step(model, choice)
                    found.setdefault(f"{model}, {choice}, {when}", []).append(row)
                    print(f"round {turn}: {model}, {choice}, {when}: {row['seconds']:.2f} s", flush=True)
    print("\n".join(table(found)))
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]), machine=machine(), repeats=found)


if __name__ == "__main__":
    main()

"""Tokens per second of every way to sample, and how far its log-probabilities are from the trainer's.

    python benchmarks/rollouts.py [OUT.json]        # a quarter of an hour on one core; vLLM's rows need `make vllm`

SmolLM2-135M in 4 bits with an adapter of rank 16 that has moved; 4 prompts of the main job, 8 completions each of at most 24
tokens, temperature 1. A repeat is what a training step does: take over the adapter, then sample. Repeats are interleaved:
first each way once to warm up, then each way once, five times over; a figure is the median of its five.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from hapo_lab import vllm_engine
from hapo_lab.evaluate import prompt_ids
from hapo_lab.logprobs import completion_logprobs
from hapo_lab.models import Policy, load_policy
from hapo_lab.rollouts import Engine, Sampling, TransformersEngine
from hapo_lab.tasks import load_task
from hapo_lab.vllm_engine import VllmEngine

PROMPTS, N, REPEATS, SAMPLING = 4, 8, 5, Sampling(24)
BASELINE = "transformers, NF4"


def moved(**how) -> Policy:
    """A policy whose adapter has moved as far as training moves it: B's entries are about 0.01."""
    policy = load_policy("smollm2-135m", **how)
    with torch.no_grad():
        for i, p in enumerate(policy.trainable()):
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p.device)
    return policy


def engines() -> dict[str, Engine]:
    """By name. vLLM serves a policy in one way: so for each of its ways there is a policy of equal weights."""
    half = moved(quantize=False)
    half.model.to(torch.bfloat16)
    found = {BASELINE: TransformersEngine(TRAINER, own_copy=False),
             "transformers, dequantised": TransformersEngine(TRAINER, own_copy=True),
             "transformers, bfloat16": TransformersEngine(half, own_copy=False)}
    if vllm_engine.installed():
        ways = {"vLLM, merged": (True, torch.float32), "vLLM, swapped": (False, torch.float32),
                "vLLM, merged, bfloat16": (True, torch.bfloat16)}
        found |= {name: VllmEngine(moved(), merge=merge) for name, (merge, _) in ways.items()}
        for name, (_, dtype) in ways.items():
            with computing_in(dtype):
                found[name].sync()
    return found


@contextmanager
def computing_in(dtype: torch.dtype):
    """The engine computes as the trainer does; to see what another width would bring, it is told otherwise when it starts."""
    right = vllm_engine.compute_dtype
    vllm_engine.compute_dtype = lambda device: dtype
    try:
        yield
    finally:
        vllm_engine.compute_dtype = right


def measure(engine: Engine, prompts: list[list[int]], seed: int) -> dict[str, float]:
    start = time.perf_counter()
    engine.sync()
    synced = time.perf_counter()
    groups = engine.generate(prompts, N, SAMPLING, seed)
    done = time.perf_counter()
    with torch.no_grad():
        logp, _, mask = completion_logprobs(TRAINER.model, prompts, [[c.ids for c in g] for g in groups])
    gap = (logp[mask].cpu() - torch.tensor([x for g in groups for c in g for x in c.logps])).abs()
    return {"tokens_per_second": len(gap) / (done - start), "sync_seconds": synced - start, "tokens": len(gap),
            "gap_mean": gap.mean().item(), "gap_max": gap.max().item()}


def main(out: Path | None) -> None:
    prompts = [prompt_ids(TRAINER, problem) for problem in load_task("json_record").train[:PROMPTS]]
    ways = engines()
    rows: dict[str, list[dict]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, engine in ways.items():
            rows[name].append(measure(engine, prompts, seed=repeat))
            speed = rows[name][-1]["tokens_per_second"]
            print(f"repeat {repeat}: {name:28} {speed:6.0f} tokens/s", file=sys.stderr, flush=True)
    rows = {name: found[1:] for name, found in rows.items()}
    medians = {name: {key: statistics.median(row[key] for row in found) for key in found[0]} for name, found in rows.items()}
    slow = medians[BASELINE]["tokens_per_second"]
    print(f"{'':28} tokens/s  over NF4  sync s  |log p - trainer's|: mean, max")
    for name, m in medians.items():
        print(f"{name:28} {m['tokens_per_second']:8.0f}  {m['tokens_per_second'] / slow:8.2f}  {m['sync_seconds']:6.2f}  "
              f"{m['gap_mean']:.1e}, {m['gap_max']:.1e}")
    if out:
        machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
                   "device": str(TRAINER.device), "torch": torch.__version__, "vllm": vllm_engine.installed()}
        out.write_text(json.dumps({"machine": machine, "medians": medians, "repeats": rows}, indent=1) + "\n")


if __name__ == "__main__":
    TRAINER = moved()
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

"""Tokens per second of every way to sample, and how far its log-probabilities are from the trainer's.

    python benchmarks/rollouts.py [OUT.json]        # seven minutes on two cores; vLLM's rows need `make vllm`

First transformers' `generate` as it comes, over the 4 bits and over unquantized bfloat16 weights. Then the kit's engine, which
has `generate` read each prompt once for its group and draws tokens itself: over the 4 bits, and over dequantised weights, which
it takes on a CPU. Then vLLM, with either way to take over an adapter.

SmolLM2-135M in 4 bits with an adapter of rank 16 that has moved; 4 prompts of the main job, 8 completions each of at most 24
tokens, temperature 1. A repeat is what a training step does: take over the adapter, then sample. Repeats are interleaved:
first each way once to warm up, then each way once, five times over; a figure is the median of its five.
"""

from __future__ import annotations

import hapo_lab  # noqa: F401, before torch: it says how threads wait  # isort: skip
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from common import machine, medians, write

from hapo_lab.engines import vllm_engine
from hapo_lab.engines.protocol import Completion, Engine, Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.engines.vllm_engine import VllmEngine
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.logprobs import completion_logprobs
from hapo_lab.policy.models import load_policy
from hapo_lab.policy.policy import Policy
from hapo_lab.tasks.builtin import load_task

PROMPTS, N, REPEATS, SAMPLING = 4, 8, 5, Sampling(24)
BASELINE = "transformers' generate, NF4"


def moved(**how) -> Policy:
    """A policy whose adapter has moved as far as training moves it: B's entries are about 0.01."""
    policy = load_policy("smollm2-135m", **how)
    with torch.no_grad():
        for i, p in enumerate(policy.trainable()):
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p.device)
    return policy


class Plain:
    """`generate` as it comes: prompts repeated for their completions, tokens drawn by torch. Without log-probabilities."""

    name = "generate"

    def __init__(self, policy: Policy):
        self.policy = policy

    def sync(self) -> None:
        """It samples from the policy itself."""

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> list[list[Completion]]:
        torch.manual_seed(seed)
        tokenizer = self.policy.tokenizer
        padded = tokenizer.pad({"input_ids": [list(p) for p in prompts]}, padding_side="left", return_tensors="pt")
        out = self.policy.model.generate(
            **padded.to(self.policy.device), num_return_sequences=n, do_sample=True, temperature=sampling.temperature, top_k=0,
            top_p=1.0, max_new_tokens=sampling.max_new_tokens, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id)
        rows = [self._completion(ids) for ids in out[:, padded.input_ids.shape[1]:].tolist()]
        return [rows[i * n:(i + 1) * n] for i in range(len(prompts))]

    def _completion(self, ids: list[int]) -> Completion:
        end = self.policy.tokenizer.eos_token_id
        return Completion(tuple(ids[:ids.index(end) + 1] if end in ids else ids), "", (), end in ids)


def engines() -> dict[str, Engine]:
    """By name. vLLM serves a policy in one way: so for each of its ways there is a policy of equal weights."""
    half = moved(quantize=False)
    half.model.to(torch.bfloat16)
    found = {BASELINE: Plain(TRAINER), "transformers' generate, bfloat16": Plain(half),
             "ours, NF4": TransformersEngine(TRAINER, own_copy=False),
             "ours, dequantised": TransformersEngine(TRAINER, own_copy=True)}
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
    right = vllm_engine._dtype
    vllm_engine._dtype = lambda policy: dtype
    try:
        yield
    finally:
        vllm_engine._dtype = right


def measure(engine: Engine, prompts: list[list[int]], seed: int) -> dict[str, float]:
    start = time.perf_counter()
    engine.sync()
    synced = time.perf_counter()
    groups = engine.generate(prompts, N, SAMPLING, seed)
    done = time.perf_counter()
    tokens = sum(len(c.ids) for g in groups for c in g)
    return {"tokens_per_second": tokens / (done - start), "sync_seconds": synced - start, "tokens": tokens,
            **gap(prompts, groups)}


@torch.no_grad()
def gap(prompts: list[list[int]], groups: list[list[Completion]]) -> dict[str, float]:
    """How far an engine's log-probabilities are from the trainer's, of the tokens that it drew."""
    engines = torch.tensor([x for g in groups for c in g for x in c.logps])
    if not len(engines):
        return {}
    logp, _, mask = completion_logprobs(TRAINER.model, prompts, [[c.ids for c in g] for g in groups])
    apart = (logp[mask].cpu() - engines).abs()
    return {"gap_mean": apart.mean().item(), "gap_max": apart.max().item()}


def table(repeats: dict[str, list[dict[str, float]]]) -> list[str]:
    """As it stands in benchmarks/README.md."""
    middle = medians(repeats)
    rows = ["| | tokens per second | over generate, NF4 (in one repeat, lowest to highest) | taking over an adapter "
            "| log p off the trainer's: mean, at most |", "|---|---|---|---|---|"]
    for name, m in middle.items():
        ratio = m["tokens_per_second"] / middle[BASELINE]["tokens_per_second"]
        each = [row["tokens_per_second"] / slow["tokens_per_second"]
                for row, slow in zip(repeats[name], repeats[BASELINE], strict=True)]
        spread = "" if name == BASELINE else f" ({min(each):.2f} to {max(each):.2f})"
        sync = f"{m['sync_seconds']:.2f} s" if m["sync_seconds"] > 0.005 else "none"
        apart = f"{m['gap_mean']:.0e}, {m['gap_max']:.0e}" if "gap_mean" in m else ""
        rows.append(f"| {name} | {m['tokens_per_second']:.0f} | {ratio:.2f}{spread} | {sync} | {apart} |")
    return rows


def main(out: Path | None) -> None:
    prompts = [prompt_ids(TRAINER, problem) for problem in load_task("json_record").train[:PROMPTS]]
    ways = engines()
    rows: dict[str, list[dict]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, engine in ways.items():
            rows[name].append(measure(engine, prompts, seed=repeat))
            speed = rows[name][-1]["tokens_per_second"]
            print(f"repeat {repeat}: {name:33} {speed:6.0f} tokens/s", file=sys.stderr, flush=True)
    rows = {name: found[1:] for name, found in rows.items()}
    print(*table(rows), sep="\n")
    if out:
        write(out, machine=machine(vllm=vllm_engine.installed()[1]), medians=medians(rows), repeats=rows)


if __name__ == "__main__":
    TRAINER = moved()
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

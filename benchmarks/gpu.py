"""What one GPU does: steps on the shapes of Qwen2.5-Math-1.5B and 7B, and `tiny`'s training against the CPU's.

    python benchmarks/gpu.py [OUT.json]        # at most 8 minutes on a GPU; no network, vLLM not needed
    python benchmarks/gpu.py --dry             # the same program on a CPU, with shapes that it can do

The weights are random, which speed and memory don't mind. NF4 where bitsandbytes loads, else the compute dtype; LoRA of rank
16; GRPO on 4 prompts with 8 completions each, of 512 new tokens that none of them ends early. One step to warm up, one that
counts. The card's own rates are measured first: a matrix product, and a copy. Where TRL is installed, it takes the same
steps on the same weights, with its own `generate`; that may double the time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from against_trl import ROOT, one
from common import WholeCompletions, mixed, write
from transformers import AutoModelForCausalLM, Qwen2Config

from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.methods import GRPO, HAPO
from hapo_lab.policy.models import default_device, load_policy
from hapo_lab.policy.rates import Rates, compute_dtype, measured
from hapo_lab.reproducibility.kit import DATA
from hapo_lab.runs.log import shipped_run
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import TINY, Config
from hapo_lab.training.trainer import Trainer

LIMIT = 8 * 60


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    new_tokens: int = 512

    def config(self) -> Qwen2Config:
        return Qwen2Config(hidden_size=self.hidden, intermediate_size=self.inner, num_hidden_layers=self.layers,
                           num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, vocab_size=self.vocabulary,
                           tie_word_embeddings=self.tied, max_position_embeddings=4096)


SHAPES = [Shape("Qwen2.5-Math-1.5B", 1536, 8960, 28, 12, 2, 151_936, tied=True),
          Shape("Qwen2.5-Math-7B", 3584, 18_944, 28, 28, 4, 152_064, tied=False)]
DRY = [Shape("dry", 128, 256, 2, 4, 2, 512, tied=True, new_tokens=16)]


def step(shape: Shape, device: torch.device, card: Rates) -> dict[str, float]:
    """Figures of a training step."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(shape.config(), dtype=compute_dtype(device, shape.hidden))
        model.save_pretrained(folder)
        del model
        for file in (DATA / "tiny").glob("*token*"):
            shutil.copy(file, folder)
        shutil.copy(DATA / "tiny" / "chat_template.jinja", folder)
        beside = theirs(folder, shape)
        policy = replace(load_policy(folder), ends=())  # no completion ends early
    task = mixed(load_task("sums"), prompts=4, new_tokens=shape.new_tokens)
    config = Config(steps=2, prompts=4, warmup=0, eval_every=0, token_budget=8 * shape.new_tokens)
    steps = iter(Trainer(policy, task, GRPO, config, engine=WholeCompletions(TransformersEngine(policy))))
    next(steps)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    record = next(steps)
    weights = sum(p.nbytes for p in policy.model.parameters())
    parameters, tokens = policy.model.get_base_model().num_parameters(), record.tokens_trained
    rollout, update = record.seconds["rollout"], record.seconds["update"]
    return {"quantized": policy.quantized, "rollout_seconds": rollout, "update_seconds": update,
            "tokens_per_second": record.tokens_sampled / rollout,
            "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
            "share_of_bandwidth": weights * shape.new_tokens / rollout / card.bytes_per_second,  # each token reads them once
            "share_of_matrix_rate": 4 * parameters * tokens / update / card.flops,  # forward, and backward to the inputs
            "trl": beside}


def theirs(folder: str, shape: Shape) -> dict[str, float] | None:
    """TRL's second step on these weights; None where it is not installed."""
    if not find_spec("trl"):
        return None
    command = [sys.executable, ROOT / "benchmarks" / "against_trl.py", "trl", folder, "mixed", "sums", str(shape.new_tokens)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        _, found = one(process), one(process)
        assert process.stdin
        process.stdin.close()
    return found


def tiny(steps: int) -> dict[str, float]:
    """`tiny`'s run of seed 0 here, and the shipped one, which a CPU made: mean success of the last ten steps."""
    config = replace(TINY, steps=steps, eval_every=0)
    log = Trainer(load_policy("tiny"), load_task("sums"), HAPO, config)
    here = [record.reward for record in log][-10:]
    there = [record.reward for record in shipped_run("tiny-hapo-0").steps][:steps][-10:]
    return {"here": sum(here) / len(here), "cpu": sum(there) / len(there)}


def table(shapes: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: a row per shape; "none" for the peak memory of a CPU."""
    rows = ["| shape | rollout | tokens per second | of the bandwidth | update | of the matrix rate | peak memory | over TRL |",
            "|---" * 8 + "|"]
    for name, row in shapes.items():
        peak = f"{row['peak_gib']:.1f} GiB" if row["peak_gib"] else "none"
        rollout, update = f"{row['rollout_seconds']:.1f} s", f"{row['update_seconds']:.1f} s"
        ours = row["rollout_seconds"] + row["update_seconds"]
        over = f"{ours / row['trl']['step']:.2f}" if row.get("trl") else "not measured"
        rows.append(f"| {name} | {rollout} | {row['tokens_per_second']:.0f} | {row['share_of_bandwidth']:.1%} | {update} "
                    f"| {row['share_of_matrix_rate']:.1%} | {peak} | {over} |")
    return rows


def main(out: Path | None, dry: bool) -> None:
    began, device = time.monotonic(), torch.device("cpu") if dry else default_device()
    if device.type != "cuda" and not dry:
        sys.exit("benchmarks/gpu.py: there is no GPU here; --dry tries the program on a CPU.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (dry run: no figure of it means anything)"
    shapes = DRY if dry else SHAPES
    card = measured(device, compute_dtype(device, shapes[0].hidden), 256 if dry else None)
    print(f"{name}, torch {torch.__version__}: {card.flops / 1e12:.1f} TFLOP/s, {card.bytes_per_second / 1e9:.0f} GB/s")
    found = {"machine": {"device": name, "torch": torch.__version__}, "card": asdict(card), "shapes": {}, "tiny": None}
    for shape in shapes:
        try:
            figures = step(shape, device, card)
        except torch.cuda.OutOfMemoryError as error:
            print(f"{shape.name}: does not fit: {error}", flush=True)
            continue
        found["shapes"][shape.name] = {"shape": asdict(shape)} | figures
        print("\n".join(table(found["shapes"])), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if out:  # so much is kept, whatever comes
            write(out, **found)
    found["tiny"] = tiny(2 if dry else TINY.steps)
    print(f"tiny, mean success of the last ten steps: {found['tiny']['here']:.2f} here, {found['tiny']['cpu']:.2f} on a CPU "
          "(another device draws other tokens: a difference of 0.15 is none)")
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s in all" + (", over its limit" if seconds > LIMIT else ""))
    if out:
        write(out, **found)


if __name__ == "__main__":
    files = [argument for argument in sys.argv[1:] if argument != "--dry"]
    main(Path(files[0]) if files else None, "--dry" in sys.argv)

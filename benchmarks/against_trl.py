"""Seconds per step, by phase, and peak memory: this kit over TRL's GRPOTrainer.

    python benchmarks/against_trl.py PYTHON [OUT.json]     # a Python with trl==1.16.0 and this kit's requirements

SmolLM2-135M in NF4 with a LoRA adapter of rank 16; GRPO's loss (std, token mean, clip 0.2, no KL) on 4 prompts of the main job
with 8 completions each, all of 24 tokens, temperature 1; float32 compute. Every group is mixed by construction: rewards
alternate, so skipping dead groups gains nothing. TRL gets its defaults otherwise (8 sequences a backward pass), without
gradient checkpointing. Each side is a process of its own; their steps are interleaved: one each to warm up, then five. A figure is a
median; memory is the peak of the steps, loading left out, and vLLM's process is counted in.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS, N, TOKENS, REPEATS = 4, 8, 24, 5


# this kit ----------------------------------------------------------------------------------------------------------


def ours(engine_name: str) -> None:
    from dataclasses import replace

    from hapo_lab.methods import GRPO
    from hapo_lab.models import load_policy
    from hapo_lab.tasks import Verdict, load_task
    from hapo_lab.trainer import Config, Trainer
    from hapo_lab.vllm_engine import _processes, engine_for
    policy, turn = load_policy("smollm2-135m"), itertools.count()
    policy.tokenizer.eos_token = "<jupyter_start>"  # a token that the model does not write: no completion ends early
    task = load_task("json_record")
    train, heldout = (tuple(replace(p, demonstration=None) for p in split) for split in (task.train[:PROMPTS], task.heldout))
    task = replace(task, train=train, heldout=heldout, max_new_tokens=TOKENS,
                   verify=lambda *_: Verdict(next(turn) % 2 == 0, ""))

    class WholeCompletions:
        """One that is cut at the limit would score 0."""

        def __init__(self, engine):
            self.engine, self.name, self.sync = engine, engine.name, engine.sync

        def generate(self, *how):
            return [[replace(c, finished=True) for c in group] for group in self.engine.generate(*how)]

    config = Config(steps=REPEATS + 1, prompts=PROMPTS, group_size=N, warmup=0, learning_rate=1e-5, eval_every=0)
    engine = WholeCompletions(engine_for(engine_name, policy, steps=0, tokens=0))
    trainer = Trainer(policy, task, GRPO, config, engine=engine)
    steps, served = iter(trainer), _processes.get(policy.model)
    pids = [os.getpid()] + ([served.process.pid] if served else [])
    for pid in pids:
        forget_peak(pid)
    while go():
        start = time.perf_counter()
        record = next(steps)
        seconds = time.perf_counter() - start
        assert record.dead_before == 0 and record.tokens_sampled == PROMPTS * N * TOKENS
        say(step=seconds, rollout=record.seconds["rollout"], update=record.seconds["update"], peak=sum(map(peak, pids)))


# TRL ---------------------------------------------------------------------------------------------------------------


def trl(model: str, messages: str) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    rollout = []

    class Trainer(GRPOTrainer):
        def _generate(self, prompts):
            start = time.perf_counter()
            out = super()._generate(prompts)
            rollout.append(time.perf_counter() - start)
            return out

    class OnDemand(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if not go():
                os._exit(0)
            if not state.global_step:
                forget_peak(os.getpid())
            rollout.clear()
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            seconds = time.perf_counter() - self.start
            say(step=seconds, rollout=sum(rollout), update=seconds - sum(rollout), peak=peak(os.getpid()))

    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                  bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, quantization_config=four_bit)
    prompts = [{"prompt": message} for message in json.loads(messages)]
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no",
        per_device_train_batch_size=N, gradient_accumulation_steps=PROMPTS, num_generations=N, max_completion_length=TOKENS,
        max_steps=REPEATS + 1, learning_rate=1e-5, beta=0.0, epsilon=0.2, loss_type="dapo", scale_rewards="group",
        temperature=1.0, generation_kwargs={"min_new_tokens": TOKENS}, shuffle_dataset=False, disable_tqdm=True)
    Trainer(base, reward_funcs=lambda completions, **_: [float(i % 2 == 0) for i in range(len(completions))], args=args,
            train_dataset=Dataset.from_list(prompts * (REPEATS + 1)), callbacks=[OnDemand()],
            processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")).train()


# both --------------------------------------------------------------------------------------------------------------


def go() -> bool:
    return sys.stdin.readline() == "go\n"


def say(**figures: float) -> None:
    print("\n" + json.dumps(figures), flush=True)


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> float:
    """Of a process's memory since `forget_peak`, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def one(process: subprocess.Popen) -> dict[str, float]:
    """Let a side take a step; its figures."""
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"step"'):
            return json.loads(line)
    sys.exit(f"a side has ended before its time: {process.args}")


def main(python: str, out: Path | None) -> None:
    from hapo_lab.models import model_source
    from hapo_lab.tasks import load_task
    messages = json.dumps([list(problem.messages) for problem in load_task("json_record").train[:PROMPTS]])
    commands = {"ours, generate": [sys.executable, __file__, "ours", "transformers"],
                "ours, vLLM": [sys.executable, __file__, "ours", "vllm"],
                "TRL, generate": [python, __file__, "trl", str(model_source("smollm2-135m")), messages]}
    sides = {name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
             for name, command in commands.items()}
    rows: dict[str, list[dict]] = {name: [] for name in sides}
    for repeat in range(REPEATS + 1):
        for name, process in sides.items():
            rows[name].append(one(process))
            print(f"repeat {repeat}: {name:16} {rows[name][-1]['step']:6.1f} s", file=sys.stderr, flush=True)
    for process in sides.values():
        process.stdin.close()
    rows = {name: found[1:] for name, found in rows.items()}
    medians = {name: {key: statistics.median(row[key] for row in found) for key in found[0]} for name, found in rows.items()}
    theirs = medians["TRL, generate"]
    print(f"{'':16}  s a step  rollout  update  peak MiB   over TRL: step, memory")
    for name, m in medians.items():
        print(f"{name:16}  {m['step']:8.1f}  {m['rollout']:7.1f}  {m['update']:6.1f}  {m['peak']:8.0f}   "
              f"{m['step'] / theirs['step']:.2f}, {m['peak'] / theirs['peak']:.2f}")
    if out:
        machine = {"processor": platform.processor() or platform.machine(), "threads": os.environ.get("OMP_NUM_THREADS")}
        out.write_text(json.dumps({"machine": machine, "medians": medians, "repeats": rows}, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ours", engine]:
            ours(engine)
        case ["trl", model, messages]:
            trl(model, messages)
        case [python, *out]:
            main(python, Path(out[0]) if out else None)
        case _:
            sys.exit(__doc__)

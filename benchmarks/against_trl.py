"""Seconds per step, by phase, and peak memory: this kit over TRL's GRPOTrainer.

    python benchmarks/against_trl.py [OUT.json]     # ten minutes on two cores

SmolLM2-135M in NF4 with a LoRA adapter of rank 16, float32 compute, 4 prompts with 8 completions each at temperature 1. Two
jobs:

mixed     GRPO's loss on both sides (std, token mean, clip 0.2, no KL) on prompts of the main job, all completions of 24 tokens,
          a group a backward pass. Every group is mixed by construction: skipping dead groups gains nothing.
main job  the task, its verifier and its lengths as they are, from the base model: HAPO here, 512 tokens a pass; GRPO there.
          TRL has no HAPO; its groups are dead, and it computes their gradients of zero.

TRL gets its defaults otherwise, without gradient checkpointing. Each side is a process of its
own; the steps of a job are interleaved: one each to warm up, then five. A figure is a median; memory is the peak of the steps,
loading left out, and vLLM's process is counted in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOBS = ("mixed", "main job")
PROMPTS, N, TOKENS, REPEATS = 4, 8, 24, 5


# this kit ----------------------------------------------------------------------------------------------------------


def ours(engine_name: str, job: str) -> None:
    from dataclasses import replace

    from common import WholeCompletions, mixed

    from hapo_lab.engines.choice import engine_for
    from hapo_lab.engines.vllm_engine import _processes
    from hapo_lab.methods import GRPO, HAPO
    from hapo_lab.policy.models import load_policy
    from hapo_lab.tasks.builtin import load_task
    from hapo_lab.training.config import Config
    from hapo_lab.training.trainer import Trainer
    policy, task, method = load_policy("smollm2-135m"), load_task("json_record"), HAPO
    config = Config(steps=REPEATS + 1, prompts=PROMPTS, group_size=N, warmup=0, learning_rate=1e-5, eval_every=0)
    if job == "mixed":
        policy, task, method = replace(policy, ends=()), mixed(task, PROMPTS, TOKENS), GRPO  # no completion ends early
        config = replace(config, token_budget=256)
    engine = engine_for(engine_name, policy, steps=0, tokens=0)
    trainer = Trainer(policy, task, method, config, engine=WholeCompletions(engine) if job == "mixed" else engine)
    steps, served = iter(trainer), _processes.get(policy.model)
    pids = [os.getpid()] + ([served.process.pid] if served else [])
    for pid in pids:
        forget_peak(pid)
    while go():
        start = time.perf_counter()
        record = next(steps)
        seconds = time.perf_counter() - start
        assert job != "mixed" or (record.dead_before == 0 and record.tokens_sampled == PROMPTS * N * TOKENS)
        say(step=seconds, rollout=record.seconds["rollout"], update=record.seconds["update"], peak=sum(map(peak, pids)),
            tokens=record.tokens_sampled)


# TRL ---------------------------------------------------------------------------------------------------------------


def trl(model: str, job: str, name: str = "json_record", tokens: int = TOKENS) -> None:
    """On a GPU where there is one, in bfloat16 then. `name`: of the task; `tokens`: in a completion, at most."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from hapo_lab.tasks.builtin import load_task
    task, rollout, sampled = load_task(name), [], []
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    problems = {problem.key: problem for problem in task.train[:PROMPTS * (1 if job == "mixed" else REPEATS + 1)]}

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
                torch.cuda.reset_peak_memory_stats() if cuda else forget_peak(os.getpid())
            rollout.clear()
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            seconds = time.perf_counter() - self.start
            held = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak(os.getpid())
            say(step=seconds, rollout=sum(rollout), update=seconds - sum(rollout), peak=held, tokens=sampled[-1])

    def reward(completions, completion_ids, key, **_):
        sampled.append(sum(map(len, completion_ids)))
        if job == "mixed":
            return [float(i % 2 == 0) for i in range(len(key))]
        return [float(task.verify(problems[k], c[0]["content"]).correct) for k, c in zip(key, completions, strict=True)]

    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                  bnb_4bit_compute_dtype=dtype)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, quantization_config=four_bit)
    rows = [{"prompt": list(problem.messages), "key": key} for key, problem in problems.items()]
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=not cuda, bf16=cuda, gradient_checkpointing=False, report_to=[],
        save_strategy="no",
        per_device_train_batch_size=N, gradient_accumulation_steps=PROMPTS, num_generations=N, max_completion_length=tokens,
        max_steps=REPEATS + 1, learning_rate=1e-5, beta=0.0, epsilon=0.2, loss_type="dapo", scale_rewards="group",
        temperature=1.0, shuffle_dataset=False, disable_tqdm=True,
        generation_kwargs={"min_new_tokens": tokens} if job == "mixed" else {})
    Trainer(base, reward_funcs=reward, args=args, train_dataset=Dataset.from_list(rows * (REPEATS + 1)), callbacks=[OnDemand()],
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


def compare(job: str) -> dict[str, list[dict]]:
    """All sides' steps, interleaved."""
    from hapo_lab.policy.models import model_source
    commands = {"ours, generate": [sys.executable, __file__, "ours", "transformers", job],
                "ours, vLLM": [sys.executable, __file__, "ours", "vllm", job],
                "TRL, generate": [sys.executable, __file__, "trl", model_source("smollm2-135m"), job]}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    sides = {name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
             for name, command in commands.items()}
    rows: dict[str, list[dict]] = {name: [] for name in sides}
    for repeat in range(REPEATS + 1):
        for name, process in sides.items():
            rows[name].append(one(process))
            print(f"{job}, repeat {repeat}: {name:16} {rows[name][-1]['step']:6.1f} s", file=sys.stderr, flush=True)
    for process in sides.values():
        process.stdin.close()
        process.wait()
    return {name: found[1:] for name, found in rows.items()}


def table(found: dict[str, dict]) -> list[str]:
    """As it stands in benchmarks/README.md."""
    rows = ["| job | side | seconds per step | rollout | update | peak memory | over TRL: seconds, memory |",
            "|---|---|---|---|---|---|---|"]
    for job in JOBS:
        middle = found[job]["medians"]
        theirs = middle["TRL, generate"]
        rows += [f"| {job} | {side} | {m['step']:.1f} | {m['rollout']:.1f} | {m['update']:.1f} | {m['peak']:,.0f} MiB "
                 f"| {m['step'] / theirs['step']:.2f}, {m['peak'] / theirs['peak']:.2f} |" for side, m in middle.items()]
    return rows


def main(out: Path | None) -> None:
    from common import machine, medians, write
    found = {}
    for job in JOBS:
        rows = compare(job)
        found[job] = {"medians": medians(rows), "repeats": rows}
    print(*table(found), sep="\n")
    if out:
        write(out, machine=machine(trl="1.16.0"), **found)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ours", engine, job]:
            ours(engine, job)
        case ["trl", model, job]:
            trl(model, job)
        case ["trl", model, job, name, tokens]:
            trl(model, job, name, int(tokens))
        case arguments:
            main(Path(arguments[0]) if arguments else None)

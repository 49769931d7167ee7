"""What it costs to go through TRL, and whether it learns the same there: `HAPOTrainer` beside the kit's own trainer.

    python benchmarks/through_trl.py [OUT.json]     # ten minutes on two cores

cost      seconds per step of HAPO's main job, by phase, on the same adapter over the same weights: `tiny` with 8 prompts, and
          SmolLM2-135M in NF4 with 4 prompts, 8 completions each. A side is a process of its own; the steps are interleaved: one
          each to warm up, then five. A figure is a median.
learning  `tiny`, 30 steps of 8 prompts at a constant rate, three seeds: the kit's trainer, and two processes of accelerate's
          (examples/trl_hapo.py). Success is the students', over the last ten steps; the interval is Student's over the seeds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPEATS, SEEDS, STEPS, LAST = 5, 3, 30, 10
TASKS = {"tiny": "sums", "smollm2-135m": "json_record"}
PROMPTS = {"tiny": 8, "smollm2-135m": 4}
SIDES = {"the kit's trainer": "kit", "HAPOTrainer in TRL": "trl"}


# cost --------------------------------------------------------------------------------------------------------------


def kit(model: str) -> None:
    from against_trl import go, say

    from hapo_lab import HAPO, Config, Trainer, load_policy, load_task
    config = Config(steps=REPEATS + 1, prompts=PROMPTS[model], warmup=0, learning_rate=1e-5, eval_every=0)
    steps = iter(Trainer(load_policy(model), load_task(TASKS[model]), HAPO, config))
    while go():
        start = time.perf_counter()
        record = next(steps)
        say(step=time.perf_counter() - start, rollout=record.seconds["rollout"], update=record.seconds["update"],
            teachers=record.teacher_samples)


def trl(model: str) -> None:
    from against_trl import go, say
    from transformers import TrainerCallback

    from hapo_lab import load_policy, load_task
    from hapo_lab.trl import HAPOConfig, HAPOTrainer, dataset_of, reward_of

    class OnDemand(TrainerCallback):
        def on_step_begin(self, *_, **__):
            if not go():
                os._exit(0)
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds, newest = time.perf_counter() - self.start, trainer.journal.open[-1]
            rollout = newest["seconds"]["rollout"]
            teachers = sum(group.replaced >= 0 for group in newest["taught"])
            say(step=seconds, rollout=rollout, update=seconds - rollout, teachers=teachers)

    policy, task = load_policy(model), load_task(TASKS[model])
    args = HAPOConfig(tempfile.mkdtemp(), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
                      save_strategy="no", per_device_train_batch_size=8, gradient_accumulation_steps=PROMPTS[model],
                      num_generations=8, max_completion_length=task.max_new_tokens, max_steps=REPEATS + 1, learning_rate=1e-5,
                      disable_tqdm=True)
    trainer = HAPOTrainer(policy.model, reward_of(task), args, dataset_of(task.train), processing_class=policy.tokenizer,
                          callbacks=[OnDemand()])
    trainer.train()


def cost(model: str) -> dict[str, list[dict[str, float]]]:
    """Both sides' steps, interleaved; the first is left out."""
    from against_trl import one
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    sides = {name: subprocess.Popen([sys.executable, __file__, side, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                    text=True, env=environment) for name, side in SIDES.items()}
    rows = [{name: one(process) for name, process in sides.items()} for _ in range(REPEATS + 1)]
    for process in sides.values():
        process.stdin.close()
        process.wait()
    return {name: [row[name] for row in rows[1:]] for name in sides}


# learning ----------------------------------------------------------------------------------------------------------


def learn_here(seed: int, folder: Path):
    """The kit's run."""
    from hapo_lab import HAPO, TINY, Trainer, load_policy, load_task
    config = replace(TINY, steps=STEPS, warmup=0, final_rate=1.0, eval_every=0, seed=seed)
    trainer = Trainer(load_policy("tiny", quantize=False, seed=seed), load_task("sums"), HAPO, config, folder=folder)
    for _ in trainer:
        pass
    return trainer.log


def learn_in_trl(seed: int, folder: Path):
    """The same of two processes."""
    from hapo_lab.runs.log import RunLog
    subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--config_file", "examples/accelerate/2_processes.yaml",
                    "examples/trl_hapo.py", "--config", "examples/tiny.yaml", "--per_device_train_batch_size", "32", "--seed",
                    str(seed), "--output_dir", str(folder), "--max_steps", str(STEPS)],
                   cwd=ROOT, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    return RunLog.load(folder)


def learning() -> dict[str, list[dict[str, float]]]:
    """Per seed: success of the students in the last steps, and the teacher's samples in the first and in the last ones."""
    found = {name: [] for name in SIDES}
    for seed in range(SEEDS):
        for name, learn in zip(SIDES, (learn_here, learn_in_trl), strict=True):
            with tempfile.TemporaryDirectory() as folder:
                steps = learn(seed, Path(folder) / "run").steps
            found[name].append({"success": sum(record.reward for record in steps[-LAST:]) / LAST,
                                "first": sum(record.teacher_samples for record in steps[:LAST]),
                                "last": sum(record.teacher_samples for record in steps[-LAST:])})
            print(f"seed {seed}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


# both --------------------------------------------------------------------------------------------------------------


def interval(values: list[float]) -> tuple[float, float]:
    """Of the mean, at 95%, by Student."""
    import numpy as np
    from scipy import stats
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


def table(found: dict) -> list[str]:
    """As they stand in docs/many-gpus.md: cost, then learning."""
    lines = ["| seconds per step | | rollout | update | in all | over the kit's |", "|---|---|---|---|---|---|"]
    for model, sides in found["medians"].items():
        own = next(iter(sides.values()))["step"]
        lines += [f"| {model} | {name} | {m['rollout']:.2f} | {m['update']:.2f} | {m['step']:.2f} | {m['step'] / own:.1f} |"
                  for name, m in sides.items()]
    lines += ["", f"| `tiny`, {STEPS} steps, three seeds | success in the last ten steps | teacher samples in the first ten | "
              "in the last ten |", "|---|---|---|---|"]
    for name, rows in found["learning"].items():
        success = [row["success"] for row in rows]
        low, high = interval(success)
        lines.append(f"| {name} | {sum(success) / len(success):.3f} [{low:.3f}, {high:.3f}] | "
                     + " | ".join(", ".join(f"{row[part]}" for row in rows) for part in ("first", "last")) + " |")
    return lines


def main(out: Path | None) -> None:
    from common import machine, medians, write
    repeats = {model: cost(model) for model in TASKS}
    found = {"repeats": repeats, "medians": {model: medians(sides) for model, sides in repeats.items()}, "learning": learning()}
    print(*table(found), sep="\n")
    if out:
        write(out, machine=machine(trl="1.16.0"), **found)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["kit" | "trl" as side, model]:
            {"kit": kit, "trl": trl}[side](model)
        case arguments:
            main(Path(arguments[0]) if arguments else None)

"""Every gate trains `tiny`, with five seeds: does the teacher leave, and does the gate decide as often as it must?

    python benchmarks/purity_runs.py [FOLDER]

Prints the table of docs/purity.md; the shipped summaries in data/runs/purity/ were made by this command, on one thread. Ctrl-C
ends it after the step, saved, and the same command goes on. Runs go to FOLDER (default: $HAPO_LAB_RUNS/purity, or runs/purity).
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.gate import BetaGate
from hapo_lab.gates import GATES as KINDS
from hapo_lab.gates import RunningGate, StepAnnealedGate, SuccessAnnealedGate
from hapo_lab.methods import HAPO
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.models import load_policy
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.seeds import derive
from hapo_lab.runs.log import runs_folder
from hapo_lab.tasks.builtin import load_task
from hapo_lab.theory.purity_runs import LAST, SHIPPED, PurityRun, outcome, read, write
from hapo_lab.training.config import TINY
from hapo_lab.training.evaluation import evaluate, grade
from hapo_lab.training.trainer import Trainer

STEPS = TINY.steps
PROBLEMS = 80
"""To train on: each comes again every ten steps, because a gate that remembers a prompt needs its visits."""
GATES = {name: gate() for name, gate in KINDS.items()} | {
    "by-step": StepAnnealedGate(steps=40), "running": RunningGate(discount=0.5),
    "beta-3-3": BetaGate(3, 3), "by-success-3-3": SuccessAnnealedGate(3, 3)}
"""With the prior Beta(3, 3) the paper's gate can't close at N = 8; the last one repairs that."""
SEEDS = range(5)
MEASURED_EVERY, SPARE = 5, 16


def train(setting: str, seed: int, folder: Path, bar: tqdm) -> PurityRun | None:
    """A whole run, or what is left of it; None if it was stopped."""
    config = replace(TINY, steps=STEPS, eval_every=0, seed=seed)
    policy, sums = load_policy("tiny", seed=seed), load_task("sums", seed)
    task = replace(sums, train=sums.train[:PROBLEMS])
    trainer = Trainer(policy, task, replace(HAPO, name=setting, gate=GATES[setting]), config, folder=folder, resume=True)
    bar.update(len(trainer.log.steps))
    measure_next(trainer)
    for _ in trainer:
        bar.update(1)
        measure_next(trainer)
    if len(trainer.log.steps) < STEPS:
        return None
    spare = {str(row["step"]): row["right"] for _, row in disk.rows(folder / "spare.jsonl")}
    return PurityRun.of(setting, trainer.log, spare, SPARE, examined(trainer))


def measure_next(trainer: Trainer) -> None:
    """If the next step is a measured one: successes among rollouts of its prompts that take no part in it, from the
    policy that draws its groups."""
    if (step := len(trainer.log.steps) + 1) % MEASURED_EVERY or step > STEPS:
        return
    problems = trainer.problems(step)
    trainer.engine.sync()
    drawn = trainer.engine.generate([prompt_ids(trainer.policy, p) for p in problems], SPARE, trainer.sampling,
                                    seed=derive(trainer.config.seed, "spare", step))
    right = [sum(int(grade(trainer.task, p, c).reward) for c in completions)
             for p, completions in zip(problems, drawn, strict=True)]
    disk.append(trainer.log.folder / "spare.jsonl", disk.lines([{"step": step, "right": right}]))


def examined(trainer: Trainer) -> float:
    """Held-out success of the saved adapter, 40 problems x 8."""
    policy = load_policy("tiny", adapter=trainer.save_adapter())
    return evaluate(policy, TransformersEngine(policy), trainer.task, seed=trainer.config.seed).success


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # small matrices gain little from a second thread, and another number rounds otherwise
    warnings.filterwarnings("ignore", "BetaGate.* can never close")  # that is what beta-3-3 is here to show
    with tqdm(total=STEPS * len(GATES) * len(SEEDS), unit="step") as bar:
        for seed in SEEDS:  # seeds outside: whatever is done covers all gates
            for setting in GATES:
                bar.set_postfix_str(f"{setting}, seed {seed}")
                done = folder / f"{setting}-{seed}.jsonl.gz"
                if done.exists():
                    bar.update(STEPS)
                    continue
                run = train(setting, seed, folder / f"{setting}-{seed}", bar)
                if run is None:
                    sys.exit("stopped, and saved: the same command goes on.")
                write([run], done)
    for setting in GATES:
        write([run for seed in SEEDS for run in read(folder / f"{setting}-{seed}.jsonl.gz")], SHIPPED / f"{setting}.jsonl.gz")
    print(f"the last {LAST} of {STEPS} steps, means over seeds; z: decisions less predictions, "
          "in standard errors, over all measured steps")
    print(*table(), sep="\n")


def table() -> list[str]:
    """Of the shipped runs, as it stands in docs/purity.md."""
    rows = ["| gate | student | injection | predicted | z | teacher's share of the gradient "
            "| held-out success (lowest to highest) | points above `beta`, by seed (standard error) |",
            "|---|---|---|---|---|---|---|---|"]
    reference = np.array([run.heldout for run in read(SHIPPED / "beta.jsonl.gz")])
    for setting in GATES:
        runs = read(SHIPPED / f"{setting}.jsonl.gz")
        o, points = outcome(runs), 100 * (np.array([run.heldout for run in runs]) - reference)
        error = points.std(ddof=1) / len(points) ** 0.5
        above = "" if setting == "beta" else f"{points.mean():+.1f} ({error:.1f})"
        rows.append(f"| {setting} | {o.success:.3f} | {o.injection:.3f} | {o.predicted:.3f} | {o.z:+.1f} | {o.share:.3f} "
                    f"| {o.heldout:.1%} ({o.lowest:.1%} to {o.highest:.1%}) | {above} |")
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else runs_folder() / "purity")

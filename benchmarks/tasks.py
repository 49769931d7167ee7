"""How foreign is each task's teacher to its model, and how hard is the task, on what is held out and elsewhere?

    python benchmarks/tasks.py [TASK ...]                                            # of the sums; all: 10 minutes
    python benchmarks/tasks.py iso_date json_record --model smollm2-135m [--base]     # --base: without training

A demonstration's log p per token, under the base model, says how foreign it is: F(p) has a small gradient where p is small.
Success is at temperature 1, with 8 samples per problem: of the base, and after HAPO's usual run of seed 0. Of sums the base is
also graded by its last number alone, whatever the ending: what it can do before it learns how to end. Each task's figures
replace its old ones in `benchmarks/results/tasks.json`; `docs/tasks.md` shows them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from common import machine, write

from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.methods import HAPO
from hapo_lab.policy.chat import demonstration_ids
from hapo_lab.policy.models import load_policy
from hapo_lab.policy.policy import Policy
from hapo_lab.tasks.builtin import TASKS, load_task
from hapo_lab.tasks.elsewhere import elsewhere
from hapo_lab.tasks.problem import Problem, Task
from hapo_lab.tasks.verifiers import last_number
from hapo_lab.training.config import TINY, Config
from hapo_lab.training.evaluation import evaluate, token_logps
from hapo_lab.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "tasks.json"
CONFIGS = {"tiny": TINY, "smollm2-135m": Config()}
SPLITS = ("held out", "wordings", "order", "names", "numbers")


def foreignness(policy: Policy, task: Task) -> list[dict[str, float]]:
    """Of each teacher's demonstrations of the held-out problems, end of turn included, in nats under the policy: the mean log p
    of a token, and the mean of each demonstration's least likely token."""
    found = []
    for which in range(len(task.heldout[0].demonstrations)):
        shown = [replace(p, demonstration=p.demonstrations[which]) for p in task.heldout]
        found.append(_logps(policy, shown, task.max_new_tokens))
    return found


def _logps(policy: Policy, shown: list[Problem], limit: int) -> dict[str, float]:
    with torch.no_grad():
        rows = [token_logps(policy, p, [demonstration_ids(policy, p, limit)]) for p in shown]
    return {"logp": torch.cat(rows).mean().item(), "least": torch.stack([row.min() for row in rows]).mean().item()}


def successes(policy: Policy, task: Task) -> Iterator[tuple[str, float]]:
    """Of each split in turn."""
    for split, problems in {"held out": task.heldout, **elsewhere(task.name, task.seed)}.items():
        yield split, evaluate(policy, TransformersEngine(policy), task, problems).success


def measure(model: str, name: str, train: bool) -> dict:
    """One task's figures; they are printed as they come."""
    policy, task = load_policy(model, seed=0), load_task(name)
    found: dict = {"model": model, "steps": CONFIGS[model].steps, "teachers": foreignness(policy, task)}
    print(name, found["teachers"], flush=True)
    for who in ("base", "trained") if train else ("base",):
        if who == "trained":
            list(Trainer(policy, task, HAPO, replace(CONFIGS[model], eval_every=0), engine=TransformersEngine(policy)))
        found[who] = {}
        for split, success in successes(policy, task):
            found[who][split] = success
            print(f"{name}, {who}, {split}: {success:.3f}", flush=True)
        if who == "base" and name.startswith("sums"):
            found["numbers"] = dict(successes(policy, replace(task, verify=last_number)))
            print(f"{name}, base, its last number: {found['numbers']}", flush=True)
    return found


def tables() -> list[list[str]]:
    """As they stand in docs/tasks.md: the teachers, and success by split."""
    found = json.loads(RESULTS.read_text())["tasks"]
    rows = [(name, found[name]) for name in TASKS if name in found]
    teachers = ["| task | model | log p per token | least likely token | base's success |", "|---|---|---|---|---|"]
    for name, row in rows:
        logp, least = (", ".join(f"{teacher[what]:.2f}" for teacher in row["teachers"]) for what in ("logp", "least"))
        teachers.append(f"| `{name}` | {row['model']} | {logp} | {least} | {row['base']['held out']:.3f} |")
    splits = [f"| task | steps | {' | '.join(SPLITS)} |", f"|---|---|{'---|' * len(SPLITS)}"]
    for name, row in rows:
        for who, steps in (("numbers", "0, any ending"), ("base", 0), ("trained", row["steps"])):
            if who not in row:
                continue
            cells = [f"{row[who][split]:.3f}" if split in row[who] else "" for split in SPLITS]
            splits.append(f"| `{name}` | {steps} | {' | '.join(cells)} |")
    return [teachers, splits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--model", default="tiny", choices=CONFIGS)
    parser.add_argument("--base", action="store_true")
    args = parser.parse_args()
    for name in args.tasks or [name for name in TASKS if name.startswith("sums")]:
        measured = measure(args.model, name, not args.base)
        before = json.loads(RESULTS.read_text())["tasks"] if RESULTS.exists() else {}
        write(RESULTS, machine=machine(), tasks=before | {name: measured})
    print("\n\n".join("\n".join(table) for table in tables()))


if __name__ == "__main__":
    main()

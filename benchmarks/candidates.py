"""How hard are candidate tasks for the base model? Success at temperature 1, and the share of groups that fail whole.

    python benchmarks/candidates.py [NAME ...]

A task suits HAPO's demonstration where almost every group fails whole (GRPO has nothing to learn from) and yet the
demonstrated completion is not foreign to the model: its tokens' mean log-probability says how foreign.
"""

from __future__ import annotations

import random
import sys

import torch

from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.logprobs import completion_logprobs
from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.tasks.problem import Problem, Task, Verdict
from hapo_lab.training.evaluation import evaluate


def chat(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def last_line(expected: str):
    def verify(problem: Problem, completion: str) -> Verdict:
        lines = completion.strip().splitlines() or [""]
        return Verdict(lines[-1].strip().rstrip(".") == expected.format(problem.answer), lines[-1])
    return verify


def times(rng):
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return Problem(f"{a}*{b}", chat(f'What is {a} times {b}? Write the last line as "Answer: " and the number.'), str(a * b),
                   f"{a} times {b} is {a * b}.\nAnswer: {a * b}")


def times_boxed(rng):
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return Problem(f"{a}*{b}", chat(f"What is {a} times {b}? Put the number in \\boxed{{}}."), str(a * b),
                   f"{a} times {b} is \\boxed{{{a * b}}}")


CANDIDATES = {
    "times, last line 'Answer: N'": (times, last_line("Answer: {}"), 24),
    "times, in \\boxed{}": (times_boxed, lambda p, c: Verdict(f"\\boxed{{{p.answer}}}" in c, c), 24),
}


def candidate(name: str) -> Task:
    make, verify, length = CANDIDATES[name]
    rng = random.Random(0)
    problems = tuple({p.key: p for p in (make(rng) for _ in range(60))}.values())
    return Task(name, problems[:1], problems[1:17], verify, length)


def main(wanted: list[str]) -> None:
    policy = load_policy()
    engine = TransformersEngine(policy)
    print(f"{'task':32} {'success':>8} {'dead groups':>12} {'demonstration log p':>20}   a completion", flush=True)
    tasks = {name: load_task(name) for name in ("json_record", "iso_date")} | {name: candidate(name) for name in CANDIDATES}
    for name, task in tasks.items():
        if wanted and not any(w in name for w in wanted):
            continue
        problems = task.heldout[:16]
        found = evaluate(policy, engine, task, problems)
        demonstrations = [[policy.tokenizer.encode(p.demonstration, add_special_tokens=False)] for p in problems]
        with torch.no_grad():
            logp, _, mask = completion_logprobs(policy.model, [prompt_ids(policy, p) for p in problems], demonstrations)
        print(f"{name:32} {found.success:8.3f} {found.dead:12.0%} {logp[mask].mean():20.2f}   "
              f"{found.rollouts[0][0].text[:60]!r}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

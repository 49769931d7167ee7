"""How hard are candidate tasks for the base model? Success at temperature 1, and the share of groups that fail whole.

    python benchmarks/candidates.py [NAME ...]

A task suits HAPO's demonstration where almost every group fails whole (GRPO has nothing to learn from) and yet the
demonstrated completion is not foreign to the model: its tokens' mean log-probability says how foreign.
"""

from __future__ import annotations

import json
import random
import sys

import torch

from hapo_lab.evaluate import evaluate, prompt_ids
from hapo_lab.logprobs import completion_logprobs
from hapo_lab.models import load_policy
from hapo_lab.rollouts import TransformersEngine
from hapo_lab.tasks import Problem, Task, Verdict

MONTHS = "January February March April May June July August September October November December".split()
NAMES = "Anna Ben Clara David Emma Frank Grace Henry Irene Jack Laura Martin Nina Oscar Paula Robert Sara Tom".split()
CITIES = "Paris London Berlin Madrid Rome Oslo Vienna Athens Dublin Lisbon Boston Chicago Tokyo Cairo Lima".split()


def chat(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def last_line(expected: str):
    def verify(problem: Problem, completion: str) -> Verdict:
        lines = completion.strip().splitlines() or [""]
        return Verdict(lines[-1].strip().rstrip(".") == expected.format(problem.answer), lines[-1])
    return verify


def whole(problem: Problem, completion: str) -> Verdict:
    return Verdict(completion.strip().rstrip(".") == problem.answer, completion)


def as_json(problem: Problem, completion: str) -> Verdict:
    try:
        return Verdict(json.loads(completion) == json.loads(problem.answer), completion)
    except json.JSONDecodeError as error:
        return Verdict(False, str(error))


def times(rng):
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return Problem(f"{a}*{b}", chat(f'What is {a} times {b}? Write the last line as "Answer: " and the number.'), str(a * b),
                   f"{a} times {b} is {a * b}.\nAnswer: {a * b}")


def times_boxed(rng):
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return Problem(f"{a}*{b}", chat(f"What is {a} times {b}? Put the number in \\boxed{{}}."), str(a * b),
                   f"{a} times {b} is \\boxed{{{a * b}}}")


def iso_date(rng):
    d, m, y = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1900, 2029)
    return Problem(f"{d} {m} {y}", chat(f"Write the date {d} {MONTHS[m - 1]} {y} in ISO format."), f"{y}-{m:02d}-{d:02d}",
                   f"{y}-{m:02d}-{d:02d}")


def us_date(rng):
    d, m, y = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1900, 2029)
    return Problem(f"{d} {m} {y}", chat(f"Write the date {MONTHS[m - 1]} {d}, {y} as year-month-day, in digits."), f"{y}-{m:02d}-{d:02d}",
                   f"{y}-{m:02d}-{d:02d}")


def record(question: str):
    def problem(rng):
        name, city, age = rng.choice(NAMES), rng.choice(CITIES), rng.randint(18, 79)
        answer = json.dumps({"name": name, "age": age, "city": city})
        return Problem(f"{name} {age} {city}", chat(question.format(f"{name} is {age} years old and lives in {city}.")), answer, answer)
    return problem


CANDIDATES = {
    "times, last line 'Answer: N'": (times, last_line("Answer: {}"), 24),
    "times, in \\boxed{}": (times_boxed, lambda p, c: Verdict(f"\\boxed{{{p.answer}}}" in c, c), 24),
    "date as ISO": (iso_date, whole, 16),
    "date as year-month-day": (us_date, whole, 16),
    "JSON, keys named": (record("{} Write this as JSON with the keys name, age and city."), as_json, 32),
    "JSON, 'as JSON'": (record("{} Write this as JSON."), as_json, 32),
}


def main(wanted: list[str]) -> None:
    policy = load_policy()
    engine = TransformersEngine(policy)
    print(f"{'task':32} {'success':>8} {'dead groups':>12} {'demonstration log p':>20}   a completion", flush=True)
    for name, (make, verify, length) in CANDIDATES.items():
        if wanted and not any(w in name for w in wanted):
            continue
        rng = random.Random(0)
        problems = {p.key: p for p in (make(rng) for _ in range(60))}
        problems = tuple(problems.values())[:17]
        task = Task(name, problems[:1], problems[1:], verify, length)
        found = evaluate(policy, engine, task)
        demonstrations = [[policy.tokenizer.encode(p.demonstration, add_special_tokens=False)] for p in problems]
        with torch.no_grad():
            logp, _, mask = completion_logprobs(policy.model, [prompt_ids(policy, p) for p in problems], demonstrations)
        print(f"{name:32} {found.success:8.3f} {found.dead:12.0%} {logp[mask].mean():20.2f}   "
              f"{found.rollouts[0][0].text[:60]!r}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

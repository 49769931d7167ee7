"""python -m hapo_lab bench RUN|MODEL ... --data FILE ..."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hapo_lab.commands.options import ROOM, add_columns_option, add_engine_option, add_template_option, columns_of
from hapo_lab.pictures.bench import report
from hapo_lab.policy.models import PRESETS
from hapo_lab.scoring.bench import bench, run_questions
from hapo_lab.scoring.contestants import Contestant, contestant
from hapo_lab.scoring.questions import Questions, read_questions, trained_on
from hapo_lab.tasks.rebuilding import task_of_run
from hapo_lab.tasks.verifiers import VERIFIERS


def bench_models(args: argparse.Namespace) -> None:
    """Sample what is missing, and write the table and the picture."""
    models = [contestant(text, quantize=not args.no_quantize, template=dict(args.template_arg)) for text in args.models]
    try:
        answers = bench(models, args.out, _questions(args, models), samples=args.samples, temperature=args.temperature,
                        seed=args.seed, engine=args.engine)
    except KeyboardInterrupt:
        sys.exit(f"stopped; what was sampled is in {args.out}: give the same command again to go on.")
    files = report(answers, args.out, args.paper)
    print(files[0].read_text(encoding="utf-8"))
    print(*files, sep="\n")


def _questions(args: argparse.Namespace, models: Sequence[Contestant]) -> Questions:
    if not args.data:
        if args.verifier:
            raise ValueError("a run brings its own verifier: leave out --verifier, or name task files (--data FILE.jsonl).")
        asked = run_questions(models)
        return asked if args.max_new_tokens is None else replace(asked, max_new_tokens=args.max_new_tokens)
    if not args.verifier:
        raise ValueError(f"--data needs --verifier: {', '.join(VERIFIERS)}, or FILE.py:FUNCTION.")
    asked = read_questions(args.data, args.verifier, _room(models) if args.max_new_tokens is None else args.max_new_tokens,
                           columns_of(args.columns))
    print("".join(f"{finding}\n" for finding in (*asked.findings, *_no_test(asked, models))), end="")
    return asked


def _room(models: Sequence[Contestant]) -> int:
    """Tokens for an answer, where nobody says how many: as many as the most that a run had."""
    return max((run.manifest["problems"]["max_new_tokens"] for run in models if run.manifest), default=ROOM)


def _no_test(asked: Questions, models: Sequence[Contestant]) -> Iterator[str]:
    """What to know of runs that learned from what they are asked."""
    for run in models:
        with suppress(ValueError):  # a task that can't be had any more
            if run.manifest and (known := trained_on(asked, task_of_run(run.manifest))):
                yield (f"note: {run.name} was trained on {known} of these {len(asked.problems)} questions: "
                       "they are no test of it")


def add_bench_options(p: argparse.ArgumentParser) -> None:
    """What to ask, whom, and how often."""
    p.set_defaults(run_command=bench_models)
    p.add_argument("models", nargs="+", metavar="RUN|MODEL",
                   help=f"a run's folder, {', '.join(PRESETS)}, a model's folder, or a hub id; NAME=RUN|MODEL names it")
    p.add_argument("--data", type=Path, nargs="+", metavar="FILE",
                   help="JSONL (prompt, answer, and source if need be), FILE.parquet or ORG/NAME[:SPLIT] on the hub; "
                        "default: what the runs hold out")
    add_columns_option(p)
    p.add_argument("--verifier", help=f"of the files: {', '.join(VERIFIERS)}, or FILE.py:FUNCTION")
    p.add_argument("--max-new-tokens", type=int, help="where an answer is cut; default: the run's, "
                   f"the most that one of several has; {ROOM} without a run")
    p.add_argument("--samples", type=int, default=32, help="of each problem; default: 32")
    p.add_argument("--temperature", type=float, default=0.6, help="default: 0.6")
    p.add_argument("--seed", type=int, default=0, help="default: 0")
    p.add_argument("--out", type=Path, default=Path("bench"), help="default: bench/; the same command again goes on there")
    p.add_argument("--paper", action="store_true", help="the paper's Table 1 as well, apart")
    p.add_argument("--no-quantize", action="store_true", help="keep models out of 4 bits; a run keeps its own")
    add_template_option(p)
    add_engine_option(p)

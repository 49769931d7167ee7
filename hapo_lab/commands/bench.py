"""hapo-lab bench RUN|MODEL ... --data FILE ..."""

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
    """Draw the missing samples, and write the table and the picture."""
    models = [contestant(text, quantize=not args.no_quantize, template=dict(args.template_arg)) for text in args.models]
    try:
        answers = bench(models, args.out, _questions(args, models), samples=args.samples, temperature=args.temperature,
                        seed=args.seed, engine=args.engine)
    except KeyboardInterrupt:
        sys.exit(f"stopped; {args.out} holds the samples so far: repeat the command to continue.")
    files = report(answers, args.out, args.paper)
    print(files[0].read_text(encoding="utf-8"))
    print(*files, sep="\n")


def _questions(args: argparse.Namespace, models: Sequence[Contestant]) -> Questions:
    if not args.data:
        if args.verifier:
            raise ValueError("a run has its own verifier: leave out --verifier, or name task files (--data FILE.jsonl).")
        asked = run_questions(models)
        return asked if args.max_new_tokens is None else replace(asked, max_new_tokens=args.max_new_tokens)
    if not args.verifier:
        raise ValueError(f"--data needs --verifier: {', '.join(VERIFIERS)}, or FILE.py:FUNCTION.")
    asked = read_questions(args.data, args.verifier, _room(models) if args.max_new_tokens is None else args.max_new_tokens,
                           columns_of(args.columns))
    print("".join(f"{finding}\n" for finding in (*asked.findings, *_no_test(asked, models))), end="")
    return asked


def _room(models: Sequence[Contestant]) -> int:
    """An answer's limit in tokens, by default: the largest of the runs'."""
    return max((run.manifest["problems"]["max_new_tokens"] for run in models if run.manifest), default=ROOM)


def _no_test(asked: Questions, models: Sequence[Contestant]) -> Iterator[str]:
    """Notes on runs that trained on the questions."""
    for run in models:
        with suppress(ValueError):  # a task that can't be rebuilt
            if run.manifest and (known := trained_on(asked, task_of_run(run.manifest))):
                yield (f"note: {run.name} was trained on {known} of these {len(asked.problems)} questions: "
                       "they do not test it")


def add_bench_options(p: argparse.ArgumentParser) -> None:
    """The options of `bench`."""
    p.set_defaults(run_command=bench_models)
    p.add_argument("models", nargs="+", metavar="RUN|MODEL",
                   help=f"a run's folder, {', '.join(PRESETS)}, a model's folder, or a hub id; NAME=RUN|MODEL names it")
    p.add_argument("--data", type=Path, nargs="+", metavar="FILE",
                   help="FILE.jsonl (prompt, answer, optional source), FILE.parquet, or ORG/NAME[:SPLIT] on the hub; "
                        "default: the runs' held-out problems")
    add_columns_option(p)
    p.add_argument("--verifier", help=f"the files' verifier: {', '.join(VERIFIERS)}, or FILE.py:FUNCTION")
    p.add_argument("--max-new-tokens", type=int, help="an answer's limit; default: the run's, "
                   f"the largest of several runs', or {ROOM} without a run")
    p.add_argument("--samples", type=int, default=32, help="samples per problem; default: 32")
    p.add_argument("--temperature", type=float, default=0.6, help="sampling temperature; default: 0.6")
    p.add_argument("--seed", type=int, default=0, help="seed of the samples; default: 0")
    p.add_argument("--out", type=Path, default=Path("bench"),
                   help="output folder; default: bench/; a repeated command continues there")
    p.add_argument("--paper", action="store_true", help="add the paper's Table 1, as a separate table")
    p.add_argument("--no-quantize", action="store_true", help="do not quantize models to 4 bits; a run keeps its own setting")
    add_template_option(p)
    add_engine_option(p)

"""Ten questions in a terminal: `hapo-lab quiz [NUMBER ...]`."""

from __future__ import annotations

import argparse
import sys

from hapo_lab.notebook.marking import Mark
from hapo_lab.notebook.quiz import QUESTIONS, Question, question, summary


def add_quiz_options(p: argparse.ArgumentParser) -> None:
    """The options of `quiz`."""
    p.set_defaults(run_command=quiz)
    p.add_argument("numbers", type=int, nargs="*", metavar="NUMBER",
                   help=f"numbers of the questions, 1 to {len(QUESTIONS)}; default: all")


def quiz(args: argparse.Namespace) -> None:
    """Ask the questions, and mark each answer. Without a terminal, such as in a pipe, only print them."""
    asked = {number: question(number) for number in args.numbers or range(1, len(QUESTIONS) + 1)}
    someone, marks = sys.stdin.isatty(), list[Mark]()
    try:
        for number, one in asked.items():
            print(f"\n{number}  {one}")
            if someone:
                marks.append(_answered(one))
                print(marks[-1])
    except (EOFError, KeyboardInterrupt):
        print()
    if marks:
        print(f"\n{summary(marks)}")


def _answered(one: Question) -> Mark:
    """The mark of the first readable answer."""
    while (mark := one.check(input("> "))).right is None:
        print(mark)
    return mark

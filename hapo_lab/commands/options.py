"""Options that several commands have."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
from contextlib import suppress
from itertools import pairwise

from hapo_lab.engines.choice import ENGINES

ROOM = 64
"""A completion's limit in tokens, for a task file."""


def add_engine_option(p: argparse.ArgumentParser) -> None:
    """`--engine`."""
    p.add_argument("--engine", default="auto",
                   help=f"the sampler: {', '.join(ENGINES)}; default: auto, which takes vllm if it is installed and pays")


def add_template_option(p: argparse.ArgumentParser) -> None:
    """`--template-arg`."""
    p.add_argument("--template-arg", type=_argument, action="append", default=[], metavar="NAME=VALUE",
                   help="an argument of the model's chat template, such as enable_thinking=false; repeatable")


def add_task_option(p: argparse.ArgumentParser) -> None:
    """`--task-arg`."""
    p.add_argument("--task-arg", type=_argument, action="append", default=[], metavar="NAME=VALUE",
                   help="an option of a reasoning-gym task, such as max_terms=3; repeatable")


def _argument(text: str) -> tuple[str, object]:
    """NAME=VALUE; the value is JSON, else a string."""
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE, such as enable_thinking=false")
    with suppress(json.JSONDecodeError):
        value = json.loads(value)
    return name, value


def add_columns_option(p: argparse.ArgumentParser) -> None:
    """`--columns`."""
    p.add_argument("--columns", help="a table's columns, such as prompt=problem,answer=solution; default: those of "
                                     "OpenR1-Math and of LUFFY's files")


def columns_of(text: str | None) -> dict[str, str] | None:
    """FIELD=COLUMN,FIELD=COLUMN as a mapping. ValueError: another form."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if any(not (field and equals and column) for field, equals, column in pairs):
        raise ValueError(f"--columns is {text!r}; it must be FIELD=COLUMN, with commas between, such as answer=solution.")
    return {field.strip(): column.strip() for field, _, column in pairs} or None


def meanings(of: type) -> dict[str, str]:
    """Field -> the docstring below it, on one line, as `argparse` takes it."""
    defined = ast.parse(inspect.getsource(of)).body[0]
    assert isinstance(defined, ast.ClassDef)
    return {ast.unparse(field.target): " ".join(str(ast.literal_eval(text.value)).split()).replace("%", "%%")
            for field, text in pairwise(defined.body) if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)}

"""Options that several commands have."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress

from hapo_lab.engines.choice import ENGINES

ROOM = 64
"""Tokens for a right completion, of a task file."""


def add_engine_option(p: argparse.ArgumentParser) -> None:
    """What samples."""
    p.add_argument("--engine", default="auto",
                   help=f"what samples: {', '.join(ENGINES)}; default: auto, which is vllm where it is installed and pays")


def add_template_option(p: argparse.ArgumentParser) -> None:
    """Of the chat template."""
    p.add_argument("--template-arg", type=_argument, action="append", default=[], metavar="NAME=VALUE",
                   help="an argument of the model's chat template, such as enable_thinking=false; as often as needed")


def add_task_option(p: argparse.ArgumentParser) -> None:
    """Of a task that takes options."""
    p.add_argument("--task-arg", type=_argument, action="append", default=[], metavar="NAME=VALUE",
                   help="an option of a task of reasoning-gym, such as max_terms=3; as often as needed")


def _argument(text: str) -> tuple[str, object]:
    """NAME=VALUE: the value as JSON, or else as a word."""
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE, such as enable_thinking=false")
    with suppress(json.JSONDecodeError):
        value = json.loads(value)
    return name, value


def add_columns_option(p: argparse.ArgumentParser) -> None:
    """Of a published table."""
    p.add_argument("--columns", help="where a table keeps its fields, such as prompt=problem,answer=solution; default: where "
                                     "OpenR1-Math and LUFFY's files have them")


def columns_of(text: str | None) -> dict[str, str] | None:
    """FIELD=COLUMN,FIELD=COLUMN as a mapping. ValueError for what is none."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if any(not (field and equals and column) for field, equals, column in pairs):
        raise ValueError(f"--columns is {text!r}; it must be FIELD=COLUMN, with commas between, such as answer=solution.")
    return {field.strip(): column.strip() for field, _, column in pairs} or None

"""A recipe: a training's options, kept in a TOML file under the names that `train` has for them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hapo_lab.reproducibility import disk

PAIRS = {"template": "template_arg", "task_options": "task_arg"}
"""A recipe's table -> the option that takes its lines as NAME=VALUE."""


def read_recipe(path: Path, options: Iterable[argparse.Action]) -> dict[str, Any]:
    """Option -> value, from a recipe's file. Dashes may be underscores; the lines of a table count as lines of the file.

    ValueError, in one sentence, for a file that can't be read, an option that `train` does not have, and a value of another
    type.
    """
    known = {action.dest: action for action in options if action.dest not in ("help", "folder", "recipe", *PAIRS.values())}
    table = disk.read_toml(path)
    if wrong := [name for name in PAIRS if not isinstance(table.get(name, {}), dict)]:
        raise ValueError(f"{path}: {wrong[0]} is {table[wrong[0]]!r}; it must be a table, [{wrong[0]}].")
    pairs = {option: list(table.pop(name).items()) for name, option in PAIRS.items() if name in table}
    flat = [pair for key, value in table.items() for pair in (value.items() if isinstance(value, dict) else [(key, value)])]
    given = {name.replace("-", "_"): value for name, value in flat}
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"{path} has {', '.join(unknown)}, which train does not take; it may have {', '.join(PAIRS)}, "
                         f"{', '.join(sorted(known))}.")
    return {name: _value(path, known[name], value) for name, value in given.items()} | pairs


def _value(path: Path, action: argparse.Action, value: Any) -> Any:
    wanted: Any = bool if action.nargs == 0 else action.type or str
    if isinstance(action.default, list):
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
            raise ValueError(f"{path}: {action.dest} is {value!r}; it must be a name, or a list of names.")
        return several
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, (int, float) if wanted is float else wanted):
        raise ValueError(f"{path}: {action.dest} is {value!r}; it must be of type {wanted.__name__}.")
    return wanted(value)

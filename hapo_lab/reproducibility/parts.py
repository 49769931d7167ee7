"""Parts of a run as JSON, and back: gates, shapings, verifiers and methods, this kit's and your own.

A part of this kit is known by its name, your own by "FILE.py:NAME" and the file's checksum. Rebuilding it gives the same
part, or a sentence with the reason. (Imports of that file are not checked.)
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import inf
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from hapo_lab.reproducibility import disk

_loaded: dict[tuple[str, str], ModuleType] = {}
"""Files as they were run, by path and checksum: the same class each time it is asked for."""
_origins: WeakKeyDictionary[type | FunctionType, dict] = WeakKeyDictionary()
"""Where a class or function came from: its file as it was when it was run or, if Python imported it, first described."""


def described(part: Any) -> Any:
    """A part as JSON: plain values as they are, anything else by its kind and its fields, each described in turn.

    What can't be rebuilt from that is described all the same, with the reason under "unknown".
    """
    if part is None or isinstance(part, int | float | str):
        return "inf" if part == inf else part
    if isinstance(part, tuple):
        return [described(item) for item in part]
    kind = part if isinstance(part, FunctionType) else type(part)
    numbers = {f.name: described(getattr(part, f.name)) for f in fields(part) if f.init} if is_dataclass(part) else {}
    return _named(kind, stateful=part is not kind and not is_dataclass(part) and not _bare(part)) | numbers


def _bare(part: object) -> bool:
    """Whether an object holds nothing: its class alone makes it again."""
    kind = type(part)
    return kind.__init__ is object.__init__ and kind.__new__ is object.__new__ and not getattr(part, "__dict__", {})


def rebuilt(description: Any, known: Mapping[str, Any]) -> Any:
    """The part that was described; `known` holds this kit's, by name. ValueError: it can't be restored."""
    if isinstance(description, list):
        return tuple(rebuilt(item, known) for item in description)
    if not isinstance(description, dict):
        return inf if description == "inf" else description
    kind, numbers = description["kind"], {k: rebuilt(v, known) for k, v in description.items()
                                          if k not in ("kind", "sha256", "unknown")}
    if "unknown" in description:
        raise ValueError(f"{kind} {description['unknown']}.")
    if kind in known:
        part = known[kind]
    elif "sha256" in description:
        part = load(kind, description["sha256"])
    else:
        raise ValueError(f"{kind!r} is none of this kit's parts ({', '.join(known)}).")
    return part(**numbers) if isinstance(part, type) else part


def load(name: str, sha256: str | None = None) -> object:
    """The part that your own Python file defines: "FILE.py:NAME". The file is run once, as `import` would run it.

    ValueError: the file or the name is missing, the file fails, or its checksum is not `sha256`.
    """
    file, _, attribute = name.rpartition(":")
    if not file.endswith(".py") or not attribute.isidentifier():
        raise ValueError(f"{name!r} is not a part of a file: write FILE.py:NAME.")
    path = Path(file).absolute()
    if not path.is_file():
        raise ValueError(f"{name!r}: there is no file {file}.")
    found = checksum(path)
    if sha256 not in (None, found):
        raise ValueError(f"{path} has changed since the run was made: bring the old file back.")
    module = _loaded.get((str(path), found)) or _run(path, found)
    if not hasattr(module, attribute):
        raise ValueError(f"{name!r}: there is nothing named {attribute!r} in {file}.")
    return getattr(module, attribute)


def checksum(path: Path) -> str:
    """sha256 of a file; ValueError if it can't be read."""
    try:
        return disk.sha256(path)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {disk.why(error)}.") from None


def _run(path: Path, found: str) -> ModuleType:
    name = f"hapo_lab_part_{path.stem}_{found[:8]}"  # of its own: what stands in sys.modules under the file's name may be older
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader  # as every file has whose name ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} can't be imported: {type(error).__name__}: {error}") from error
    for attribute, part in vars(module).items():
        if isinstance(part, type | FunctionType) and (part.__module__, part.__qualname__) == (name, attribute):
            _origins[part] = {"kind": f"{path}:{attribute}", "sha256": found}
    _loaded[str(path), found] = module
    return module


def _named(kind: type | FunctionType, stateful: bool) -> dict:
    """What a class or function is found by again."""
    module, name = sys.modules.get(kind.__module__), kind.__qualname__
    if kind in _origins and not stateful:
        return _origins[kind]
    if kind.__module__.partition(".")[0] == "hapo_lab":
        return {"kind": name}
    unknown = ("is defined in a notebook or a script, where no other process finds it" if kind.__module__ == "__main__"
               else "is no number, word, tuple or part" if kind.__module__ == "builtins"
               else "holds values that no field names: make it a frozen dataclass" if stateful else "")
    path = _file(kind) if not unknown and getattr(module, name, None) is kind else None
    if path is None:
        return {"kind": name, "unknown": unknown or "has no name in a file"}
    return _origins.setdefault(kind, {"kind": f"{path}:{name}", "sha256": checksum(path)})


def _file(kind: type | FunctionType) -> Path | None:
    try:
        path = Path(inspect.getsourcefile(kind) or "")
    except TypeError:  # built in
        return None
    return path.absolute() if path.is_file() else None

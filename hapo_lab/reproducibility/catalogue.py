"""Methods, gates and shapings: this kit's by name, your own by "FILE.py:NAME"; methods as JSON, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from hapo_lab.baselines import METHODS
from hapo_lab.gates import GATES, Gate, numbers_of
from hapo_lab.loss import SHAPINGS, Shaping, log_probability, probability, ratio, sqrt, uncertain
from hapo_lab.methods import Decay, Method
from hapo_lab.reproducibility import parts

_PARTS: tuple[Any, ...] = (Method, Decay, *GATES.values(), ratio, probability, sqrt, log_probability, uncertain)
PARTS = {part.__name__: part for part in _PARTS}
"""This kit's methods, gates and shapings, by their names in run.json."""


def get_method(name: str) -> Method:
    """A method by its name, or your own from a file: "FILE.py:NAME".

    >>> get_method("luffy") == LUFFY
    True
    """
    method = _get("method", name, METHODS)
    if not isinstance(method, Method):
        raise ValueError(f"{name!r} is no Method: make it one, such as dataclasses.replace(HAPO, name=..., gate=...).")
    return method


def get_gate(name: str, **numbers: float) -> Gate:
    """A gate by its name, or your own, "FILE.py:NAME": a class of gates, or a gate.

    ValueError: an unknown gate, or a number that the gate lacks.

    >>> get_gate("running", discount=0.5)
    RunningGate(alpha=1.0, beta=1.0, threshold=0.8, discount=0.5)
    """
    gate = _get("gate", name, GATES)
    if missing := [what for what in ("decide", "chances") if not hasattr(gate, what)]:
        raise ValueError(f"{name!r} is not a gate: it has no {' and no '.join(missing)} (see hapo_lab.gates.Gate).")
    if unknown := numbers.keys() - numbers_of(gate):
        raise ValueError(f"the gate {name!r} has no {' and no '.join(sorted(unknown))}: leave it out.")
    try:
        made = gate(**numbers) if isinstance(gate, type) else replace(gate, **numbers) if numbers else gate
    except TypeError as error:
        raise ValueError(f"the gate {name!r} can't be made: {error}.") from None
    if ".py:" in name:
        _refuse_odd(f"{name}: chances({{}}, 'a prompt', 8)", lambda: made.chances({}, "a prompt", 8), "one per S from 0 to 8")
    return made


def get_shaping(name: str) -> Shaping:
    """A shaping by its name, or your own, "FILE.py:NAME": a function, or a callable object.

    >>> get_shaping("ratio")
    ratio(lam=0.1)
    """
    shaping = _get("shaping", name, SHAPINGS)
    if not callable(shaping):
        raise ValueError(f"{name!r} is not a shaping: it can't be called with log-probabilities.")
    made = shaping() if isinstance(shaping, type) else shaping
    if ".py:" in name:
        given = torch.linspace(-4, 0, 9)
        _refuse_odd(f"{name} of 9 log-probabilities", lambda: made(given), "one per log-probability")
        if bool((made(given).diff() < 0).any()):
            warnings.warn(f"{name} falls where a token's probability grows: it is given log p, and not p.", stacklevel=2)
    return made


def _refuse_odd(what: str, give: Callable[[], Any], wanted: str) -> None:
    """ValueError: not a tensor of 9 numbers, or an error."""
    try:
        given = give()
    except Exception as error:
        raise ValueError(f"{what} fails: {type(error).__name__}: {error}.") from None
    if not isinstance(given, torch.Tensor) or given.shape != (9,):
        found = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
        raise ValueError(f"{what} gives {found}; it must give a tensor of 9 numbers, {wanted}.")


def _get(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name in known:
        return known[name]
    if ".py:" in name:
        return parts.load(name)
    raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(known)}, or write FILE.py:NAME.")


def method_described(method: Method) -> dict:
    """A method as JSON, for run.json; `method_from` reads it."""
    described = parts.described(method)
    return {name: part for name, part in described.items() if type(method) is not Method or name != "kind"}


def method_from(described: dict) -> Method:
    """The method that `method_described` described. ValueError: a part of it can't be restored."""
    try:
        return parts.rebuilt({"kind": "Method"} | described, PARTS)
    except TypeError as error:  # of a part that takes other numbers than it was described with
        raise ValueError(f"{error}.") from None

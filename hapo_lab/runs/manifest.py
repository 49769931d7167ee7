"""A run's manifest, run.json: what identifies a run, as JSON, and two such manifests compared."""

from __future__ import annotations

import platform
import reprlib
from pathlib import Path
from typing import Any

import torch

import hapo_lab
from hapo_lab.methods import Method
from hapo_lab.policy.models import compute_dtype, load_policy
from hapo_lab.policy.policy import Policy
from hapo_lab.reproducibility.catalogue import method_described, method_from
from hapo_lab.tasks.problem import Task


def describe(policy: Policy, task: Task, method: Method, config: dict, engine: str) -> dict:
    """What identifies a run: two runs that differ in it (versions apart) must not be mixed."""
    lora: Any = policy.model.peft_config["default"]
    return {"model": str(Path(policy.name).resolve()) if Path(policy.name).is_dir() else policy.name,
            "quantized": policy.quantized, "template": policy.template, "plain_template": policy.plain_template,
            "lora": {"rank": lora.r, "lora_alpha": lora.lora_alpha, "seed": policy.seed}, "task": task.name,
            "source": task.source, "problems": task.identity, "heldout": sorted(p.key for p in task.heldout),
            "method": method_described(method), "config": config,
            "versions": {"hapo_lab": hapo_lab.__version__, "torch": torch.__version__, "python": platform.python_version(),
                         "threads": policy.threads, "engine": engine, "device": policy.device.type,
                         "dtype": str(compute_dtype(policy.device)).removeprefix("torch.")}}


def differences(there: dict, here: dict, config: dict) -> list[str]:
    """In words, what keeps a run of one description from going on as another. The gate's numbers may change within a run, and
    the number of steps may grow. `config`: the defaults, for fields that are younger than the run there, as a method's can be.
    """
    older = {"method": method_described(Method("")) | there.get("method", {}), "config": config | there.get("config", {})}
    a, b = _flat(there | older), _flat(here)
    return [f"{key} is {_shown(a.get(key), b.get(key))} there and {_shown(b.get(key), a.get(key))} here"
            for key in dict.fromkeys([*a, *b])
            if a.get(key) != b.get(key) and not key.startswith("versions.") and key != "config.steps"
            and (not key.startswith("method.gate.") or key.endswith((".kind", ".sha256")))]


def policy_of(manifest: dict, adapter: Path | None = None) -> Policy:
    """A run's model with a new adapter, or with a saved one."""
    how = {"adapter": adapter} if adapter else manifest["lora"]
    return load_policy(manifest["model"], quantize=manifest["quantized"], template=manifest["template"], **how)


def refuse_what_no_one_can_rebuild(method: Method) -> None:
    """ValueError, in one sentence, if a run.json couldn't give this method back as it is."""
    try:
        if method_described(method_from(method_described(method))) != method_described(method):
            raise ValueError("a part of it changes its numbers when it is made.")
    except ValueError as error:
        raise ValueError(f"method {method.name!r} could not be resumed as it is: {error} Put that part into a file of its own "
                         'and take it from there ("FILE.py:NAME"), or train without a folder.') from None


def _flat(nested: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _shown(value: object, other: Any) -> str:
    return reprlib.repr([x for x in value if x not in (other or [])] if isinstance(value, list) else value)

"""A run's manifest, run.json: the JSON that identifies a run, and the differences of two manifests."""

from __future__ import annotations

import platform
import reprlib
from pathlib import Path
from typing import Any

import torch

import hapo_lab
from hapo_lab.methods import Method
from hapo_lab.policy.models import PRESETS, default_device, load_policy
from hapo_lab.policy.policy import Policy
from hapo_lab.reproducibility import parts
from hapo_lab.reproducibility.catalogue import method_described, method_from
from hapo_lab.tasks.problem import Task

ADAPTER = "adapter_model.safetensors"
"""An adapter's weights, in the folder that peft saves it to."""


def describe(policy: Policy, task: Task, method: Method, config: dict, engine: str) -> dict:
    """The JSON that identifies a run. Runs that differ in it (except in versions) must not be mixed."""
    lora: Any = policy.model.peft_config["default"]
    folder = policy.name not in PRESETS and Path(policy.name).is_dir()  # presets come first, as in `model_source`
    return {"model": str(Path(policy.name).resolve()) if folder else policy.name,
            "quantized": policy.quantized, "template": policy.template, "plain_template": policy.plain_template,
            "lora": {"rank": lora.r, "lora_alpha": lora.lora_alpha, "seed": policy.seed, **_began(policy.adapter)},
            "task": task.name, "source": task.source, "problems": task.identity,
            "heldout": sorted(p.key for p in task.heldout), "method": method_described(method), "config": config,
            "versions": {"hapo_lab": hapo_lab.__version__, "torch": torch.__version__, "python": platform.python_version(),
                         "threads": policy.threads, "engine": engine, "device": policy.device.type,
                         "dtype": str(policy.model.dtype).removeprefix("torch.")}}


def differences(there: dict, here: dict, config: dict) -> list[str]:
    """The differences, in words, that forbid a run of one description to continue as another. The gate's numbers may change
    within a run, and the number of steps may grow. `config`: the defaults, for fields that are younger than the run there, as
    a method's can be.
    """
    older = {"method": method_described(Method("")) | there.get("method", {}), "config": config | there.get("config", {})}
    a, b = _flat(there | older), _flat(here)
    return [f"{key} is {_shown(a.get(key), b.get(key))} there and {_shown(b.get(key), a.get(key))} here"
            for key in dict.fromkeys([*a, *b])
            if a.get(key) != b.get(key) and not key.startswith("versions.") and key != "config.steps"
            and (not key.startswith("method.gate.") or key.endswith((".kind", ".sha256")))]


def _began(adapter: Path | None) -> dict:
    """The saved adapter that a run begins from, if there is one."""
    return {"adapter": str(adapter), "sha256": parts.checksum(adapter / ADAPTER)} if adapter else {}


def policy_of(manifest: dict, adapter: Path | None = None) -> Policy:
    """A run's model as the run began, or with a saved adapter; in the run's dtype, on a device of the same kind. ValueError:
    the adapter that it began from is gone."""
    how = {"adapter": adapter} if adapter else manifest["lora"]
    if began := not adapter and manifest["lora"].get("adapter"):
        weights = Path(began) / ADAPTER
        if not weights.exists() or parts.checksum(weights) != manifest["lora"]["sha256"]:
            raise ValueError(f"the adapter that this run began from, {began}, is gone or another one by now: bring it back.")
        how = {"adapter": began}
    made = manifest["versions"]
    dtype = made["dtype"] if made["device"] == default_device().type else None
    return load_policy(manifest["model"], quantize=manifest["quantized"], template=manifest["template"], dtype=dtype, **how)


def refuse_what_no_one_can_rebuild(method: Method, new: Policy | None) -> None:
    """ValueError, in one sentence: run.json could not restore this method, or a new run's policy."""
    if new and new.seed is not None and any(p.any() for name, p in new.model.named_parameters() if ".lora_B." in name):
        raise ValueError("this policy has been trained already, and run.json would call it new: load it again, or save its "
                         "adapter and begin from that (load_policy(..., adapter=FOLDER)).")
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

"""What a run is: its parts as JSON for run.json, two such descriptions compared, and the parts rebuilt from one."""

from __future__ import annotations

import hashlib
import json
import platform
import reprlib
from dataclasses import asdict
from pathlib import Path

import torch

import hapo_lab
from hapo_lab.config import Config
from hapo_lab.datasets import task_of_run
from hapo_lab.methods import Method, method_from
from hapo_lab.models import Policy, load_policy
from hapo_lab.tasks import Task


def describe(policy: Policy, task: Task, method: Method, config: Config, engine: str) -> dict:
    """What identifies a run: two runs that differ in it (versions apart) must not be mixed."""
    lora = policy.model.peft_config["default"]
    return {"model": str(Path(policy.name).resolve()) if Path(policy.name).is_dir() else policy.name,
            "quantized": policy.quantized, "lora": {"rank": lora.r, "lora_alpha": lora.lora_alpha},
            "task": task.name, "source": task.source, "problems_sha256": _checksum(task), "heldout": sorted(p.key for p in task.heldout),
            "method": method.described(), "config": asdict(config),
            "versions": {"hapo_lab": hapo_lab.__version__, "torch": torch.__version__, "python": platform.python_version(),
                         "threads": torch.get_num_threads(), "engine": engine}}


def differences(there: dict, here: dict) -> list[str]:
    """In words, what keeps a run of one description from going on as another. The gate's numbers may change within a run."""
    a, b = _flat(there), _flat(here)
    return [f"{key} is {_shown(a[key], b[key])} there and {_shown(b[key], a[key])} here" for key in a
            if key in b and a[key] != b[key] and not key.startswith("versions.")
            and (key == "method.gate.kind" or not key.startswith("method.gate."))]


def rebuild(about: dict) -> tuple[Policy, Task, Method, Config]:
    """A run's parts. The adapter is a new one: a checkpoint holds the trained one.

    ValueError if a part is not this kit's by name: an own task, gate, or shaping.
    """
    try:
        config, method = Config(**about["config"]), method_from(about["method"])
        task = task_of_run(about)
        if _checksum(task) != about.get("problems_sha256", _checksum(task)):
            raise ValueError(f"task {task.name!r}, seed {config.seed}, has other problems here.")
    except (ValueError, TypeError) as error:
        raise ValueError(f"this run can't be rebuilt from its run.json: {error} If that part is your own, go on in Python: "
                         "Trainer(policy, task, method, config, folder=..., resume=True).") from None
    policy = load_policy(about["model"], quantize=about["quantized"], seed=config.seed, **about.get("lora", {}))
    return policy, task, method, config


def _checksum(task: Task) -> str:
    problems = [[asdict(problem) for problem in split] for split in (task.train, task.heldout)]
    return hashlib.sha256(json.dumps([problems, task.max_new_tokens]).encode()).hexdigest()[:16]


def _flat(nested: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _shown(value, other) -> str:
    return reprlib.repr([x for x in value if x not in other] if isinstance(value, list) else value)

"""A run's parts, from its run.json."""

from __future__ import annotations

from hapo_lab.methods import Method
from hapo_lab.policy.policy import Policy
from hapo_lab.reproducibility.catalogue import method_from
from hapo_lab.runs.manifest import policy_of
from hapo_lab.tasks.problem import Task
from hapo_lab.tasks.rebuilding import task_of_run
from hapo_lab.training.config import Config


def rebuild(manifest: dict) -> tuple[Policy, Task, Method, Config]:
    """A run's parts. The adapter is a new one: a checkpoint holds the trained one.

    ValueError if a part can't be had as it was.
    """
    try:
        config, method, task = Config(**manifest["config"]), method_from(manifest["method"]), task_of_run(manifest)
    except KeyError as missing:
        raise ValueError(f"this run can't be rebuilt: its run.json says nothing of {missing}; another version of this kit made "
                         "it.") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"this run can't be rebuilt from its run.json: {error} If that part is your own, go on in Python: "
                         "Trainer(policy, task, method, config, folder=..., resume=True).") from None
    return policy_of(manifest), task, method, config

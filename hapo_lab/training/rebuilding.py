"""A run's parts, from its run.json, and its trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hapo_lab.methods import Method
from hapo_lab.policy.policy import Policy
from hapo_lab.reproducibility.catalogue import method_from
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.manifest import policy_of
from hapo_lab.tasks.problem import Task
from hapo_lab.tasks.rebuilding import task_of_run
from hapo_lab.training.config import Config
from hapo_lab.training.trainer import Trainer


def rebuild(manifest: dict) -> tuple[Policy, Task, Method, Config]:
    """A run's parts. The adapter is a new one: a checkpoint holds the trained one.

    ValueError: a part can't be restored.
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


def resume(folder: str | Path, engine: str = "auto", steps: int | None = None) -> Trainer:
    """The trainer of a run's folder, at its last checkpoint. Model, task and method are rebuilt from its run.json.

    `steps` extends the run to this number in all. run.json does not hold a task or verifier from a notebook, or your own
    engine: then make the `Trainer` yourself, with resume=True. ValueError: a part can't be restored; the folder holds no run;
    the run is planned for at least `steps` steps already.

    >>> config = Config(steps=2, prompts=1, eval_every=0, save_every=1)
    >>> begun = iter(Trainer(load_policy("tiny"), load_task("sums"), HAPO, config, folder="run"))
    >>> next(begun).step
    1
    >>> [record.step for record in resume("run")]
    [2]
    """
    log = RunLog.load(folder)
    if steps is not None and steps <= log.planned:
        raise ValueError(f"{folder} holds a run of {log.planned} steps already: to extend it, ask for more.")
    manifest = log.manifest | {"method": log.manifest["method"] | {"gate": log.given_gate()}}
    policy, task, method, config = rebuild(manifest)
    config = replace(config, steps=steps or config.steps)
    return Trainer(policy, task, method, config, folder=folder, resume=True, engine=engine)

"""A run's task, rebuilt."""

from __future__ import annotations

from pathlib import Path

from hapo_lab.reproducibility import parts
from hapo_lab.tasks.builtin import load_task
from hapo_lab.tasks.gym import gym_of_run
from hapo_lab.tasks.jsonl import load_jsonl
from hapo_lab.tasks.problem import Task, Verifier, with_demonstrations
from hapo_lab.tasks.tables import load_table
from hapo_lab.tasks.verifiers import VERIFIERS


def task_of_run(manifest: dict) -> Task:
    """A run's task, rebuilt from its `run.json`: exactly its problems, and its verifier.

    ValueError: the task is not the kit's, or its file or its verifier's is gone or has changed.
    """
    name, source, identity = manifest["task"], manifest["source"] or {}, manifest["problems"]
    seed, room = identity["seed"], identity["max_new_tokens"]
    if "file" in source:
        if parts.checksum(Path(source["file"])) != source["sha256"]:
            raise ValueError(f"{source['file']} has changed since the run was made, so its held-out problems may have been "
                             "trained on: bring the old file back.")
        task = load_jsonl(source["file"], _verifier(name, identity), room, heldout=source["heldout"], seed=seed)
    elif "table" in source:
        task = load_table(source["table"], _verifier(name, identity), room, columns=source["columns"], test=source["test"],
                          heldout=source["heldout"], seed=seed)
    elif "gym" in source:
        task = gym_of_run(source, seed, room)
    else:
        task = load_task(name, seed)
    if "demonstrations" in source:
        task = with_demonstrations(task, **source["demonstrations"])
    if different := [part for part in identity if task.identity[part] != identity[part]]:
        raise ValueError(f"task {name!r}, seed {identity['seed']}, is another one here ({', '.join(different)}): its held-out "
                         "problems may have been trained on.")
    return task


def _verifier(name: str, identity: dict) -> Verifier:
    try:
        return parts.rebuilt(identity["verifier"], {verify.__name__: verify for verify in VERIFIERS.values()})
    except ValueError as error:
        raise ValueError(f"task {name!r}, its verifier: {error}") from None

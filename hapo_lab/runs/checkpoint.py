"""Checkpoints: a run saved between two steps, and continued from there.

Every random choice of the trainer is a function of (seed, step), and so is the order of the problems. So a checkpoint holds
the step, the adapter, the optimizer, float16's loss scale, the gate's memory, and the waiting demonstrations. With these a
run continues exactly as if nothing had happened. (On a CPU with the same number of threads. A GPU adds up in no fixed order,
so there the last digits may differ.) Numbers of the gate that were changed while it trained are events of the run log.

`step-NNNNNN/`: `adapter.safetensors`, `optimizer.pt`, and `state.json` with the step, the gate's state, what waits, the
scaler's state and the other files' checksums.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from pathlib import Path

import safetensors.torch
import torch

from hapo_lab.policy.policy import Policy
from hapo_lab.reproducibility import disk


def save(folder: Path, step: int, gate_state: dict, waiting: list[int], policy: Policy, optimizer: torch.optim.Optimizer,
         scaler: torch.amp.GradScaler) -> None:
    """Write `folder/step-NNNNNN`, and remove all others except the previous one. At any moment a whole checkpoint is there.

    OSError: it can't be written; the older ones are unchanged.
    """
    target, scratch = folder / f"step-{step:06d}", folder / f"writing-{step:06d}"
    memory = io.BytesIO()
    torch.save(optimizer.state_dict(), memory)
    files: dict[str, bytes | memoryview] = {
        "adapter.safetensors": safetensors.torch.save(_adapter(policy)), "optimizer.pt": memory.getbuffer()}
    state = {"step": step, "gate": gate_state, "waiting": waiting, "scaler": scaler.state_dict(),
             "sha256": {name: disk.sha256_of(content) for name, content in files.items()}}
    try:
        for left_over in folder.glob("writing-*"):
            shutil.rmtree(left_over)
        scratch.mkdir(parents=True)
        for name, content in (files | {"state.json": json.dumps(state).encode()}).items():
            disk.write(scratch / name, content)
        shutil.rmtree(target, ignore_errors=True)
        disk.move(scratch, target)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    before = [path for path in _saved(folder) if path < target]
    for path in _saved(folder):
        if path != target and path not in before[-1:]:
            shutil.rmtree(path)


def load(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
         at_most: int) -> tuple[int, dict, list[int]] | None:
    """Put the newest whole checkpoint of at most that step into policy, optimizer and scaler. Returns its step, the gate's
    state and what waits, None if the folder has no checkpoint.

    A damaged one is skipped with a warning. ValueError: no whole one is left.
    """
    found, damages = _saved(folder), []
    for path in reversed(found):
        try:
            state, adapter, optimizer_state = _read(path, at_most)
        except ValueError as damage:
            damages.append(f"{path.name}: {damage}")
            continue
        if damages:
            warnings.warn(f"{folder}: going back to {path.name}, because a later checkpoint is of no use "
                          f"({'; '.join(damages)}).", stacklevel=2)
        with torch.no_grad():
            for name, parameter in _adapter(policy).items():
                parameter.copy_(adapter[name])
        optimizer.load_state_dict(optimizer_state)
        if state.get("scaler"):  # none where the run came from another dtype
            scaler.load_state_dict(state["scaler"])
        return state["step"], state["gate"], state.get("waiting", [])
    if found:
        raise ValueError(f"{folder} has no whole checkpoint left ({'; '.join(damages)}): start again in another folder.")
    return None


def _saved(folder: Path) -> list[Path]:
    """From the oldest to the newest."""
    return sorted(folder.glob("step-*"))


def _adapter(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in policy.model.named_parameters() if p.requires_grad}


def _read(path: Path, at_most: int) -> tuple[dict, dict, dict]:
    """State, adapter and optimizer of a checkpoint; ValueError that says what is wrong with it."""
    try:
        state = json.loads((path / "state.json").read_bytes())
        files = {name: (path / name).read_bytes() for name in state["sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"can't be read, {type(error).__name__}: {error}") from None
    for name, content in files.items():
        if disk.sha256_of(content) != state["sha256"][name]:
            raise ValueError(f"{name} is damaged")
    if state["step"] > at_most:
        raise ValueError(f"steps.jsonl ends at step {at_most}")
    return (state, safetensors.torch.load(files["adapter.safetensors"]),
            torch.load(io.BytesIO(files["optimizer.pt"]), weights_only=True, map_location="cpu"))

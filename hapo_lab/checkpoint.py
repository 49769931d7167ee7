"""Saving a run between two steps, and going on from there.

Every random choice of the trainer is a function of (seed, step), so a checkpoint holds the adapter, the optimizer and
the step, and nothing else is needed to go on exactly as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights

from hapo_lab.models import Policy


def save(folder: Path, step: int, policy: Policy, optimizer: torch.optim.Optimizer) -> Path:
    """Write `folder/step-NNNNNN` and then remove the older ones; whatever happens, a whole checkpoint is there."""
    target = folder / f"step-{step:06d}"
    scratch = folder / f"writing-{step:06d}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    policy.model.save_pretrained(scratch)
    torch.save(optimizer.state_dict(), scratch / "optimizer.pt")
    (scratch / "state.json").write_text(json.dumps({"step": step}))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    for older in folder.glob("step-*"):
        if older != target:
            shutil.rmtree(older)
    return target


def load_latest(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> int:
    """Put the newest checkpoint into policy and optimizer; returns its step, 0 if there is none."""
    found = sorted(folder.glob("step-*"))
    if not found:
        return 0
    set_peft_model_state_dict(policy.model, load_peft_weights(str(found[-1]), device=str(policy.device)))
    optimizer.load_state_dict(torch.load(found[-1] / "optimizer.pt", weights_only=True, map_location=policy.device))
    return json.loads((found[-1] / "state.json").read_text())["step"]

"""The contestants of a bench: a run with its trained adapter, or a model as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hapo_lab.policy.models import load_policy, model_source
from hapo_lab.policy.policy import Policy
from hapo_lab.reproducibility import parts
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.manifest import policy_of


@dataclass(frozen=True)
class Contestant:
    """A model in a bench."""

    name: str
    """In tables and pictures."""
    identity: dict
    """The JSON that identifies it: the model, its weights, the adapter."""
    load: Callable[[], Policy]
    manifest: dict | None = None
    """Of a run."""

    @property
    def folder(self) -> str:
        """Its name, as a folder may be called."""
        return re.sub(r"[^\w.=+,-]+", "-", self.name)


def contestant(text: str, *, quantize: bool = True, template: dict | None = None) -> Contestant:
    """From "RUN", "MODEL" or "NAME=RUN" or "NAME=MODEL"; the default name is the folder's, or the model's.

    Parameters
    ----------
    text : str
        A run's folder, or a model as for `load_policy`: a preset, a folder, a hub id.
    quantize, template
        Of a model: see `load_policy`. A run keeps its own.

    Raises
    ------
    ValueError
        A run without an adapter; a missing model.

    Examples
    --------
    >>> contestant("base=tiny").name
    'base'
    """
    name, equals, what = text.partition("=")
    if not equals or Path(text).exists():
        name, what = "", text
    folder = Path(what)
    name = name or (folder.resolve().name if folder.is_dir() else what)
    if (folder / "run.json").exists():
        return _run(name, folder)
    template = template or {}
    identity = {"model": _weights(what), "quantized": quantize, "template": template}
    return Contestant(name, identity, partial(_model, what, quantize=quantize, template=template))


def _run(name: str, folder: Path) -> Contestant:
    manifest, weights = RunLog.load(folder).manifest, folder / "adapter" / "adapter_model.safetensors"
    if not weights.exists():
        raise ValueError(f"{folder} has no adapter yet: finish the run first.")
    identity = {"model": _weights(manifest["model"]), "quantized": manifest["quantized"], "template": manifest["template"],
                "adapter": parts.checksum(weights)[:16]}
    return Contestant(name, identity, partial(policy_of, manifest, folder / "adapter"), manifest)


def _model(what: str, quantize: bool, template: dict) -> Policy:
    try:
        return load_policy(what, quantize=quantize, template=template)
    except OSError as error:
        raise ValueError(f"{what} is not a run's folder, and no model has that name "
                         f"({str(error).splitlines()[0]})") from None


def _weights(model: str) -> dict[str, str] | str:
    """The checksums of a model's weights, by file; of one that is still at its hub, its id."""
    source = Path(model_source(model))
    if not source.is_dir():
        return model
    if not (files := sorted(source.glob("*.safetensors"))):
        raise ValueError(f"{source} holds no run (run.json) and no model (*.safetensors).")
    return {path.name: parts.checksum(path)[:16] for path in files}

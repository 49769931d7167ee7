"""For a notebook's first cell: it installs the packages that this kit needs and the machine lacks, such as Colab.

Nothing here imports what it may have to install or remove.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hapo_lab.reproducibility.kit import CHECKOUT, installed_version, requirements, tested

LEFT_ALONE = ("torch", "numpy", "ipykernel", "ipywidgets")
"""Packages that are never installed nor replaced: on Colab they fit the drivers, the running kernel and the front end."""

TORCHAO = "0.16"
"""Beside an older one than this, peft 0.21 adds no adapter to a layer that isn't quantized. Colab ships 0.10."""


def prepare(*extras: str) -> None:
    """Install missing packages and remove those that peft refuses, with a message; without a message if there is nothing to
    do. Processes that a cell starts will find a checkout that isn't installed.

    `extras`: optional parts of the kit that a lesson needs, such as "compare".

    Raises
    ------
    RuntimeError
        pip could not install or remove it.
    """
    if wanted := missing(*extras):
        print(f"installing {', '.join(wanted)}; {', '.join(LEFT_ALONE)} stay as they are", flush=True)
        install(wanted)
    if refused := refused_torchao():
        print(f"removing torchao {refused}, which peft refuses and this kit does without", flush=True)
        _pip("uninstall", "--yes", "torchao", doing="remove torchao")
    paths = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    if CHECKOUT and str(CHECKOUT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *paths])


def missing(*extras: str) -> list[str]:
    """For pip: the packages without a working version here, each in the tested version."""
    from packaging.requirements import Requirement
    return [tested().get(wanted.name, str(wanted)) for wanted in map(Requirement, requirements(*extras))
            if wanted.name not in LEFT_ALONE
            and not ((version := installed_version(wanted.name)) and wanted.specifier.contains(version, prereleases=True))]


def install(wanted: list[str]) -> None:
    """By pip, with what it depends on; what is left alone is held where it is, or RuntimeError."""
    held = [f"{name}=={version}" for name in LEFT_ALONE if (version := installed_version(name))]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(held))
        _pip("install", "--constraint", constraints, *wanted, doing=f"install {', '.join(wanted)}")


def refused_torchao() -> str | None:
    """The version of a torchao that is too old for peft. A newer one would hold code that is compiled for another torch."""
    from packaging.version import Version
    version = installed_version("torchao")
    return version if version and Version(version) < Version(TORCHAO) else None


def _pip(command: str, *arguments: str | Path, doing: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", command, "--quiet", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"could not {doing} with pip; its last words: {done.stderr.strip()[-300:]}")
    importlib.invalidate_caches()

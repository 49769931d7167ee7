"""Copies of the lessons: `hapo-lab lessons DIR`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.kit import LESSONS, installed_version


def lessons(args: argparse.Namespace) -> None:
    """Write the notebooks to a folder, and print the next command."""
    notebooks = write_lessons(args.folder)
    start = f"jupyter lab {shlex.quote(str(args.folder))}"
    missing = "" if installed_version("jupyterlab") else "python -m pip install jupyterlab, then "
    print(f"{args.folder} holds the {len(notebooks)} notebooks; next: {missing}{start}")


def write_lessons(folder: Path) -> list[Path]:
    """Copy the notebooks to a folder, which is created if missing. An existing copy stays.

    Raises
    ------
    ValueError
        A notebook there differs, so nothing was written; or the folder can't be written.
    """
    copies = {folder / path.name: path.read_bytes() for path in sorted(LESSONS.glob("*.ipynb"))}
    try:
        if changed := [path.name for path, content in copies.items() if path.exists() and path.read_bytes() != content]:
            raise ValueError(f"{folder} holds a changed {', '.join(changed)}: rename it, or choose another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in copies.items():
            if not path.exists():
                disk.replace(path, content)
    except OSError as error:
        raise ValueError(f"{folder} can't be written ({error.strerror or error}): choose another folder.") from None
    return list(copies)

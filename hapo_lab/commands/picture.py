"""hapo-lab picture animation | cheat-sheet | glossary: what the README and the docs show, made anew."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from hapo_lab.pictures import cheat_sheet, glossary
from hapo_lab.pictures.animation import animation
from hapo_lab.reproducibility import disk
from hapo_lab.runs.log import RunLog, shipped_run

MAKES: dict[str, tuple[str, Callable[[argparse.Namespace], bytes]]] = {
    "animation": ("a GIF of a run: the gate, its lamps, and the teacher leaving", lambda args: animation(_run(args.run))),
    "cheat-sheet": ("a PDF: the method on one page", lambda args: cheat_sheet.to_pdf(cheat_sheet.cheat_sheet())),
    "glossary": ("Markdown: the terms and the numbers", lambda args: glossary.page().encode()),
}
"""What there is -> its help, and how its bytes are made."""


def add_picture_commands(p: argparse.ArgumentParser) -> None:
    """A command per picture."""
    pictures = p.add_subparsers(required=True, metavar="PICTURE")
    for name, (help_, make) in MAKES.items():
        one = pictures.add_parser(name, help=help_)
        one.set_defaults(run_command=picture, make=make)
        one.add_argument("out", type=Path, help="the file")
        if name == "animation":
            one.add_argument("--run", default="hapo-0", help="a run's folder, or a shipped run's name; default: hapo-0")


def picture(args: argparse.Namespace) -> None:
    """Write one. ValueError: the run can't be shown, or the file can't be written."""
    content = args.make(args)
    try:
        disk.replace(args.out, content)
    except OSError as error:
        raise ValueError(f"{args.out} can't be written ({error.strerror or error}): choose another file.") from None
    print(args.out)


def _run(name: str) -> RunLog:
    return RunLog.load(name) if Path(name).is_dir() else shipped_run(name)

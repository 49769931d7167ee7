"""Where the kit lies, in a checkout or installed from its wheel, and the packages that it needs. None of them is imported."""

from __future__ import annotations

import tomllib
from importlib import metadata, resources
from pathlib import Path

PACKAGE = Path(str(resources.files("hapo_lab")))
CHECKOUT = None if (PACKAGE / "data").is_dir() else PACKAGE.parent
"""None where the package comes from the wheel, which holds data and lessons itself."""
DATA = CHECKOUT / "data" if CHECKOUT else PACKAGE / "data"
"""The model `tiny`, and runs."""
LESSONS = CHECKOUT / "notebooks" if CHECKOUT else PACKAGE / "lessons"

RESTORE = "git checkout data/tiny" if CHECKOUT else "install hapo_lab's wheel again"
"""How to get `tiny` back."""


def requirements(*extras: str) -> list[str]:
    """What this kit needs, with the versions that it works with; and what some of its optional parts need."""
    if CHECKOUT:
        project = _project(CHECKOUT)
        return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    lines = [line.replace('"', "'") for line in metadata.requires("hapo_lab") or []]
    return [line for line in lines if "extra ==" not in line] + [
        line.partition(";")[0] for extra in extras for line in lines if f"extra == '{extra}'" in line]


def oldest_python() -> str:
    """The oldest Python that this kit runs on, such as "3.11"."""
    wanted = _project(CHECKOUT)["requires-python"] if CHECKOUT else metadata.metadata("hapo_lab")["Requires-Python"]
    return wanted.removeprefix(">=")


def _project(checkout: Path) -> dict:
    return tomllib.loads((checkout / "pyproject.toml").read_text())["project"]


def tested() -> dict[str, str]:
    """Package -> its line in requirements.txt: the version that this kit was tested with."""
    text = ((CHECKOUT / "requirements.txt").read_text() if CHECKOUT
            else metadata.distribution("hapo_lab").read_text("extra_metadata/requirements.txt")) or ""
    return {line.partition("==")[0]: line for line in text.splitlines() if "==" in line}


def installed_version(package: str) -> str | None:
    """None where it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

"""Where the kit lies, in a checkout or installed from its wheel, and the packages that it needs. None of them is imported."""

from __future__ import annotations

import tomllib
from importlib import metadata, resources
from pathlib import Path

PACKAGE = Path(str(resources.files("hapo_lab")))
CHECKOUT = PACKAGE.parent
"""Of a package from the wheel: the folder of all packages."""


def _part(installed: str, checked_out: str) -> Path:
    return PACKAGE / installed if (PACKAGE / installed).exists() else CHECKOUT / checked_out


DATA = _part("data", "data")
"""The model `tiny`, and runs."""
LESSONS = _part("lessons", "notebooks")
REQUIREMENTS = _part("data/requirements.txt", "requirements.txt")


def requirements() -> list[str]:
    """What this kit needs, with the versions that it works with."""
    if (CHECKOUT / "pyproject.toml").exists():
        return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [wanted for wanted in metadata.requires("hapo_lab") or [] if "extra ==" not in wanted]


def tested() -> dict[str, str]:
    """Package -> its line in requirements.txt: the version that this kit was tested with."""
    lines = REQUIREMENTS.read_text().splitlines() if REQUIREMENTS.exists() else []
    return {line.partition("==")[0]: line for line in lines if "==" in line}


def installed_version(package: str) -> str | None:
    """None where it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

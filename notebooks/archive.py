"""Write the one file that a notebook needs where no checkout is, as on Colab: `make colab`, or `python archive.py`."""

from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "dist" / "hapo_lab-colab.zip"
HOLDS = ("hapo_lab/*.py", "data/tiny/*", "data/runs/*/*.json*", "notebooks/*.ipynb", "pyproject.toml", "requirements.txt",
         "LICENSE")
"""What the lessons read, and nothing that runs leave behind."""


def write(archive: Path) -> None:
    """Unpacked, it is a checkout without tests, benchmarks and the shipped runs' pictures."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(archive, "w", ZIP_DEFLATED) as out:
        for path in sorted(path for pattern in HOLDS for path in ROOT.glob(pattern)):
            out.write(path, path.relative_to(ROOT))


if __name__ == "__main__":
    write(ARCHIVE)
    print(f"{ARCHIVE.relative_to(ROOT)}: {ARCHIVE.stat().st_size / 1e6:.1f} MB. On Colab, upload it with the Files panel, "
          "and run a notebook's first cell.")

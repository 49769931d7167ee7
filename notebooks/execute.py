"""Run notebooks from top to bottom and keep their outputs, as they are committed: `python execute.py [NAME.ipynb ...]`."""

import base64
import sys
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent


def execute(path: Path) -> nbformat.NotebookNode:
    """The executed notebook. Widgets leave their last picture and a line of text: their state would break web viewers."""
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    NotebookClient(notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": str(HERE)}}).execute()
    notebook.metadata = nbformat.from_dict({k: v for k, v in metadata.items() if k != "widgets"})
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "image/png" in data:
                data["image/png"] = _in_256_colours(data["image/png"])
    return notebook


def _in_256_colours(png: str) -> str:
    """A third of the bytes: notebooks are downloaded, and kept in every clone."""
    small = BytesIO()
    Image.open(BytesIO(base64.b64decode(png))).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png")
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        nbformat.write(execute(path), path)
        print(f"{path.name}: executed")

"""Run notebooks from top to bottom and keep their outputs, as they are committed: `python execute.py [NAME.ipynb ...]`."""

import sys
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from hapo_lab.pictures.style import in_256_colours

HERE = Path(__file__).resolve().parent


def is_bar(output: nbformat.NotebookNode) -> bool:
    """A progress bar, which a saved notebook would show as it was at first."""
    return "%|" in output.get("data", {}).get("text/plain", "")


def execute(path: Path) -> nbformat.NotebookNode:
    """The executed notebook. Widgets leave their last picture and a line of text: their state would break web viewers."""
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    NotebookClient(notebook, timeout=1800, record_timing=False, coalesce_streams=True,
                   resources={"metadata": {"path": str(HERE)}}).execute()
    notebook.metadata = nbformat.from_dict({k: v for k, v in metadata.items() if k != "widgets"})
    for cell in filter(lambda cell: cell.cell_type == "code", notebook.cells):
        cell["outputs"] = [output for output in cell.get("outputs", ()) if not is_bar(output)]
        for output in cell["outputs"]:
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "image/png" in data:
                data.pop("text/html", None)  # the same picture again, for JupyterLab
                data["image/png"] = b64encode(in_256_colours(b64decode(data["image/png"]))).decode()
    return notebook


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        nbformat.write(execute(path), path)
        print(f"{path.name}: executed")

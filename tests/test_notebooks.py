"""The notebooks: what is committed, and the main job run from top to bottom by the README's command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_is_committed_shows_on_the_web(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000 and "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "committed without having been executed"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work)/", path.read_text()), "holds a path of somebody's machine"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_the_training_cell_is_at_most_ten_lines():
    notebook = nbformat.read(ROOT / "notebooks" / "05_train_live.ipynb", as_version=4)
    training, = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "for record in trainer" in cell.source]
    assert len(training.splitlines()) <= 10


def test_the_main_job(tmp_path):
    """`make demo`, whole: its notebook asserts what it expects."""
    done = subprocess.run([sys.executable, "-m", "hapo_lab", "demo"], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"HAPO_LAB_RUNS": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "05_train_live"
    lines = done.stdout.splitlines()
    assert sum(line.startswith("step ") for line in lines) >= 25  # live: a line a step, as they come
    assert any(line.startswith("step 30 of 30") for line in lines)
    exam = json.loads((run / "evaluation.json").read_text())
    assert exam["before"]["success"] <= 0.03 and exam["before"]["dead_groups"] >= 0.8
    assert exam["after"]["success"] >= 0.7
    assert "held-out success after training" in done.stdout
    executed = nbformat.read(run / "05_train_live.ipynb", as_version=4)
    assert any("image/png" in o.get("data", {}) for cell in executed.cells if cell.cell_type == "code" for o in cell.outputs)
    assert (run / "training.png").read_bytes().startswith(b"\x89PNG")

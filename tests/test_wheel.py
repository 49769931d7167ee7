"""The wheel: what it holds, and that it is enough in a Python without the checkout."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import nbformat
import pytest
from elsewhere import Elsewhere, make_elsewhere
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
TRAVELS = {"hapo_lab/": "hapo_lab/", "data/tiny/": "hapo_lab/data/tiny/", "data/runs/": "hapo_lab/data/runs/",
           "data/experiments/": "hapo_lab/data/experiments/", "data/mathematics/": "hapo_lab/data/mathematics/",
           "notebooks/": "hapo_lab/lessons/"}
"""Folders of the checkout, and where they are in the wheel."""


def in_wheel(path: str) -> str | None:
    """Where a file of the checkout is in the wheel, if it is."""
    for folder, place in TRAVELS.items():
        if path.startswith(folder) and not path.endswith(".png") and path != "notebooks/execute.py":
            return place + path.removeprefix(folder)
    return None


def test_it_holds_the_package_tiny_the_runs_and_the_lessons_and_nothing_that_runs_leave_behind(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        beside = {name.partition(".dist-info/")[2] for name in archive.namelist()} - {""}
    tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
                             text=True, check=True).stdout.splitlines()
    assert names == {place for path in tracked if (ROOT / path).exists() and (place := in_wheel(path))}
    assert {f"hapo_lab/{name}" for name in (
        "__init__.pyi", "py.typed", "data/tiny/model.safetensors", "data/runs/hapo-0/run.json",
        "data/runs/purity/beta.jsonl.gz", "lessons/00_start_here.ipynb")} <= names
    assert beside == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE", "extra_metadata/requirements.txt"}
    assert wheel.stat().st_size < 6e6  # a third of a megabyte per packed experiment


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Elsewhere:
    """A Python into which the wheel was installed by pip, and nothing else."""
    machine = make_elsewhere(tmp_path_factory.mktemp("installed"))
    assert "No module named 'hapo_lab'" in machine.run("-c", "import hapo_lab", cwd=machine.site).stderr
    subprocess.run([sys.executable, "-m", "pip", "--python", machine.python, "install", "--quiet", "--no-deps", wheel],
                   check=True)
    return machine


def test_installed_it_finds_what_it_holds(installed, tmp_path):
    """And what it needs, from its own metadata."""
    code = ("import hapo_lab; from hapo_lab.reproducibility import kit; from hapo_lab.theory.purity_runs import shipped; "
            "print(hapo_lab.__file__, kit.CHECKOUT, len(hapo_lab.shipped_run('hapo-0').steps), len(shipped())); "
            "print(kit.oldest_python(), *kit.tested().values()); print(*kit.requirements('compare'), sep='\\n')")
    done = installed.run("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    first, second, *needed = done.stdout.splitlines()
    assert first == f"{installed.site / 'hapo_lab' / '__init__.py'} None 30 10"
    pinned = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line]
    assert second.split() == ["3.11", *pinned]
    assert {line.partition("==")[0] for line in pinned} >= {"torch", "peft"} and "peft<0.22,>=0.21" in needed
    assert needed[-2:] == ["pandas<3", "rliable<1.3,>=1.2"]


def test_the_doctor_finds_that_training_works_there(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("HAPO_LAB_VLLM", "")
    done = installed.run("doctor", program="hapo-lab", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert done.stdout.endswith("\nTraining works here.\n")
    assert "fix: install it in a Python of its own, and set HAPO_LAB_VLLM to that Python's path" in done.stdout


@pytest.mark.soak
def test_the_lessons_are_written_by_the_command_and_the_first_one_trains(installed, tmp_path, monkeypatch):
    """Lesson 00 asserts what it expects of the training, and of an exam in a new process."""
    done = installed.run("lessons", "mine", program="hapo-lab", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr and "next: " in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("jupyter lab mine\n")
    written = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (ROOT / "notebooks").glob("*.ipynb")}

    notebook = nbformat.read(tmp_path / "mine" / "00_start_here.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import hapo_lab\nprint(hapo_lab.__file__)"))
    NotebookClient(notebook, timeout=None, kernel_name=installed.kernel(monkeypatch),
                   resources={"metadata": {"path": str(tmp_path / "mine")}}).execute()
    first, *others, last = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not first.outputs and last.outputs[0].text.strip() == str(installed.site / "hapo_lab" / "__init__.py")
    outputs = [output for cell in others for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2  # the shipped run's, and the training's
    run = tmp_path / "mine" / "runs" / "00_start_here"
    assert (run / "adapter" / "adapter_model.safetensors").exists()

"""The notebooks: what is committed, and the main job run from top to bottom by the README's first command."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from plain_english import too_long

from hapo_lab.notebook import exercises
from hapo_lab.notebook.build import CHECKS

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
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert all(o.data["text/plain"].split() and " ".join(o.data["text/plain"].split())
               in " ".join(o.metadata["image/png"]["alt"].split()) for o in pictures), "a picture without its alternative text"
    assert not [o for o in pictures if "text/html" in o.data], "the picture lies there twice"
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work)/", path.read_text()), "holds a path of somebody's machine"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


LESSONS = [path for path in NOTEBOOKS if path.stem[:2] in ("00", "01", "02", "03", "04", "06", "07", "10")]
SOLUTIONS = ROOT / "notebooks" / "solutions.ipynb"


def code_of(path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def checked_in(path) -> list[str]:
    """The exercises' names, in the order of their checks."""
    return [name for source in code_of(path) for name in re.findall(r"exercises\.(\w+)\(", source)]


def written_in(path) -> list[str]:
    """The functions that a lesson asks for, in their order."""
    return [name for source in code_of(path) for name in re.findall(r"^@checked\ndef (\w+)\(", source, re.MULTILINE)]


def asked_in(path) -> list[str]:
    """The numbers of the ten questions that a lesson asks."""
    return [number for source in code_of(path) for number in re.findall(r"quiz\.answer\((\d+)", source)]


@pytest.fixture
def outputs_of(monkeypatch, tmp_path):
    """A notebook's path, and a text to replace in it with another -> what it puts out, run from top to bottom; its runs lie in
    `tmp_path`. Without an error."""
    def execute(path, text="", other=""):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("HAPO_LAB_RUNS", str(tmp_path))
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells if text else ():
            cell.source = cell.source.replace(text, other)
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(path.parent)}}).execute()
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error"]
        return outputs
    return execute


@pytest.mark.soak
@pytest.mark.parametrize("path", [*LESSONS, SOLUTIONS], ids=lambda p: p.stem)
def test_a_lesson_runs_from_top_to_bottom(path, outputs_of):
    outputs = outputs_of(path)
    assert not [o for o in outputs if o.get("name") == "stderr"], "a warning"
    assert all("Not yet" not in str(o) for o in outputs)
    marks = [o.data["text/plain"] for o in outputs if "data" in o and o.data.get("text/plain", "").startswith(("✓", "…"))]
    assert len(marks) == len(checked_in(path) + written_in(path) + asked_in(path)), "each exercise says something"
    assert {mark[0] for mark in marks} <= ({"✓"} if path == SOLUTIONS else {"…"})


def test_every_exercise_has_a_check_and_a_solution():
    asked = [name for path in LESSONS for name in checked_in(path)]
    assert len(LESSONS) == 8 and asked == checked_in(SOLUTIONS)  # each once, in the same order
    assert all(checked_in(path) or written_in(path) for path in LESSONS[1:])
    assert [name for path in LESSONS for name in written_in(path)] == list(CHECKS) and "CHECKS" in "".join(code_of(SOLUTIONS))
    assert sorted(asked) == sorted(exercises.exercises())


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_what_every_lesson_holds(path):
    cells = nbformat.read(path, as_version=4).cells
    top = cells[0].source
    assert all(word in top for word in ("**Afterwards you can explain**", "**Takes**", "**Needs**"))
    expected = [i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and "**Expected" in cell.source]
    reach = {"00": 6, "10": 2}.get(path.stem[:2], 1)  # 00 trains, and examines in a new process, before it asserts; 10 trains
    assert expected and all(any(cell.cell_type == "code" and "assert " in cell.source for cell in cells[i + 1:i + 1 + reach])
                            for i in expected), "a figure is stated, but not asserted"
    assert all(any("**Predict" in cell.source for cell in cells[i - 1:i]) for i, cell in enumerate(cells)
               if cell.cell_type == "code" and cell.source.startswith("widgets.")), "no prediction before an explorable"
    code = code_of(path)
    assert all(len(source.splitlines()) <= 12 for source in code), "a long cell"
    assert not [o for cell in cells if cell.cell_type == "code" for o in cell.outputs
                if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]


def long_sentences(notebook) -> list[str]:
    """Of its markdown cells."""
    return [found for cell in notebook.cells if cell.cell_type == "markdown" for found in too_long(cell.source)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_sentence_has_at_most_25_words(path):
    assert not long_sentences(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_long_sentence_is_found_in_any_cell_of_a_lesson(path):
    """Also in a fold, in a list, and beside formulas."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell in cells:
        end = "\n\n</details>" if cell.source.endswith("\n\n</details>") else ""
        cell.source = f"{cell.source.removesuffix(end)}\n\n- {'Word ' * 26}{end}"
    assert len(long_sentences(notebook)) == len(cells)


OWN_TASK = ROOT / "notebooks" / "08_your_own_task.ipynb"


@pytest.mark.soak
def test_your_own_task_runs_from_top_to_bottom(outputs_of, tmp_path):
    """It asserts what it expects."""
    assert not [o for o in outputs_of(OWN_TASK) if o.get("name") == "stderr"], "a warning"
    assert (tmp_path / "08_your_own_task" / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_your_own_task_is_short_and_states_what_it_asserts():
    cells = nbformat.read(OWN_TASK, as_version=4).cells
    assert all(word in cells[0].source for word in ("**Afterwards you can explain**", "**Takes**", "**Needs**"))
    assert cells[-1].source.splitlines().count("## Try") == 1
    expected = [i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and "**Expected" in cell.source]
    assert len(expected) == 6 and all("assert " in cells[i + 1].source + cells[i + 2].source for i in expected)
    assert all(len(source.splitlines()) <= 12 for source in code_of(OWN_TASK))


MATHEMATICS = ROOT / "notebooks" / "09_mathematics_on_one_gpu.ipynb"


SIZE = '"smollm2-135m", 2, 4, 384, 2, 0'


@pytest.mark.soak
def test_mathematics_runs_from_top_to_bottom_in_small(outputs_of, tmp_path):
    """One step of two prompts, in shorter answers, where the lesson takes two of four. It asserts what it expects."""
    assert sum(SIZE in source for source in code_of(MATHEMATICS)) == 1
    outputs_of(MATHEMATICS, SIZE, '"smollm2-135m", 1, 2, 240, 1, 0')
    assert (tmp_path / "09_mathematics" / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_mathematics_is_short_and_states_what_it_asserts():
    cells = nbformat.read(MATHEMATICS, as_version=4).cells
    assert all(word in cells[0].source for word in ("**Afterwards you can explain**", "**Takes**", "**Needs**"))
    expected = [i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and "**Expected" in cell.source]
    assert len(expected) == 6 and all("assert " in cells[i + 1].source + cells[i + 2].source for i in expected)
    assert all(len(source.splitlines()) <= 12 for source in code_of(MATHEMATICS))


def test_the_training_cell_is_at_most_ten_lines():
    notebook = nbformat.read(ROOT / "notebooks" / "05_train_live.ipynb", as_version=4)
    training, = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "for record in trainer" in cell.source]
    assert len(training.splitlines()) <= 10


@pytest.mark.soak
def test_the_main_job(main_job):
    """Its notebook asserts what it expects."""
    done, run = main_job.done, main_job.run
    assert done.returncode == 0, done.stdout + done.stderr
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

"""The notebooks as on Colab: with the wheel that was uploaded, on Colab's versions of what they run on."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from elsewhere import Elsewhere, make_elsewhere
from nbclient import NotebookClient

from hapo_lab.notebook.colab import LEFT_ALONE, missing, prepare
from hapo_lab.reproducibility.kit import requirements

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.stem[:2].isdigit() and path.stem[:2] != "09"]
"""09 wants SmolLM2, long completions and a verifier of their own."""
VERSIONS = dict(line.split("==") for line in (ROOT / "tests" / "colab.txt").read_text().splitlines() if "==" in line)
NOTICE = "No hapo_lab here: run `make colab` on your machine, upload its wheel (Files panel), rerun this cell."


def first_cell(path: Path) -> str:
    return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


FIRST = first_cell(NOTEBOOKS[0])


def test_every_notebook_begins_with_the_same_cell():
    assert len(NOTEBOOKS) >= 10 and len(LESSONS) == 10
    assert {first_cell(path) for path in NOTEBOOKS} == {FIRST}
    assert len(FIRST.splitlines()) <= 12 and max(map(len, FIRST.splitlines())) <= 128 and "://" not in FIRST


def test_the_docs_say_how_to_get_there():
    assert any("make colab" in page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))


# where nothing is missing --------------------------------------------------------------------------------------------


def test_here_it_says_nothing(capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    prepare()
    prepare()
    assert capfd.readouterr() == ("", "")
    assert os.environ["PYTHONPATH"] == str(ROOT)  # once


WHERE = "import subprocess; subprocess.run([sys.executable, '-c', 'import hapo_lab; print(hapo_lab.__file__)'], check=True)"
"""Cells' own processes find it too."""


def test_in_a_checkout_that_is_not_installed(tmp_path):
    notebooks = tmp_path / "checkout" / "notebooks"
    for folder in ("hapo_lab", "data/tiny"):
        shutil.copytree(ROOT / folder, notebooks.parent / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / file, notebooks.parent)
    notebooks.mkdir()
    (notebooks / "cell.py").write_text(f"{FIRST}\n{WHERE}")
    done = make_elsewhere(tmp_path).run("cell.py", cwd=notebooks)
    assert (done.stdout.strip(), done.stderr) == (str(notebooks.parent / "hapo_lab" / "__init__.py"), "")


@pytest.mark.parametrize("place", [".", ".."])
def test_the_wheel_alone_is_enough(wheel, tmp_path, place):
    """And what the package itself imports at once."""
    machine, folder = make_elsewhere(tmp_path, without=("lazy_loader",)), tmp_path / "content" / "lessons"
    folder.mkdir(parents=True)
    (folder / "cell.py").write_text(f"{FIRST}\n{WHERE}")
    without = machine.run("cell.py", cwd=folder)
    assert without.returncode == 1 and without.stderr.splitlines()[-1] == f"AssertionError: {NOTICE}"
    shutil.copy(wheel, folder / place)
    done = machine.run("cell.py", cwd=folder)
    assert (done.stdout.strip(), done.stderr) == (str(machine.site / "hapo_lab" / "__init__.py"), "")


def test_a_wheel_that_is_broken_is_an_error_of_pip(tmp_path):
    (tmp_path / "cell.py").write_text(FIRST)
    (tmp_path / "hapo_lab-0.0-py3-none-any.whl").write_text("half of it")
    done = make_elsewhere(tmp_path).run("cell.py", cwd=tmp_path)
    assert done.returncode == 1 and "ERROR: Wheel" in done.stderr and "is invalid" in done.stderr


# what is missing -----------------------------------------------------------------------------------------------------


def test_a_lesson_asks_for_an_optional_part(monkeypatch):
    monkeypatch.setattr("hapo_lab.notebook.colab.installed_version", lambda name: None if name == "rliable" else "99")
    assert "rliable==1.2.0" in missing("compare") and "rliable==1.2.0" not in missing()


def test_what_is_left_alone_is_never_asked_for(monkeypatch):
    wanted = [*(f"{name}>=99" for name in LEFT_ALONE), "scipy>=99", "no-such-package>=2", "gguf"]
    monkeypatch.setattr("hapo_lab.notebook.colab.requirements", lambda *extras: wanted)
    pinned, = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("scipy==")]
    assert missing() == [pinned, "no-such-package>=2"]
    assert set(LEFT_ALONE) == {"torch", "numpy", "ipykernel", "ipywidgets"}
    assert [line for line in requirements() if line.startswith(LEFT_ALONE)]  # they are needed, all the same


@pytest.mark.soak
def test_what_it_installs_fits_into_colabs_image(tmp_path):
    """Resolved for Colab's Python, from wheels alone; nothing is downloaded but what describes them."""
    pinned = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    wanted = [f"{name}=={pinned[name]}" for name in ("transformers", "peft", "bitsandbytes", "gguf")]
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--target",
                           tmp_path / "nothing", "--python-version", "3.13", "--only-binary=:all:", "--constraint",
                           ROOT / "tests" / "colab_image.txt", *wanted], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


UNQUANTIZED = "from hapo_lab.policy.models import load_policy; assert not load_policy('tiny', quantize=False).quantized"


def test_peft_refuses_an_old_torchao(tmp_path):
    """Or it need not be removed."""
    described = tmp_path / "torchao-0.10.0.dist-info" / "METADATA"
    for file in (tmp_path / "torchao" / "__init__.py", described):
        file.parent.mkdir()
        file.write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n" if file == described else "")
    done = subprocess.run([sys.executable, "-c", UNQUANTIZED], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert "ImportError: Found an incompatible version of torchao" in done.stderr


@dataclass(frozen=True)
class Colab:
    """A machine like Colab's, on which a notebook's first cell was run."""

    machine: Elsewhere
    content: Path
    before: dict[str, str]
    first: subprocess.CompletedProcess

    def run(self, *arguments, **options) -> subprocess.CompletedProcess:
        return self.machine.run(*arguments, **options)


def versions(machine: Elsewhere) -> dict[str, str]:
    """"None" of what isn't there."""
    names = [*VERSIONS, "torch", "bitsandbytes", "gguf"]
    code = f"from hapo_lab.reproducibility.kit import installed_version as of; print(*map(of, {names}))"
    return dict(zip(names, machine.run("-c", code, cwd=ROOT).stdout.split(), strict=True))


@pytest.fixture(scope="module")
def colab(wheel, tmp_path_factory) -> Colab:
    """Colab's packages in front of ours, and no hapo_lab but the wheel that was uploaded."""
    folder = tmp_path_factory.mktemp("colab")
    machine = make_elsewhere(folder)
    subprocess.run([sys.executable, "-m", "pip", "--python", machine.python, "install", "--quiet", "--no-deps", "--no-compile",
                    "-r", ROOT / "tests" / "colab.txt"], check=True)
    assert machine.run("-c", "import hapo_lab", cwd=folder).returncode  # or the wheel would not be tested
    before, content = versions(machine), folder / "content"
    content.mkdir()
    shutil.copy(wheel, content)
    (content / "cell.py").write_text(FIRST)
    return Colab(machine, content, before, machine.run("cell.py", cwd=content))


@pytest.mark.soak
def test_on_colab_the_first_cell_installs_what_is_missing_and_leaves_the_rest(colab):
    assert colab.first.returncode == 0 and not colab.first.stderr
    said, removed = colab.first.stdout.splitlines()
    before, after = colab.before, versions(colab.machine)
    assert {name: before[name] for name in VERSIONS} == VERSIONS
    assert said == (f"installing peft=={after['peft']}, transformers=={after['transformers']}; "
                    "torch, numpy, ipykernel, ipywidgets stay as they are")
    assert all(after[name] == before[name] for name in (*LEFT_ALONE, "scipy", "matplotlib", "ipython", "bitsandbytes", "gguf"))
    assert f"transformers=={after['transformers']}" in (ROOT / "requirements.txt").read_text().splitlines()
    assert removed == f"removing torchao {before['torchao']}, which peft refuses and this kit does without"
    assert after["torchao"] == "None"


@pytest.mark.soak
def test_then_adapters_are_added_to_layers_that_are_not_quantized(colab, tmp_path):
    """As lesson 05 does it with a saved adapter."""
    load = ("from hapo_lab.policy.models import load_policy, model_source; from peft import PeftModel; "
            "from transformers import AutoModelForCausalLM; load_policy('tiny').model.save_pretrained('adapter'); "
            "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_source('tiny')), 'adapter')")
    done = colab.run("-c", f"{UNQUANTIZED}; {load}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
def test_run_again_it_says_nothing_and_overwrites_nothing(colab):
    edited = colab.machine.site / "hapo_lab" / "methods.py"
    mine = edited.read_text() + "# mine\n"
    edited.write_text(mine)
    again = colab.run("cell.py", cwd=colab.content)
    assert (again.returncode, again.stdout, again.stderr, edited.read_text()) == (0, "", "", mine)


@pytest.mark.soak
def test_what_would_replace_numpy_is_not_installed(colab):
    done = colab.run("-c", "from hapo_lab.notebook.colab import install; install(['numpy==2.0.1'])", cwd=ROOT)
    assert "RuntimeError: could not install numpy==2.0.1 with pip; its last words: " in done.stderr
    assert versions(colab.machine)["numpy"] == VERSIONS["numpy"]


# the lessons ---------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_runs_on_colabs_versions(path, colab, tmp_path, monkeypatch, request):
    """05 goes on where the main job's own test ended: SmolLM2 has been trained, and is looked at, saved and examined here."""
    if path.stem.startswith("05"):
        shutil.copytree(request.getfixturevalue("main_job").run, tmp_path / "runs" / "05_train_live")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import hapo_lab, ipykernel, ipywidgets\n"
                                                    "print(ipykernel.__version__, ipywidgets.__version__, hapo_lab.__file__)"))
    NotebookClient(notebook, timeout=None, kernel_name=colab.machine.kernel(monkeypatch),
                   resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not code[0].outputs and code[-1].outputs[0].text.split() == [
        VERSIONS["ipykernel"], VERSIONS["ipywidgets"], str(colab.machine.site / "hapo_lab" / "__init__.py")]


@pytest.mark.soak
def test_the_controls_work_with_ipywidgets_7(colab):
    done = colab.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_controls.py", "tests/test_explore.py",
                     "-k", "ends or click or steps or frame or pause", cwd=ROOT)
    assert done.returncode == 0, done.stdout

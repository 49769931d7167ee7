"""The notebooks as on Colab: with the one file that was uploaded, on Colab's versions of what they run on."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import ZipFile

import nbformat
import pytest
from nbclient import NotebookClient

from hapo_lab.notebook.colab import LEFT_ALONE, missing, prepare
from hapo_lab.reproducibility.kit import requirements

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = sorted((ROOT / "notebooks").glob("0[0-5]_*.ipynb"))
VERSIONS = dict(line.split("==") for line in (ROOT / "tests" / "colab.txt").read_text().splitlines() if "==" in line)
NOTICE = "No hapo_lab: run `make colab` on your machine, upload its file (Files panel), rerun this cell."


def first_cell(path: Path) -> str:
    return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


FIRST = first_cell(NOTEBOOKS[0])


def test_every_notebook_begins_with_the_same_cell():
    assert len(NOTEBOOKS) >= 8 and len(LESSONS) == 6
    assert {first_cell(path) for path in NOTEBOOKS} == {FIRST}
    assert len(FIRST.splitlines()) <= 12 and max(map(len, FIRST.splitlines())) <= 128 and "://" not in FIRST


# where nothing is missing --------------------------------------------------------------------------------------------


def test_here_it_says_nothing_and_takes_no_time(capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        prepare()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1 and capfd.readouterr() == ("", "")
    assert os.environ["PYTHONPATH"] == str(ROOT)  # once


def test_in_a_checkout_that_is_not_installed(colab, tmp_path):
    """Cells' own processes find it too."""
    (tmp_path / "notebooks").mkdir()
    with ZipFile(colab.archive) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "notebooks" / "cell.py").write_text(
        f"{FIRST}\nimport subprocess\n"
        "subprocess.run([sys.executable, '-c', 'import hapo_lab; print(hapo_lab.__file__)'], check=True)")
    done = colab.run("cell.py", cwd=tmp_path / "notebooks")
    assert (done.stdout.strip(), done.stderr) == (str(tmp_path / "hapo_lab" / "__init__.py"), "")


# what is missing -----------------------------------------------------------------------------------------------------


def test_what_is_left_alone_is_never_asked_for(monkeypatch):
    wanted = [*(f"{name}>=99" for name in LEFT_ALONE), "scipy>=99", "no-such-package>=2", "gguf"]
    monkeypatch.setattr("hapo_lab.notebook.colab.requirements", lambda: wanted)
    pinned, = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("scipy==")]
    assert missing() == [pinned, "no-such-package>=2"]
    assert set(LEFT_ALONE) == {"torch", "numpy", "ipykernel", "ipywidgets"}
    assert [line for line in requirements() if line.startswith(LEFT_ALONE)]  # they are needed, all the same


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

    python: Path
    archive: Path
    content: Path
    before: dict[str, str] | None = None
    first: subprocess.CompletedProcess | None = None

    def run(self, *arguments, **options) -> subprocess.CompletedProcess:
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HAPO_LAB_RUNS")}
        return subprocess.run([self.python, *arguments], capture_output=True, text=True, env=env, **options)

    def versions(self) -> dict[str, str]:
        """"None" of what isn't there."""
        names = [*VERSIONS, "torch", "bitsandbytes", "gguf"]
        code = f"from hapo_lab.reproducibility.kit import installed_version as of; print(*map(of, {names}))"
        done = self.run("-c", code, cwd=ROOT)
        return dict(zip(names, done.stdout.split(), strict=True))


@pytest.fixture(scope="module")
def colab(tmp_path_factory) -> Colab:
    """Colab's packages in front of ours, and no hapo_lab: what .pth files beyond the first say is not read."""
    made = subprocess.run(["make", "--silent", "colab", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0 and made.stdout.startswith("dist/hapo_lab-colab.zip: "), made.stdout + made.stderr
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "venv", symlinks=True)
    python, = (folder / "venv").glob("bin/python")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-compile",
                    "-r", ROOT / "tests" / "colab.txt"], check=True)
    site, = (folder / "venv").glob("lib/python3*/site-packages")
    (site / "ours.pth").write_text(sysconfig.get_path("purelib"))
    kernel = folder / "venv" / "share" / "jupyter" / "kernels" / "colab" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": [str(python), "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f",
                                           "{connection_file}"], "display_name": "Colab", "language": "python"}))
    machine = Colab(python, ROOT / "dist" / "hapo_lab-colab.zip", folder / "content")
    assert machine.run("-c", "import hapo_lab", cwd=folder).returncode  # or the archive would not be tested
    machine.content.mkdir()
    shutil.copy(machine.archive, machine.content)
    (machine.content / "cell.py").write_text(FIRST)
    return replace(machine, before=machine.versions(), first=machine.run("cell.py", cwd=machine.content))


def test_on_colab_the_first_cell_installs_what_is_missing_and_leaves_the_rest(colab):
    assert colab.first.returncode == 0 and not colab.first.stderr
    said, removed = colab.first.stdout.splitlines()
    before, after = colab.before, colab.versions()
    assert {name: before[name] for name in VERSIONS} == VERSIONS
    assert said == (f"installing transformers=={after['transformers']}, peft=={after['peft']}; "
                    "torch, numpy, ipykernel, ipywidgets stay as they are")
    assert all(after[name] == before[name] for name in (*LEFT_ALONE, "scipy", "matplotlib", "ipython", "bitsandbytes", "gguf"))
    assert f"transformers=={after['transformers']}" in (ROOT / "requirements.txt").read_text().splitlines()
    assert removed == f"removing torchao {before['torchao']}, which peft refuses and this kit does without"
    assert after["torchao"] == "None"


def test_then_adapters_are_added_to_layers_that_are_not_quantized(colab, tmp_path):
    """As lesson 05 does it with a saved adapter."""
    load = ("from hapo_lab.policy.models import load_policy, model_source; from peft import PeftModel; "
            "from transformers import AutoModelForCausalLM; load_policy('tiny').model.save_pretrained('adapter'); "
            "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_source('tiny')), 'adapter')")
    done = colab.run("-c", f"import sys; sys.path.insert(0, {str(colab.content)!r}); {UNQUANTIZED}; {load}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_run_again_it_says_nothing_and_overwrites_nothing(colab):
    edited = colab.content / "hapo_lab" / "methods.py"
    edited.write_text("# mine")
    again = colab.run("cell.py", cwd=colab.content)
    assert (again.returncode, again.stdout, again.stderr, edited.read_text()) == (0, "", "", "# mine")


def test_what_would_replace_numpy_is_not_installed(colab):
    done = colab.run("-c", "from hapo_lab.notebook.colab import install; install(['numpy==2.0.1'])", cwd=ROOT)
    assert "RuntimeError: could not install numpy==2.0.1 with pip; its last words: " in done.stderr
    assert colab.versions()["numpy"] == VERSIONS["numpy"]


def test_without_the_file_there_is_one_sentence(colab, tmp_path):
    (tmp_path / "cell.py").write_text(FIRST)
    done = colab.run("cell.py", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == f"AssertionError: {NOTICE}"


def test_the_file_holds_a_checkout_and_nothing_that_runs_leave_behind(colab):
    with ZipFile(colab.archive) as archive:
        names = set(archive.namelist())
    tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
                             text=True, check=True).stdout.splitlines()
    assert {name for name in tracked if name.startswith(("hapo_lab/", "data/tiny/"))} <= names <= set(tracked)
    assert {"data/runs/hapo-0/steps.jsonl", "notebooks/00_start_here.ipynb", "LICENSE"} <= names
    assert colab.archive.stat().st_size < 5e6
    assert str(colab.archive.relative_to(ROOT)) in (ROOT / "README.md").read_text()


# the lessons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_runs_on_colabs_versions(path, colab, tmp_path, monkeypatch, request):
    """05 goes on where the main job's own test ended: SmolLM2 has been trained, and is looked at, saved and examined here."""
    monkeypatch.setenv("JUPYTER_PATH", str(colab.python.parent.parent / "share" / "jupyter"))
    for name in ("PYTHONPATH", "HAPO_LAB_RUNS"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(colab.archive, tmp_path)
    shutil.copy(path, tmp_path)
    if path.stem.startswith("05"):
        shutil.copytree(request.getfixturevalue("main_job").run, tmp_path / "runs" / "05_train_live")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import hapo_lab, ipykernel, ipywidgets\n"
                                                    "print(ipykernel.__version__, ipywidgets.__version__, hapo_lab.__file__)"))
    NotebookClient(notebook, timeout=600, kernel_name="colab", resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not code[0].outputs and code[-1].outputs[0].text.split() == [
        VERSIONS["ipykernel"], VERSIONS["ipywidgets"], str(tmp_path / "hapo_lab" / "__init__.py")]


def test_the_controls_work_with_ipywidgets_7(colab):
    done = colab.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_controls.py", "tests/test_explore.py",
                     "-k", "ends or click or steps or frame or pause", cwd=ROOT)
    assert done.returncode == 0, done.stdout

"""The kit on a fake CUDA device (fake_cuda/device.cpp): a tensor on the wrong device fails, as it does on a real one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from hapo_lab.reproducibility import disk

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SOURCE = TESTS / "fake_cuda" / "device.cpp"


@pytest.fixture(scope="session")
def library(request) -> Path:
    """`device.cpp`, compiled once for this torch."""
    if torch.version.cuda or sys.platform != "linux":
        pytest.skip("the fake CUDA device fits into Linux's CPU builds of torch alone")
    if not shutil.which("g++"):
        pytest.skip("there is no g++ here, which the fake CUDA device is compiled with")
    folder = request.config.cache.mkdir("fake_cuda")
    built = folder / f"{disk.sha256(SOURCE)[:16]}-{torch.__version__}.so"
    if not built.exists():
        home = Path(torch.__file__).parent
        made = subprocess.run(
            ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", SOURCE, "-o", built.with_suffix(".tmp"),
             f"-I{home / 'include'}", f"-I{home / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
             f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr[-3000:]
        built.with_suffix(".tmp").replace(built)
    return built


@pytest.fixture
def device(library, monkeypatch, tmp_path):
    """Processes that are started from here on find the device; this one doesn't."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("HAPO_LAB_DTYPE")
    for name, value in {"FAKE_CUDA": library, "FAKE_CUDA_CAPABILITY": "8.0", "HAPO_LAB_VLLM": "", "HF_HUB_OFFLINE": "1",
                        "OMP_NUM_THREADS": "1", "HAPO_LAB_RUNS": tmp_path / "runs"}.items():
        monkeypatch.setenv(name, str(value))
    path_of(monkeypatch, ROOT)
    return monkeypatch


def path_of(monkeypatch, package: Path) -> None:
    """Where hapo_lab is found."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (SOURCE.parent, package, TESTS))))


def python(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=TESTS, capture_output=True, text=True)


MISTAKES = """
import torch
here, there = torch.ones(3), torch.ones(3, device="cuda")
for mistake, words in (
        (lambda: here + there, "Expected all tensors to be on the same device"),
        (lambda: there.masked_fill_(here > 0, 0), "device"),
        (lambda: torch.cat([here, there]), "Expected all tensors to be on the same device"),
        (lambda: here[there.long()], "indices should be either on cpu or on the same device"),
        (lambda: there.normal_(generator=torch.Generator()), "Expected a 'cuda' device type for generator but found 'cpu'"),
        (lambda: torch.rand(3, generator=torch.Generator("cuda")), "same device"),
        (lambda: there.numpy(), "can't convert cuda:0 device type tensor to numpy")):
    try:
        mistake()
    except (RuntimeError, TypeError) as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"not refused: {words}")
right = there * 2 + torch.tensor(1.0)  # a number may lie anywhere
assert right.device.type == "cuda" and right.tolist() == [3, 3, 3] and there[torch.tensor([0])].item() == 1
"""


def test_it_refuses_what_a_device_refuses(device):
    done = python("-c", MISTAKES)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("capability, dtype", [("8.0", "bfloat16"), ("7.5", "float16")])
def test_tiny_trains_resumes_and_is_evaluated(device, tmp_path, capability, dtype):
    device.setenv("FAKE_CUDA_CAPABILITY", capability)
    done = python("-c", f"import on_device as o; o.trains_resumes_and_evaluates({str(tmp_path / 'run')!r}, {dtype!r}); "
                        f"o.the_doctor_finds_it({dtype!r})")
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
def test_an_experiment_runs(device, tmp_path):
    done = python("-c", f"import on_device as o; o.an_experiment_runs({str(tmp_path / 'small')!r})")
    assert done.returncode == 0, done.stderr


def test_without_a_transfer_it_fails(device, tmp_path):
    """The kit with no `.to(device)` in it."""
    shutil.copytree(ROOT / "data" / "tiny", tmp_path / "data" / "tiny")
    shutil.copytree(ROOT / "hapo_lab", tmp_path / "hapo_lab")
    for path in (tmp_path / "hapo_lab").rglob("*.py"):
        path.write_text(path.read_text().replace(".to(device)", ""))
    path_of(device, tmp_path)
    done = python("-c", f"import on_device as o; o.trains_resumes_and_evaluates({str(tmp_path / 'run')!r}, 'bfloat16')")
    assert done.returncode and "xpected all tensors to be on the same device" in done.stderr, done.stderr


IN_SMALL = """
import ast, dataclasses
from hapo_lab.training import config
config.TINY = dataclasses.replace(config.TINY, steps=2, eval_samples=1)
class NoAsserts(ast.NodeTransformer):
    visit_Assert = lambda self, node: ast.Pass()
get_ipython().ast_transformers.append(NoAsserts())
"""


@pytest.mark.soak
@pytest.mark.parametrize("name", ["04_clip_and_shape", "08_your_own_task"])
def test_a_lesson_runs_on_it(device, name):
    """In small, and without what it asserts: its figures are learned in test_notebooks.py."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        few = cell.source.replace("in RESERVED_SUMS", "in RESERVED_SUMS[:20]")
        cell.source = re.sub(r"\b(steps|samples)=\d+", r"\1=2", few)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(IN_SMALL))
    notebook.cells.append(nbformat.v4.new_code_cell("print(policy.device)"))
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr" or "Traceback" in str(o)]
    assert outputs[-1].text == "cuda:0\n"


def test_the_suite_runs_on_the_processor():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()


def test_it_does_so_where_a_device_is(device):
    test = test_the_suite_runs_on_the_processor.__name__
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{test}")
    assert done.returncode == 0, done.stdout + done.stderr

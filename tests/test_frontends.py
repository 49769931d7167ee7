"""The lessons elsewhere: Notebook 7, ipywidgets 7, and kernels that answer a slider on a thread of its own or not.

Each lesson runs whole in one of the five combinations, in turn; `pytest -m every` runs each lesson in all of them. Lessons 05
and 09 train SmolLM2, and are left out: a live training under controls, as in 05, runs in every combination; 09 has no control.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from lab import (
    CHROMIUM,
    NO_CHROMIUM,
    ROOT,
    cell,
    chromium,
    get,
    jupyter,
    open_notebook,
    run_through,
    without_outputs,
    write_cells,
)
from test_access import CONTROLS, SILENT, answers, check_whose_key_it_is, stops

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=NO_CHROMIUM)

PACKAGES = {7: ["notebook==7.6.5", "ipywidgets==7.8.5", "jupyterlab-widgets==1.1.11", "ipython-genutils==0.2.0"],
            8: ["notebook==7.6.5"]}
"""By ipywidgets' version; the eighth is this Python's."""
SUBSHELLS = "@jupyterlab/apputils-extension/kernels-settings"
COMBINATIONS = {"lab-8": ("jupyterlab", 8, "disabled"), "notebook-8-subshells": ("notebook", 8, "perCommTarget"),
                "notebook-8": ("notebook", 8, "disabled"), "lab-7-subshells": ("jupyterlab", 7, "perCommTarget"),
                "notebook-7": ("notebook", 7, "disabled")}
LESSONS = sorted(path.name for path in (ROOT / "notebooks").glob("[01]*.ipynb") if path.stem[:2] not in ("05", "09"))

SCHEMA = "Cannot read properties of undefined (reading 'schema')", "/static/notebook/"
QUEUE = "Cannot read properties of undefined (reading 'Queue')", "/lab/extensions/@jupyter-widgets/jupyterlab-manager/static/"
"""Notebook 7.6.5's own, as it opens; and ipywidgets 7's, which has set a label's text when it asks for a MathJax 2 that
JupyterLab 4 does not have. Each with the folder of the script that says it."""
PLAIN = ["from IPython.display import Latex\nLatex('$x$')", "import ipywidgets\nipywidgets.IntSlider(description='plain')"]
FIRST = """from hapo_lab import HAPO, TINY, Controls, Trainer, load_policy, load_task
from dataclasses import replace
from hapo_lab.notebook import widgets
import ipywidgets
print('ipywidgets', ipywidgets.__version__)"""
CALLS = ["widgets.injection()", "widgets.clip_and_shape()"]


def own_errors(app: str, version: int) -> set[tuple[str, str]]:
    """What a combination says without the kit."""
    return ({SCHEMA} if app == "notebook" else set()) | ({QUEUE} if version == 7 else set())


each = pytest.mark.parametrize("frontend", [pytest.param(combination, marks=[pytest.mark.every, pytest.mark.soak])
                                            for combination in COMBINATIONS], indirect=True)
both = pytest.mark.parametrize("frontend, lesson", [
    pytest.param(combination, lesson, marks=[pytest.mark.every, *[pytest.mark.soak] * (j % len(COMBINATIONS) == i)])
    for i, combination in enumerate(COMBINATIONS) for j, lesson in enumerate(LESSONS)], indirect=["frontend"])
"""Each combination with each lesson; `make soak` runs each lesson in one."""


class Frontend(NamedTuple):
    """A combination that serves a folder; `show(name)` gives the page of a notebook there, run, and what errors it
    says, of which none may be ours."""

    app: str
    version: int
    folder: Path
    show: Callable


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return cache(lambda version: get(tmp_path_factory.mktemp(f"widgets{version}"), *PACKAGES[version]))


RAN = """() => window.jupyterapp.shell.currentWidget.content.widgets.every(
    ({model}) => model.type !== 'code' || model.executionCount && [...Array(model.outputs.length).keys()].every(
        i => model.outputs.get(i).type !== 'error' && model.outputs.get(i).toJSON().name !== 'stderr'))"""
CLOSE = "() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()"


@pytest.fixture(scope="module")
def frontends(browser, packages, tmp_path_factory):
    """A combination -> its front end, served from the first time that a test asks for it to the end."""
    with ExitStack() as until_the_end:
        yield cache(lambda combination: until_the_end.enter_context(
            served(*COMBINATIONS[combination], browser, packages, tmp_path_factory.mktemp("frontend"))))


@pytest.fixture
def frontend(request, frontends):
    return frontends(request.param)


@contextmanager
def served(app, version, subshells, browser, packages, folder):
    with jupyter(folder, app, packages(version), {SUBSHELLS: {"commsOverSubshells": subshells}}) as address:
        @contextmanager
        def show(name):
            said = set()
            page = open_notebook(browser, address(name), lambda page: (
                page.on("console", lambda message: message.type == "error" and said.add(
                    (message.text, urlsplit(message.location["url"]).path))),
                page.on("pageerror", lambda error: said.add((str(error), script(error.stack))))))
            try:
                run_through(page)
                yield page, said
                assert page.evaluate(RAN), "a cell that did not run, or failed, or warned"
                assert said <= own_errors(app, version)  # before the kernel is closed, which apps complain of
            finally:
                page.evaluate(CLOSE)
                page.close()
        yield Frontend(app, version, folder, show)


def script(stack: str) -> str:
    """The folder of the script that raised an error."""
    first = re.search(r"https?://\S+", stack or "")
    return urlsplit(first[0]).path.rpartition("/")[0] + "/" if first else ""


@each
def test_what_an_app_says_without_the_kit(frontend):
    """An entry that it no longer says goes from `own_errors`."""
    write_cells(frontend.folder / "plain.ipynb", PLAIN)
    with frontend.show("plain.ipynb") as (page, said):
        page.wait_for_function("() => window.MathJax")
        run_through(page)  # with the MathJax that the first run fetched
        page.wait_for_timeout(1000)
        assert said == own_errors(frontend.app, frontend.version)


@each
def test_controls_answer_and_leave_the_notebook_its_keys(frontend):
    write_cells(frontend.folder / "some.ipynb", [FIRST, *CALLS, CONTROLS])
    with frontend.show("some.ipynb") as (page, _):
        page.get_by_text(f"ipywidgets {frontend.version}.").wait_for()
        live = cell(page, "Controls(Trainer")
        live.get_by_text(re.compile("training, step [3-9]")).wait_for()
        live.get_by_role("button", name="Pause").press("Space")
        live.get_by_text("paused after step").wait_for()
        for call in CALLS:
            check_controls(page, call)
        check_whose_key_it_is(page, cell(page, CALLS[-1]))
        live.get_by_role("button", name="Stop").press("Space")
        live.get_by_text("stopped after step").wait_for()


@both
def test_a_lesson_runs_whole_and_its_controls_answer(frontend, lesson):
    notebook = without_outputs(ROOT / "notebooks" / lesson, frontend.folder / lesson)
    with frontend.show(lesson) as (page, _):
        for call in [cell.source for cell in notebook.cells if cell.source.startswith("widgets.")]:
            check_controls(page, call)


def check_controls(page, call: str) -> None:
    """Each has a name, and moves; line and picture follow."""
    part = cell(page, call)
    assert all(stop["name"] and stop["role"] for stop in stops(page, part))
    assert {1, 2} <= answers(page, part, SILENT.get(call, ()))

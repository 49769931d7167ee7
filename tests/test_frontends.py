"""The lessons elsewhere: Notebook 7, ipywidgets 7, and kernels that answer a slider on a thread of its own or not."""

import pytest
from lab import CHROMIUM, NO_CHROMIUM, cell, chromium, get, jupyter, open_notebook, run_through, write_cells

pytestmark = [pytest.mark.soak, pytest.mark.xdist_group("frontends"), pytest.mark.skipif(not CHROMIUM, reason=NO_CHROMIUM)]

PACKAGES = {7: ["notebook==7.6.5", "ipywidgets==7.8.5", "jupyterlab-widgets==1.1.11", "ipython-genutils==0.2.0"],
            8: ["notebook==7.6.5"]}
"""By ipywidgets' version; the eighth is this Python's."""
SUBSHELLS = "@jupyterlab/apputils-extension/kernels-settings"
HANDLES = {7: ".ui-slider-handle", 8: ".noUi-handle"}
CALLS = ["widgets.prior_pull()", "widgets.injection()", "widgets.dead_groups()"]
FIRST = "from hapo_lab.notebook import widgets\nimport ipywidgets\nprint('ipywidgets', ipywidgets.__version__)"
HARMLESS = ("Failed to load resource",  # of a language server, or an icon, that is not there
            "reading 'schema'",  # Notebook 7.6.5's own, with an empty notebook too
            "reading 'Queue'")  # ipywidgets 7 sets labels with a MathJax that JupyterLab 4 has no more


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return {version: get(tmp_path_factory.mktemp(f"widgets{version}"), *wanted) for version, wanted in PACKAGES.items()}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("app, version, subshells", [
    ("jupyterlab", 8, "disabled"), ("notebook", 8, "perCommTarget"), ("notebook", 8, "disabled"),
    ("jupyterlab", 7, "perCommTarget"), ("notebook", 7, "disabled")])
def test_sliders_answer_without_an_error(browser, packages, tmp_path, app, version, subshells):
    write_cells(tmp_path / "some.ipynb", [FIRST, *CALLS])
    said = []
    with jupyter(tmp_path, app, packages[version], {SUBSHELLS: {"commsOverSubshells": subshells}}) as address:
        page = open_notebook(browser, address("some.ipynb"),
                             lambda page: (page.on("console", lambda message: said.append((message.type, message.text))),
                                           page.on("pageerror", lambda error: said.append(("error", str(error))))))
        run_through(page)
        page.get_by_text(f"ipywidgets {version}.").wait_for()
        for call in CALLS:
            part = cell(page, call)
            before = part.locator("img").get_attribute("alt")
            part.locator(HANDLES[version]).first.press("ArrowRight")
            page.wait_for_function("([cell, before]) => cell.querySelector('img').alt !== before",
                                   arg=[part.element_handle(), before])
        assert not page.locator("[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type*='error']").count()
        page.close()
    assert not [text for kind, text in said if kind == "error" and not any(word in text for word in HARMLESS)]

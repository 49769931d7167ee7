"""Notebooks in a real JupyterLab in a real Chromium: sliders moved, buttons pressed, the page reloaded."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest

from hapo_lab.runs.log import RunLog

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (Debian: apt-get install chromium)")
ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600_000
"""Milliseconds for what takes a second on a machine that has nothing else to do."""


@contextmanager
def jupyter(folder: Path):
    """JupyterLab on loopback, serving a folder; yields the address of a notebook in it, by name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
         f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HAPO_LAB_RUNS": str(folder / "runs"),
                          "JUPYTER_CONFIG_DIR": str(folder / ".config"), "JUPYTER_DATA_DIR": str(folder / ".data")})
    try:
        for _ in range(120):
            try:
                urlopen(f"http://127.0.0.1:{port}/api?token={token}").close()
                break
            except OSError:
                time.sleep(0.5)
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def without_outputs(source: Path, target: Path, keep=lambda cell: True) -> nbformat.NotebookNode:
    """Nothing that a test finds was there before: a copy of a notebook, its outputs cleared."""
    notebook = nbformat.read(source, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if keep(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, target)
    return notebook


def open_notebook(browser, address: str):
    page = browser.new_page(viewport={"width": 1280, "height": 3000})  # tall: every cell is rendered
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    return page


def run_all(page) -> None:
    """When the kernel listens: JupyterLab drops widgets that are made before it does."""
    page.wait_for_function("""() => {
        const panel = window.jupyterapp?.shell.currentWidget, session = panel?.sessionContext;
        return panel?.context.isReady && session?.isReady && session.session?.kernel?.status === 'idle'
            && session.session.kernel.connectionStatus === 'connected' }""")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")


def cell(page, source: str):
    return page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=source)).first


def set_slider(where, label: str, value: float) -> None:
    """As a person does: click the number beside the slider, and type."""
    readout = where.locator(".widget-slider").filter(has=where.page.get_by_text(label, exact=True)).locator(".widget-readout")
    readout.click()
    readout.press("Control+a")
    readout.type(str(value))
    readout.press("Enter")


def pictures(where) -> list[str]:
    return [image.get_attribute("src") for image in where.locator("img").all()]


@pytest.mark.soak
def test_the_threshold_moved_to_its_ends_and_the_ladder_read(browser, tmp_path):
    without_outputs(ROOT / "notebooks" / "03_beta_gate.ipynb", tmp_path / "03_beta_gate.ipynb")
    with jupyter(tmp_path) as address:
        page = open_notebook(browser, address("03_beta_gate.ipynb"))
        run_all(page)
        tug = cell(page, "widgets.prior_pull()")
        tug.get_by_text("Injects up to S = 6 of 8.").wait_for()
        tug.locator(".widget-slider").first.wait_for()
        before, = pictures(tug)
        set_slider(tug, "threshold", 1.0)
        tug.get_by_text("Always injects: even at S = 8 of 8").wait_for()
        page.wait_for_function("old => [...document.images].every(image => image.src !== old)", arg=before)
        set_slider(tug, "threshold", 0.0)
        tug.get_by_text("gate: the threshold is 0.0; it must lie in (0, 1], such as 0.8.").wait_for()
        set_slider(tug, "threshold", 0.8)
        tug.get_by_text("Injects up to S = 6 of 8.").wait_for()
        assert not page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count()
        page.close()


def live_part(path: Path, steps: int) -> None:
    """05's cells that train `tiny` under controls, as a notebook of their own, with room in time to play."""
    part = without_outputs(ROOT / "notebooks" / "05_train_live.ipynb", path,
                           lambda cell: cell.cell_type == "code" and "live" in cell.metadata.get("tags", []))
    shown, = [cell for cell in part.cells if "Controls(" in cell.source]
    shown.source = shown.source.replace("steps=120", f"steps={steps}, eval_every=0")
    assert f"steps={steps}" in shown.source
    nbformat.write(part, path)


@pytest.mark.soak
def test_a_training_is_turned_paused_stepped_stopped_and_its_last_picture_stays(browser, tmp_path):
    live_part(tmp_path / "live.ipynb", steps=2000)
    run = tmp_path / "runs" / "05_live"
    with jupyter(tmp_path) as address:
        page = open_notebook(browser, address("live.ipynb"))
        run_all(page)
        live = cell(page, "Controls(")
        live.get_by_text(re.compile(r"training, step ([3-9]|\d\d+) of 2000 done")).wait_for()
        set_slider(live, "threshold", 0.01)
        live.get_by_text("Never injects: not even at S = 0 of 8").wait_for()
        live.get_by_role("button", name="Pause").click()
        live.get_by_text("paused after step").wait_for()
        paused = RunLog.load(run)
        event = next(e for e in paused.events if e["kind"] == "changed")
        assert event["gate"]["threshold"] == 0.01
        later = [r for r in paused.steps if r.step > event["after_step"]]
        assert all(r.teacher_samples == 8 for r in paused.steps[:event["after_step"]])
        before = pictures(live)
        live.get_by_role("button", name="Step").click()
        live.get_by_text(f"paused after step {len(paused.steps) + 1} ").wait_for()
        log = RunLog.load(run)
        assert len(log.steps) == len(paused.steps) + 1
        assert not any(r.teacher_samples for r in [*later, log.steps[-1]])
        page.wait_for_function("old => [...document.images].some(i => i.src.startsWith('data:image/png') && i.src !== old)",
                               arg=before[-1])
        live.get_by_role("button", name="Stop").click()
        live.get_by_text("stopped after step").wait_for()
        last = pictures(live)
        page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save') }")
        page.reload()
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        again = cell(page, "Controls(")
        again.locator("img").first.wait_for()
        assert pictures(again) == last
        page.close()
    assert RunLog.load(run).events[-1]["kind"] == "stopped"
    assert list((run / "checkpoints").glob("step-*"))

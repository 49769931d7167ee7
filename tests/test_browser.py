"""Notebooks in a real JupyterLab in a real Chromium: sliders moved, buttons pressed, the page reloaded."""

import re
from pathlib import Path

import nbformat
import pytest
from lab import CHROMIUM, NO_CHROMIUM, ROOT, cell, chromium, jupyter, open_notebook, run_all, without_outputs

from hapo_lab.runs.log import RunLog

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=NO_CHROMIUM)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


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

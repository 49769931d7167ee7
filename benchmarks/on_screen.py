"""What a reader waits for in JupyterLab, in Chromium: each lesson's first output, and each slider's answer.

    python benchmarks/on_screen.py [--only sliders] [--out benchmarks/results/on_screen.json]

The goals are 5 seconds to a lesson's first output, and for every slider 100 ms in the kernel and 250 ms on screen, each as the
median of its moves.

A lesson's seconds count from the command that runs its cells, in a kernel that has started and imported nothing, to the first
output in the page. A slider is moved with an arrow key, five steps there and five back, each after the answer to the one
before; fewer where it ends earlier, or the settings would mean nothing. In the kernel its milliseconds are those of the line
and of the new picture; on screen they count from the key to the changed page. Takes 5 minutes, and a machine that does nothing
else: `load` in the results tells whether it did.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ipywidgets
from common import machine, write

from hapo_lab import shipped_run
from hapo_lab.notebook import widgets

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from lab import READY, cell, chromium, jupyter, open_notebook, run_through, without_outputs, write_cells  # noqa: E402

GOALS = {"lessons": 5, "kernel": 100, "screen": 250}
"""Seconds to a first output; milliseconds to an answer."""
MOVES = 10
EXPLORABLES = ("dead_groups", "injection", "prior_pull", "gate_lab", "clip_and_shape", "purity_meter", "group_sizes",
               "look_inside", "scrub")
"""Those with sliders; the last two show a run."""
OF_A_RUN = EXPLORABLES[-2:]
LESSONS = [path for path in sorted((ROOT / "notebooks").glob("[01]*.ipynb")) if path.stem[:2] not in ("05", "09")]
"""05 and 09 load SmolLM2 before they show anything."""
FIRST = "from hapo_lab import shipped_run\nfrom hapo_lab.notebook import widgets\nrun = shipped_run('hapo-0')"
SLIDERS = ipywidgets.IntSlider | ipywidgets.FloatSlider | ipywidgets.FloatLogSlider
RUN_TO_FIRST = """() => new Promise(done => {
    const start = performance.now(), shown = () => [...document.querySelectorAll('.jp-OutputArea-output')].some(
        output => output.innerText.trim() || output.querySelector('img'));
    const watch = new MutationObserver(() => { if (shown()) { watch.disconnect(); done(performance.now() - start) } });
    watch.observe(document.querySelector('.jp-Notebook'), {childList: true, subtree: true});
    window.jupyterapp.commands.execute('notebook:run-all-cells');
})"""
WATCH = """cell => {
    window.answers = {};
    window.addEventListener('keydown', event => { window.answers = {key: performance.now()} }, true);
    new MutationObserver(changes => {
        for (const change of changes) for (const node of change.addedNodes) {
            if (node.nodeType !== 1 || !(node.closest('.jp-RenderedHTML') || node.querySelector('.jp-RenderedHTML'))) continue;
            window.answers[node.matches('img') || node.querySelector('img') ? 'picture' : 'line'] ??= performance.now();
        }
    }).observe(cell.querySelector('.jp-Cell-outputArea'), {childList: true, subtree: true});
}"""


def first_outputs(browser) -> dict[str, float]:
    """Seconds to each lesson's first output."""
    found = {}
    for path in LESSONS:
        with tempfile.TemporaryDirectory() as folder, jupyter(Path(folder)) as address:
            without_outputs(path, Path(folder) / path.name)
            page = open_notebook(browser, address(path.name))
            page.wait_for_function(READY)
            found[path.stem] = page.evaluate(RUN_TO_FIRST) / 1000
            page.close()
    return found


def in_kernel(name: str) -> dict[str, list[float]]:
    """Milliseconds of each move of an explorable's sliders, there and back: the line and the picture, by label."""
    face, found = getattr(widgets, name)(*[shipped_run("hapo-0")] * (name in OF_A_RUN)), {}
    for slider in (w for w in face._widgets() if isinstance(w, SLIDERS)):
        start, *ahead = _places(slider)
        there: list[float] = []
        for value in ahead:
            before, took = slider.value, _milliseconds(slider, value)
            if slider.value == before or face.sentence:
                slider.value = before
                break
            there.append(took)
        back = [_milliseconds(slider, value) for value in [start, *ahead][:len(there)][::-1]]
        found[slider.description] = there + back
    return found


def _places(slider) -> list[float]:
    """Where it stands, and the next places, a step apart: up, or down from the end."""
    log = isinstance(slider, ipywidgets.FloatLogSlider)
    turn = -1 if slider.value >= (slider.base**slider.max if log else slider.max) else 1
    steps = [turn * slider.step * i for i in range(MOVES // 2 + 1)]
    return [slider.value * slider.base**step if log else slider.value + step for step in steps]


def _milliseconds(slider, value: float) -> float:
    start = time.perf_counter()
    slider.value = value
    return 1000 * (time.perf_counter() - start)


def on_screen(page, call: str, moves: dict[str, int]) -> dict[str, dict[str, list[float]]]:
    """Milliseconds from the key to the changed line and picture, by slider; `moves` of each, half of them back."""
    part, found = cell(page, call), {}
    part.evaluate(WATCH)
    for handle in part.locator(".noUi-handle").all():
        label = handle.get_attribute("aria-label")
        end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        on, back = ("ArrowLeft", "ArrowRight") if end else ("ArrowRight", "ArrowLeft")
        found[label] = {"line": [], "picture": []}
        for key in [on] * (moves[label] // 2) + [back] * (moves[label] // 2):
            handle.press(key)
            page.wait_for_function("() => window.answers.line && window.answers.picture")
            page.wait_for_function(READY)
            answers = page.evaluate("() => window.answers")
            for which in ("line", "picture"):
                found[label][which].append(answers[which] - answers["key"])
    return found


def sliders(browser) -> list[dict]:
    """A row per slider, with every move."""
    with tempfile.TemporaryDirectory() as folder, jupyter(Path(folder)) as address:
        calls = {name: f"widgets.{name}({'run' if name in OF_A_RUN else ''})" for name in EXPLORABLES}
        write_cells(Path(folder) / "all.ipynb", [FIRST, *calls.values()])
        page = open_notebook(browser, address("all.ipynb"))
        run_through(page)
        page.wait_for_function("n => document.querySelectorAll('img[alt]').length === n", arg=len(calls))
        rows = []
        for name, call in calls.items():
            kernel = in_kernel(name)
            screen = on_screen(page, call, {label: len(times) for label, times in kernel.items()})
            assert list(kernel) and set(kernel) == set(screen), (call, list(kernel), list(screen))
            rows += [{"explorable": name, "slider": label, "kernel": kernel[label], **screen[label]}
                     for label in screen]
        page.close()
    return rows


def lesson_table(found: dict[str, float]) -> list[str]:
    """Markdown of the lessons' seconds."""
    return ["| lesson | first output | goal |", "|---|---|---|",
            *(f"| {name} | {seconds:.1f} s | {_goal('lessons', seconds)} |" for name, seconds in found.items())]


def table(rows: list[dict]) -> list[str]:
    """Markdown of the sliders' milliseconds: median, and the worst move; and whether the medians meet the goals."""
    def of(values: list[float]) -> str:
        return f"{statistics.median(values):.0f}, {max(values):.0f}"
    return ["| explorable | slider | kernel | goal | line on screen | picture on screen | goal |",
            "|---|---|---|---|---|---|---|",
            *(f"| {row['explorable']} | {row['slider']} | {of(row['kernel'])} | {_goal('kernel', answer(row, 'kernel'))} "
              f"| {of(row['line'])} | {of(row['picture'])} | {_goal('screen', answer(row, 'screen'))} |" for row in rows)]


def answer(row: dict, where: str) -> float:
    """A slider's median milliseconds to the new picture, in the kernel or on the screen."""
    return statistics.median(row["kernel" if where == "kernel" else "picture"])


def _goal(which: str, value: float) -> str:
    return "met" if value <= GOALS[which] else "missed"


def verdict(found: dict) -> str:
    """How many of the goals are met, of the parts that were measured."""
    parts = []
    if lessons := found.get("lessons"):
        parts.append(f"{sum(s <= GOALS['lessons'] for s in lessons.values())} of {len(lessons)} lessons show something within "
                     f"{GOALS['lessons']} s")
    if rows := found.get("sliders"):
        within = {where: sum(answer(row, where) <= GOALS[where] for row in rows) for where in ("kernel", "screen")}
        parts.append(f"of {len(rows)} sliders {within['kernel']} answer within {GOALS['kernel']} ms in the kernel, "
                     f"{within['screen']} within {GOALS['screen']} ms on screen")
    return "; ".join(parts) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("lessons", "sliders"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found: dict = {"machine": machine(load=list(os.getloadavg()))}
    with chromium() as browser:
        if asked.only != "sliders":
            found["lessons"] = first_outputs(browser)
            print(*lesson_table(found["lessons"]), sep="\n", flush=True)
        if asked.only != "lessons":
            found["sliders"] = sliders(browser)
            print(*table(found["sliders"]), sep="\n")
    print(verdict(found))
    found["machine"]["load_after"] = list(os.getloadavg())
    if asked.out:
        write(asked.out, **found)
    print(json.dumps(found["machine"]))


if __name__ == "__main__":
    main()

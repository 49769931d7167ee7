"""The lessons for a reader without a mouse, without sight, or with a dark screen: in a real JupyterLab, in a real Chromium."""

import re

import pytest
from lab import CHROMIUM, NO_CHROMIUM, READY, cell, chromium, jupyter, open_notebook, run_through, write_cells

from hapo_lab.notebook import widgets

pytestmark = [pytest.mark.soak, pytest.mark.skipif(not CHROMIUM, reason=NO_CHROMIUM)]

FIRST = """from hapo_lab import BetaGate, HAPO, TINY, Controls, Dashboard, Trainer, load_policy, load_task, shipped_run
from dataclasses import replace
from hapo_lab.experiments.outcomes import shipped
from hapo_lab.notebook import exercises, quiz, widgets
from hapo_lab.pictures import explorables
from IPython.display import HTML

def seats():
    face = widgets.collapse()
    face["rewards"][2].value = True  # or all eight are right in the end, and nothing depends on the std
    return face"""
SIZES = {"seats()  # widgets.collapse()": 9, "widgets.dead_groups()": 2, "widgets.injection()": 8, "widgets.prior_pull()": 5,
         "widgets.gate_lab()": 10, "widgets.clip_and_shape()": 5, "widgets.purity_meter()": 7, "widgets.group_sizes()": 5,
         'widgets.choose_seeds(shipped("sparse").found)': 12, 'widgets.look_inside(shipped_run("hapo-0"))': 2,
         'widgets.scrub(shipped_run("hapo-0"))': 4}
"""Every explorable, and the number of its controls and buttons."""
CONTROLS = """config = replace(TINY, steps=400, eval_every=0)
Controls(Trainer(load_policy("tiny"), load_task("sums"), HAPO, config, folder="run"))"""
BESIDE = ["display(HTML(explorables.ladder_html(BetaGate(), 7)))", "with Dashboard(shipped_run('hapo-0')): pass",
          "exercises.all_four_fail(0.1)", "exercises.all_four_fail(0.6**4)", "exercises.all_four_fail(...)", "quiz.ask(3)"]
SILENT = {"widgets.purity_meter()": ("visit, step", "prior a0"), 'widgets.scrub(shipped_run("hapo-0"))': ("prior a0",),
          "widgets.collapse()": ("divide by",)}
"""What leaves the answer as it is: the Beta gate has no memory, a quarter more of a0 changes no decision there, and all eight
are right in the end."""
KEYS = {"slider": ("ArrowRight", "ArrowLeft"), "spinbutton": ("ArrowUp", "ArrowDown"), "combobox": ("ArrowDown", "ArrowUp")}
"""What moves it on, and what moves it back from its end."""
AT_END = """() => {
    const face = document.activeElement, at = key => face.getAttribute('aria-value' + key);
    return +(face.options ? face.selectedIndex === face.options.length - 1 : at('now') && at('now') === at('max')) }"""


def test_no_explorable_is_left_out():
    made = {name for name, value in vars(widgets).items()
            if getattr(value, "__annotations__", {}).get("return") == "Explorable"}
    assert {re.search(r"widgets\.(\w+)", call)[1] for call in SIZES} == made


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("access")
    write_cells(folder / "all.ipynb", [FIRST, *SIZES, *BESIDE, CONTROLS])
    with jupyter(folder) as address, chromium() as browser:
        page = open_notebook(browser, address("all.ipynb"))
        run_through(page)
        page.wait_for_function("n => document.querySelectorAll('.jp-OutputArea img').length === n", arg=len(SIZES) + 2)
        live = cell(page, "Controls(Trainer")
        live.get_by_text(re.compile("training, step [3-9]")).wait_for()
        live.get_by_role("button", name="Pause").press("Space")  # the kernel is to have time
        live.get_by_text("paused after step").wait_for()
        yield page
        page.close()


# what the browser tells a screen reader ----------------------------------------------------------------------------


def focused(page) -> dict[str, str]:
    """Role, name, value and description of what has the focus, as the browser computes them."""
    session = page.context.new_cdp_session(page)
    element = session.send("Runtime.evaluate", {"expression": "document.activeElement"})["result"]["objectId"]
    node, = session.send("Accessibility.getPartialAXTree", {"objectId": element, "fetchRelatives": False})["nodes"]
    session.detach()
    return {key: str(node.get(key, {}).get("value", "")) for key in ("role", "name", "value", "description")}


LOOK = """() => {
    const face = document.activeElement, look = style => ['outline', 'boxShadow', 'borderColor', 'backgroundColor']
        .map(key => style[key]).join();
    const parts = () => [face, face.parentElement].map(part => look(getComputedStyle(part))).join();
    const shown = parts();
    face.blur();
    const hidden = parts();
    face.focus({focusVisible: true});
    return shown !== hidden }"""
"""Whether what has the focus looks otherwise without it."""

IN_CELL = "cell => cell.contains(document.activeElement)"
IN_OUTPUT = "cell => cell.querySelector('.jp-OutputArea').contains(document.activeElement)"  # JupyterLab's buttons are not
ANSWER = """cell => {
    const picture = cell.querySelector('.jp-OutputArea img');
    return [[...cell.querySelectorAll('.jp-RenderedHTML')].map(o => o.innerText).join(), picture.alt, picture.src] }"""


LABELS = ".jupyter-widgets .widget-label:visible, .jupyter-widgets button:visible, .widget-checkbox label:visible"


def stops(page, part):
    """Tab from the cell on, through everything in its output that takes the focus; with the focus there."""
    page.evaluate("() => document.activeElement.blur()")
    part.locator(".jp-InputArea-prompt").first.click()
    element = part.element_handle()
    page.keyboard.press("Tab")
    while element.evaluate(IN_CELL):
        if element.evaluate(IN_OUTPUT):
            yield focused(page)
        page.keyboard.press("Tab")


def press(page, part, key: str, silent: bool) -> set[int]:
    """The places in the cell's answer that change with a key."""
    from playwright.sync_api import TimeoutError

    before = part.evaluate(ANSWER)
    page.keyboard.press(key)
    if not silent:
        try:
            page.wait_for_function(f"([cell, before]) => ({ANSWER})(cell).some((part, i) => part !== before[i])",
                                   arg=[part.element_handle(), before], timeout=60_000)
        except TimeoutError:
            pytest.fail(f"{key} changes nothing; the focus is on {focused(page)}")
    page.wait_for_function(READY)
    return {i for i, pair in enumerate(zip(before, part.evaluate(ANSWER), strict=True)) if pair[0] != pair[1]}


@pytest.mark.parametrize("call", SIZES)
def test_the_keyboard_reaches_moves_and_names_every_control(page, call):
    """In the order in which they stand; what moves is told by the line, by the picture, and by its alternative text."""
    part = cell(page, call)
    labels = part.locator(LABELS).all_inner_texts()
    seen = []
    for stop in stops(page, part):
        assert page.evaluate(LOOK), f"{stop} doesn't show that it has the focus"
        seen.append(stop)
    controls = [stop for stop in seen if not stop["name"].endswith(", typed")]
    assert len(controls) == SIZES[call] and [stop["name"] for stop in controls] == labels
    assert all(stop["role"] in ("slider", "textbox", "button", "combobox", "spinbutton", "checkbox") for stop in seen)
    assert {1, 2} <= answers(page, part, SILENT.get(call, ()))


def answers(page, part, silent=()) -> set[int]:
    """Move every control, on and back; the places in the cell's answer that change."""
    changed = set()
    for stop in stops(page, part):
        on, back = KEYS.get(stop["role"], ("Space", None))
        for key in (back, on) if page.evaluate(AT_END) else (on, back) if back else (on,):
            if stop["role"] != "textbox":
                changed |= press(page, part, key, stop["name"] in silent)
    return changed


def test_the_keyboard_trains(page):
    """Step, another threshold, another step, and the end."""
    live = cell(page, "Controls(Trainer")
    seen = list(stops(page, live))
    assert [stop["name"] for stop in seen if not stop["name"].endswith(", typed")] == [
        "Go on", "Step", "Stop", "prior a0", "prior b0", "threshold"]
    status = live.locator(".widget-label", has_text="paused after step")
    for stop in stops(page, live):
        if stop["name"] == "Step":
            before = status.inner_text()
            page.keyboard.press("Enter")
            page.wait_for_function("([status, before]) => status.innerText !== before", arg=[status.element_handle(), before])
        elif stop["name"] == "threshold":
            page.keyboard.press("Home")
            live.get_by_text("the threshold is 0.0; it must lie in (0, 1]").wait_for()
            page.keyboard.press("ArrowRight")
            live.get_by_text("Never injects: not even at S = 0 of 8").wait_for()
    live.get_by_role("button", name="Stop").press("Space")
    live.get_by_text("stopped after step").wait_for()


# whose key it is -----------------------------------------------------------------------------------------------------

LISTEN = """() => {
    const commands = window.jupyterapp.commands;
    window.heard = [];
    if (commands.hasCommand('test:escape')) return;
    commands.commandExecuted.connect((_, {id}) => window.heard.push(id));
    commands.addCommand('test:escape', {execute: () => null});
    commands.addKeyBinding({command: 'test:escape', keys: ['Escape'], selector: '.jp-Notebook :focus'}) }"""
"""To the commands that the notebook's shortcuts give. Escape gets one: a notebook gives it none while no cell is edited."""
VALUE = "face => face.value ?? face.getAttribute('aria-valuetext')"
MOVES = {".noUi-handle, .ui-slider-handle": ("ArrowRight", "ArrowLeft", "PageUp", "PageDown", "End", "Home"),
         "select": ("ArrowDown", "ArrowUp", "End", "Home")}
"""By control, the keys that move it, from a place in the middle."""
SHORTCUTS = {"Control+s": "docmanager:save", "Escape": "test:escape", "Control+Enter": "notebook:run-cell",
             "Shift+Enter": "notebook:run-cell-and-select-next"}


def check_whose_key_it_is(page, part):
    """On a slider and a list of choices a key alone moves or does nothing; with a modifier it is the notebook's."""
    page.evaluate(LISTEN)
    for kind, keys in MOVES.items():
        face = part.locator(f".jp-OutputArea :is({kind})").first
        face.focus()
        for key in keys:
            before = face.evaluate(VALUE)
            page.keyboard.press(key)
            assert face.evaluate(VALUE) != before, f"{key} moves nothing on {kind}"
        for key in "abjkmxz":
            page.keyboard.press(key)
        assert not page.evaluate("() => window.heard") and face.evaluate("face => face === document.activeElement")
        for key, command in SHORTCUTS.items():
            face.focus()
            page.keyboard.press(key)
            page.wait_for_function("() => window.heard.length")
            heard = page.evaluate("() => window.heard.splice(0)")
            assert command in heard, f"{key} gives {heard}"
            page.wait_for_function(READY)
            face.wait_for()
        face.focus()
        for key in ("Tab", "Shift+Tab", "Shift+Tab"):
            before = page.evaluate_handle("() => document.activeElement")
            page.keyboard.press(key)
            assert page.evaluate("before => document.activeElement !== before", before), f"{key} stays on {kind}"


def test_a_key_alone_is_the_controls_and_others_are_the_notebooks(page):
    check_whose_key_it_is(page, cell(page, "widgets.clip_and_shape()"))


# light and dark ----------------------------------------------------------------------------------------------------

CONTRAST = """() => {
    const channels = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return {r, g, b, a} };
    const over = (top, under) => Object.fromEntries(['r', 'g', 'b'].map(k => [k, top.a * top[k] + (1 - top.a) * under[k]]));
    const light = c => [c.r, c.g, c.b].map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = face => {
        const own = channels(getComputedStyle(face).backgroundColor);
        return own.a === 1 || !face.parentElement ? own : over(own, ground(face.parentElement)) };
    const found = [], walker = document.createTreeWalker(document.querySelector('.jp-Notebook'), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode, face = node.parentElement;
        const text = node.textContent.replace(/[\\s\u200b]+/g, ' ').trim();
        if (!text || !face.closest('.jp-OutputArea-output') || !face.checkVisibility()) continue;
        const back = ground(face), [a, b] = [over(channels(getComputedStyle(face).color), back), back].map(light);
        found.push([text.slice(0, 60), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
    }
    return found }"""
"""Each text of the outputs, with its contrast to what is behind it, as WCAG 2 reckons it."""


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_every_text_stands_out_from_its_ground(page, theme):
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    page.wait_for_function("dark => document.body.dataset.jpThemeLight === dark", arg=str("Light" in theme).lower())
    found = page.evaluate(CONTRAST)
    assert not [(text, round(ratio, 2)) for text, ratio in found if ratio < 4.5]
    texts = " ".join(text for text, _ in found)
    assert [said for said in ("erases", "Injects up to", "threshold", "Next step", "✓ Right", "✗ Not yet", "…",
                              "ed after step", "verifier", "replaced", "seed 0") if said not in texts] == []

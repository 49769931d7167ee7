"""Controls for the explorables of `explorables.py`: `widgets.gate_lab()` as a cell's last line shows it.

The picture is an ordinary image output, redrawn in its place, so its last frame stays in the notebook; the line above it (the
decision ladder, or a sentence if the settings are invalid) is a separate output, and changes first. Works with ipywidgets 7
and 8.
"""

from __future__ import annotations

import base64
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from threading import Lock
from typing import Any
from uuid import uuid4

import ipywidgets as ipw
from IPython.display import display, update_display

from hapo_lab.experiments.outcomes import Outcome
from hapo_lab.gate import BetaGate
from hapo_lab.gates import GATES
from hapo_lab.loss import SHAPINGS
from hapo_lab.pictures import explorables, figures, inside, purity
from hapo_lab.pictures.style import Figure, bundle
from hapo_lab.runs.log import RunLog


class Explorable:
    """Controls, a line, and a picture, kept in step.

    Parameters
    ----------
    draw : parameters -> (figure, numbers)
    controls : dict
        A widget, or a list of widgets, for each parameter of `draw`. The first slider is the one that a page without a kernel
        can move (`docs/players.py`).
    line : parameters -> HTML, optional
        The line above the picture, which changes at once.
    buttons : dict
        Label -> a function that sets the controls.
    rows : names of controls and labels of buttons
        Where they stand; by default in one row, which wraps as every row does.

    `numbers` holds the picture's numbers, and `sentence` the error of the present settings ("" if they are valid).
    """

    def __init__(self, draw: Callable, controls: dict, line: Callable | None = None, buttons: dict[str, Callable] | None = None,
                 rows: Sequence[Sequence[str]] = ()):
        self._draw, self._line, self.controls = draw, line or (lambda **_: ""), controls
        self._rows = rows or [[*controls, *(buttons or {})]]
        self.numbers: dict = {}
        self.sentence = ""
        self.buttons = {label: ipw.Button(description=label, layout=ipw.Layout(width="110px")) for label in buttons or {}}
        self._ids = {part: f"{part}-{uuid4()}" for part in ("line", "picture")}
        self._frames: dict[str, tuple[dict, dict]] = {}
        self._shown, self._lock = False, Lock()
        for label, action in (buttons or {}).items():
            self.buttons[label].on_click(lambda _, action=action: self._press(action))
        for control in self._widgets():
            control.observe(lambda _: self.refresh(), names="value")
        self.refresh()

    def __getitem__(self, name: str) -> Any:
        """A control, by the parameter that it sets."""
        return self.controls[name]

    @property
    def parameters(self) -> dict:
        """The present values of the controls."""
        return {name: tuple(w.value for w in control) if isinstance(control, list) else control.value
                for name, control in self.controls.items()}

    @property
    def frame(self) -> tuple[str, bytes, str]:
        """What stands there now: the line as HTML, the picture as a PNG, the picture's alternative text."""
        (_, line), (options, picture) = (self._frames[part] for part in ("line", "picture"))
        return line["text/html"], base64.b64decode(picture["image/png"]), options["metadata"]["image/png"]["alt"]

    def refresh(self) -> None:
        """Draw the present settings. An error appears as one sentence."""
        with self._lock, _collected_after():
            self._refresh()

    def _refresh(self) -> None:
        try:
            self.sentence, parameters = "", self.parameters
            self._show_line(self._line(**parameters))
            figure, self.numbers = self._draw(**parameters)
        except Exception as error:
            self.sentence = " ".join(str(error).split()) or type(error).__name__
            self.numbers, figure = {}, explorables.sentence_figure("No picture for these settings: see the line above.")
            self._show_line(f"<b role='alert'>{escape(self.sentence)}</b>")
        self._show_picture(figure)

    def _press(self, action: Callable) -> None:
        try:
            action(self)
        except Exception as error:
            self._show_line(f"<b role='alert'>{escape(str(error))}</b>")

    def _show_line(self, html: str) -> None:
        self._show("line", {"text/html": html or "<span></span>", "text/plain": ""})

    def _show_picture(self, figure: Figure) -> None:
        self._show("picture", *bundle(figure))

    def _show(self, part: str, data: dict, metadata: dict | None = None) -> None:
        self._frames[part] = {"raw": True, "metadata": metadata or {}, "display_id": self._ids[part]}, data
        if self._shown:
            update_display(data, **self._frames[part][0])

    def _ipython_display_(self) -> None:
        parts = self.controls | self.buttons
        show_rows([ipw.Box(_flat(parts[name] for name in row), layout=ipw.Layout(flex_flow="row wrap"))
                   for row in self._rows], "Run this cell, and its controls appear here.")
        with self._lock:
            self._shown = True
            for options, data in self._frames.values():
                display(data, **options)

    def _widgets(self) -> list[ipw.Widget]:
        return _flat(self.controls.values())


@contextmanager
def _collected_after() -> Iterator[None]:
    """Python's collector waits until a picture is drawn and gone. A picture that it meets half-way becomes an old object, and
    a few of those make it search all objects, for half a second."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
            gc.collect(1)


# the eight ---------------------------------------------------------------------------------------------------------


def collapse() -> Explorable:
    """Eight rewards to click, and their advantages."""
    seats = [ipw.ToggleButton(description=f"seat {i}: 0", layout=ipw.Layout(width="84px")) for i in range(8)]
    for i, seat in enumerate(seats):
        def say(change: dict, i: int = i) -> None:
            change["owner"].description = f"seat {i}: {int(change['new'])}"
        seat.observe(say, names="value")
    return Explorable(lambda rewards, scale: explorables.collapse([float(r) for r in rewards], scale),
                      {"rewards": seats, "scale": _scale("none")})


def dead_groups(success_rate: float = 0.05) -> Explorable:
    """The probability of a dead group, by success rate and group size."""
    return Explorable(explorables.dead_groups, {"success_rate": _slider("success rate", success_rate, 0, 1, 0.01),
                                            "trials": _whole("N, rollouts", 8, 2, 64)})


def injection(successes: int = 0, step: int = 1) -> Explorable:
    """SSI, step by step."""
    def onward(face: Explorable) -> None:
        face["step"].value = face["step"].value % 4 + 1
    return Explorable(explorables.injection, {
        "step": _whole("step", step, 1, 4), "successes": _whole("S, right", successes, 0, 16),
        "trials": _whole("N, rollouts", 8, 2, 16),
        **gate_sliders(), "scale": _scale("std")}, _ladder, {"Next step": onward},
        [("successes", "trials", "step", "Next step"), (*_GATE, "scale")])


def prior_pull(successes: int = 6) -> Explorable:
    """The posterior mean between the prior's and the group's, by their weights."""
    return Explorable(explorables.prior_pull, {"successes": _whole("S, right", successes, 0, 16),
                                           "trials": _whole("N, rollouts", 8, 2, 16), **gate_sliders()}, _ladder,
                      rows=[_GATE, ("successes", "trials")])


def gate_lab(secret: int = 1, groups: int = 20) -> Explorable:
    """Guess a hidden success rate from a ledger of decisions."""
    def more(count: int) -> Callable[[Explorable], None]:
        def act(face: Explorable) -> None:
            face["groups"].value = min(face["groups"].value + count, explorables.MOST_GROUPS)
        return act

    def another(face: Explorable) -> None:
        face["reveal"].value = False
        face["secret"].value = face["secret"].value % 99 + 1
    return Explorable(lambda secret, **rest: explorables.gate_lab(explorables.hidden_rate(secret), seed=secret, **rest), {
        "secret": ipw.BoundedIntText(description="secret no.", value=secret, min=1, max=99, layout=ipw.Layout(width="180px")),
        "groups": _whole("groups", groups, 1, explorables.MOST_GROUPS), "trials": _whole("N, rollouts", 8, 2, 16),
        **gate_sliders(),
        "reveal": ipw.Checkbox(description="reveal", value=False, indent=False, layout=ipw.Layout(width="90px"))},
        _ladder, {"+1 group": more(1), "+10 groups": more(10), "New secret": another},
        [("secret", "New secret", "groups", "+1 group", "+10 groups"), _GATE, ("trials", "reveal")])


def clip_and_shape() -> Explorable:
    """One cursor over the students' clip and the teacher's shaping."""
    return Explorable(explorables.clip_and_shape, {
        "p": _log("p now", 1e-4, -6), "old_p": _log("p old", 1e-4, -6),
        "advantage": ipw.Dropdown(description="student's A", options=[("+1", 1.0), ("\N{MINUS SIGN}1", -1.0)],
                                  style=_LABEL, layout=_WIDTH),
        "shaping": ipw.Dropdown(description="shaping F", options=list(SHAPINGS), value="ratio", style=_LABEL, layout=_WIDTH),
        "lam": _log("lambda", 0.1, -4)})


def purity_meter(kind: str = "beta") -> Explorable:
    """The injection probability, and its effect on the update."""
    return Explorable(purity.meter, {
        "trials": _whole("N, rollouts", 8, 2, 64), "success_rate": _slider("success rate", 0.9, 0.01, 0.999, 0.001),
        "kind": ipw.Dropdown(description="gate", options=list(GATES), value=kind, style=_LABEL, layout=_WIDTH),
        "visit": _whole("visit, step", 1, 1, 100), **gate_sliders()},
        purity.meter_line, rows=[("success_rate", "trials"), ("kind", "visit"), _GATE])


def group_sizes() -> Explorable:
    """The injection probability at one success rate, for every group size."""
    return Explorable(purity.group_sizes, {
        "trials": _whole("N, rollouts", 8, 2, 128), "success_rate": _slider("success rate", 0.9, 0.8, 0.99, 0.01),
        **gate_sliders()}, purity.bar_line, rows=[("success_rate", "trials"), _GATE])


# an experiment -----------------------------------------------------------------------------------------------------


def choose_seeds(found: Sequence[Outcome], methods: tuple[str, str] = ("hapo", "luffy_matched"),
                 seeds: Sequence[int] = (0,)) -> Explorable:
    """A choice of runs, and two methods' difference in them."""
    from hapo_lab.pictures import comparison  # imports scipy.stats: half a second, which no other lesson waits for

    every = sorted({o.seed for o in found if o.method in methods})
    marks = [ipw.Checkbox(description=f"seed {seed}", value=seed in seeds, indent=False, layout=ipw.Layout(width="84px"))
             for seed in every]

    def choose(number: int) -> Callable[[Explorable], None]:
        def act(face: Explorable) -> None:
            for i, mark in enumerate(marks):
                mark.value = i < number
        return act
    return Explorable(lambda on: comparison.chosen_seeds(found, methods, [s for s, yes in zip(every, on, strict=True) if yes]),
                      {"on": marks}, buttons={"the first five": choose(5), "all": choose(len(every))})


# a run -------------------------------------------------------------------------------------------------------------


def look_inside(log: RunLog) -> Explorable:
    """Any group of any step: completions, rewards, and the replaced rollout."""
    groups, scale = len(log.steps[0].problems) if log.steps else 1, log.manifest["method"]["scale"]
    return Explorable(lambda step, number: (figures.group_figure(inside.group_at(log, step, number), scale), {}),
                      {"step": _whole("step", 1, 1, max(len(log.steps), 1)), "number": _whole("group", 1, 1, groups)},
                      lambda step, number: inside.completions_table(inside.group_at(log, step, number)))


def scrub(log: RunLog) -> Explorable:
    """Slide through a run, and see another gate's decisions about the same groups."""
    given, trials = log.gate(1), max(log.steps[0].trials) if log.steps else log.manifest["config"]["group_size"]
    start = BetaGate(**{k: v for k, v in given.items() if k != "kind"}) if given["kind"] == "BetaGate" else BetaGate()
    return Explorable(lambda step, **gate: inside.replay_figure(log, step, **gate),
                      {"step": _whole("step", max(len(log.steps), 1), 1, max(len(log.steps), 1)), **gate_sliders(start)},
                      lambda step, **gate: _ladder(trials=trials, **gate))


# without a mouse, without sight --------------------------------------------------------------------------------------

_HELP = """
const name = (element, said) => Object.entries(said).forEach(pair => element.setAttribute(...pair));
const help = () => {
    for (const handle of document.querySelectorAll(".widget-slider :is(.noUi-handle, .ui-slider-handle)")) {
        const slider = handle.closest(".widget-slider"), readout = slider.querySelector(".widget-readout");
        const label = slider.querySelector(".widget-label")?.textContent;
        if (!label || !readout) continue;
        if (!handle.hasAttribute("aria-label")) {
            readout.id = "readout-" + Math.random().toString(36).slice(2);
            name(handle, {"role": "slider", "aria-label": label, "aria-describedby": readout.id});
            name(readout, {"role": "textbox", "aria-label": label + ", typed"});
        }
        if (handle.matches(".ui-slider-handle")) name(handle, {
            "aria-valuenow": parseFloat(readout.textContent), "aria-valuetext": readout.textContent});
    }
};
const keep = event => event.target.closest?.(".widget-dropdown select, .noUi-handle, .ui-slider-handle")?.toggleAttribute(
    "data-lm-suppress-shortcuts", !(event.ctrlKey || event.metaKey || event.altKey || event.shiftKey)
    && !["Escape", "Tab"].includes(event.key));
const observer = new MutationObserver(help);
window.hapoLabHelp?.();
window.hapoLabHelp = () => { observer.disconnect(); window.removeEventListener("keydown", keep, true); };
window.addEventListener("keydown", keep, true);
observer.observe(document.body, {childList: true, subtree: true});
help();
"""
"""What no option of ipywidgets does. A slider's label names neither its handle nor the number beside it, which both take the
focus; a logarithmic handle tells its exponent alone, so the number describes it; ipywidgets 7 gives a handle neither role nor
value. A key alone would go to the notebook's shortcuts: in JupyterLab from a list of choices, which arrows leave for the next
cell, and in Notebook 7 from a slider. Keys with modifiers, Escape and Tab stay the notebook's."""


def show_rows(rows: Sequence[ipw.Widget], otherwise: str) -> None:
    """Show controls in a cell, row under row; `otherwise` is what a page without a kernel shows."""
    helper = ipw.Output(layout=ipw.Layout(display="none"))
    helper.outputs = ({"output_type": "display_data", "data": {"application/javascript": _HELP}, "metadata": {}},)
    box = ipw.VBox([*rows, helper])
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display({"application/vnd.jupyter.widget-view+json": view, "text/plain": otherwise}, raw=True)


# their parts -------------------------------------------------------------------------------------------------------

_LABEL, _WIDTH = {"description_width": "84px"}, ipw.Layout(width="260px")  # three stand side by side in a narrow window
_GATE = ("alpha", "beta", "threshold")


def _flat(controls: Iterable[ipw.Widget | list[ipw.Widget]]) -> list[ipw.Widget]:
    return [w for control in controls for w in (control if isinstance(control, list) else [control])]


def _slider(label: str, value: float, low: float, high: float, step: float) -> ipw.FloatSlider:
    return ipw.FloatSlider(description=label, value=value, min=low, max=high, step=step, style=_LABEL, layout=_WIDTH)


def _whole(label: str, value: int, low: int, high: int) -> ipw.IntSlider:
    return ipw.IntSlider(description=label, value=value, min=low, max=high, style=_LABEL, layout=_WIDTH)


def _log(label: str, value: float, lowest: int) -> ipw.FloatLogSlider:
    return ipw.FloatLogSlider(description=label, value=value, min=lowest, max=0, step=0.05, readout_format=".1e",
                              style=_LABEL, layout=_WIDTH)


def _scale(value: str) -> ipw.Dropdown:
    return ipw.Dropdown(description="divide by", options=[("nothing", "none"), ("the group's std", "std")], value=value,
                        style=_LABEL, layout=_WIDTH)


def gate_sliders(gate: Any = BetaGate()) -> dict[str, ipw.FloatSlider]:
    """A slider for each of a gate's numbers, by its name."""
    return {"alpha": _slider("prior a0", gate.alpha, 0, 6, 0.25), "beta": _slider("prior b0", gate.beta, 0, 6, 0.25),
            "threshold": _slider("threshold", gate.threshold, 0, 1, 0.01)}


def _ladder(alpha: float, beta: float, threshold: float, trials: int, successes: int | None = None, **_: object) -> str:
    return explorables.ladder_html(BetaGate(alpha, beta, threshold), trials, successes)

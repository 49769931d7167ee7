"""Live controls over a training in the background: pause, step, stop, and the gate's numbers."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from html import escape

import ipywidgets as ipw

from hapo_lab.gates import Gate, numbers_of, with_numbers
from hapo_lab.notebook.dashboard import Dashboard
from hapo_lab.notebook.widgets import gate_sliders, show_rows
from hapo_lab.pictures import explorables
from hapo_lab.training.background import Run
from hapo_lab.training.trainer import Trainer

NOT_IN_COLAB = ("Colab shows nothing that a background thread draws: train in a cell (for record in trainer), interrupt it, "
                "change the method's gate, and run the cell again; it goes on with the settings as they are then.")


class Controls:
    """Starts a training in the background when a cell shows it, with buttons and sliders. The cell returns at once.

        live = Controls(trainer)
        display(live)

    A moved slider shows its decision ladder at once, and acts from the next step on. It is an event of the run log, and a
    mark in the picture. When the training ends, its last picture stays in the notebook. `run` is what drives it.

    Parameters
    ----------
    trainer : Trainer
        If its gate has no prior and threshold, only the buttons appear.

    Examples
    --------
    >>> trainer = Trainer(load_policy("tiny"), load_task("sums"), HAPO, Config(steps=1, prompts=1, eval_every=0))
    >>> live = Controls(trainer)
    >>> live.sliders["threshold"].value = 0.5               # as a hand on the slider would
    >>> trainer.gate
    BetaGate(alpha=1.0, beta=1.0, threshold=0.5)
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.run: Run | None = None
        gate = trainer.gate
        self.sliders = gate_sliders(gate) if {"alpha", "beta", "threshold"} <= numbers_of(gate) else {}
        self.buttons = {label: ipw.Button(description=label, layout=ipw.Layout(width="90px"))
                        for label in ("Pause", "Step", "Stop")}
        self.ladder, self.status = ipw.HTML(), ipw.Label()
        self._dashboard = Dashboard(trainer)
        presses: dict[str, Callable[[Run], None]] = {"Pause": _pause_or_go, "Step": Run.step, "Stop": Run.stop}
        for label, press in presses.items():
            self.buttons[label].on_click(lambda _, press=press: self._safely(lambda: self.run and press(self.run)))
        for slider in self.sliders.values():
            slider.observe(lambda _: self._safely(self._change), names="value")
        if self.sliders:
            self._show_ladder(gate)

    def start(self) -> None:
        """Train, or continue. Showing the controls in a cell does this."""
        if not self.run or not self.run.thread.is_alive():
            self.run = Run(self.trainer, self._tell)

    def join(self) -> None:
        """Wait for the end; Ctrl-C, or the notebook's interrupt, stops the training after its step, saved."""
        if self.run:
            self.run.join()

    def _ipython_display_(self) -> None:
        if "google.colab" in sys.modules:
            print(NOT_IN_COLAB)
            return
        show_rows([ipw.HBox([*self.buttons.values(), self.status]), ipw.HBox([*self.sliders.values()]), self.ladder],
                  "Run this cell: it trains in the background, and its controls appear here.")
        self._dashboard.update()
        self.start()

    def _change(self) -> None:
        numbers = {name: slider.value for name, slider in self.sliders.items()}
        self._show_ladder(with_numbers(self.trainer.gate, **numbers))
        with warnings.catch_warnings(action="ignore"):  # of a gate that can't close the ladder tells already
            self.trainer.change(**numbers)

    def _show_ladder(self, gate: Gate) -> None:
        trials = self.trainer.config.group_size - self.trainer.method.teacher_seats
        self.ladder.value = explorables.ladder_html(gate, trials, state=self.trainer.gate_state)

    def _safely(self, act: Callable[[], object]) -> None:
        """Show an exception of a callback, which would otherwise reach no reader."""
        try:
            act()
        except Exception as error:
            self.ladder.value = f"<b role='alert'>{escape(' '.join(str(error).split()) or type(error).__name__)}</b>"

    def _tell(self, run: Run) -> None:
        """In the training's thread, after each step and at each change of its state."""
        self._dashboard.update(last=run.state != "running")
        self.status.value = run.status  # after the picture: what it tells is to be seen
        self.buttons["Pause"].description = "Go on" if run.state == "paused" else "Pause"
        for button in self.buttons.values():
            button.disabled = run.state in ("finished", "stopped", "failed")


def _pause_or_go(run: Run) -> None:
    (run.go if run.state == "paused" else run.pause)()

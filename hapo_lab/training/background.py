"""Training in its own thread: paused, stepped, stopped and changed while it runs.

    run = run_in_background(trainer)
    run.pause(), run.step(), run.go()
    trainer.change(threshold=0.5)       # from the next step on
    run.stop(), run.join()
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

from hapo_lab.training.trainer import Trainer, in_background


class Run:
    """A trainer at work in its own thread. Every method may be called from any thread, and only `join` and `end` wait. An
    order acts at the end of the present step. When the interpreter exits, the run stops and saves."""

    def __init__(self, trainer: Trainer, tell: Callable[[Run], None] | None = None):
        self.trainer = trainer
        self.state = "running"
        """"running", "paused"; and in the end "finished", "stopped", or "failed"."""
        self.error: Exception | None = None
        """The error that made it fail, or the first one that `tell` raised; `join` raises it."""
        self._order = "go"
        self._ordered = threading.Condition()
        self._tell = tell
        self._ended = threading.Event()
        self.thread = threading.Thread(target=self._work, name="hapo_lab training", daemon=True)
        in_background[trainer] = self
        atexit.register(self.end)
        self.thread.start()

    def pause(self) -> None:
        """Pause after the present step."""
        self._give("pause")

    def step(self) -> None:
        """Take one step, or finish the present one, then pause."""
        self._give("step")

    def go(self) -> None:
        """Continue after a pause."""
        self._give("go")

    def stop(self) -> None:
        """End after this step, saved. `run_in_background` with the same trainer continues."""
        self._give("stop")

    def end(self) -> None:
        """Stop, and wait until it has."""
        self.stop()
        self._wait()

    def join(self) -> None:
        """Wait for the end. Ctrl-C, or the notebook's interrupt, stops the run after its step. Raises the error of a failed
        run."""
        try:
            self._wait()
        except KeyboardInterrupt:
            print("finishing this step and saving; interrupt again to stop waiting", flush=True)
            self.end()
        if self.error:
            raise self.error

    @property
    def status(self) -> str:
        """Its state, in one line for the reader."""
        log = self.trainer.log
        where = f"step {len(log.steps)} of {log.planned}"
        if self.state == "running":
            waits = {"pause": "pausing", "step": "pausing", "stop": "stopping"}.get(self._order)
            return f"{waits} at the end of this step, {where} done" if waits else f"training, {where} done"
        saved = ", saved" if self.state == "stopped" and log.folder else ""
        why = f": {' '.join(str(self.error).split()) or type(self.error).__name__}" if self.error else ""
        return f"{self.state} after {where}{saved}{why}"

    def _give(self, order: str) -> None:
        with self._ordered:
            if self._order != "stop":
                self._order = order
                self._ordered.notify_all()

    def _wait(self) -> None:
        while not self._ended.wait(0.2):  # not by Thread.join, which takes a thread for dead once it was interrupted
            pass

    def _work(self) -> None:
        state, log = "failed", self.trainer.log
        try:
            for _ in self.trainer:
                self._show("running")
                if len(log.steps) < log.planned and self._next_order() == "stop":
                    self.trainer.stop()
            state = "finished" if len(log.steps) == log.planned else "stopped"
        except Exception as error:
            self.error = error
        finally:
            in_background.pop(self.trainer)
            atexit.unregister(self.end)
            self._show(state)
            self._ended.set()

    def _next_order(self) -> str:
        """After a step: what is to be done. Waits while the run is paused."""
        with self._ordered:
            if self._order == "step":
                self._order = "pause"
        if self._order == "pause":
            self.trainer.save()  # a pause may outlive the machine
            self.trainer.note("paused")
            self._show("paused")
            with self._ordered:
                self._ordered.wait_for(lambda: self._order != "pause")
            self._show("running")
        return self._order

    def _show(self, state: str) -> None:
        self.state = state
        if self._tell:
            try:
                self._tell(self)
            except Exception as error:
                self._tell, self.error = None, self.error or error


def run_in_background(trainer: Trainer, tell: Callable[[Run], None] | None = None) -> Run:
    """Start training in a thread and return at once.

    Parameters
    ----------
    trainer : Trainer
        ValueError: it is at work already.
    tell : callable, optional
        Called with the `Run` in the training's thread, after each step and whenever its state changes: to redraw. It must not
        print. If it raises, it is not called again, the training continues, and `error` holds the exception.

    Examples
    --------
    >>> trainer = Trainer(load_policy("tiny"), load_task("sums"), HAPO, Config(steps=1, prompts=1, eval_every=0))
    >>> run = run_in_background(trainer)
    >>> run.join()
    >>> run.status
    'finished after step 1 of 1'
    """
    if trainer in in_background:
        raise ValueError("this trainer trains in the background already: stop that run first.")
    return Run(trainer, tell)

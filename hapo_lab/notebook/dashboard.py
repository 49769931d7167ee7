"""The live display: one picture, redrawn in place, or one line of text outside a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hapo_lab.pictures.figures import training_figure
from hapo_lab.pictures.style import bundle
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.progress import mean_of, progress_line

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

    from hapo_lab.training.trainer import Trainer

SHORTEST_INTERVAL = 0.5
"""The least number of seconds between two pictures."""
SHARE, SHARE_OF_SHORT = 0.03, 0.2
"""At most this share of the time goes into drawing; of a run of two minutes or less, which is over before it has been seen,
more."""


class Dashboard:
    """Shows a run while it trains. It appears when it is entered or first updated, and its last frame stays. A display that
    fails says so once, on stderr, and training continues.

    Parameters
    ----------
    source : Trainer or RunLog
        The run to show.
    panels : int
        6, or 2 for a first look; see `training_figure`.

    Examples
    --------
    >>> trainer = Trainer(load_policy("tiny"), load_task("sums"), HAPO, Config(steps=1, prompts=1, eval_every=0))
    >>> with Dashboard(trainer) as dashboard:               # doctest: +ELLIPSIS
    ...     for record in trainer:
    ...         dashboard.update()
    step 1 of 1   student ...   teacher in 1 of 1 groups   ... in all
    """

    def __init__(self, source: Trainer | RunLog, panels: int = 6):
        self._source, self._panels = source, panels
        self._handle: DisplayHandle | None = None
        self._drawn = self._told = -1  # steps in the last picture, in the last line of text
        self._next = 0.0
        self._failed = False
        self._line_open = False
        self._notebook = _in_notebook()

    @property
    def log(self) -> RunLog:
        """The log of the shown run."""
        return self._source if isinstance(self._source, RunLog) else self._source.log

    def __enter__(self) -> Dashboard:
        self.update()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, last: bool = False) -> None:
        """Show the present state: in a notebook a picture if one is due, at the run's end, or if `last`; elsewhere a line."""
        self._try(self._draw if self._notebook else self._write_line, last)

    def close(self) -> None:
        """Show the last state, unless it is shown already."""
        self.update(last=True)

    def _draw(self, last: bool) -> None:
        from IPython.display import display
        start, done = time.monotonic(), len(self.log.steps)
        if done == self._drawn or (start < self._next and not last and done < self.log.planned):
            return
        self._next = start + SHORTEST_INTERVAL  # should this attempt fail
        log = self.log.snapshot()  # a trainer in another thread goes on while this one is drawn
        done, line, first = len(log.steps), progress_line(log), not self._handle
        data, metadata = bundle(training_figure(log, self._panels))
        data["text/plain"] = line
        options: dict = {"raw": True, "metadata": metadata}
        if self._handle:
            self._handle.update(data, **options)
        else:
            self._handle = display(data, display_id=True, **options)
        now = time.monotonic()
        cost = 0 if first else now - start  # the first one also loads fonts
        short = mean_of([r.training_seconds for r in self.log.steps]) * self.log.planned <= 120
        self._drawn, self._next = done, now + max(SHORTEST_INTERVAL, cost / (SHARE_OF_SHORT if short else SHARE))

    def _write_line(self, last: bool) -> None:
        """On a terminal over the line before; in a file or a pipe on a line of its own."""
        done, over = len(self.log.steps), sys.stdout.isatty()
        if done and done != self._told:
            self._told, self._line_open = done, True
            sys.stdout.write(("\r\x1b[K" if over else "") + progress_line(self.log))
        if self._line_open and (last or not over or done >= self.log.planned):
            self._line_open = False
            sys.stdout.write("\n")
        sys.stdout.flush()

    def _try(self, show: Callable[[bool], None], last: bool) -> None:
        try:
            show(last)
        except Exception as error:
            if not self._failed:
                self._failed = True
                with suppress(Exception):
                    print(f"the dashboard can't show the run ({type(error).__name__}: {error}); training continues.",
                          file=sys.stderr)


def watch(folder: str | Path) -> None:
    """Show a run that another process writes, until it is complete or you interrupt. ValueError: the folder holds no run.

    >>> watch(shipped_run("hapo-0").folder)                 # doctest: +ELLIPSIS
    step 30 of 30   student ...   held-out ...   teacher in ... groups   ... in all
    """
    log = RunLog.load(folder)
    with Dashboard(log) as dashboard, suppress(KeyboardInterrupt):
        for _ in log.follow():
            dashboard.update()


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this: IPython in a terminal can't show pictures."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None

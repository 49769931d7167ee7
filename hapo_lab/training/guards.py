"""Guards around a training step: messages for failures, the clock, Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from hapo_lab.engines.protocol import EngineError
from hapo_lab.tasks.problem import Problem


class TrainingError(RuntimeError):
    """The run can't continue; the last good state is kept. The message says why, and what to do.

    >>> try:                                                # around `for record in trainer`
    ...     raise TrainingError("step 3 is refused, because the loss is nan")
    ... except TrainingError as error:
    ...     print(error)
    step 3 is refused, because the loss is nan
    """


@contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """A full disk becomes a `TrainingError`. A resumed run repeats the step that did not fit."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{folder} can't be written ({error.strerror or error}); what was saved before is whole. "
                            "Make room there, then resume the run.") from error


@contextmanager
def sampling() -> Iterator[None]:
    """An engine's failure becomes a `TrainingError`. Iterated again, the trainer repeats the interrupted step."""
    try:
        yield
    except EngineError as error:
        raise TrainingError(f"no rollouts: {error}. What was saved before is whole: "
                            "iterate again, or resume the run.") from error


def looked_through(problems: Sequence[Problem], what: str) -> Iterator[Problem]:
    """The problems, under a progress bar if this takes longer than two seconds, as with tens of thousands of long
    demonstrations."""
    return iter(tqdm(problems, desc=what, unit=" problems", delay=2, leave=False))


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add a phase's duration to its seconds."""
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0) + time.perf_counter() - start


@contextmanager
def interrupt_asks(asked: threading.Event) -> Iterator[None]:
    """Turn the first Ctrl-C into an event, which is checked between two steps. Only the main thread receives Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        print("finishing this step and saving; interrupt again to stop at once", flush=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

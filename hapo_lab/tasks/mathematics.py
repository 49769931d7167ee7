"""The verifier of mathematics: math-verify, in its own process, which is killed if an answer takes too long.

math-verify stops itself by signals, which reach the main thread alone; training in the background, and Jupyter's kernels with
subshells, grade in others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from multiprocessing.connection import Pipe

from hapo_lab.tasks import math_process
from hapo_lab.tasks.problem import Problem, Verdict

LIMIT = 2.0
"""Seconds for a verdict."""
STARTING = 120.0
"""Seconds for the process to start."""


def verify_math(problem: Problem, completion: str) -> Verdict:
    r"""Right if the completion's answer equals the problem's as mathematics: 1/2 is 0.5, and \boxed{x = 3} is 3.

    The last box counts; without one, the last expression. An answer that takes longer than `LIMIT`, or can't be read, is
    wrong. ValueError: the problem's own answer can't be read, or math-verify is not installed.
    """
    kind, *found = _ask(problem.answer, completion)
    if kind == "unreadable":
        raise ValueError(f"problem {problem.key!r}: {found[0]}.")
    return Verdict(*found)


def unreadable(problems: Iterable[Problem]) -> list[Problem]:
    """The problems whose answers can't be read as mathematics."""
    return [problem for problem in problems if _ask(problem.answer, "0")[0] == "unreadable"]


class _Judge:
    """The comparing process, and the pipe to it."""

    def __init__(self) -> None:
        if os.name == "nt":
            raise ValueError('the verifier "math" does not run on Windows: use WSL, Linux or macOS, or another verifier.')
        self.owner = os.getpid()
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", math_process.__file__, str(theirs.fileno()), str(self.owner)], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        fine, why = self._answer(STARTING) or (False, "its process does not start")
        if not fine:
            self.end()
            raise ValueError(f'the verifier "math" needs math-verify ({why}): python -m pip install "hapo_lab[math]".')

    def ask(self, gold: str, text: str) -> tuple | None:
        """Its answer; None if it takes too long, or dies of it. Then it is ended."""
        try:
            self.pipe.send((gold, text))
            answer = self._answer(LIMIT)
        except BaseException:  # interrupted: its answer must not be taken for one to the next question
            self.end()
            raise
        if answer is None:
            self.end()
        return answer

    def _answer(self, seconds: float) -> tuple | None:
        try:
            return self.pipe.recv() if self.pipe.poll(seconds) else None
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked, by this process."""
        return self.owner == os.getpid() and self.process.poll() is None and not self.pipe.closed


_judge: _Judge | None = None
_lock = threading.Lock()


def _ask(gold: str, text: str) -> tuple:
    global _judge
    with _lock:
        if not _judge or not _judge.alive:
            _judge = _Judge()
        answer = _judge.ask(gold, text)
    return answer or ("judged", False, f"it was not compared within {LIMIT:g} s")

"""The process that compares mathematical answers. `mathematics` starts it, and kills it if it takes too long.

It imports nothing of this kit, so it starts in a second, and an answer that exhausts it breaks little. Requests and replies are
tuples through a pipe.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection

TAIL = 1000
"""Characters of an answer's end that are read where it has no box, and of a box at most: time grows with them."""
MEMORY = 4 * 2**30
"""Bytes of address space."""
CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\(?([A-J])\)?\}?\.?")
"""An answer to a multiple choice, as people write it."""
LETTER = re.compile(r"(?<![\w\\])\(?([A-J])\)?(?![\w'])")
"""Such a letter within a sentence."""


BOXED, SAID = "its last box says", "it says"


class Unreadable(ValueError):
    """The right answer is no mathematics."""


def judge(gold: str, text: str) -> tuple[bool, str]:
    """Whether a text's answer is the right one, and in words what was compared. `Unreadable`: the right one can't be read."""
    where, said = answer_of(text)
    if letter := CHOICE.fullmatch(gold.strip()):
        found = CHOICE.fullmatch(said.strip()) or next(iter([*LETTER.finditer(said)][-1:]), None)
        return bool(found and found[1] == letter[1]), f"{where} {found[1] if found else 'no letter'}, the answer is {letter[1]}"
    right, given = parsed(f"${gold}$"), parsed(f"${said}$" if where == BOXED else said)
    if all(isinstance(part, str) for part in right):
        raise Unreadable(f"the answer {gold[:60]!r} can't be read as mathematics")
    if not given:
        return False, f"there is no answer in it that can be read; it is {gold[:60]}"
    from math_verify import verify
    return verify(right, given, timeout_seconds=None), f"{where} {given[-1]!s:.60}, the answer is {gold[:60]}"


def answer_of(text: str) -> tuple[str, str]:
    r"""Where the answer stands, and the part of the text that holds it: the last \boxed{...}, or the end of the text."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return SAID, text[-TAIL:]
    begin, depth = start + len(r"\boxed{"), 1
    for i, character in enumerate(text[begin:begin + TAIL], begin):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return BOXED, text[begin:i]
    return BOXED, ""  # it is not closed


def parsed(text: str) -> list:
    """A text's last expression, as math-verify finds it, and as it stands there; [] if there is none."""
    from math_verify import parse
    return parse(text, parsing_timeout=None)


def main(pipe: int, parent: int) -> None:
    """Answer until the other end closes the pipe, or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with suppress(ImportError):  # Windows knows no such limit
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable()
    requests = Connection(pipe)
    try:
        from math_verify import parse
        parse("$1$", parsing_timeout=None)  # what it imports late
    except ImportError as error:
        requests.send((False, str(error)))
        return
    requests.send((True, ""))
    while True:
        try:
            gold, text = requests.recv()
        except (EOFError, ConnectionError):
            return
        requests.send(_answer(gold, text))


def _answer(gold: str, text: str) -> tuple:
    try:
        return "judged", *judge(gold, text)
    except Unreadable as error:
        return "unreadable", str(error)
    except Exception as error:  # whatever a library makes of any text
        return "judged", False, f"it can't be compared ({type(error).__name__})"


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""The Python of the pages runs as written, and gives what the comments beside it say; their commands parse."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import PAGES, README, commands, named

from hapo_lab.baselines import METHODS
from hapo_lab.commands.cli import parser
from hapo_lab.gates import GATES
from hapo_lab.loss import SHAPINGS
from hapo_lab.policy.models import PRESETS
from hapo_lab.runs.log import RunLog
from hapo_lab.tasks.builtin import TASKS
from hapo_lab.tasks.verifiers import VERIFIERS

KNOWN = {"method": METHODS, "gate": GATES, "shaping": SHAPINGS, "task": TASKS, "verifier": VERIFIERS, "model": PRESETS}


class Prints(doctest.OutputChecker):
    """A statement prints what the comment after it says; one without such a comment prints what it likes."""

    def check_output(self, want, got, optionflags):
        return not want or says(re.sub(r"np\.float64\((.*)\)", r"\1", got), want)


def says(printed: str, written: str) -> bool:
    """Whether both are the same, white space apart, and numbers to the digits that are written."""
    number = r"(-?\d+\.?\d*(?:e-?\d+)?)"
    here, there = (re.split(number, re.sub(r"\s", "", text)) for text in (printed, written))
    return here[::2] == there[::2] and all(abs(float(a) - float(b)) <= 0.5 * 10.0 ** -len(b.partition(".")[2]) + 1e-12
                                           for a, b in zip(here[1::2], there[1::2], strict=True))


def claimed(line: str) -> str:
    """The value that a comment states, up to a colon; "" if it begins with a word, because then it is a remark."""
    comment = line.partition("  # ")[2]
    return comment.partition(": ")[0] if re.match(r"[\d\[('\"-]|tensor\(|True|False", comment) else ""


def examples(page: Path) -> list[doctest.Example]:
    """A page's Python, statement by statement."""
    found = []
    for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        lines = code.splitlines()
        for statement in ast.parse(code).body:
            last = lines[statement.end_lineno - 1]
            found.append(doctest.Example("\n".join(lines[statement.lineno - 1:statement.end_lineno]), claimed(last)))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], **named)
def test_the_code_of_a_page_runs_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, said = doctest.DocTest(examples(page), {"__name__": page.stem}, page.name, str(page), 0, None), []
    failed = doctest.DocTestRunner(Prints(), verbose=False).run(whole, out=said.append).failed
    assert not failed, "".join(said)
    assert page != README or sum(bool(example.want) for example in whole.examples) >= 4


@pytest.mark.parametrize(("printed", "written", "right"), [
    ("0.18689\n", "0.1869", True), ("0.18689", "0.187", True), ("0.18689", "0.186", False), ("[1, 'a']", "[1, 'a']", True),
    ("[1, 'a']", "[1, 'b']", False), ("8", "8", True), ("8", "9", False), ("[8]", "8", False)])
def test_a_value_is_compared_to_the_digits_that_are_written(printed, written, right):
    assert says(printed, written) == right


def test_every_command_of_the_kit_parses():
    given = [words[1 if words[0] == "hapo-lab" else 3:] for page in PAGES for words in commands(page)
             if words[0] == "hapo-lab" or (words[1:3] == ["-m", "hapo_lab"] and words[3:])]
    assert len(given) > 10
    for words in given:
        asked = vars(parser().parse_args(words))  # SystemExit, and its words, where it does not parse
        unknown = [asked[option] for option, names in KNOWN.items() if asked.get(option) and asked[option] not in names]
        others = r"\.py:|\.jsonl$|\.parquet$|^ORG/|^reasoning_gym:|^[A-Z]+$"
        assert all(re.search(others, name) for name in unknown), f"{words}: {unknown}"


MY_GATES = """
from dataclasses import dataclass

import torch

from hapo_lab import MemorylessGate


@dataclass(frozen=True)
class Half(MemorylessGate):
    def chances(self, state, key, trials, others=()):
        return 0.5 * (torch.arange(trials + 1) == 0).double()
"""


@pytest.mark.soak
def test_the_readmes_commands_run_as_written(tmp_path):
    (tmp_path / "my_gates.py").write_text(MY_GATES)
    (tmp_path / "data").symlink_to(README.parent / "data")
    given = [words for words in commands(README) if words[0] == "hapo-lab" and words[1] != "lessons"]
    assert {words[1] for words in given} == {"train", "resume", "evaluate", "report", "doctor", "experiment", "quiz"}
    for words in given:
        command = [Path(sys.executable).parent / words[0], *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    assert len(RunLog.load(tmp_path / "runs" / "mine").steps) == 80 and (tmp_path / "report" / "comparison.png").exists()

"""The ten questions: each has one right answer, names what a wrong one shows, and points to a heading that is there."""

import os
import pty
import subprocess
import sys
from math import comb
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from test_checks import Hostile

from hapo_lab import HAPO, BetaGate, expected_gradient, group_advantages, injection_probability
from hapo_lab.commands.cli import main
from hapo_lab.notebook import quiz
from hapo_lab.notebook.quiz import QUESTIONS

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = range(1, 11)


def test_there_are_ten():
    assert len(QUESTIONS) == 10 and len({q.asks for q in QUESTIONS}) == 10


@pytest.mark.parametrize("number", NUMBERS)
def test_a_question_points_to_a_heading_of_its_lesson(number):
    one = quiz.question(number)
    cells = nbformat.read(ROOT / "notebooks" / f"{one.lesson}.ipynb", as_version=4).cells
    headings = {line.lstrip("#").strip() for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()
                if line.startswith("#")}
    assert one.heading in headings


@pytest.mark.parametrize("number", NUMBERS)
def test_right_and_wrong_answers(number):
    one = quiz.question(number)
    assert quiz.answer(number, one.right).right is True
    wrong = list(one.slips) if len(one.right) != 6 else ["abcdef", one.right[::-1]]
    assert wrong and (len(one.choices) != 4 or len(wrong) == 3), "each wrong choice has its misconception"
    for slip in wrong:
        mark = quiz.answer(number, slip)
        assert mark.right is False and "that is not it" not in mark.says
        assert mark.says.endswith(f"Look again at lesson {one.lesson[:2]}, '{one.heading}'."
                                  if "'" not in one.heading else f'lesson {one.lesson[:2]}, "{one.heading}".')


def test_what_is_computed():
    """The figures that the questions and their answers state."""
    assert torch.equal(group_advantages(torch.tensor([1.0] * 4 + [0] * 4), "none")[[0, 1, 7]], torch.tensor(QUESTIONS[2].right))
    assert not BetaGate(3, 3).cutoff(8) < 8 and BetaGate(3, 3).posterior(8, 8).mean == 11 / 14
    assert float(injection_probability(0.9, 13, BetaGate())) == pytest.approx(QUESTIONS[5].right[0], abs=1e-4)
    assert 0.9**8 == pytest.approx(0.43, abs=0.001)
    told = {slip[0]: says for slip, says in QUESTIONS[5].slips.items()}
    assert sum(comb(13, s) * 0.9**s * 0.1 ** (13 - s) for s in range(12)) == pytest.approx(0.3787, abs=1e-4) and 0.3787 in told
    for n, chance in ((8, 0.1869), (16, 0.2108)):
        assert float(injection_probability(0.9, n, BetaGate())) == pytest.approx(chance, abs=1e-4) and str(n) in told[chance]
    found = expected_gradient([0, 0.5, 0, -1], [1, 1, 0, 0], 8, HAPO, teacher=0)
    along = [abs(x @ found.objective) / np.linalg.norm(x) / np.linalg.norm(found.objective)
             for x in (found.taken_out, found.recomputed, found.put_in)]
    assert along[0] == pytest.approx(1) and along[1] == pytest.approx(1) and along[2] < 0.9


@pytest.mark.parametrize("number, given", [
    (1, "B"), (1, " b) "), (1, ["b"]), (3, "0.5, 0.5, -0.5"), (3, "(1/2; 50% \N{MINUS SIGN}.5)"),
    (3, torch.tensor([0.5, 0.5, -0.5])),
    (3, np.array([0.5, 0.5, -0.5])), (6, 0.13), (6, "13.4%"), (6, [0.1339]), (7, "d, b, e, a, c, f"), (7, list("DBEACF"))])
def test_any_natural_form(number, given):
    assert quiz.answer(number, given).right is True


@pytest.mark.parametrize("number, given, words", [
    (7, "dabecf", "S is counted before the teacher sits down"), (7, "dbecaf", "with the teacher in it"),
    (7, "bdeacf", "nothing to count"), (7, "dbaecf", "decides whether the teacher comes"), (6, 0.19, "group of 8"),
    (6, 0.4, "that is not it"), (3, (0.62, 0.62, -0.38), "the old mean")])
def test_misconceptions_are_named(number, given, words):
    mark = quiz.answer(number, given)
    assert mark.right is False and words in mark.says


@pytest.mark.parametrize("given", [..., None, "", "e", "ab", "0.5.", 1.5, object(), Hostile(), float("nan"), "nan", [], {},
                                   "1/0", lambda: 1, "zz" * 999])
@pytest.mark.parametrize("number", [1, 3, 7])
def test_what_can_not_be_read_is_asked_for_in_a_sentence(number, given):
    mark = quiz.answer(number, given)
    assert mark.right is None and mark.says == quiz.question(number).how and mark.says.startswith("answer with ")


def test_an_unknown_number_gets_one_sentence():
    with pytest.raises(SystemExit, match="^hapo_lab: there is no question 11: choose one from 1 to 10.$"):
        main(["quiz", "11"])


def test_where_nobody_can_answer_the_questions_are_printed():
    done = subprocess.run([sys.executable, "-m", "hapo_lab", "quiz"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout == "".join(f"\n{n}  {quiz.question(n)}\n" for n in NUMBERS)


def test_answers_at_a_terminal():
    mine, its = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "hapo_lab", "quiz", "1", "4"], stdin=its, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT) as process:
        os.write(mine, b"what?\nB\na\n")
        said = process.communicate(timeout=120)[0]
    os.close(mine)
    os.close(its)
    assert process.returncode == 0 and said.count("> ") == 3
    assert "> … answer with a, b, c or d\n> ✓ Right: every advantage is 0" in said
    assert "✗ Not yet: the gate looks at the posterior mean" in said and said.endswith("\n1 of 2 right\n")


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_it_ends_where_the_answers_end(monkeypatch, capsys, end):
    typed = iter(["b"])

    def read(prompt):
        for line in typed:
            return line
        raise end

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", read)
    main(["quiz"])
    said = capsys.readouterr().out
    assert "✓ Right" in said and "\n2  All 8" in said and "\n3  " not in said and said.endswith("\n1 of 1 right\n")

"""The verifier "math": what is equal and what is not, by hand; and texts that no verifier should have to read."""

import os
import random
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hapo_lab.tasks import mathematics
from hapo_lab.tasks.math_process import answer_of
from hapo_lab.tasks.mathematics import unreadable, verify_math
from hapo_lab.tasks.problem import Problem
from hapo_lab.tasks.verifiers import load_verifier


def problem(answer):
    return Problem(f"asked for {answer}", ({"role": "user", "content": "What is it?"},), answer)


def says(answer, completion):
    return verify_math(problem(answer), completion).correct


RIGHT = [
    ("85", "27 + 58 = 85"), ("85", r"\boxed{85}"), ("85", "The answer is 85."), ("85", r"so it is $85$."),
    ("85", r"\boxed{85.0}"),
    (r"\frac{1}{2}", r"\boxed{0.5}"), ("1/2", r"\boxed{\frac12}"), ("0.5", "1/2"), (r"\frac{3}{6}", r"\boxed{\frac{1}{2}}"),
    (r"1\frac{1}{2}", r"\boxed{\frac{3}{2}}"), (r"\dfrac{2}{3}", r"\boxed{\tfrac{2}{3}}"), ("-3", r"\boxed{-3}"),
    ("1,234", r"\boxed{1234}"), ("1234567", r"\boxed{1,234,567}"), ("1000", r"\boxed{10^3}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    (r"\frac{\pi}{2}", r"\boxed{1.5707963}"), (r"\pi", r"\boxed{\pi}"), ("x^2+1", r"\boxed{1 + x^2}"),
    ("(x+1)^2", r"\boxed{x^2+2x+1}"), (r"\frac{1}{\sqrt{2}}", r"\boxed{\frac{\sqrt{2}}{2}}"), ("2^{10}", r"\boxed{1024}"),
    (r"(-\infty, 3]", r"\boxed{(-\infty,3]}"), ("(1, 2)", r"\boxed{(1,2)}"), ("[0, 1)", r"\boxed{[0,1)}"),
    (r"(0,1) \cup (2,3)", r"\boxed{(0,1)\cup(2,3)}"), (r"\{1,2\}", r"\boxed{2, 1}"), (r"\{1, 2, 3\}", r"\boxed{\{3,2,1\}}"),
    (r"42\%", r"\boxed{0.42}"), (r"42\%", r"\boxed{42}"), ("42", r"\boxed{42\%}"), ("5", r"\boxed{5 \text{ cm}}"),
    (r"5 \text{ cm}", r"\boxed{5}"), ("90", r"\boxed{90^\circ}"), ("10", r"\boxed{\$10}"), ("3", r"\boxed{x = 3}"),
    ("x = 3", "3"),
    ("B", r"\boxed{B}"), ("B", r"\boxed{\text{B}}"), ("B", "(B)"), ("B", "The answer is (B)."), ("B", "Answer: B"),
    ("3", r"first \boxed{4}, no: \boxed{3}"), ("3", r"\boxed{3}" + " and so on" * 500),
    (r"\frac{a}{b}", r"\boxed{\frac{a}{b}}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}")]
WRONG = [
    ("85", r"\boxed{84}"), ("85", ""), ("85", "I don't know."), ("3", r"first \boxed{3}, no: \boxed{4}"),
    ("3", r"\boxed{3"),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}"), ("0.5", r"\boxed{0.51}"), ("(1, 2)", r"\boxed{(2,1)}"),
    ("[0, 1)", r"\boxed{(0,1)}"),
    (r"\{1,2\}", r"\boxed{\{1,2,3\}}"), (r"2\sqrt{3}", r"\boxed{\sqrt{11}}"), ("x^2+1", r"\boxed{x^2-1}"), ("B", r"\boxed{C}"),
    ("B", "(A) is wrong, so C"), ("B", "no letter here"), ("-3", r"\boxed{3}"), ("12", "It is 12, or 13"),
    ("1000", r"\boxed{100}")]


@pytest.mark.parametrize(("answer", "completion"), RIGHT)
def test_right(answer, completion):
    assert says(answer, completion)


@pytest.mark.parametrize(("answer", "completion"), WRONG)
def test_wrong(answer, completion):
    assert not says(answer, completion)


def test_the_reason_says_what_was_compared():
    assert verify_math(problem("85"), r"so \boxed{84}").reason == "its last box says 84, the answer is 85"
    assert verify_math(problem("85"), "it is 84").reason == "it says 84, the answer is 85"
    assert verify_math(problem("B"), "(C)").reason == "it says C, the answer is B"
    assert "no answer in it" in verify_math(problem("85"), "well").reason


@pytest.mark.parametrize(("text", "found"), [
    (r"a \boxed{\frac{1}{2}} b", ("its last box says", r"\frac{1}{2}")), (r"\boxed{1} \boxed{2}", ("its last box says", "2")),
    (r"\boxed{1", ("its last box says", "")), ("no box", ("it says", "no box"))])
def test_the_last_box_is_found_whole(text, found):
    assert answer_of(text) == found


def test_an_answer_that_is_no_mathematics_is_named():
    with pytest.raises(ValueError, match=r"problem 'asked for \?\?\?': the answer '\?\?\?' can't be read as mathematics"):
        verify_math(problem("???"), "3")
    assert [p.answer for p in unreadable(map(problem, ("3", "", r"\frac{1}{2}", "???", "B")))] == ["", "???"]


def test_it_has_a_name():
    assert load_verifier("math") is verify_math


# whatever is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    r"\boxed{9^{9^{9^{9^9}}}}", "10**10**10", r"\boxed{(10^9)!}", "factorial(10**9)", r"\boxed{" + "{" * 900, "{" * 100_000,
    "(" * 5_000 + ")" * 5_000, r"\frac{" * 300, "9" * 100_000, r"\boxed{" + "9" * 900 + "}", "\x00", "\ud800", "\u202e85",
    r"\boxed{\int_0^{10^9} x^{x^x} dx}", r"\sqrt{" * 200 + "2" + "}" * 200, "1/0", r"\boxed{\frac{0}{0}}", r"\boxed{}",
    "__import__('os').system('true')", r"\boxed{\lim_{x\to\infty}\sum_{n=1}^{10^{99}} \frac{1}{n^x}}"])
def test_no_text_breaks_it(text):
    begun = time.monotonic()
    assert not says("-7", text) and says("-7", r"\boxed{-7}")
    assert time.monotonic() - begun < 60  # a bound for a hang, not for speed


def test_a_process_that_hangs_is_killed_and_another_one_answers(monkeypatch):
    assert says("3", "3")
    before = mathematics._judge.process
    monkeypatch.setattr(mathematics, "LIMIT", 0.2)
    assert "not compared within 0.2 s" in verify_math(problem("9"), r"\boxed{9^{9^{9^{9^9}}}}").reason
    assert before.wait(10) == -9
    monkeypatch.undo()
    assert says("3", "3") and mathematics._judge.process.pid != before.pid


def test_a_process_that_was_killed_is_started_again():
    assert says("3", "3")
    mathematics._judge.process.kill()
    mathematics._judge.process.wait()
    assert says("3", "3")


def test_threads_take_turns():
    found, rng = [], random.Random(0)

    def ask():
        for _ in range(10):
            n = rng.randrange(100)
            found.append(says(str(n), rf"\boxed{{{n}}}") and not says(str(n), rf"\boxed{{{n + 1}}}"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40


def test_it_ends_with_whoever_asked():
    code = ("from hapo_lab.tasks import mathematics; from hapo_lab.tasks.problem import Problem\n"
            "mathematics.verify_math(Problem('k', ({'role': 'user', 'content': 'q'},), '3'), '3')\n"
            "print(mathematics._judge.process.pid, flush=True); import os; os.kill(os.getpid(), 9)")
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if open(f"/proc/{pid}/stat").read().split()[2] == "Z":  # nobody here reaps it
            return
        time.sleep(0.1)
    raise AssertionError("it lives on")


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('No module named math_verify')")
    monkeypatch.setattr(mathematics, "_judge", None)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ValueError, match=r'needs math-verify \(.*\): python -m pip install "hapo_lab\[math\]"'):
        verify_math(problem("3"), "3")


PIECES = [r"\boxed{", r"\frac{", "}", "{", "^", "_", "1", "9", "-", "+", "x", r"\sqrt{", "(", ")", "[", "]", r"\infty", ",",
          "/", "*", "!", "%", "$", "\\", "=", r"\cup", r"\text{", " ", ".", "e", r"\pi", "\n", "\x00", "é", r"\begin{pmatrix}",
          "&", r"\\"]


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)))
def test_any_text_gets_a_verdict(text):
    assert isinstance(says("-7.25", text), bool)


@pytest.mark.soak
def test_a_hundred_thousand_texts_get_a_verdict():
    rng = random.Random(0)
    for _ in range(100_000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(1, 20)))
        assert isinstance(says("-7.25", text), bool)

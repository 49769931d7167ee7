"""Verifiers: whether a completion is right, and the reason."""

from __future__ import annotations

import json
import re
from decimal import Decimal

from hapo_lab.reproducibility import parts
from hapo_lab.tasks.mathematics import verify_math
from hapo_lab.tasks.problem import Problem, Verdict, Verifier


def verify_json_record(problem: Problem, completion: str) -> Verdict:
    """Right if the whole completion is JSON with the right values; white space and the order of keys are free."""
    try:
        said = json.loads(completion)
    except json.JSONDecodeError as error:
        return Verdict(False, f"not JSON: {error.msg.lower()} at character {error.pos + 1}, {completion[error.pos:][:12]!r}")
    expected = json.loads(problem.answer)
    if not isinstance(said, dict):
        return Verdict(False, f"JSON, but no object: {completion.strip()[:40]!r}")
    if said.keys() != expected.keys():
        return Verdict(False, f"the keys are {', '.join(said) or 'missing'}; they must be {', '.join(expected)}")
    for key, value in expected.items():
        if isinstance(said[key], bool) or said[key] != value:
            return Verdict(False, f"{key} is {said[key]!r}, it should be {value!r}")
    return Verdict(True, "JSON with the right name and age")


_ISO_DATE = re.compile(r"(?<![\d-])(?:\d{4}-\d{2}-\d{2}|\d{8})(?![\d-])", re.ASCII)


def verify_iso_date(problem: Problem, completion: str) -> Verdict:
    """Right if the completion gives the date in ISO 8601 at least once, and no other date; other words are free.

    ISO 8601 has an extended form (1987-03-17) and a basic one (19870317); either is accepted.
    """
    found = {f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in (m.replace("-", "") for m in _ISO_DATE.findall(completion))}
    if not found:
        return Verdict(False, "there is no date in ISO format in it")
    if found != {problem.answer}:
        return Verdict(False, f"it says {' and '.join(sorted(found))}, the date is {problem.answer}")
    return Verdict(True, f"it says {problem.answer}, as it should")


def verify_end(problem: Problem, completion: str) -> Verdict:
    """Right if the completion ends with the answer, with or without a full stop; the text before is free."""
    said = completion.strip().removesuffix(".")
    if not said.endswith(problem.answer):
        return Verdict(False, f"it ends with {said[-12:]!r}; the end must be {problem.answer!r}")
    return Verdict(True, f"it ends with {problem.answer!r}, as it should")


def exact_match(problem: Problem, completion: str) -> Verdict:
    """Right if the completion is the answer; white space around it is free."""
    said, expected = completion.strip(), problem.answer.strip()
    return Verdict(said == expected, f"it says {said[:40]!r}, the answer is {expected!r}")


_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", re.ASCII)


def last_number(problem: Problem, completion: str) -> Verdict:
    r"""Right if the last number of the completion is the answer: 1,234 is 1234.0, and \boxed{85} is 85."""
    expected, said = _NUMBER.findall(problem.answer), _NUMBER.findall(completion)
    if len(expected) != 1:
        raise ValueError(f"the answer {problem.answer!r} must hold one number")
    if not said:
        return Verdict(False, "there is no number in it")
    return Verdict(_value(said[-1]) == _value(expected[0]), f"its last number is {said[-1][:40]}, the answer is {expected[0]}")


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


VERIFIERS: dict[str, Verifier] = {"exact_match": exact_match, "last_number": last_number, "math": verify_math}


def load_verifier(verify: str | Verifier) -> Verifier:
    """A verifier by name, or a function from your own Python file, "FILE.py:FUNCTION". The file is run, as `import` would run
    it."""
    if callable(verify):
        return verify
    if verify in VERIFIERS:
        return VERIFIERS[verify]
    if ".py:" not in verify:
        raise ValueError(f"unknown verifier {verify!r}; choose one of {', '.join(VERIFIERS)}, or write FILE.py:FUNCTION.")
    if not callable(function := parts.load(verify)):
        raise ValueError(f"verifier {verify!r} is not a function.")
    return function


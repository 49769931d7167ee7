"""The exercises' exercises: right answers, misconceptions by name, and nothing that raises."""

import numpy as np
import pytest
import torch

from hapo_lab.notebook import exercises

RIGHT = {
    "one_success": (7 / 8, -1 / 8), "share_of_failures": 0.663, "deadly_success_count": 5, "students_success": 0.125,
    "tie": False, "teacher_at_nine_tenths": 0.187, "smallest_group": 3, "loudest": 0.1, "whisper": 250,
    "advantages": lambda r: (np.array(r) - np.mean(r)) / (np.std(r, ddof=1) + 1e-4),
    "teacher_advantage": lambda S, N: (N - 1 - S) / N, "posterior_mean": lambda S, N, a0, b0: (a0 + S) / (N + a0 + b0),
    "clipped": lambda rho, A: min(rho * A, min(max(rho, 0.8), 1.2) * A),
    "sixteen": 0.2108, "can_close": lambda N, a, b, g: N * (1 - g) >= g * (a + b) - a, "smallest_pure_group": 8,
    "draw_at_one": 0.134, "middle_half": lambda scores: np.sort(scores)[len(scores) // 4:-(len(scores) // 4)].mean(),
    "beats": lambda x, y: sum((a > b) + (a == b) / 2 for a in x for b in y) / (len(x) * len(y)),
    "confounders": ["scale", "eps_low", "eps_high", "aggregation", "entropy_bonus"],
    "carried": lambda low, high: "better" if low > 0.5 else "worse" if high < 0.5 else "not told apart"}

WRONG = [
    ("posterior_mean", lambda S, N, a, b: (a + S) / N, "you divided by N: the posterior holds N + a0 + b0"),
    ("posterior_mean", lambda S, N, a, b: S / N, "prior is missing"),
    ("one_success", (1, 0), "subtract the group's mean"), ("one_success", [0.875, 0.125], "negative"),
    ("advantages", lambda r: (torch.tensor(r).double() - np.mean(r)) / (np.std(r) + 1e-4), "N - 1"),
    ("advantages", lambda r: (np.array(r) - np.mean(r)) / np.std(r, ddof=1), "0/0"),
    ("share_of_failures", 0.05**8, "all eight right"), ("share_of_failures", 0.6, "multiply"),
    ("teacher_advantage", lambda S, N: (N - S) / N, "raises it"), ("deadly_success_count", 6, "dead already"),
    ("students_success", 0.25, "as the student's"), ("students_success", 1 / 7, "left out"), ("tie", True, "left alone"),
    ("teacher_at_nine_tenths", 0.57, "tie"), ("teacher_at_nine_tenths", 0, "never sees"), ("smallest_group", 4, "tie"),
    ("clipped", lambda rho, A: min(max(rho, 0.8), 1.2) * A, "both sides"), ("loudest", 1, "flat"), ("loudest", 0, "in log p"),
    ("whisper", 1002, "1/4"), ("sixteen", 0.187, "groups of 8"), ("sixteen", 0.0684, "the prior weighs less"),
    ("sixteen", 0.485, "left alone"), ("sixteen", 0, "never sees"),
    ("can_close", lambda N, a, b, g: a + N > g * (a + b + N), "tie"),
    ("can_close", lambda N, a, b, g: a + N - 1 >= g * (a + b + N), "relative bias"),
    ("can_close", lambda N, a, b, g: N >= 3, "for (2, "),
    ("can_close", lambda N, a, b, g: a + N >= 0.8 * (a + b + N), "for gamma = 0.8 alone"),
    ("smallest_pure_group", 3, "*probability*"),
    ("smallest_pure_group", 7, "only failure"), ("draw_at_one", 0.168, "left out the prior"),
    ("draw_at_one", 0, "a draw from Beta(9, 1)"), ("middle_half", np.mean, "the mean of all"),
    ("middle_half", np.median, "the median"), ("middle_half", lambda x: np.mean(x[len(x) // 4:-(len(x) // 4)]), "sort first"),
    ("middle_half", lambda x: np.subtract(*np.quantile(x, [0.75, 0.25])), "how wide"),
    ("middle_half", lambda x: np.mean(sorted(x)[len(x) // 2:]), "the upper half"),
    ("middle_half", lambda x: np.mean(sorted(x)[1:-1]), "not one score"),
    ("beats", lambda x, y: np.mean(np.array(x)[:, None] > np.array(y)), "with probability 0"),
    ("beats", lambda x, y: np.mean(np.array(x)[:, None] >= np.array(y)), "with certainty"),
    ("beats", lambda x, y: np.mean([(a < b) + (a == b) / 2 for a in x for b in y]), "the second list wins"),
    ("beats", lambda x, y: np.mean(x) - np.mean(y), "difference of the means"),
    ("beats", lambda x, y: np.mean([(a > b) + (a == b) / 2 for a, b in zip(x, y, strict=False)]), "its neighbour"),
    ("beats", lambda x, y: np.mean(x) > np.mean(y), "means alone"),
    ("confounders", {"scale", "eps_low", "eps_high"}, "how tokens make a loss, a bonus"),
    ("confounders", ["scale", "gate"], "never opens"), ("confounders", ["teacher_seats"], "in every group"),
    ("confounders", ["shaping"], "p / (p + 0.1)"), ("confounders", ["kl"], "KL penalty"),
    ("confounders", ["learning_rate"], "no field in which they differ"), ("confounders", "scale", "still missing"),
    ("carried", lambda low, high: "better" if low + high > 1 else "worse", "for (0.3, 0.7)"),
    ("carried", lambda low, high: ["worse", "not told apart", "better"][int(np.sign(low + high - 1)) + 1], "the middle"),
    ("carried", lambda low, high: "better" if low > 0 else "worse", "0 is no difference of two means"),
    ("carried", lambda low, high: "better" if high > 0.5 else "worse", "may still hold it"),
    ("carried", lambda low, high: "worse" if low > 0.5 else "better" if high < 0.5 else "not told apart", "the other way"),
    ("carried", lambda low, high: "better" if low >= 0.5 else "worse" if high <= 0.5 else "not told apart", "exactly at 0.5"),
    ("carried", lambda low, high: low > 0.5, "it should be one of")]


def test_every_exercise_is_tried_here():
    assert set(RIGHT) == set(exercises.exercises())


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers(name):
    mark = getattr(exercises, name)(RIGHT[name])
    assert mark.right is True and repr(mark).startswith("✓ Right: ")


@pytest.mark.parametrize("name, answer, words", WRONG, ids=[f"{name}-{words}" for name, _, words in WRONG])
def test_misconceptions_are_named(name, answer, words):
    mark = getattr(exercises, name)(answer)
    assert mark.right is False and words in mark.says and repr(mark).startswith("✗ Not yet: ")


@pytest.mark.parametrize("name", RIGHT)
def test_an_unanswered_cell(name):
    check = getattr(exercises, name)
    unwritten = [..., None, (..., ...), [1, ...]] + [lambda *_: ..., lambda *_: None] * callable(RIGHT[name])
    for answer in unwritten:
        assert check(answer).right is None and "write your answer above" in repr(check(answer))
    assert check().right is None


def broken(*_):
    raise ZeroDivisionError("division by zero")


class Hostile:
    def __float__(self): raise RuntimeError("no")
    def __array__(self, *_, **__): raise RuntimeError("no")


@pytest.mark.parametrize("answer", ["a word", [], {}, object(), broken, lambda: 1, Hostile(), float("nan"), [1, 2, 3],
                                    torch.zeros(2, 2), lambda *_: "a word", lambda *_: [1, 2]])
@pytest.mark.parametrize("name", RIGHT)
def test_nothing_raises(name, answer):
    mark = getattr(exercises, name)(answer)
    assert mark.right is False and mark.says and "\n" not in repr(mark)

"""The exercises' exercises: right answers in any form, misconceptions by name, and nothing that raises."""

import ast
import re
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction as F
from math import ceil, comb, floor
from pathlib import Path

import numpy as np
import pytest
import torch

from hapo_lab import BetaGate, clipped_surrogate, group_advantages
from hapo_lab.baselines import LUFFY_MATCHED
from hapo_lab.methods import LUFFY
from hapo_lab.notebook import claim_checks, exercises, method_checks


def binomial(k, n, mu):
    return sum(comb(n, s) * mu**s * (1 - mu) ** (n - s) for s in range(k + 1))


def in_plain_python(rewards):
    mean = sum(rewards) / len(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
    return [(r - mean) / (std + 1e-4) for r in rewards]


def clipped_one_by_one(rho, A):
    if A > 0:
        return min(rho, 1.2) * A
    return max(rho, 0.8) * A


DIFFERENT = ["scale", "eps_low", "eps_high", "aggregation", "entropy_bonus"]

RIGHT = {
    "two_of_five": [(0.6, -0.4), [F(3, 5), F(-2, 5)], np.array([0.6, -0.4]), torch.tensor([0.6, -0.4], requires_grad=True),
                    (torch.tensor(0.6), torch.tensor(-0.4)), (1 - 2 / 5, 0 - 2 / 5)],
    "advantages": [lambda r: (np.array(r) - np.mean(r)) / (np.std(r, ddof=1) + 1e-4), in_plain_python,
                   lambda r: (r - r.mean()) / (r.std() + 1e-4), lambda r: group_advantages(torch.tensor(r)),
                   lambda r: ((t := torch.tensor(r)) - t.mean()) / (t.std() + 1e-4),
                   lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-4), lambda r: group_advantages(r).tolist()],
    "all_four_fail": [0.1296, 0.13, F(81, 625), np.float32(0.1296), torch.tensor(0.6) ** 4, [0.6**4], Decimal("0.13")],
    "failures_advantage": [lambda S, N: -(S + 1) / N, lambda S, N: 0 - (S + 1) / N, lambda S, N: F(-S - 1, N),
                           lambda S, N: -np.mean([1] * (S + 1) + [0] * (N - S - 1)),
                           lambda S, N: -torch.tensor([1.0] * (S + 1) + [0] * (N - S - 1)).mean(),
                           lambda S, N: group_advantages((torch.arange(N) <= S).double(), scale="none")[-1]],
    "deadly_success_count": [4, 4.0, np.int64(4), torch.tensor(4), [4], F(4)],
    "students_success": [0.4, 2 / 5, F(2, 5), np.mean([1, 0, 0, 1, 0]), torch.tensor([1.0, 0, 0, 1, 0]).mean(), [0.4]],
    "cutoff": [lambda N, a0, b0, gamma: max(S for S in range(N + 1) if (a0 + S) / (a0 + b0 + N) < gamma),
               lambda N, a, b, g: min(ceil(g * (a + b + N) - a) - 1, N), lambda N, a, b, g: min(BetaGate(a, b, g).cutoff(N), N),
               lambda N, a, b, g: np.flatnonzero((a + np.arange(N + 1)) / (a + b + N) < g).max(),
               lambda N, a, b, g: torch.arange(N + 1)[BetaGate(a, b, g).injects(torch.arange(N + 1), N)].max(),
               lambda N, a, b, g: torch.minimum(torch.ceil(g * (a + b + N) - a) - 1, N),
               lambda N, a, b, g: sum(F(a + S, a + b + N) < F(str(g)) for S in range(N + 1)) - 1],
    "tie": [False, np.False_, torch.tensor(False), 9 / 12 < 0.75, F(9, 12) < F(3, 4), 0],
    "called_at_85": [0.34282, 0.34, 0.343, np.float64(0.3428), torch.tensor(0.3428), binomial(6, 8, F(85, 100)),
                     [binomial(6, 8, 0.85)]],
    "smallest_group": [8, 8.0, np.int32(8), torch.tensor(8), F(8), (8,)],
    "clipped": [lambda rho, A: min(rho * A, min(max(rho, 0.8), 1.2) * A), clipped_one_by_one,
                lambda rho, A: np.minimum(rho * A, np.clip(rho, 0.8, 1.2) * A),
                lambda rho, A: torch.min(rho * A, rho.clamp(0.8, 1.2) * A),
                lambda rho, A: torch.min(torch.tensor([rho * A, min(max(rho, 0.8), 1.2) * A])),
                lambda rho, A: clipped_surrogate(rho.log(), torch.zeros_like(rho), A)],
    "as_loud": [0.5, F(1, 2), np.float32(0.5), torch.tensor(0.5), 0.1**2 / 0.02, [0.5]],
    "whisper": [13.005, 13, 13.0, F(13), np.float64(13.005), torch.tensor(13.0), 0.102**2 / 8e-4],
    "per_draw": [8.26, 8.3, 0.1 / 0.11**2, F(1000, 121), np.array([8.264]), torch.tensor(8.264)],
    "middle_half": [lambda scores: np.sort(scores)[len(scores) // 4:-(len(scores) // 4)].mean(),
                    lambda scores: sum(sorted(scores)[(cut := len(scores) // 4):len(scores) - cut]) / (len(scores) / 2),
                    lambda scores: scores.sort().values[len(scores) // 4:-(len(scores) // 4)].mean(),
                    lambda scores: torch.tensor(scores).sort().values.reshape(4, -1)[1:3].mean(),
                    lambda scores: F(sum(F(str(x)) for x in sorted(scores)[len(scores) // 4:-(len(scores) // 4)]),
                                     len(scores) // 2),
                    lambda scores: np.mean(np.array_split(np.sort(scores), 4)[1:3])],
    "beats": [lambda x, y: sum((a > b) + (a == b) / 2 for a in x for b in y) / (len(x) * len(y)),
              lambda x, y: np.mean((np.sign(np.subtract.outer(x, y)) + 1) / 2),
              lambda x, y: ((x[:, None] - y).sign().mean() + 1) / 2,
              lambda x, y: F(sum(2 * (a > b) + (a == b) for a in x for b in y), 2 * len(x) * len(y)),
              lambda x, y: torch.tensor([(a > b) + (a == b) / 2 for a in x for b in y]).mean(),
              lambda x, y: np.heaviside(np.subtract.outer(x, y), 0.5).mean()],
    "confounders": [DIFFERENT, set(DIFFERENT), tuple(DIFFERENT), np.array(DIFFERENT), ", ".join(DIFFERENT),
                    [*DIFFERENT, "name"],
                    [f for f in fields(LUFFY) if getattr(LUFFY, f.name) != getattr(LUFFY_MATCHED, f.name)],
                    dict.fromkeys(DIFFERENT, "differs"), [DIFFERENT], " ".join(DIFFERENT),
                    [(name, getattr(LUFFY, name)) for name in DIFFERENT]],
    "carried": [lambda low, high: "better" if low > 0.5 else "worse" if high < 0.5 else "not told apart",
                lambda low, high: "Worse" if high < 0.5 else "Better" if low > 0.5 else "Not told apart",
                lambda low, high: ["worse", "not told apart", "better"][1 + (low > 0.5) - (high < 0.5)],
                lambda low, high: np.where(low > 0.5, "better", np.where(high < 0.5, "worse", "not told apart")),
                lambda low, high: {(1, 0): "better", (0, 1): "worse"}.get((low > 0.5, high < 0.5), "not told apart"),
                lambda low, high: "not told apart " if low <= 0.5 <= high else "better" if low > 0.5 else "worse"],
    "best_and_worst": [(18, 7), [18, 7], np.array([18, 7]), torch.tensor([18, 7]), (F(18), F(7)), (np.int64(18), 7)],
    "thirteen": [0.1339, 0.134, 0.13, np.float32(0.13388), torch.tensor(0.1339), binomial(10, 13, F(9, 10))],
    "can_close": [lambda N, a, b, g: N * (1 - g) >= g * (a + b) - a, lambda N, a, b, g: (a + N) / (a + b + N) >= g,
                  lambda N, a, b, g: BetaGate(a, b, g).cutoff(N) < N, lambda N, a, b, g: not (a + N) / F(a + b + N) < g,
                  lambda N, a, b, g: torch.ge(a + N, g * (a + b + N)),
                  lambda N, a, b, g: np.greater_equal(a + N, g * (a + b + N)),
                  lambda N, a, b, g: bool(BetaGate(a, b, g).injects(N, N).logical_not())],
    "smallest_pure_group": [6, 6.0, np.int64(6), torch.tensor(6), F(6), [6]],
    "draw_at_one": [0.32768, 0.33, 0.328, F(4, 5) ** 5, np.float32(0.3277), torch.tensor(0.8) ** 5],
}


def std(r, ddof=1):
    return np.std(r, ddof=ddof)


WRONG = [
    ("two_of_five", (1, 0), "subtract the group's mean, 2/5"), ("two_of_five", [0.6, 0.4], "negative"),
    ("two_of_five", torch.tensor([0.5, -0.5]), "not from a half"), ("two_of_five", (1, -1), "no grade"),
    ("two_of_five", np.array([-0.4, 0.6]), "comes first"), ("two_of_five", (1.095, -0.730), "divided by the std"),
    ("two_of_five", (-0.6, 0.4), "turned around"), ("two_of_five", (1.2247, -0.8165), "that of N"),
    ("two_of_five", 0.6, "one number; wanted: 2 numbers"), ("two_of_five", [0.6, 0.6, -0.4, -0.4, -0.4], "5 numbers"),
    ("two_of_five", (0.6, -0.6), "the first of the two is right"), ("two_of_five", ("3/5", "-2/5"), "can't be read"),
    ("two_of_five", "3/5, -2/5", "it is a text, in quotation marks"),
    ("two_of_five", (0.75, -0.25), "for 2 of 8"), ("two_of_five", (60, -40), "in percent"),
    ("advantages", lambda r: (torch.tensor(r).double() - np.mean(r)) / (np.std(r) + 1e-4), "N - 1"),
    ("advantages", lambda r: torch.tensor(r) - torch.tensor(r).mean(), "nothing is divided"),
    ("advantages", lambda r: r - r.mean(), "nothing is divided"),
    ("advantages", lambda r: np.array(r) / (std(r) + 1e-4), "mean is still in"),
    ("advantages", lambda r: r, "these are the rewards"),
    ("advantages", lambda r: (np.array(r) - np.mean(r)) / std(r), "0/0"),
    ("advantages", lambda r: (r - r.mean()) / (r.std() + 1e-8), "nothing, or next to it"),
    ("advantages", lambda r: (np.array(r) - np.mean(r)) / (std(r) + 1e-6), "nothing, or next to it"),
    ("advantages", lambda r: (np.array(r) - np.mean(r)) / (std(r) + 1e-3), "you added 1e-3"),
    ("advantages", lambda r: (np.array(r) - np.mean(r)) / (std(r) + 4e-4), "it should be"),
    ("advantages", lambda r: (np.array(r) - np.mean(r)) / max(std(r), 1e-4), "nothing, or next to it"),
    ("advantages", lambda r: (r - r.mean()) / r.std() + 1e-4, "mind the brackets"),
    ("advantages", lambda r: r - r.mean() / (r.std() + 1e-4), "only the mean is divided"),
    ("advantages", lambda r: (r.mean() - r) / (r.std() + 1e-4), "turned around"),
    ("advantages", lambda r: (np.array(r) - np.mean(r)) / np.sqrt(np.var(r, ddof=1) + 1e-4), "inside the root"),
    ("advantages", lambda r: (np.array(r) - np.mean(r)) / (np.var(r, ddof=1) + 1e-4), "take its root"),
    ("all_four_fail", 0.4**4, "all four right"), ("all_four_fail", 0.1552, "of either kind"),
    ("all_four_fail", -0.6, "multiply"), ("all_four_fail", 2.4, "multiply"), ("all_four_fail", 0.87, "at least one success"),
    ("all_four_fail", 1 - 0.4**4, "not all are right"), ("all_four_fail", "12.96%", "it is a text, in quotation marks"),
    ("all_four_fail", F(3, 5), "that is one rollout"), ("all_four_fail", 0.6**8, "groups of 8"),
    ("all_four_fail", 13, "in percent"),
    ("failures_advantage", lambda S, N: -S / N, "raises it"),
    ("failures_advantage", lambda S, N: -(S + 1) / (N + 1), "takes a seat"),
    ("failures_advantage", lambda S, N: (S + 1) / N, "*below*"),
    ("failures_advantage", lambda S, N: 1 - (S + 1) / N, "teacher's"),
    ("failures_advantage", lambda S, N: 0, "its reward"), ("failures_advantage", lambda S, N: -1, "no grade"),
    ("failures_advantage", lambda S, N: -(S + 1) // N, "rounds down"),
    ("failures_advantage", lambda S, N: (S + 1 - N) / N, "with a minus"),
    ("failures_advantage", lambda S, N: -1 / N, "at S = 0"),
    ("failures_advantage", lambda S, N: -(S + 1) / 8, "groups of 8 alone"),
    ("failures_advantage", lambda S, N: in_plain_python([1] * (S + 1) + [0] * (N - S - 1))[-1], "divided by the std"),
    ("failures_advantage", -0.125, "a function of S and N"),
    ("deadly_success_count", 5, "dead already"), ("deadly_success_count", 0, "revives"),
    ("deadly_success_count", 7, "groups of 8"),
    ("deadly_success_count", 6, "larger than N"), ("deadly_success_count", torch.tensor(3), "one is left"),
    ("deadly_success_count", 1, "four failures"), ("deadly_success_count", 4.03, "is not it"),
    ("deadly_success_count", [4, 5], "2 numbers; wanted: one number"), ("deadly_success_count", "S = 4", "quotation marks"),
    ("students_success", 0.6, "as the student's"), ("students_success", 0.5, "left out the rollout"),
    ("students_success", 0.75, "the replaced rollout is"), ("students_success", 1 / 3, "none of the student's"),
    ("students_success", 2, "a rate"), ("students_success", 40, "in percent"),
    ("cutoff", lambda N, a, b, g: max(S for S in range(N + 1) if (a + S) / (a + b + N) <= g), "strict"),
    ("cutoff", lambda N, a, b, g: ceil(g * (a + b + N) - a) - 1, "larger than N"),
    ("cutoff", lambda N, a, b, g: min(ceil(g * (a + b + N) - a), N), "left alone: one less"),
    ("cutoff", lambda N, a, b, g: floor(g * (a + b + N) - a), "and S can't be larger"),
    ("cutoff", lambda N, a, b, g: g * (a + b + N) - a, "the largest whole S"),
    ("cutoff", lambda N, a, b, g: sum((a + S) / (a + b + N) < g for S in range(N + 1)), "number of lamps"),
    ("cutoff", lambda N, a, b, g: next((S for S in range(N + 1) if (a + S) / (a + b + N) >= g), None), "where none is,"),
    ("cutoff", lambda N, a, b, g: next((S - 1 for S in range(N + 1) if (a + S) / (a + b + N) >= g), None), "the answer is N"),
    ("cutoff", lambda N, a, b, g: max(S for S in range(N + 1) if (a + S) / (a + N) < g), "b0 is missing"),
    ("cutoff", lambda N, a, b, g: 6 if (N, g) == (8, 0.8) else None, "yours gives nothing"),
    ("cutoff", lambda N, a, b, g: max(S for S in range(N + 1) if S / N < g), "prior is missing"),
    ("cutoff", lambda N, a, b, g: max(S for S in range(N + 1) if (1 + S) / (2 + N) < g), "Beta(1, 1) alone"),
    ("cutoff", lambda N, a, b, g: min(BetaGate(a, b).cutoff(N), N), "gamma = 0.8 alone"),
    ("tie", True, "left alone"), ("tie", torch.tensor(True), "left alone"), ("tie", np.True_, "left alone"),
    ("tie", 1, "left alone"),
    ("tie", 0.75, "that is c"), ("tie", 7, "that is S"), ("tie", "no", "True or False"),
    ("tie", "False", "it is a text, in quotation marks"),
    ("called_at_85", 0, "never sees"), ("called_at_85", 0.73, "tie"), ("called_at_85", 0.657, "left alone"),
    ("called_at_85", 0.24, "S = 6 alone"), ("called_at_85", 0.105, "S = 6 injects"), ("called_at_85", 0.19, "success rate 0.9"),
    ("called_at_85", 0.15, "one rollout fails"), ("called_at_85", 34.3, "in percent"), ("called_at_85", 0.35, "is not it"),
    ("called_at_85", 0.347, "near: compute it exactly"), ("called_at_85", 0.5, "is not it. It is P"),
    ("called_at_85", sum(0.85**s * 0.15 ** (8 - s) for s in range(7)), "orders"),
    ("smallest_group", 9, "tie"), ("smallest_group", 7, "0.889"), ("smallest_group", 3, "threshold 0.8"),
    ("smallest_group", 10, "smaller groups do too"), ("smallest_group", 1, "0.67"),
    ("smallest_group", np.int64(18), "lose one"),
    ("clipped", lambda rho, A: min(max(rho, 0.8), 1.2) * A, "both sides"),
    ("clipped", lambda rho, A: max(rho * A, min(max(rho, 0.8), 1.2) * A), "pessimist"),
    ("clipped", lambda rho, A: rho * A, "nothing is clipped"),
    ("clipped", lambda rho, A: -min(rho * A, np.clip(rho, 0.8, 1.2) * A), "no minus"),
    ("clipped", lambda rho, A: min(rho * A, np.clip(rho, -0.2, 0.2) * A), "the way from 1"),
    ("clipped", lambda rho, A: min(rho * A, min(rho, 1.2) * A), "above alone"),
    ("clipped", lambda rho, A: torch.mul(rho, A), "nothing is clipped"),
    ("clipped", lambda rho, A: min(rho * np.sign(A), np.clip(rho, 0.8, 1.2) * np.sign(A)), "sign of A alone"),
    ("clipped", lambda rho, A: min(rho * A, np.clip(rho * A, 0.8, 1.2)), "clip rho, then"),
    ("clipped", lambda rho, A: min(rho, np.clip(rho, 0.8, 1.2)) * A, "before min"),
    ("clipped", lambda rho, A: min(rho, 1.2 if A > 0 else 0.8) * A, "grows above"),
    ("as_loud", 0.02, "which is given"), ("as_loud", 0.1, "is largest"), ("as_loud", 0.18, "not in p"),
    ("as_loud", 0.139, "itself"),
    ("as_loud", 1, "0.083"), ("as_loud", 0.98, "another gradient"), ("as_loud", 50, "in percent"),
    ("whisper", 52, "1/4"), ("whisper", 0.0769, "the other way around"), ("whisper", 0.0192, "fall short"),
    ("whisper", 0.026, "times that"), ("whisper", 250, "p = 1e-4"), ("whisper", 4.3, "at p = 1, which"),
    ("whisper", 0.25 / (0.002 / 0.102), "F itself"), ("whisper", 12.8, "F itself"),
    ("per_draw", 0.0826, "only when it is sampled"), ("per_draw", 12.1, "once it is there"),
    ("per_draw", 0.121, "other way around"),
    ("per_draw", 0.01, "average pull"), ("per_draw", 10, "already less"), ("per_draw", 9.98, "already less"),
    ("per_draw", 826, "in percent"),
    ("middle_half", np.mean, "the mean of all"), ("middle_half", torch.mean, "the mean of all"),
    ("middle_half", np.median, "the median"), ("middle_half", lambda x: np.mean(x[len(x) // 4:-(len(x) // 4)]), "sort first"),
    ("middle_half", lambda x: np.subtract(*np.quantile(x, [0.75, 0.25])), "how wide"),
    ("middle_half", lambda x: np.mean(sorted(x)[len(x) // 2:]), "the upper half"),
    ("middle_half", lambda x: np.mean(sorted(x)[1:-1]), "not one score"),
    ("beats", lambda x, y: np.mean(np.array(x)[:, None] > np.array(y)), "with probability 0"),
    ("beats", lambda x, y: np.mean(np.array(x)[:, None] >= np.array(y)), "with certainty"),
    ("beats", lambda x, y: np.mean([(a < b) + (a == b) / 2 for a in x for b in y]), "the second list wins"),
    ("beats", lambda x, y: np.mean(x) - np.mean(y), "difference of the means"),
    ("beats", lambda x, y: x.mean() - y.mean(), "means"),
    ("beats", lambda x, y: np.mean([(a > b) + (a == b) / 2 for a, b in zip(x, y, strict=False)]), "its neighbour"),
    ("beats", lambda x, y: np.mean(x) > np.mean(y), "means alone"),
    ("beats", lambda x, y: np.mean([a > b for a, b in zip(x, y, strict=False)]), "of the second; and a tie"),
    ("beats", lambda x, y: sum((a > b) + (a == b) / 2 for a in x for b in y), "a count of pairs"),
    ("beats", lambda x, y: sum((a > b) + (a == b) / 2 for a in x for b in y) / len(x), "their number too"),
    ("beats", lambda x, y: np.float64(sum(a > b for a in x for b in y)) / sum(a != b for a in x for b in y), "left the ties"),
    ("confounders", {"scale", "eps_low", "eps_high"}, "how tokens make a loss, a bonus"),
    ("confounders", ["scale", "gate"], "never opens"), ("confounders", ["teacher_seats"], "in every group"),
    ("confounders", ["shaping"], "p / (p + 0.1)"), ("confounders", ["kl"], "KL penalty"),
    ("confounders", ["coefficient_of_kl"], "no field called coefficient_of_kl"), ("confounders", "scale", "still missing"),
    ("confounders", ["clip", "std"], "no field called clip, std"), ("confounders", ["aside"], "no field in which they differ"),
    ("carried", lambda low, high: "better" if low + high > 1 else "worse", "is not told apart"),
    ("carried", lambda low, high: "better" if low > 0.5 else "worse", "need not be worse"),
    ("carried", lambda low, high: "better" if low > 0.5 else "not told apart", "below 0.5 has a verdict"),
    ("carried", lambda low, high: "better" if low > 0.5 else "worse" if high < 0.5 else None, "it should be 'not told apart'"),
    ("carried", lambda low, high: ["worse", "not told apart", "better"][int(np.sign(low + high - 1)) + 1], "the middle"),
    ("carried", lambda low, high: "better" if low > 0 else "worse", "0 is no difference of two means"),
    ("carried", lambda low, high: "better" if high > 0.5 else "worse", "may still hold it"),
    ("carried", lambda low, high: "worse" if low > 0.5 else "better" if high < 0.5 else "not told apart", "the other way"),
    ("carried", lambda low, high: "better" if low >= 0.5 else "worse" if high <= 0.5 else "not told apart", "exactly at 0.5"),
    ("carried", lambda low, high: low > 0.5, "it should be one of"),
    ("best_and_worst", (7, 18), "comes first"), ("best_and_worst", (19, 3), "neither end"),
    ("best_and_worst", [19, 7], "84.2%"),
    ("best_and_worst", (18, 2), "can't close"), ("best_and_worst", (18, 3), "are the most"),
    ("best_and_worst", (18, 12), "local"),
    ("best_and_worst", torch.tensor([18, 16]), "far worse"), ("best_and_worst", (13, 7), "a larger N"),
    ("best_and_worst", (8, 7), "larger sizes"), ("best_and_worst", (3, 7), "the second of the two is right"),
    ("best_and_worst", (18, 17), "the first of the two is right"),
    ("thirteen", 0.187, "groups of 8"), ("thirteen", 0.0342, "the prior weighs less"), ("thirteen", 0.379, "tie"),
    ("thirteen", 0.0997, "S = 10 alone"), ("thirteen", 0.866, "left alone"), ("thirteen", 0, "never sees"),
    ("thirteen", 13.4, "in percent"), ("thirteen", sum(0.9**s * 0.1 ** (13 - s) for s in range(11)), "orders"),
    ("can_close", lambda N, a, b, g: a + N > g * (a + b + N), "tie"),
    ("can_close", lambda N, a, b, g: a + N - 1 >= g * (a + b + N), "relative bias"),
    ("can_close", lambda N, a, b, g: a + N < g * (a + b + N), "the other way around"),
    ("can_close", lambda N, a, b, g: torch.lt(a + N, g * (a + b + N)), "the other way around"),
    ("can_close", lambda N, a, b, g: (a + N) / (a + b + N), "c at S = N"),
    ("can_close", lambda N, a, b, g: True if a + N >= g * (a + b + N) else None, "say False"),
    ("can_close", lambda N, a, b, g: True, "yours gives True; it should be False"),
    ("can_close", lambda N, a, b, g: N >= 3, "Beta(1, 1) and gamma = 0.8"),
    ("can_close", lambda N, a, b, g: 1 + N >= g * (2 + N), "prior Beta(1, 1) alone"),
    ("can_close", lambda N, a, b, g: a + N >= 0.8 * (a + b + N), "for gamma = 0.8 alone"),
    ("can_close", lambda N, a, b, g: N >= 5, "for (2, "),
    ("smallest_pure_group", 2, "*probability*"), ("smallest_pure_group", 3, "0.6"), ("smallest_pure_group", 4, "0.67"),
    ("smallest_pure_group", 5, "only failure"), ("smallest_pure_group", 7, "tie"), ("smallest_pure_group", 8, "threshold 0.8"),
    ("draw_at_one", 0.41, "left out the prior"), ("draw_at_one", 0, "a draw from Beta(5, 1)"),
    ("draw_at_one", 0.67, "left alone"),
    ("draw_at_one", 0.134, "groups of 8"), ("draw_at_one", 0.2, "no longer uniform"), ("draw_at_one", 0.8, "no longer uniform"),
    ("draw_at_one", 32.8, "in percent"), ("draw_at_one", 0.833, "posterior's mean"), ("draw_at_one", 2.048, "the density"),
    ("draw_at_one", 0.655, "b stays 1"), ("draw_at_one", 0.2**5, "below 0.2")]


def test_every_exercise_is_tried_here():
    assert set(RIGHT) == set(exercises.exercises()) == set(exercises.__all__) - {"Mark", "exercises"}
    assert all(len(forms) >= 6 and sum(name == tried for tried, *_ in WRONG) >= 6 for name, forms in RIGHT.items())


@pytest.mark.parametrize("name, answer", [(name, form) for name, forms in RIGHT.items() for form in forms],
                         ids=[f"{name}-{i}" for name, forms in RIGHT.items() for i in range(len(forms))])
def test_right_answers(name, answer):
    mark = getattr(exercises, name)(answer)
    assert mark.right is True and repr(mark).startswith("✓ Right: "), mark


@pytest.mark.parametrize("name, answer, words", WRONG, ids=[f"{name}-{words}" for name, _, words in WRONG])
def test_misconceptions_are_named(name, answer, words):
    mark = getattr(exercises, name)(answer)
    assert mark.right is False and words in mark.says and repr(mark).startswith("✗ Not yet: "), mark


def test_no_misconception_is_listed_that_no_answer_shows():
    """The last part of each pair in a check's list, as the source has it."""
    said = "\n".join(getattr(exercises, name)(answer).says for name, answer, _ in WRONG)
    trees = [ast.parse(Path(module.__file__).read_text()) for module in (method_checks, claim_checks)]
    pairs = [node.elts[1] for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Tuple) and len(node.elts) == 2]
    listed = [node.value for node in pairs if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert len(listed) > 100 and not [words for words in listed if words not in said]


@pytest.mark.parametrize("name", RIGHT)
def test_an_unanswered_cell(name):
    check = getattr(exercises, name)
    for answer in (..., None, (..., ...), [1, ...]):
        assert check(answer).right is None and "write your answer above" in repr(check(answer))
    for answer in [lambda *_: ..., lambda *_: None] * callable(RIGHT[name][0]):  # also one that prints what it should return
        assert check(answer).right is None and "returns nothing yet" in repr(check(answer))
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


def test_a_function_that_stops_is_told_why_and_where():
    line = broken.__code__.co_firstlineno + 1
    said = repr(exercises.clipped(broken))
    assert re.search(f"can't be read .ZeroDivisionError: division by zero, in line {line} of its cell", said)


def test_what_an_answer_does_to_a_list_is_not_done_to_the_case():
    def sorts(scores):
        scores.sort()
        return 0
    assert "for ([0.9, 0.1, 0.8, 0.4])" in exercises.middle_half(sorts).says

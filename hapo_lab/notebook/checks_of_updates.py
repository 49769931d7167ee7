"""Checks of lesson 10's last three functions: from log-probabilities to weights that have moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hapo_lab.notebook import sixty_lines as solution
from hapo_lab.notebook.marking import Mark, Told, is_open, safe
from hapo_lab.notebook.tracing import NOTHING, Trace, marked, numbers
from hapo_lab.ssi import Rollout


def _with_gradient(function: Callable, x: Tensor, *more: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A function's value at x, and the gradient of its sum in x; 0 where none reaches it."""
    x = x.clone().requires_grad_()
    value = function(x, *more)
    if is_open(value):
        return NOTHING, NOTHING
    found = numbers(value)
    gradient = torch.autograd.grad(value.sum(), x)[0] if getattr(value, "requires_grad", False) else torch.zeros_like(x)
    return found, numbers(gradient)


@safe
def losses_of_tokens(answer: Any) -> Mark:
    """a function of logp, old_logp, advantages and teacher: minus the clipped objective, or for a teacher minus F(p) A"""
    ratios = [0.5, 0.9, 1.0, 1.1, 1.5]
    p = torch.tensor([1e-4, 0.02, 0.1, 0.4, 0.6])
    old = p / torch.tensor(ratios)

    def trace(function: Callable) -> Trace:
        found: Trace = {}
        for who, teacher in (("student", False), ("teacher", True)):
            for a in (1.5, -0.5):
                rows = p.log()[None], old.log()[None], torch.tensor([[a]]), torch.tensor([[teacher]])
                name = f"{who}'s tokens with A = {a}, ratios {ratios}"
                found[f"{name}, losses"], found[f"{name}, gradients in logp"] = _with_gradient(function, *rows)
        both = p.log().expand(2, 5), old.log().expand(2, 5), torch.tensor([[1.5], [-0.5]]), torch.tensor([[False], [True]])
        try:
            found["a student's row and a teacher's, losses"], _ = _with_gradient(function, *both)
        except RuntimeError as error:
            raise Told("it runs for one row, but not for a batch: it holds students' rows and teachers'. Choose for each row, "
                       "by torch.where(teacher, ..., ...)") from error
        return found

    def slip(student: Callable, teacher: Callable) -> Callable:
        """Minus two objectives: of (rho, A), and of (p, rho, A)."""
        def function(logp: Tensor, old_logp: Tensor, a: Tensor, is_teacher: Tensor) -> Tensor:
            rho = (logp - old_logp).exp()
            return -torch.where(is_teacher, teacher(logp.exp(), rho, a), student(rho, a))
        return function

    def clip(rho: Tensor, a: Tensor) -> Tensor:
        return torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a)

    def shaped(p: Tensor, rho: Tensor | None, a: Tensor) -> Tensor:
        return p / (p + 0.1) * a

    return marked(answer, trace, solution.token_losses, [
        (lambda *given: -solution.token_losses(*given), "these are objectives, which go up: an optimizer goes down, so a "
         "loss is minus the objective"),
        (lambda *given: solution.token_losses(*given).detach(), "the values are right, but no gradient reaches logp: no "
         "detach(), item() or numpy on its way"),
        (slip(clip, lambda p, rho, a: clip(rho, a)), "the teacher's tokens have a ratio here: nobody knows with which "
         "probability the teacher sampled them; use F(p)"),
        (slip(clip, lambda p, rho, a: rho * a), "the teacher's tokens have a ratio here: nobody knows with which probability "
         "the teacher sampled them; use F(p)"),
        (slip(clip, lambda p, rho, a: rho * shaped(p, None, a)), "F(p) stands in the ratio's place, and is not multiplied "
         "by it"),
        (slip(clip, lambda p, rho, a: (p / (p + 0.1)).clamp(0.8, 1.2) * a), "the teacher's tokens are not clipped"),
        (slip(clip, lambda p, rho, a: torch.minimum(shaped(p, None, a), (p / (p + 0.1)).clamp(0.8, 1.2) * a)),
         "the teacher's tokens are not clipped"),
        (slip(clip, lambda p, rho, a: p / (p + 0.1) * torch.ones_like(a)), "the teacher's tokens miss their advantage: F(p) A"),
        (slip(clip, lambda p, rho, a: shaped(p / rho, None, a)), "F is of the present p, exp(logp), and not of the old one"),
        (slip(lambda rho, a: clip(1 / rho, a), shaped), "the ratio is upside down: exp(logp - old_logp)"),
        (lambda logp, old_logp, a, teacher: solution.token_losses(logp, old_logp, a, ~teacher), "the other way around: "
         "`teacher` is True where F counts"),
        (slip(clip, lambda p, rho, a: p * a), "the teacher's p is not shaped: F(p) = p / (p + 0.1)"),
        (slip(clip, lambda p, rho, a: p.log() * a), "that is imitation, F = log p; here F(p) = p / (p + 0.1)"),
        (slip(clip, lambda p, rho, a: p.log() / (p.log() + 0.1) * a), "F is of p, and you gave it log p: take exp first"),
        (slip(lambda rho, a: rho * a, shaped), "the students' ratio is not clipped"),
        (slip(lambda rho, a: rho.clamp(0.8, 1.2) * a, shaped), "you clipped the students on both sides: the smaller of clipped "
         "and unclipped counts"),
        (slip(lambda rho, a: torch.maximum(rho * a, rho.clamp(0.8, 1.2) * a), shaped), "you took the larger one: the clip is a "
         "pessimist, take the minimum"),
        (slip(lambda rho, a: torch.minimum(rho, rho.clamp(0.8, 1.2)) * a, shaped), "multiply by A before the minimum: with "
         "A < 0 the order turns around"),
        (slip(lambda rho, a: rho.log() * a, shaped), "the ratio is exp(logp - old_logp)"),
        (lambda logp, old_logp, a, teacher: -torch.where(teacher, shaped(logp.exp(), None, a), clip(logp / old_logp, a)),
         "you divided two logarithms: the ratio is exp(logp - old_logp)")],
        "students have a ratio and a clip; the teacher has F and neither.")


@safe
def mean_of_tokens(answer: Any) -> Mark:
    """a function of losses and mask: the mean of the losses where the mask is True"""
    losses = torch.tensor([[1.0, 2.0, 4.0, 100.0], [8.0, 100.0, 100.0, 100.0], [0.0, 0.0, 0.5, 0.0]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, True, True]])

    def trace(function: Callable) -> Trace:
        value, gradient = _with_gradient(function, losses, mask)
        return {"three rollouts of 3, 1 and 4 tokens": value, "the same, gradients": gradient}

    return marked(answer, trace, solution.masked_mean, [
        (lambda x, m: x.mean(), "prompts and padding are in your mean: leave out what the mask hides"),
        (lambda x, m: (x * m).mean(), "hidden tokens add nothing above, but you still divide by them: the divisor is "
         "mask.sum()"),
        (lambda x, m: ((x * m).sum(1) / m.sum(1)).mean(), "that is the mean of each rollout's mean, GRPO's: there a token of a "
         "long answer counts less. Here all tokens count alike"),
        (lambda x, m: (x * m).sum(1) / m.sum(1), "one mean per row, where one number is wanted, over all tokens of all rows"),
        (lambda x, m: (x * m).sum(), "that is the sum: divide by the number of tokens"),
        (lambda x, m: (x * m).sum() / len(x), "you divided by the number of rollouts: the divisor is the number of tokens"),
        (lambda x, m: (x * m).sum() / ((x != 0) & m).sum(), "a token whose loss is 0 still counts below: the divisor is "
         "mask.sum()"),
        (lambda x, m: (x * ~m).sum() / (~m).sum(), "the other way around: True marks the tokens that count"),
        (lambda x, m: solution.masked_mean(x, m).detach(), "the value is right, but no gradient reaches the losses: no "
         "detach(), item() or numpy on its way")],
        "the divisor counts every completion token of the batch, those of dead groups too.")


# the step ----------------------------------------------------------------------------------------------------------


class _Bigrams(torch.nn.Module):
    """A language model that looks at one token: a table of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.sin(torch.arange(64.0)).reshape(8, 8))

    def forward(self, ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[ids])


class _Pupil:
    """A student with prompts of several lengths. One group fails whole, one is mixed, one is all right."""

    def __init__(self) -> None:
        self.model, self.asked = _Bigrams(), 0

    def prompt(self, problem: int) -> list[int]:
        return [problem, *[7] * problem]

    def sample(self, problems: Sequence[int]) -> list[list[Rollout]]:
        self.asked += 1
        said = [(self.asked, 3), (4,), (5, 3, 6, 2), (6, 6)]
        right = {0: (), 1: (0, 2), 2: (0, 1, 2, 3)}
        return [[Rollout(ids, "", float(i in right[p])) for i, ids in enumerate(said)] for p in problems]


def _show(problem: int) -> Rollout:
    return Rollout((5, 4, problem, 2), "", 1.0, teacher=True)


def _step_with(slip: str) -> Callable:
    """`step` with one thing done wrong."""
    def step(student: Any, teacher: Callable, problems: Sequence, optimizer: torch.optim.Optimizer) -> tuple:
        sampled = student.sample(problems)
        pairs = [solution.teach(group, teacher(problem)) for group, problem in zip(sampled, problems, strict=True)]
        taught = [group for group, _ in pairs]
        logp, mask = solution.log_probs(student, problems, sampled if slip == "sampled" else taught)
        advantages = torch.cat([a for _, a in pairs])[:, None]
        is_teacher = torch.tensor([[r.teacher and slip != "no teacher"] for group in taught for r in group])
        losses = solution.token_losses(logp, logp if slip == "no detach" else logp.detach(), advantages, is_teacher)
        counted = {"no mask": torch.ones_like(mask), "live": mask & (advantages != 0)}.get(slip, mask)
        loss = solution.masked_mean(losses, counted) * (-1 if slip == "ascent" else 1)
        if slip != "no zero_grad":
            optimizer.zero_grad()
        if slip != "no backward":
            loss.backward()
        if slip == "late zero_grad":
            optimizer.zero_grad()
        if slip != "no step":
            optimizer.step()
        return loss.item(), sampled, taught
    return step


UNMOVED = "the weights have not moved: optimizer.zero_grad(), loss.backward(), optimizer.step(), in this order"
STEP_SLIPS = {
    "no zero_grad": "the gradients of the step before are still there and add up: optimizer.zero_grad() before backward()",
    "late zero_grad": UNMOVED, "no backward": UNMOVED, "no step": UNMOVED,
    "no detach": "old_logp carries a gradient too, so the ratio is 1 whatever the weights are, and students teach nothing: "
                 "give it logp.detach()",
    "no mask": "prompts and padding are in your mean: take the mask of log_probs",
    "live": "you left dead groups out of the divisor: their tokens count below, though they add nothing above",
    "sampled": "you read the sampled rollouts' tokens: the update sees the taught groups, with the teacher in its seat",
    "no teacher": "the teacher's tokens were taken for a student's: the mask comes from r.teacher",
    "ascent": "the loss goes up: an optimizer descends, so it wants minus the objective"}


@safe
def training_step(answer: Any) -> Mark:
    """a function of student, teacher, problems and optimizer: one step; returns the loss, the sampled and the taught groups"""
    def trace(function: Callable) -> Trace:
        pupil, found = _Pupil(), Trace()
        optimizer, before = torch.optim.SGD(pupil.model.parameters(), lr=2.0), pupil.model.table.detach().clone()
        for number in ("first", "second"):
            try:
                result = function(pupil, _show, [0, 1, 2], optimizer)
            except RuntimeError as error:
                if "must match" not in str(error):
                    raise
                raise Told(f"two shapes don't fit: {error}. advantages and teacher are (B, 1), a row for each rollout: "
                           "[:, None]") from error
            if is_open(result) and not pupil.asked:
                return {"what it returns": NOTHING}
            if is_open(result) or not isinstance(result, tuple | list) or len(result) != 3:
                raise Told(f"it returned {'nothing' if is_open(result) else 'something else'}; return three things: the loss, "
                           "the groups as sampled, the groups as taught")
            loss, sampled, taught = result
            found[f"{number} step, what the weights moved by"] = numbers(pupil.model.table - before)
            found[f"{number} step, loss"] = numbers(loss)
            found[f"{number} step, teachers in the sampled and in the taught groups"] = np.array(
                [float(sum(r.teacher for group in groups for r in group)) for groups in (sampled, taught)])
        return found

    return marked(answer, trace, solution.step, [(_step_with(slip), says) for slip, says in STEP_SLIPS.items()],
                   "sample, gate, inject, compare, read, weigh, descend: that is HAPO.")

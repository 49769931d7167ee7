"""The update: from a step's groups to gradients, pack by pack, and to new weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from hapo_lab.engines.protocol import Sampling
from hapo_lab.loss import hapo_loss, k3
from hapo_lab.methods import Method
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.logprobs import completion_logprobs
from hapo_lab.policy.policy import Policy
from hapo_lab.ssi import Group
from hapo_lab.training.batch import Batch, Rows
from hapo_lab.training.config import Config

Work = tuple[Batch, list[list[int]]]
"""A minibatch, and its rows in packs."""
Read = tuple[torch.Tensor, torch.Tensor]
"""(B, T) log-probs and entropies of a minibatch."""


class NotFinite(ArithmeticError):
    """The loss or its gradient is not finite; the message says which."""


class Learner:
    """The policy's optimizer, and its gradients."""

    def __init__(self, policy: Policy, method: Method, config: Config, sampling: Sampling):
        self.policy, self.method, self.config, self.sampling = policy, method, config, sampling
        self.parameters = policy.trainable()
        for parameter in self.parameters:  # made among a pass's large tensors, these small ones would keep its memory in pieces
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=0.0)
        self.scaler = self._new_scaler()
        """In float16 a token's share of a large batch's gradient would be 0: the loss is scaled up, and the gradients down."""
        self.torn = False
        """Whether the policy has moved in a step that the run log does not hold (yet)."""

    def update(self, groups: list[Group], rate: float, method: Method | None = None) -> dict:
        """The optimizer's steps on one batch, by the learner's method or another. Returns the update's part of a
        `StepRecord`. NotFinite: the loss or its gradient is not finite, and this optimizer step is not taken. EngineError:
        see `Batch.of`.
        """
        batches = [Batch.of(part, [prompt_ids(self.policy, g.problem) for g in part], method or self.method, self.sampling)
                   for part in _dealt(groups, self.config.minibatches)]
        work = [(batch, packs) for batch in batches if (packs := batch.packs(self.config.token_budget))]
        if not work:
            unknown = ("loss", "grad_norm", "teacher_share", "teacher_logp", "clip_fraction", "entropy")
            return dict.fromkeys(unknown) | {"updated": False, "tokens_trained": 0}
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scale = self.scaler.state_dict()
        try:
            before, metrics = self._epochs([(self._with_base(*one), one[1]) for one in work])
        except BaseException:  # whoever takes the step again begins with the same scale, and no gradient half unscaled
            self.scaler = self._new_scaler()
            self.scaler.load_state_dict(scale)
            raise
        return metrics | {"updated": True} | _figures([batch for batch, _ in work], before)

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.policy.device.type, enabled=self.policy.model.dtype == torch.float16)

    def _epochs(self, work: list[Work]) -> tuple[list[Read], dict]:
        """The inner epochs, an optimizer step per minibatch. Returns the policy's log-probs and entropies before them, and the
        mean figures of the last epoch."""
        alone = len(work) == 1
        before: list[Read | None] = [None if alone else self._read(*one) for one in work]
        skipped = 0
        for _ in range(self.config.inner_epochs):
            found = []
            for i, one in enumerate(work):
                before[i], figures, again = self._optimizer_step(*one, before[i])
                found.append(figures)
                skipped += again
        self.optimizer.zero_grad(set_to_none=False)
        return cast(list[Read], before), {key: _known_mean([figures[key] for figures in found]) for key in found[0]} | {
            "skipped": skipped}

    def _optimizer_step(self, batch: Batch, packs: list[list[int]], before: Read | None) -> tuple[Read, dict, int]:
        """Returns (B, T) log-probs and entropies of the policy before it, or `before`; figures; how often float16 overflowed.

        Where float16 overflows in a gradient, `GradScaler` skips the step and halves the scale. It is then repeated on the
        same batch, because the rollouts cost far more than the gradients.
        """
        skipped = 0
        while True:
            logp, entropy, share = self._backward(batch, packs, before and before[0])
            before = before or (logp, entropy)  # the first pass over the batch is the old policy's
            objective, clip_fraction = self._loss(batch, logp, entropy, before[0], torch.arange(len(logp)))
            loss = objective.item()
            grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm).item()
            overflow = self.scaler.get_scale() > 1 and math.isfinite(loss) and not self._gradient().isfinite().all()
            if not overflow:
                self._refuse_unless_finite(batch, logp, loss, grad_norm)
                self.torn = True
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if not overflow:
                return before, {"loss": loss, "grad_norm": grad_norm, "teacher_share": share,
                                "clip_fraction": clip_fraction}, skipped
            skipped += 1

    @torch.no_grad()
    def _read(self, batch: Batch, packs: list[list[int]]) -> Read:
        """(B, T) log-probs and entropies of the live rows under the present policy."""
        logp, entropy = torch.zeros(batch.token_mask.shape), torch.zeros(batch.token_mask.shape)
        for pack in packs:
            new, h, _ = completion_logprobs(self.policy.model, *batch.rows.of_pack(pack), self.sampling.temperature)
            logp[torch.tensor(pack), :new.shape[1]], entropy[torch.tensor(pack), :new.shape[1]] = new.cpu(), h.cpu()
        return logp, entropy

    def _backward(self, batch: Batch, packs: list[list[int]],
                  old_logp: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Gradients of the loss, pack by pack. Returns (B, T) log-probs and entropies, and the teacher's share."""
        self.optimizer.zero_grad(set_to_none=False)
        logp, entropy = torch.zeros(batch.token_mask.shape), torch.zeros(batch.token_mask.shape)
        teacher_gradient = None
        for pack in packs:
            if teacher_gradient is None and not batch.teacher[pack[0]]:  # the teacher's packs come first
                teacher_gradient = self._gradient()
            rows = torch.tensor(pack)
            new, h, mask = completion_logprobs(self.policy.model, *batch.rows.of_pack(pack),
                                               temperature=self.sampling.temperature,
                                               entropy_gradient=batch.method.entropy_bonus != 0,
                                               checkpoint=batch.rows.tokens(pack) > self.config.token_budget)
            new, h, width = new.cpu(), h.cpu(), mask.shape[1]
            logp[rows, :width], entropy[rows, :width] = new.detach(), h.detach()
            new, h = (torch.nn.functional.pad(x, (0, logp.shape[1] - width)) for x in (new, h))
            loss, _ = self._loss(batch, new, h, logp if old_logp is None else old_logp, rows)
            self.scaler.scale(loss.to(self.policy.device)).backward()  # the scale lives where the gradients do
        self.scaler.unscale_(self.optimizer)
        if teacher_gradient is None:
            return logp, entropy, 1.0
        teacher_gradient /= self.scaler.get_scale()
        teacher_norm, student_norm = teacher_gradient.norm(), (self._gradient() - teacher_gradient).norm()
        return logp, entropy, (teacher_norm / (teacher_norm + student_norm).clamp(min=1e-12)).item()

    @torch.no_grad()
    def _with_base(self, batch: Batch, packs: list[list[int]]) -> Batch:
        """The batch with the base's log-probabilities of the students' tokens, if the method asks for them."""
        if not batch.method.kl:
            return batch
        base_logp = torch.zeros(batch.token_mask.shape)
        for pack in packs:
            if not batch.teacher[pack[0]]:
                logp = self._base_logp(*batch.rows.of_pack(pack)).cpu()
                base_logp[torch.tensor(pack), :logp.shape[1]] = logp
        return replace(batch, base_logp=base_logp)

    def _base_logp(self, prompts: list, completions: list) -> torch.Tensor:
        """(B, T)"""
        with self.policy.model.disable_adapter():
            return completion_logprobs(self.policy.model, prompts, completions, self.sampling.temperature)[0]

    def _loss(self, batch: Batch, logp: torch.Tensor, entropy: torch.Tensor, old_logp: torch.Tensor,
              rows: torch.Tensor) -> tuple[torch.Tensor, float]:
        """`hapo_loss` less the entropy bonus, on some rows of the batch, and the clip fraction there. `logp` and `entropy`
        hold just them, `old_logp` all."""
        method, old_logp = batch.method, old_logp[rows]
        importance = (old_logp - batch.engine_logp[rows]).exp().clamp(max=self.config.importance_cap)
        loss, metrics = hapo_loss(
            logp, old_logp, batch.advantages[rows], batch.teacher[rows], batch.trained[rows], shaping=method.shaping,
            eps_low=method.eps_low, eps_high=method.eps_high, weights=batch.weights[rows],
            importance=importance.masked_fill(~batch.measured[rows, None], 1), sequence_ratio=method.sequence_ratio,
            kl=method.kl, base_logp=batch.base_logp[rows])
        return loss - method.entropy_bonus * (batch.entropy_weights[rows] * entropy).sum(), metrics["clip_fraction"]

    def _gradient(self) -> torch.Tensor:
        """All parameters' gradients, as one vector."""
        return torch.cat([cast(torch.Tensor, p.grad).flatten() for p in self.parameters])

    def _refuse_unless_finite(self, batch: Batch, logp: torch.Tensor, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        self.optimizer.zero_grad(set_to_none=False)
        bad = (~logp.isfinite() & batch.trained).any(1)
        raise NotFinite(f"the log-probabilities of rollout {int(bad.nonzero()[0])} of this batch are not finite" if bad.any()
                        else f"the loss is {loss}" if not math.isfinite(loss)
                        else f"the gradient's norm is {grad_norm}" + self.scaler.is_enabled() * (
                            " in float16 even with a loss scale of 1: this policy may need bfloat16 or float32"))

    @torch.no_grad()
    def kl_to_base(self, groups: list[Group]) -> float:
        """Mean KL of the present policy to the base over the students' sampled tokens, in nats (`loss.k3`).

        Both by the trainer's own pass, at the sampling temperature: an engine's other rounding is no distance.
        """
        rows = Rows.of([prompt_ids(self.policy, g.problem) for g in groups], [g.sampled for g in groups])
        packs = rows.packs(range(len(rows.rollouts)), self.config.token_budget)
        return torch.cat([self._k3(*rows.of_pack(pack)) for pack in packs]).mean().item()

    def _k3(self, prompts: list, completions: list) -> torch.Tensor:
        """(tokens,)"""
        logp, _, mask = completion_logprobs(self.policy.model, prompts, completions, self.sampling.temperature)
        return k3(logp, self._base_logp(prompts, completions))[mask]


def _dealt(groups: list[Group], parts: int) -> list[list[Group]]:
    """Groups in at most `parts` parts of nearly equal size, none of them empty."""
    return [part for i in range(parts) if (part := groups[i * len(groups) // parts:(i + 1) * len(groups) // parts])]


def _figures(batches: list[Batch], before: list[Read]) -> dict:
    """The figures of a `StepRecord` about the trained tokens, from the policy's log-probs and entropies before the update."""
    def chosen(values: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([x[mask] for x, mask in zip(values, masks, strict=True)])

    logp, entropy = zip(*before, strict=True)
    teachers = [b.trained & b.teacher[:, None] for b in batches]
    students = [b.trained & ~b.teacher[:, None] for b in batches]
    measured = [b.trained & b.measured[:, None] for b in batches]
    gap = chosen([(x - b.engine_logp).abs() for x, b in zip(logp, batches, strict=True)], measured)
    return {"tokens_trained": sum(int(b.trained.sum()) for b in batches),
            "teacher_logp": _mean(chosen(logp, teachers)), "entropy": _mean(chosen(entropy, students)),
            "engine_gap": _mean(gap), "engine_gap_max": gap.max().item() if len(gap) else None,
            "without_engine_logp": sum(int((b.live & ~b.teacher & ~b.measured).sum()) for b in batches)}


def with_lessons(update: dict, lessons: dict) -> dict:
    """The figures of a `StepRecord` for a step with a second update, on demonstrations alone."""
    student, teacher = (figures["grad_norm"] or 0.0 for figures in (update, lessons))
    both = {"tokens_trained": update["tokens_trained"] + lessons["tokens_trained"],
            "skipped": update.get("skipped", 0) + lessons.get("skipped", 0)}
    return update | both | {"updated": update["updated"] or lessons["updated"], "teacher_logp": lessons["teacher_logp"],
                            "teacher_share": teacher / max(teacher + student, 1e-12)}


def _known_mean(values: list[float]) -> float | None:
    """The mean over the minibatches with a measured value."""
    known = [x for x in values if not math.isnan(x)]
    return sum(known) / len(known) if known else None


def _mean(values: torch.Tensor) -> float | None:
    return values.mean().item() if len(values) else None

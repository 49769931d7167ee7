"""The update: from a step's groups to gradients, pack by pack, and to new weights."""

from __future__ import annotations

import math

import torch

from hapo_lab.batch import Batch
from hapo_lab.chat import prompt_ids
from hapo_lab.config import Config
from hapo_lab.logprobs import completion_logprobs
from hapo_lab.loss import hapo_loss
from hapo_lab.methods import Method
from hapo_lab.models import Policy
from hapo_lab.rollouts import Sampling
from hapo_lab.ssi import Group


class NotFinite(ArithmeticError):
    """What is not finite, in words."""


class Learner:
    """The policy's optimizer, and the gradients that it follows."""

    def __init__(self, policy: Policy, method: Method, config: Config, sampling: Sampling):
        self.policy, self.method, self.config, self.sampling = policy, method, config, sampling
        self.parameters = policy.trainable()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=0.0)
        self.torn = False
        """The policy has moved in a step that is not in the run log (yet)."""

    def update(self, groups: list[Group], rate: float) -> dict:
        """The optimizer's steps on one batch; returns what a `StepRecord` says of them.

        NotFinite where the loss or its gradient is not finite: then this optimizer step is not taken.
        """
        batch = Batch.of(groups, [prompt_ids(self.policy, g.problem) for g in groups], self.method, self.sampling)
        packs = batch.packs(self.config.token_budget)
        if not packs:
            unknown = ("loss", "grad_norm", "teacher_share", "teacher_logp", "clip_fraction", "entropy")
            return dict.fromkeys(unknown) | {"updated": False, "tokens_trained": 0}
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        old_logp = None
        for _ in range(self.config.inner_epochs):
            logp, entropy, share = self._backward(batch, packs, old_logp)
            if old_logp is None:  # the first pass over the batch is the old policy's
                old_logp, first_entropy = logp, entropy
            _, metrics = self._loss(batch, logp, old_logp, torch.arange(len(logp)))
            grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm).item()
            self._refuse_unless_finite(batch, logp, metrics["loss"], grad_norm)
            self.torn = True
            self.optimizer.step()
        self.optimizer.zero_grad()
        trained, teacher = batch.trained, batch.teacher[:, None]
        gap = (old_logp - batch.engine_logp).abs()[trained & ~teacher]
        return {"updated": True, "loss": metrics["loss"], "grad_norm": grad_norm, "teacher_share": share,
                "teacher_logp": _mean(old_logp, trained & teacher),
                "clip_fraction": metrics["clip_fraction"] if (trained & ~teacher).any() else None,
                "entropy": _mean(first_entropy, trained & ~teacher), "tokens_trained": int(trained.sum()),
                "engine_gap": gap.mean().item() if len(gap) else None, "engine_gap_max": gap.max().item() if len(gap) else None}

    def _backward(self, batch: Batch, packs: list[list[int]], old_logp: torch.Tensor | None):
        """Gradients of the loss, pack by pack. Returns (B, T) log-probs and entropies, and the teacher's share."""
        self.optimizer.zero_grad()
        logp, entropy = torch.zeros(batch.token_mask.shape), torch.zeros(batch.token_mask.shape)
        teacher_gradient = None
        for pack in packs:
            if teacher_gradient is None and not batch.teacher[pack[0]]:  # the teacher's packs come first
                teacher_gradient = self._gradient()
            rows = torch.tensor(pack)
            new, h, mask = completion_logprobs(self.policy.model, *batch.of_pack(pack), temperature=self.sampling.temperature,
                                               entropy_gradient=self.method.entropy_bonus != 0)
            new, h, width = new.cpu(), h.cpu(), mask.shape[1]
            logp[rows, :width], entropy[rows, :width] = new.detach(), h.detach()
            padded = torch.nn.functional.pad(new, (0, logp.shape[1] - width))
            loss, _ = self._loss(batch, padded, logp if old_logp is None else old_logp, rows)
            bonus = self.method.entropy_bonus * (batch.weights[rows, :width].float() * h).sum()
            (loss - bonus).backward()
        if teacher_gradient is None:
            return logp, entropy, 1.0
        teacher_norm, student_norm = teacher_gradient.norm(), (self._gradient() - teacher_gradient).norm()
        return logp, entropy, (teacher_norm / (teacher_norm + student_norm).clamp(min=1e-12)).item()

    def _loss(self, batch: Batch, logp: torch.Tensor, old_logp: torch.Tensor, rows: torch.Tensor):
        """`hapo_loss` on some rows of the batch; `logp` holds just them, `old_logp` all."""
        importance = (old_logp - batch.engine_logp).exp().clamp(max=self.config.importance_cap)
        return hapo_loss(logp, old_logp[rows], batch.advantages[rows], batch.teacher[rows], batch.trained[rows],
                         shaping=self.method.shaping, eps_low=self.method.eps_low, eps_high=self.method.eps_high,
                         weights=batch.weights[rows], importance=importance[rows])

    def _gradient(self) -> torch.Tensor:
        """All parameters' gradients, as one vector."""
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters])

    def _refuse_unless_finite(self, batch: Batch, logp: torch.Tensor, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        self.optimizer.zero_grad()
        bad = (~logp.isfinite() & batch.trained).any(1)
        raise NotFinite(f"the log-probabilities of rollout {int(bad.nonzero()[0])} of this batch are not finite" if bad.any()
                        else f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}")

    @torch.no_grad()
    def kl_to_base(self, groups: list[Group]) -> float:
        """k3 estimator, mean(exp(d) - d - 1) with d = log p_base - log p, over the students' sampled tokens."""
        with self.policy.model.disable_adapter():
            base, _, mask = completion_logprobs(self.policy.model, [prompt_ids(self.policy, g.problem) for g in groups],
                                                [[r.ids for r in g.sampled] for g in groups], self.sampling.temperature)
        policy = torch.tensor([x for g in groups for r in g.sampled for x in r.engine_logps])
        d = base[mask].cpu() - policy
        return (d.exp() - d - 1).mean().item()


def _mean(values: torch.Tensor, where: torch.Tensor) -> float | None:
    return values[where].mean().item() if where.any() else None

"""Advantages, surrogates and the loss. All surrogates are per-token objectives, to be maximised.

    students (rollouts of the policy)   min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A),  rho = pi_theta / pi_old,
                                        less a coefficient times the KL to the base, if the method has one
    teacher  (demonstration)            F(pi_theta) A, not clipped
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, log

import numpy as np
import torch

Shaping = Callable[[torch.Tensor], torch.Tensor]
"""Maps a token's log-probability to F(p), elementwise, differentiably."""


def group_advantages(rewards: torch.Tensor, scale: str = "std", ddof: int = 1, eps: float = 1e-4) -> torch.Tensor:
    """A_i = (r_i - mean) / (std + eps), within each group.

    Parameters
    ----------
    rewards : (..., N) float tensor
        One group per row. The teacher's reward counts like any other.
    scale : "std", "none" or "leave_one_out"
        "none" leaves out the division (Dr. GRPO, LUFFY). "leave_one_out" (RLOO) compares with the mean of the others:
        r_i - sum_(j != i) r_j / (N - 1) = N / (N - 1) (r_i - mean).
    ddof : int
        The std divides by N - ddof. 1, with eps = 1e-4, is TRL's convention.

    Returns
    -------
    (..., N) tensor of the same dtype. A group of equal rewards gets exact zeros.

    Raises
    ------
    ValueError
        Unknown scale; fewer than 2 rollouts; ddof >= N.

    Examples
    --------
    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), scale="none")
    tensor([ 0.7500, -0.2500, -0.2500, -0.2500])
    """
    n = rewards.shape[-1]
    if scale not in ("std", "none", "leave_one_out"):
        raise ValueError(f"group_advantages: scale is {scale!r}; choose 'std', 'none' or 'leave_one_out'.")
    if n < 2 or n <= ddof:
        raise ValueError(f"group_advantages: a group of {n} has nothing to compare; use at least 2 rollouts.")
    advantages = rewards - rewards.mean(-1, keepdim=True)
    if scale == "std":
        advantages = advantages / (rewards.std(-1, correction=ddof, keepdim=True) + eps)
    elif scale == "leave_one_out":
        advantages = advantages * (n / (n - 1))
    return advantages.masked_fill((rewards == rewards[..., :1]).all(-1, keepdim=True), 0)


def clipped_surrogate(logp: torch.Tensor, old_logp: torch.Tensor, advantages: torch.Tensor,
                      eps_low: float = 0.2, eps_high: float = 0.2) -> torch.Tensor:
    """PPO's per-token objective min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A), rho = exp(logp - old_logp).

    All tensors broadcast together (tokens, say (B, T), and advantages (B, 1)). eps = inf does not clip;
    eps_high > eps_low is DAPO's clip-higher. The gradient in logp is rho A if the unclipped term is the smaller one, else 0.
    The log-ratio is bounded below the overflow of exp, so that 0 * inf never arises.

    >>> rho = torch.tensor([0.5, 1.0, 1.5])
    >>> clipped_surrogate(rho.log(), torch.zeros(3), advantages=torch.tensor(1.0))
    tensor([0.5000, 1.0000, 1.2000])
    """
    bound = 0.9 * log(torch.finfo(logp.dtype).max)
    ratio = (logp - old_logp).clamp(-bound, bound).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)


def k3(logp: torch.Tensor, base_logp: torch.Tensor) -> torch.Tensor:
    """The KL from the policy to the base, per token: exp(d) - d - 1 with d = base_logp - logp, elementwise, in nats.

    Unbiased if the present policy sampled the tokens, and never negative (Schulman, 2020). d is bounded at 20, where exp is
    5e8, so that a token of vanishing probability keeps the loss finite.

    >>> k3(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.5, 0.5]).log())
    tensor([0.0000, 0.3069])
    """
    d = (base_logp - logp).clamp(max=20)
    return d.expm1() - d


def probability(logp: torch.Tensor) -> torch.Tensor:
    """F(p) = p. dF/dlogp = p.

    >>> probability(torch.tensor([0.1, 0.5]).log())
    tensor([0.1000, 0.5000])
    """
    return logp.exp()


def sqrt(logp: torch.Tensor) -> torch.Tensor:
    """F(p) = sqrt(p). dF/dlogp = sqrt(p) / 2.

    >>> sqrt(torch.tensor([0.01, 0.25]).log())
    tensor([0.1000, 0.5000])
    """
    return (logp / 2).exp()


def log_probability(logp: torch.Tensor) -> torch.Tensor:
    """F(p) = log p: imitation by maximum likelihood. dF/dlogp = 1 is bounded. F is not, while the paper's is [R].

    >>> log_probability(torch.tensor([-4.0, -1.0]))
    tensor([-4., -1.])
    """
    return logp


def uncertain(logp: torch.Tensor) -> torch.Tensor:
    """F(p) = p - p^2 / 2. dF/dlogp = p (1 - p): the log-likelihood's gradient, weighted by the policy's uncertainty about the
    token.

    CHORD-phi's weight (arXiv 2508.11408): it hardly moves tokens with p near 0 or 1.

    >>> uncertain(torch.tensor([0.5, 1.0]).log())
    tensor([0.3750, 0.5000])
    """
    p = logp.exp()
    return p - p * p / 2


@dataclass(frozen=True)
class ratio:
    """F(p) = p / (p + lam): LUFFY's shaping. dF/dlogp = lam p / (p + lam)^2, at most 1/4, reached at p = lam.

    Written as sigmoid(log p - log lam), which is stable at any log p and goes to 0 with p.
    HAPO with this F is this kit's choice: the paper takes a bounded F with a bounded gradient [R].

    >>> ratio(0.1)(torch.tensor([0.1, 0.4]).log())
    tensor([0.5000, 0.8000])
    """

    lam: float = 0.1

    def __post_init__(self) -> None:
        if not (isfinite(self.lam) and self.lam > 0):
            raise ValueError(f"ratio: lambda is {self.lam}; it must be a positive number, such as 0.1.")

    def __call__(self, logp: torch.Tensor) -> torch.Tensor:
        """F of log-probabilities, elementwise."""
        return torch.sigmoid(logp - torch.log(torch.tensor(self.lam, dtype=logp.dtype, device=logp.device)))


SHAPINGS: dict[str, Shaping] = {
    "probability": probability, "ratio": ratio(0.1), "log_probability": log_probability, "sqrt": sqrt,
    "uncertain": uncertain}
"""By name, for the command line.

>>> SHAPINGS["sqrt"](torch.tensor(0.25).log())
tensor(0.5000)
"""


def shaped_surrogate(logp: torch.Tensor, advantages: torch.Tensor, shaping: Shaping = ratio(0.1)) -> torch.Tensor:
    """The teacher's per-token objective F(p) A, p the token's probability under the *current* policy.

    | shaping           | F(p)          | dF/dlogp           | as logp -> -inf   |
    |-------------------|---------------|--------------------|-------------------|
    | `probability`     | p             | p                  | 0, gradient 0     |
    | `ratio(lam)`      | p / (p + lam) | lam p / (p + lam)^2| 0, gradient 0     |
    | `sqrt`            | sqrt p        | sqrt(p) / 2        | 0, gradient 0     |
    | `log_probability` | log p         | 1                  | -inf, gradient 1  |
    | `uncertain`       | p - p^2 / 2   | p (1 - p)          | 0, gradient 0     |

    >>> shaped_surrogate(torch.tensor(0.4).log(), torch.tensor(2.0), shaping=ratio(0.1))
    tensor(1.6000)
    """
    return shaping(logp) * advantages


def slope(shaping: Shaping, logp: Sequence[float] | np.ndarray) -> np.ndarray:
    """dF/dlogp at each of some log-probabilities, by autograd, float64."""
    x = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(shaping(x).sum(), x)[0].numpy()


AGGREGATIONS = ("grpo", "bnpo", "dapo", "dr_grpo", "luffy")


def aggregation_weights(token_mask: torch.Tensor, aggregation: str = "dapo", max_length: int | None = None,
                        group_index: torch.Tensor | None = None) -> torch.Tensor:
    """The weight of each token's objective in the loss: a (B, T) tensor w, with loss = -sum(w * objective).

    | aggregation | objective                                | w of a token of sequence i      |
    |-------------|------------------------------------------|---------------------------------|
    | "grpo"      | mean of the sequences' means             | 1 / (B len_i)                   |
    | "bnpo"      | each group's sum / tokens, then the mean | 1 / (groups * the group's tokens)|
    | "dapo"      | sum / tokens of the whole batch          | 1 / tokens                      |
    | "dr_grpo"   | sum / (B max_length)                     | 1 / (B max_length)              |
    | "luffy"     | sum / max_length                         | 1 / max_length                  |

    The loss is linear in the tokens, so a batch may be split into pieces: compute w once, for the whole batch. TRL's "bnpo"
    divides by the tokens of the current piece of the batch; here the piece is the group, which is this kit's choice.

    Parameters
    ----------
    token_mask : (B, T) bool
        True on completion tokens, every sequence of the batch included, dead groups too.
    max_length : int
        The completion limit, for "dr_grpo" and "luffy".
    group_index : (B,) int
        The group of each sequence, for "bnpo"; default: one group.

    Examples
    --------
    >>> aggregation_weights(torch.tensor([[True, True], [True, False]]), "grpo")
    tensor([[0.2500, 0.2500],
            [0.5000, 0.0000]], dtype=torch.float64)
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation is {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}.")
    if aggregation in ("dr_grpo", "luffy") and not max_length:
        raise ValueError(f"aggregation {aggregation!r} divides by the completion limit: pass max_length.")
    mask = token_mask.double()
    tokens, sequences = mask.sum(1), len(mask)
    group = torch.zeros(sequences) if group_index is None else group_index
    if group.shape != (sequences,):
        raise ValueError(f"aggregation: group_index {tuple(group.shape)} does not fit {sequences} sequences.")
    of_one_group = (group[:, None] == group).to(mask)
    divisor = {"grpo": sequences * tokens,
               "bnpo": len(group.unique()) * (of_one_group @ tokens),
               "dapo": tokens.sum().expand(sequences),
               "dr_grpo": torch.tensor(sequences * (max_length or 1)).to(mask).expand(sequences),
               "luffy": torch.tensor(max_length or 1).to(mask).expand(sequences)}[aggregation]
    return mask / divisor.clamp(min=1)[:, None]


def hapo_loss(logp: torch.Tensor, old_logp: torch.Tensor, advantages: torch.Tensor, teacher_mask: torch.Tensor,
              token_mask: torch.Tensor, *, shaping: Shaping = ratio(0.1), eps_low: float = 0.2, eps_high: float = 0.2,
              aggregation: str = "dapo", max_length: int | None = None, group_index: torch.Tensor | None = None,
              weights: torch.Tensor | None = None, importance: torch.Tensor | None = None, sequence_ratio: bool = False,
              kl: float = 0.0, base_logp: torch.Tensor | None = None) -> tuple[torch.Tensor, dict[str, float]]:
    """The clipped and the shaped surrogate, joined by the teacher mask, aggregated, and negated.

    Parameters
    ----------
    logp, old_logp : (B, T)
        Log-probabilities of the completions' tokens under the present policy, and under the policy at the batch's start.
        `old_logp` is not read on teacher sequences, which use the present p in every inner epoch.
    advantages : (B,)
        One per sequence.
    teacher_mask : (B,) bool
    token_mask : (B, T) bool
        True on completion tokens. Values elsewhere, NaN included, change nothing.
    shaping, eps_low, eps_high : see `shaped_surrogate`, `clipped_surrogate`
    aggregation, max_length, group_index : see `aggregation_weights`
    weights : (B, T), optional
        Rows of the whole batch's `aggregation_weights`, when (B, T) is a piece of it.
    importance : (B, T), optional
        A truncated importance weight for tokens that another engine sampled; students only.
    sequence_ratio : bool
        True: rho is the sequence's ratio, the geometric mean of its tokens' ratios (GSPO, arXiv 2507.18071).
    kl, base_logp : float, (B, T)
        kl times k3 = exp(d) - d - 1, d = base_logp - logp, is subtracted from each student token's objective, after the clip
        (DeepSeekMath, arXiv 2402.03300). Only this needs `base_logp`.

    Returns
    -------
    loss : scalar to minimise, in logp's dtype
    metrics : dict of floats
        `loss`; `clip_fraction`, the share of student tokens whose gradient the clip cut; `ratio`, the students'
        mean rho; `teacher_logp`, the mean log-probability of teacher tokens. NaN where there are no such tokens.

    Examples
    --------
    A wrong student and the teacher, one token each:

    >>> logp = torch.tensor([[0.5], [0.1]]).log().requires_grad_()
    >>> loss, metrics = hapo_loss(logp, logp.detach(), advantages=torch.tensor([-1.0, 1.0]),
    ...                           teacher_mask=torch.tensor([False, True]), token_mask=torch.ones(2, 1))
    >>> loss.backward()
    >>> logp.grad                       # descending it takes from the student's token and gives to the teacher's
    tensor([[ 0.5000],
            [-0.1250]])
    """
    for name, tensor, shape in (("token_mask", token_mask, logp.shape), ("old_logp", old_logp, logp.shape),
                                ("weights", weights, logp.shape), ("importance", importance, logp.shape),
                                ("base_logp", base_logp, logp.shape),
                                ("advantages", advantages, logp.shape[:1]), ("teacher_mask", teacher_mask, logp.shape[:1])):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"hapo_loss: {name} {tuple(tensor.shape)} does not fit logp {tuple(logp.shape)}; "
                             f"it must be {tuple(shape)}.")
    token_mask = token_mask.bool()
    teacher = teacher_mask.bool()[:, None] & token_mask
    student = ~teacher_mask.bool()[:, None] & token_mask
    if weights is None:
        weights = aggregation_weights(token_mask, aggregation, max_length, group_index)
    logp = logp.masked_fill(~token_mask, 0)
    old_logp = torch.where(student, old_logp, logp.detach())
    a = advantages.to(logp.dtype)[:, None]
    moved = logp - old_logp  # log rho
    if sequence_ratio:
        moved = (moved.sum(1) / token_mask.sum(1).clamp(min=1))[:, None].expand_as(logp)

    clipped = clipped_surrogate(moved, torch.zeros_like(moved), a, eps_low, eps_high)
    if importance is not None:
        clipped = clipped * importance.masked_fill(~student, 1)
    if kl:
        if base_logp is None:
            raise ValueError("hapo_loss: a KL penalty needs the base's log-probabilities: pass base_logp.")
        clipped = clipped - kl * k3(logp, torch.where(student, base_logp, logp.detach()))
    objective = torch.where(teacher, shaped_surrogate(logp, a, shaping), clipped)
    loss = -(weights.to(logp.dtype) * objective.masked_fill(~token_mask, 0)).sum()

    with torch.no_grad():
        rho = moved.exp()
        cut = (rho > 1 + eps_high) & (a > 0) | (rho < 1 - eps_low) & (a < 0)
        metrics = {"loss": loss.item(), "clip_fraction": _mean(cut, student), "ratio": _mean(rho, student),
                   "teacher_logp": _mean(logp, teacher)}
    return loss, metrics


def _mean(values: torch.Tensor, where: torch.Tensor) -> float:
    return values[where].double().mean().item()

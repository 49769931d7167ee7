"""A step's groups as tensors, and rollouts in packs that fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from hapo_lab.engines.protocol import EngineError, Sampling
from hapo_lab.methods import Method
from hapo_lab.policy.logprobs import length_mask
from hapo_lab.ssi import Group, Rollout, known


@dataclass(frozen=True)
class Rows:
    """Rollouts of several prompts; a row is a rollout, in the order of the prompts."""

    prompts: list[list[int]]
    rollouts: list[Rollout]
    group_of: list[int]
    """The prompt of each row."""

    @classmethod
    def of(cls, prompts: list[list[int]], groups: Sequence[Sequence[Rollout]]) -> Rows:
        """The rollouts of groups in one list, each with the number of its prompt."""
        return cls(prompts, [r for group in groups for r in group], [i for i, group in enumerate(groups) for _ in group])

    def packs(self, some: Iterable[int], token_budget: int) -> list[list[int]]:
        """Some rows in packs of at most `token_budget` tokens, with a prompt counted once per pack. A longer rollout, with
        its prompt, is a pack alone."""
        packs: list[list[int]] = []
        used = 0
        for i in some:
            completion, prompt = len(self.rollouts[i].ids), len(self.prompts[self.group_of[i]])
            more = completion if packs and self.group_of[packs[-1][-1]] == self.group_of[i] else prompt + completion
            if packs and used + more <= token_budget:
                packs[-1].append(i)
                used += more
            else:
                packs.append([i])
                used = prompt + completion
        return packs

    def tokens(self, pack: list[int]) -> int:
        """Of a pack's rows, with a prompt counted once."""
        prompts, completions = self.of_pack(pack)
        return sum(map(len, prompts)) + sum(len(ids) for group in completions for ids in group)

    def of_pack(self, pack: list[int]) -> tuple[list[list[int]], list[list[tuple[int, ...]]]]:
        """Prompts and, for each, the completions of a pack's rows."""
        groups = list(dict.fromkeys(self.group_of[i] for i in pack))
        completions = [[self.rollouts[i].ids for i in pack if self.group_of[i] == g] for g in groups]
        return [self.prompts[g] for g in groups], completions


@dataclass(frozen=True)
class Batch:
    """The groups of an update as tensors."""

    method: Method
    """What the loss is made by."""
    rows: Rows
    advantages: torch.Tensor
    """(B,) float32"""
    teacher: torch.Tensor
    """(B,) bool"""
    token_mask: torch.Tensor
    """(B, T) bool"""
    weights: torch.Tensor
    """(B, T): the weight of a token's objective in the loss of the whole batch, dead groups included"""
    entropy_weights: torch.Tensor
    """(B, T): the weight of a token's entropy in the tokens' mean entropy"""
    engine_logp: torch.Tensor
    """(B, T): 0 where the engine gave none"""
    measured: torch.Tensor
    """(B,) bool: rows whose engine gave log-probabilities; never the teacher's"""
    live: torch.Tensor
    """(B,) bool: rows that carry a gradient. An advantage of 0 carries none, without an entropy bonus or a KL penalty."""
    base_logp: torch.Tensor
    """(B, T), of the students' tokens under the base; 0 unless the method has a KL penalty."""

    @property
    def trained(self) -> torch.Tensor:
        """(B, T) bool: the live rows' tokens."""
        return self.token_mask & self.live[:, None]

    @classmethod
    def of(cls, groups: list[Group], prompts: list[list[int]], method: Method, sampling: Sampling) -> Batch:
        """EngineError where an engine gave log-probabilities for some of a rollout's tokens and not for all."""
        rows = Rows.of(prompts, [g.rollouts for g in groups])
        mask = length_mask([len(r.ids) for r in rows.rollouts])
        engine_logp = torch.zeros(mask.shape)
        for i, r in enumerate(rows.rollouts):
            if len(r.engine_logps) not in (0, len(r.ids)):
                raise EngineError(f"the engine gave {len(r.engine_logps)} log-probabilities for the {len(r.ids)} tokens of a "
                                  f"completion of problem {groups[rows.group_of[i]].problem.key!r}; it must give one a token, "
                                  "or none at all")
            engine_logp[i, :len(r.engine_logps)] = torch.tensor(r.engine_logps)
        advantages = torch.cat([known(g.advantages) for g in groups]).float()
        teacher = torch.tensor([r.teacher for r in rows.rollouts])
        group_of = torch.tensor(rows.group_of)
        counted = method.learns_from(teacher, group_of)
        tokens = mask & counted[:, None]
        return cls(method, rows, advantages, teacher, mask, method.weights(mask, teacher, sampling.max_new_tokens, group_of),
                   tokens / tokens.sum().clamp(min=1), engine_logp, torch.tensor([bool(r.engine_logps) for r in rows.rollouts]),
                   (advantages != 0) | counted & (method.entropy_bonus != 0) | counted & ~teacher & (method.kl != 0),
                   torch.zeros(mask.shape))

    def packs(self, token_budget: int) -> list[list[int]]:
        """The live rows in packs, see `Rows.packs`; the teacher's rows first."""
        return [pack for who in (self.teacher, ~self.teacher)
                for pack in self.rows.packs((self.live & who).nonzero()[:, 0].tolist(), token_budget)]

"""A step's groups as tensors, and their rollouts in packs that fit into memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hapo_lab.logprobs import length_mask
from hapo_lab.loss import aggregation_weights
from hapo_lab.methods import Method
from hapo_lab.rollouts import Sampling
from hapo_lab.ssi import Group, Rollout


@dataclass(frozen=True)
class Batch:
    """Groups as tensors; a row is a rollout, in the order of the groups."""

    prompts: list[list[int]]
    rows: list[Rollout]
    group_of: list[int]
    advantages: torch.Tensor
    """(B,) float32"""
    teacher: torch.Tensor
    """(B,) bool"""
    token_mask: torch.Tensor
    """(B, T) bool"""
    weights: torch.Tensor
    """(B, T): of the whole batch, dead groups included"""
    engine_logp: torch.Tensor
    """(B, T): 0 on the teacher's rows"""
    live: torch.Tensor
    """(B,) bool: rows that carry a gradient. An advantage of 0 carries none, unless there is an entropy bonus."""

    @property
    def trained(self) -> torch.Tensor:
        """(B, T) bool: the live rows' tokens."""
        return self.token_mask & self.live[:, None]

    @classmethod
    def of(cls, groups: list[Group], prompts: list[list[int]], method: Method, sampling: Sampling) -> Batch:
        rows = [r for g in groups for r in g.rollouts]
        group_of = [i for i, g in enumerate(groups) for _ in g.rollouts]
        mask = length_mask([len(r.ids) for r in rows])
        engine_logp = torch.zeros(mask.shape)
        for i, r in enumerate(rows):
            engine_logp[i, :len(r.engine_logps)] = torch.tensor(r.engine_logps)
        advantages = torch.cat([g.advantages for g in groups]).float()
        return cls(prompts, rows, group_of, advantages, torch.tensor([r.teacher for r in rows]), mask,
                   aggregation_weights(mask, method.aggregation, sampling.max_new_tokens, torch.tensor(group_of)),
                   engine_logp, (advantages != 0) | (method.entropy_bonus != 0))

    def packs(self, token_budget: int) -> list[list[int]]:
        """The live rows in packs of about `token_budget` tokens, a prompt counted once a pack; the teacher's rows first."""
        packs: list[list[int]] = []
        for teacher in (True, False):
            pack, used = [], 0
            for i in range(len(self.rows)):
                if not self.live[i] or bool(self.teacher[i]) is not teacher:
                    continue
                g = self.group_of[i]
                prompt = 0 if pack and self.group_of[pack[-1]] == g else len(self.prompts[g])
                if pack and used + prompt + len(self.rows[i].ids) > token_budget:
                    packs.append(pack)
                    pack, used, prompt = [], 0, len(self.prompts[g])
                pack.append(i)
                used += prompt + len(self.rows[i].ids)
            packs += [pack] if pack else []
        return packs

    def of_pack(self, pack: list[int]) -> tuple[list[list[int]], list[list[tuple[int, ...]]]]:
        """Prompts and, for each, the completions of a pack's rows."""
        groups = list(dict.fromkeys(self.group_of[i] for i in pack))
        return [self.prompts[g] for g in groups], [[self.rows[i].ids for i in pack if self.group_of[i] == g] for g in groups]

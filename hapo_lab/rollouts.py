"""Sampling completions: the engine protocol, and the engine that uses transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from peft.tuners.lora import LoraLayer
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from hapo_lab.models import Policy


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. The default is plain: the policy's own distribution."""

    max_new_tokens: int = 32
    """A completion that reaches this length without an end-of-turn token is cut, and scores 0."""
    temperature: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    top_p: float = 1.0
    """1: all tokens."""

    def __post_init__(self):
        if self.max_new_tokens < 1 or not self.temperature > 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: max_new_tokens must be at least 1, temperature positive, top_k at least 0, "
                             "top_p in (0, 1].")


@dataclass(frozen=True)
class Completion:
    """What an engine returns for one sample."""

    ids: tuple[int, ...]
    """Its tokens, the end-of-turn token included if it was reached."""
    text: str
    """Decoded, without special tokens."""
    logps: tuple[float, ...]
    """The engine's log-probability of each token, under the distribution it sampled from."""
    finished: bool
    """False: cut at the length limit."""


class EngineError(RuntimeError):
    """An engine can't answer, in words. The policy is as it was."""


class Engine(Protocol):
    """Whatever draws completions from the present policy."""

    name: str
    """For the reader of run.json."""

    def sync(self) -> None:
        """Take over the policy's present weights."""

    def sleep(self) -> None:
        """Let go of what only sampling needs, until the next `sync`: an update follows, and wants the memory."""

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> list[list[Completion]]:
        """n completions for each prompt (token ids), in order; the same seed gives the same completions."""


class TransformersEngine:
    """`generate` of transformers, each prompt read once for its n completions.

    Parameters
    ----------
    policy : Policy
    own_copy : bool, optional
        True: sample from a copy of the base that `sync` dequantises, with the adapter merged in where the copy is float32
        (exact to rounding), beside it where fewer digits would swallow small updates. Saves unpacking 4 bits for every
        token; costs memory, until `sleep`. False: sample from the policy itself. Default: True on a CPU.
    """

    name = "transformers"

    def __init__(self, policy: Policy, own_copy: bool | None = None):
        self.policy = policy
        self.own_copy = policy.device.type == "cpu" if own_copy is None else own_copy
        self.merged = policy.model.dtype == torch.float32
        self.model = _plain(policy, self.merged) if self.own_copy else policy.model
        self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        for name, lora in self._copied():
            weight = dequantised_weight(lora)
            if self.merged:
                weight = weight + lora.get_delta_weight("default")
            self._put(name, weight)

    def sleep(self) -> None:
        for name, lora in self._copied():
            self._put(name, torch.empty(lora.out_features, lora.in_features, device="meta"))

    def _copied(self) -> list[tuple[str, LoraLayer]]:
        """The adapted layers whose weights it has of its own, each by the name of the copy's."""
        base = self.policy.model.get_base_model()
        own = "" if self.merged else ".base_layer"
        return [(name + own, m) for name, m in base.named_modules() if isinstance(m, LoraLayer)] if self.own_copy else []

    def _put(self, name: str, weight: torch.Tensor) -> None:
        self.model.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> list[list[Completion]]:
        longest = max(map(len, prompts))
        if longest + sampling.max_new_tokens > self.policy.context:
            raise ValueError(f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed the context of "
                             f"{self.policy.name} ({self.policy.context} tokens): shorten the prompt or the completion.")
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise EngineError("the engine is asleep: sync comes first")
        tokenizer, device = self.policy.tokenizer, self.model.device
        padded = tokenizer.pad({"input_ids": [list(p) for p in prompts]}, padding_side="left", return_tensors="pt").to(device)
        cache = DynamicCache(config=self.model.config)
        if longest > 1:  # all but the last token, once a prompt; generate reads the last one itself
            positions = (padded.attention_mask.cumsum(-1) - 1).clamp(min=0)
            self.model(input_ids=padded.input_ids[:, :-1], attention_mask=padded.attention_mask[:, :-1],
                       position_ids=positions[:, :-1], past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(n)
        sampler = _Sampler(seed, device)
        warpers = LogitsProcessorList([*_warpers(sampling), sampler])
        out = self.model.generate(
            input_ids=padded.input_ids.repeat_interleave(n, 0), attention_mask=padded.attention_mask.repeat_interleave(n, 0),
            past_key_values=cache, max_new_tokens=sampling.max_new_tokens, do_sample=False, num_beams=1,
            temperature=None, top_k=None, top_p=None, logits_processor=warpers,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        logps = torch.stack(sampler.logps, 1).tolist()
        completions = [self._completion(ids, lp) for ids, lp in zip(out[:, longest:].tolist(), logps, strict=True)]
        return [completions[i * n:(i + 1) * n] for i in range(len(prompts))]

    def _completion(self, ids: list[int], logps: list[float]) -> Completion:
        tokenizer = self.policy.tokenizer
        finished = tokenizer.eos_token_id in ids
        length = ids.index(tokenizer.eos_token_id) + 1 if finished else len(ids)
        text = tokenizer.decode(ids[:length], skip_special_tokens=True)
        return Completion(tuple(ids[:length]), text, tuple(logps[:length]), finished)


class _Sampler(LogitsProcessor):
    """Draws each token by inverting the cumulative distribution at a uniform number, and writes down its log-probability.

    All other tokens go to -inf, so that `generate` has no choice left. Its own generator makes the draw a function of
    the seed; and on a CPU it takes a tenth of `torch.multinomial`'s time over a vocabulary of 49k.
    """

    def __init__(self, seed: int, device: torch.device):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.logps: list[torch.Tensor] = []

    def __call__(self, input_ids, scores):
        logp = scores.float().log_softmax(-1)
        cumulative = logp.exp().cumsum(-1)
        u = torch.rand(len(scores), 1, generator=self.generator, device=scores.device)
        token = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        self.logps.append(logp.gather(1, token)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def _warpers(sampling: Sampling):
    if sampling.temperature != 1:
        yield lambda _, scores: scores / sampling.temperature
    if sampling.top_k:
        yield TopKLogitsWarper(sampling.top_k)
    if sampling.top_p < 1:
        yield TopPLogitsWarper(sampling.top_p)


def _plain(policy: Policy, merged: bool) -> torch.nn.Module:
    """A copy of the base in which plain layers, their weights still to come, stand in for adapted ones (`merged`), or for the
    base layers under the adapter; all else is shared."""
    base = policy.model.get_base_model()
    stand_in = {id(p): p for p in base.parameters() if not _is_quantized(p)}
    for module in base.modules():
        if isinstance(module, LoraLayer):
            stand_in[id(module if merged else module.get_base_layer())] = _unpacked(module)
    return deepcopy(base, memo=stand_in).eval()


def _unpacked(layer: LoraLayer) -> torch.nn.Module:
    """The base layer of a LoRA layer, of the class that reads its weight unpacked."""
    base = layer.get_base_layer()
    if not _is_quantized(base.weight):
        return deepcopy(base, memo={id(p): p for p in base.parameters()})
    linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.bias = base.bias
    return linear


def _is_quantized(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "quant_state")


def dequantised_weight(layer: LoraLayer) -> torch.Tensor:
    """The base weight of a LoRA layer as the layer computes with it; its own memory where it is not quantized."""
    return dequantised(layer.get_base_layer().weight)


def dequantised(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A parameter's values; its own memory where it is not quantized."""
    if not _is_quantized(parameter):
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit
    return dequantize_4bit(parameter.data, parameter.quant_state)

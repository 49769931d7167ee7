"""The engine that samples from the transformers model, with its own decoding loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import product
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from hapo_lab.engines.protocol import Completion, EngineError, Sampling, completion
from hapo_lab.policy.decoder import Model
from hapo_lab.policy.memory import Shape, memory_available, row_bytes
from hapo_lab.policy.policy import Policy
from hapo_lab.policy.weights import dequantised_weight, is_quantized, shape_of

TIDY = 64
"""Tokens after which what has ended leaves its batch: short answers never pay for the copy of the cache."""
Lora = Any
"""A `LoraLayer`. (Not all that its kinds have in common is declared there.)"""


class TransformersEngine:
    """The policy's model, token by token, each prompt read once for its n completions.

    Its own loop replaces transformers' `generate`, which takes every unstated option from the model's generation_config:
    penalties, forced and suppressed tokens, time limits.

    Parameters
    ----------
    policy : Policy
    own_copy : bool, optional
        True: sample from a copy of the base that `sync` dequantises, with the adapter merged in where the copy is float32
        (exact to rounding), beside it where fewer digits would swallow small updates. Saves unpacking 4 bits for every
        token; costs memory, until `sleep`. False: sample from the policy itself. Default: True on a CPU.
    memory : int, optional
        Bytes for keys, values and logits. They decide how many completions are sampled together, and not which. Default: half
        of the free memory.

    Examples
    --------
    >>> policy = load_policy("tiny")
    >>> prompt = policy.tokenizer.encode("What is 27 + 58?")
    >>> (completions,) = TransformersEngine(policy).generate([prompt], n=4, sampling=Sampling(max_new_tokens=8), seed=0)
    >>> len(completions), all(len(c.ids) == len(c.logps) <= 8 for c in completions)
    (4, True)
    """

    name = "transformers"

    def __init__(self, policy: Policy, own_copy: bool | None = None, memory: int | None = None):
        self.policy, self.memory = policy, memory
        self.own_copy = policy.device.type == "cpu" if own_copy is None else own_copy
        self.merged = policy.model.dtype == torch.float32
        self.model: Model = _plain(policy, self.merged) if self.own_copy else policy.model
        self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """See `Engine`: the copy's adapted layers get the policy's weights, dequantised."""
        for name, lora in self._copied():
            weight = torch.empty(shape_of(lora.get_base_layer().weight), dtype=self.model.dtype, device=self.model.device)
            weight.copy_(dequantised_weight(lora))  # made first, it leaves no hole where the unpacked one was
            if self.merged:
                weight += lora.get_delta_weight("default")
            self._put(name, weight)

    def sleep(self) -> None:
        """See `Engine`: the copy's adapted layers give up their memory."""
        for name, lora in self._copied():
            self._put(name, torch.empty(lora.out_features, lora.in_features, device="meta"))

    def _copied(self) -> list[tuple[str, Lora]]:
        """The adapted layers whose weights it has of its own, each by the name of the copy's."""
        base = self.policy.model.get_base_model()
        own = "" if self.merged else ".base_layer"
        return [(name + own, m) for name, m in base.named_modules() if isinstance(m, LoraLayer)] if self.own_copy else []

    def _put(self, name: str, weight: torch.Tensor) -> None:
        self.model.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> list[list[Completion]]:
        """See `Engine`. ValueError if a prompt and its completion exceed the policy's context."""
        longest = max(map(len, prompts))
        if longest + sampling.max_new_tokens > self.policy.context:
            raise ValueError(f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed the context of "
                             f"{self.policy.name} ({self.policy.context} tokens): shorten the prompt or the completion.")
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise EngineError("the engine is asleep: sync comes first")
        memory = self.memory or memory_available(self.policy.device) // 2
        row = row_bytes(Shape.of(self.model.config), longest + sampling.max_new_tokens, self.model.dtype.itemsize)
        room = max(memory // row, 1)
        together, k = max(room // n, 1), min(n, room)
        groups: list[list[Completion]] = [[] for _ in prompts]
        for first, start in product(range(0, len(prompts), together), range(0, n, k)):
            some = range(first, min(first + together, len(prompts)))
            samples = range(start, min(start + k, n))
            rows = torch.tensor([i * n + j for i in some for j in samples], device=self.model.device)
            drawn = self._sample([prompts[i] for i in some], len(samples), sampling, _uniforms(len(prompts) * n, rows, seed))
            for i, place in zip(some, range(0, len(drawn), len(samples)), strict=True):
                groups[i] += drawn[place:place + len(samples)]
        return groups

    def _sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling,
                uniforms: Iterator[torch.Tensor]) -> list[Completion]:
        """n completions of each prompt, in one batch; what has ended leaves it now and then."""
        ends, device = torch.tensor(self.policy.ends, device=self.model.device), self.model.device
        ids = _padded([torch.tensor(prompt) for prompt in prompts]).to(device)
        mask = _padded([torch.ones(len(prompt), dtype=torch.long) for prompt in prompts]).to(device)
        cache = _cache(self.model.config, ids.shape[1] + sampling.max_new_tokens)
        if ids.shape[1] > 1:  # all but the last token, once a prompt
            self._read(ids[:, :-1], mask[:, :-1], cache)
            cache.batch_repeat_interleave(n)
        token, mask = ids[:, -1:].repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        rows, ended = torch.arange(len(token), device=device), torch.zeros_like(token, dtype=torch.bool)
        tokens = token.new_zeros(len(token), sampling.max_new_tokens)
        logps = torch.zeros(tokens.shape, device=device)
        for step in range(sampling.max_new_tokens):
            if step and step % TIDY == 0 and ended.any():
                going = (~ended[:, 0]).nonzero()[:, 0]
                cache.batch_select_indices(going)
                token, mask, rows, ended = token[going], mask[going], rows[going], ended[going]
            logp = (self._read(token, mask, cache).float() / sampling.temperature).log_softmax(-1)
            token = _draw(logp, next(uniforms)[rows])
            tokens[rows, step], logps[rows, step] = token[:, 0], logp.gather(1, token)[:, 0]
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            ended |= torch.isin(token, ends)
            if ended.all():
                break
        return [self._completion(*row) for row in zip(tokens.tolist(), logps.tolist(), strict=True)]

    def _read(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The next token's (B, V) logits, after some more tokens of each row; the mask is over all of its tokens so far."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1]:]
        return self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                          logits_to_keep=1).logits[:, -1]

    def _completion(self, ids: list[int], logps: list[float]) -> Completion:
        """A row that ended went on with the others: what comes after its end is no part of it."""
        length = next((i for i, token in enumerate(ids, 1) if token in self.policy.ends), len(ids))
        return completion(self.policy, ids[:length], logps[:length])


class _GrowingLayer(DynamicLayer):
    """A layer's keys and values, (B, heads, T, D) each, with room for more tokens: at most `longest`.

    transformers' own layer copies all of them for each token, which takes the square of an answer's length.
    """

    def __init__(self, longest: int):
        super().__init__()
        self.longest = longest
        self.rooms: list[torch.Tensor] = []

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, the new ones last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new, held = (key_states, value_states), self.get_seq_length()
        length = held + key_states.shape[-2]
        if not self._has_room(length):
            old = (self.keys, self.values)
            self.rooms = [x.new_empty(*x.shape[:2], min(2 * length, self.longest), x.shape[-1]) for x in new]
            if held:
                self._put(0, held, old)
        self._put(held, length, new)
        self.keys, self.values = (room[:, :, :length] for room in self.rooms)
        return self.keys, self.values

    def _put(self, start: int, end: int, pair: tuple[Any, Any]) -> None:
        for room, x in zip(self.rooms, pair, strict=True):
            room[:, :, start:end] = x

    def _has_room(self, length: int) -> bool:
        """False too where rows have been repeated or selected: then keys and values lie elsewhere."""
        keys: Any = self.keys
        return bool(self.rooms) and self.rooms[0].data_ptr() == keys.data_ptr() and self.rooms[0].shape[2] >= length


def _cache(config: PreTrainedConfig, longest: int) -> DynamicCache:
    """Empty; a layer that forgets (a window's, a state's) stays transformers'."""
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    """On the left, so that all rows go on at the same place."""
    return pad_sequence(rows, batch_first=True, padding_side="left")


def _uniforms(total: int, rows: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """Token by token the (B, 1) uniform numbers of some of so many rows: the same, whatever rows are drawn together."""
    generator = torch.Generator(rows.device).manual_seed(seed)
    while True:
        yield torch.rand(total, 1, generator=generator, device=rows.device)[rows]


def _draw(logp: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """(B, 1) tokens: the cumulative distribution, inverted at a (B, 1) uniform number.

    A generator of its own makes a draw a function of the seed; and on a CPU this takes a tenth of `torch.multinomial`'s time
    over a vocabulary of 49k.
    """
    cumulative = logp.exp().cumsum(-1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(max=logp.shape[-1] - 1)


def _plain(policy: Policy, merged: bool) -> torch.nn.Module:
    """A copy of the base in which plain layers, their weights still to come, stand in for adapted ones (`merged`), or for the
    base layers under the adapter; all else is shared."""
    base = policy.model.get_base_model()
    stand_in: dict[int, Any] = {id(p): p for p in base.parameters() if not is_quantized(p)}
    for module in base.modules():
        if isinstance(module, LoraLayer):
            stand_in[id(module if merged else module.get_base_layer())] = _unpacked(module)
    return deepcopy(base, memo=stand_in).eval()


def _unpacked(layer: Lora) -> torch.nn.Module:
    """The base layer of a LoRA layer, of the class that reads its weight unpacked."""
    base = layer.get_base_layer()
    if not is_quantized(base.weight):
        return deepcopy(base, memo={id(p): p for p in base.parameters()})
    linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.bias = base.bias
    return linear

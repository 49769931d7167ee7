"""Token log-probabilities: never a (batch, length, vocabulary) tensor, and each prompt read once for its group."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from hapo_lab.policy.decoder import Head, Model, attention_masks, causal_lm, checkpointing
from hapo_lab.policy.memory import CHUNK, Shape

SHORT = 512
"""Tokens up to which a mask costs nothing, and one sequence is best."""


class _LogProbs(torch.autograd.Function):
    """A token's log-probability is one number, so its gradient in the token's hidden state is one row. With g_j the slope of
    logit j in W_j h (the head's scale, times 1 - tanh^2 under a cap, over the temperature):

        d logp(y) / dh = g_y W_y - sum_j p_j g_j W_j          dH / dh = -sum_j p_j (log p_j + H) g_j W_j

    Computed while the logits are at hand, the rows replace the logits, and backward is a multiplication.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: Head, targets: torch.Tensor, temperature: float,
                with_entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
        logps, entropies, rows, entropy_rows = [], [], [], []
        for h, y in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits, slope = _logits(h, head)
            logits.div_(temperature)
            logits -= logits.logsumexp(-1, keepdim=True)
            logps.append(logits.gather(1, y[:, None])[:, 0])
            p = logits.exp()
            entropies.append(-torch.einsum("tv,tv->t", p, logits))
            if ctx.needs_input_grad[0]:
                of_y = head.weight[y] if slope is None else head.weight[y] * slope.gather(1, y[:, None]).to(h.dtype)
                rows.append((of_y - _through_head(p, slope, head)) * (head.scale / temperature))
                if with_entropy:
                    weighted = p.mul_(logits.add_(entropies[-1][:, None]))
                    entropy_rows.append(_through_head(weighted, slope, head) * (-head.scale / temperature))
        ctx.save_for_backward(torch.cat(rows) if rows else None, torch.cat(entropy_rows) if entropy_rows else None)
        return torch.cat(logps), torch.cat(entropies)

    @staticmethod
    def backward(ctx: Any, grad_logp: torch.Tensor, grad_entropy: torch.Tensor) -> tuple:
        rows, entropy_rows = ctx.saved_tensors
        grad = grad_logp[:, None].to(rows.dtype) * rows
        if entropy_rows is not None:
            grad = grad + grad_entropy[:, None].to(rows.dtype) * entropy_rows
        return grad, None, None, None, None


def _logits(h: torch.Tensor, head: Head) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(T, V) float32 logits, and 1 - tanh^2 under a cap, else None."""
    logits = torch.nn.functional.linear(h, head.weight, head.bias).float().mul_(head.scale)
    if head.softcap is None:
        return logits, None
    tanh = logits.div_(head.softcap).tanh_()
    return tanh * head.softcap, 1 - tanh.square()


def _through_head(weights: torch.Tensor, slope: torch.Tensor | None, head: Head) -> torch.Tensor:
    """sum_j weights_j slope_j W_j for each token."""
    return (weights if slope is None else weights * slope).to(head.weight.dtype) @ head.weight


def head_logprobs(hidden: torch.Tensor, head: Head, targets: torch.Tensor, temperature: float = 1.0,
                  entropy_gradient: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `targets`, and the entropy of each distribution, from hidden states, in chunks.

    Parameters
    ----------
    hidden : (T, D)
    head : Head
        Of a vocabulary of V.
    targets : (T,) long
    temperature : float
        Logits are divided by it.
    entropy_gradient : bool
        Whether the entropy carries a gradient too (one more product with the head).

    Returns
    -------
    logp, entropy : (T,) float32
    """
    return _LogProbs.apply(hidden, head, targets, temperature, entropy_gradient)


def completion_logprobs(model: Model, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]],
                        temperature: float = 1.0, entropy_gradient: bool = False, checkpoint: bool = False,
                        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of completions, each prompt read once for all completions of its group.

    Everything lies in one sequence: a prompt, its completions, the next prompt, ... Each token sees its own prompt and
    its own completion, at the position that it would have alone. So a group costs P + sum(C_i) tokens instead of
    N P + sum(C_i), nothing is padded, and the 4-bit weights are unpacked once. But its attention costs the square of all
    these tokens, and a mask of that size. Long completions get a row each, after their prompt, if that is less work
    (`rows_pay`). There the causal mask is enough, and its kernels take memory in proportion to a row's length.

    Parameters
    ----------
    model : PeftModel or a transformers causal LM
    prompts : token ids, one sequence per group
    completions : for each prompt, the token ids of its completions, none of them empty
    temperature, entropy_gradient
        See `head_logprobs`.
    checkpoint : bool
        Keep only each layer's input for the backward pass: a few times less memory, for one more forward pass.

    Returns
    -------
    logp, entropy : (B, longest completion) float32, all groups' completions in order; 0 beyond a completion's end
    token_mask : (B, longest completion) bool
    """
    layout = _in_rows if rows_pay(Shape.of(model.config), prompts, completions) else _packed
    with checkpointing(model) if checkpoint else nullcontext():
        hidden = layout(model, prompts, completions)

    head = Head.of(model)
    ids = torch.tensor([token for group in completions for c in group for token in c], device=model.device)
    logp, entropy = head_logprobs(hidden.to(head.weight.dtype), head, ids, temperature, entropy_gradient)
    token_mask = length_mask([len(c) for group in completions for c in group]).to(model.device)
    padded = torch.zeros(token_mask.shape, device=model.device)
    return padded.masked_scatter(token_mask, logp), padded.masked_scatter(token_mask, entropy), token_mask


def rows_pay(shape: Shape, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> bool:
    """Whether a row per completion is less work than one sequence. Never for short sequences.

    >>> shape = Shape(layers=30, hidden=576, inner=1536, queries=576, keys=192, vocabulary=49_152)
    >>> [rows_pay(shape, [[0] * 50], [[[0] * length] * 4]) for length in (24, 256, 512)]
    [False, False, True]
    """
    whole = sum(len(prompt) + sum(map(len, group)) for prompt, group in zip(prompts, completions, strict=True))
    rows = [len(prompt) + len(c) for prompt, group in zip(prompts, completions, strict=True) for c in group]
    longest = max(rows)
    return whole > SHORT and shape.work(len(rows) * longest, len(rows) * longest**2 // 2) < shape.work(whole, whole**2)


def _packed(model: Model, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
    """(T, D): the hidden state that predicts each token of the completions, from one sequence of everything."""
    pieces, places, prompt_of, owner_of, predicting = (list[int]() for _ in range(5))
    start = owner = 0
    for g, (prompt, group) in enumerate(zip(prompts, completions, strict=True)):
        last_of_prompt = start + len(prompt) - 1
        for piece in (prompt, *group):
            offset = 0 if piece is prompt else len(prompt)
            pieces += piece
            places += range(offset, offset + len(piece))
            prompt_of += [g] * len(piece)
            owner_of += [-1 if piece is prompt else owner] * len(piece)
            if piece is not prompt:  # the prompt's last token predicts the first one, and each token the next
                predicting += [last_of_prompt, *range(start, start + len(piece) - 1)]
                owner += 1
            start += len(piece)
    ids, positions, groups, owners, before = (
        torch.tensor(x, device=model.device) for x in (pieces, places, prompt_of, owner_of, predicting))
    visible = (groups[None] == groups[:, None]) & ((owners[None] == -1) | (owners[None] == owners[:, None])).tril()
    masks = attention_masks(model.config, visible, positions, model.dtype)
    return _hidden(model, ids[None], positions[None], masks, before)


def _in_rows(model: Model, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
    """(T, D): the same from a row per completion, after its prompt. What pads a row stands at its end, where nobody sees it."""
    pairs = [(prompt, c) for prompt, group in zip(prompts, completions, strict=True) for c in group]
    rows = [torch.tensor([*prompt, *c], device=model.device) for prompt, c in pairs]
    ids = pad_sequence(rows, batch_first=True)
    positions = torch.arange(ids.shape[1], device=model.device).expand_as(ids)
    before = [i * ids.shape[1] + len(prompt) - 1 + j for i, (prompt, c) in enumerate(pairs) for j in range(len(c))]
    return _hidden(model, ids, positions, None, torch.tensor(before, device=model.device))


def _hidden(model: Model, ids: torch.Tensor, positions: torch.Tensor, masks: Any, chosen: torch.Tensor) -> torch.Tensor:
    """(T, D) hidden states, at some places of all rows in a line."""
    found = causal_lm(model).base_model(input_ids=ids, position_ids=positions, attention_mask=masks, use_cache=False)
    return found.last_hidden_state.flatten(0, 1).index_select(0, chosen)  # indexing adds up its gradients in no fixed order


def length_mask(lengths: Sequence[int]) -> torch.Tensor:
    """(B, max length) bool, row i True on its first lengths[i] places."""
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]

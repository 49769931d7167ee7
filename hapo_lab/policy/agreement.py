"""Checks that log-probabilities agree: the kit's with the model's own, and an engine's with the kit's."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from hapo_lab.policy.decoder import Head, Model, narrow_window, refusal
from hapo_lab.policy.logprobs import completion_logprobs

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.2}
"""The mean |difference of log p|, in nats, that rounding explains, by the dtype that the model computes in."""
COMPARED = 256
"""An engine's tokens that are compared, at most."""


@torch.no_grad()
def verify(model: Model, name: str) -> float:
    """Compute random rollouts in a pack, in train mode, and by the model itself, in eval mode. The model stays in eval mode.

    Returns the mean difference of their log-probabilities, in nats. ValueError: rounding does not explain it, or the model
    can't compute a pack.
    """
    draw, vocabulary = random.Random(0), model.config.get_text_config().vocab_size
    tokens = lambda n: [draw.randrange(vocabulary) for _ in range(n)]  # noqa: E731
    prompts, completions = [tokens(6), tokens(3)], [[tokens(12), tokens(9)], [tokens(7)]]
    Head.of(model)
    try:
        with narrow_window(model.config, 4):
            model.train()
            packed, _, mask = completion_logprobs(model, prompts, completions)
            model.eval()
            alone = _alone(model, [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group])
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise refusal(name, f"it can't compute rollouts in a pack ({type(error).__name__}: {why})") from error
    gap, tolerance = (packed[mask] - alone).abs().mean().item(), TOLERANCE[model.dtype]
    if not gap <= tolerance:  # NaN included
        raise refusal(name, f"those of random tokens differ by {gap:.2g} on average from its own, and rounding in "
                            f"{_dtype(model)} explains {tolerance:g}")
    return gap


def _alone(model: Model, rollouts: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """By the model's logits. What fills a row up to the longest one's end comes after all that counts."""
    rows = [torch.tensor(prompt + completion) for prompt, completion in rollouts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    logp = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    return torch.cat([logp[i, len(p) - 1:len(p) + len(c) - 1].gather(1, ids[i, len(p):len(p) + len(c), None])[:, 0]
                      for i, (p, c) in enumerate(rollouts)])


@torch.no_grad()
def engine_gap(model: Model, prompts: Sequence[Sequence[int]], drawn: Sequence[Sequence], temperature: float) -> float | None:
    """Mean |log p of the trainer - log p of the engine| over an engine's first tokens, `COMPARED` at most.

    Parameters
    ----------
    model : PeftModel or a transformers causal LM
    prompts : token ids
    drawn : for each prompt, what the engine drew: (token ids, the engine's log-probabilities of them) for each completion
    temperature : float
        That they were drawn at.

    Returns
    -------
    float, or None if there is nothing to compare
    """
    left, differences = COMPARED, []
    for prompt, completions in zip(prompts, drawn, strict=True):  # a pass a group: a step may hold many long prompts
        kept = []
        for ids, logps in completions:
            if ids and logps and left > 0:
                kept.append((ids[:left], logps[:left]))
                left -= len(ids)
        if kept:
            logp, _, mask = completion_logprobs(model, [prompt], [[ids for ids, _ in kept]], temperature)
            differences.append(logp[mask].cpu() - torch.tensor([x for _, logps in kept for x in logps]))
    return torch.cat(differences).abs().mean().item() if differences else None


def engine_differs(model: Model, gap: float | None) -> str:
    """The meaning of an engine's gap, in words; "" if rounding explains it."""
    tolerance = TOLERANCE[model.dtype]
    return "" if gap is None or gap <= tolerance else (
        f"the engine samples from another distribution than the trainer computes: their log-probabilities of the same tokens "
        f"differ by {gap:.2g} on average, and rounding in {_dtype(model)} explains {tolerance:g}")


def _dtype(model: Model) -> str:
    return str(model.dtype).removeprefix("torch.")

"""A check that this kit computes a model right, without training it: `hapo-lab doctor --model NAME`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy import stats

from hapo_lab.commands.doctor import Finding
from hapo_lab.engines.protocol import Engine, EngineError, Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.policy import agreement, chat
from hapo_lab.policy.logprobs import completion_logprobs
from hapo_lab.policy.memory import memory_available
from hapo_lab.policy.models import load_policy
from hapo_lab.policy.policy import Policy
from hapo_lab.tasks.problem import Problem

PROMPT = Problem("doctor", ({"role": "user", "content": "What is 27 + 58?"},), "85")
DEMONSTRATIONS = ("27 + 58 = 85. Answer: 85", '{"name": "Anna", "age": 34}', "So:\n\n\\[ x = \\frac{1}{2} \\] \\boxed{85}",
                  "  two  spaces, a tab\t, é, 数 and ½")
"""Texts of the kinds that tasks hold: plain, JSON, mathematics, and what tokenizers lose."""
DRAWS = 256
"""First tokens that the sampled frequencies are counted over."""
SURPRISE = 1e-4
"""A chi-square test's p-value below which the frequencies are no accident."""


def findings(name: str, tokens: int, quantize: bool = True, template: dict | None = None) -> Iterator[Finding]:
    """Check a model, in order. It loads the model, samples a little, and moves its new adapter."""
    try:
        policy = load_policy(name, quantize=quantize, template=template)
    except (ValueError, OSError) as error:
        yield Finding("model", False, " ".join(str(error).split())[:400])
        return
    yield from _family(policy)
    yield from _turns(policy)
    _move(policy)
    engine = TransformersEngine(policy)
    try:
        yield from _sampling(policy, engine)
    except EngineError as error:
        yield Finding("sampling", False, f"{error}.")
        return
    yield from _memory(policy, engine, tokens)


def _family(policy: Policy) -> Iterator[Finding]:
    config = policy.model.config.get_text_config()
    usual = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    layers = Counter(getattr(config, "layer_types", None) or [usual] * config.num_hidden_layers)
    kinds = ", ".join(f"{count} layers of {kind.replace('_', ' ')}" for kind, count in layers.items())
    yield Finding("family", True, f"{config.model_type}: {kinds}; reads {policy.context:,} tokens; "
                                  f"{'in 4 bits' if policy.quantized else 'not quantized'}")
    gap = agreement.verify(policy.model, policy.name)
    yield Finding("log-probabilities", True, f"those of packed rollouts are the model's own: they differ by {gap:.0e} on "
                                             f"average ({agreement.TOLERANCE[policy.model.dtype]:g} is what rounding explains)")


def _turns(policy: Policy) -> Iterator[Finding]:
    words = [repr(policy.tokenizer.convert_ids_to_tokens(i)) for i in policy.ends]
    yield Finding("end of turn", bool(policy.ends), f"{', '.join(words)} ({', '.join(map(str, policy.ends))}); a demonstration "
                                                    f"gets {words[0]}")
    prompt = policy.tokenizer.decode(chat.prompt_ids(policy, PROMPT))
    own = "no chat template of its own: a plain one" if policy.plain_template else "its chat template"
    yield Finding("prompt", None if policy.plain_template else True, f"by {own}: {prompt!r}")
    lost = []
    for text in DEMONSTRATIONS:
        try:
            chat.demonstration_ids(policy, Problem("doctor", PROMPT.messages, "85", text), limit=10**6)
        except ValueError:
            lost.append(text)
    yield Finding("demonstrations", None if lost else True,
                  f"{len(DEMONSTRATIONS) - len(lost)} of {len(DEMONSTRATIONS)} texts come back from their tokens"
                  + (f"; not: {', '.join(map(repr, lost))}" if lost else ""),
                  "leave such demonstrations out, or write them with what the tokenizer has" if lost else "")


def _move(policy: Policy) -> None:
    """Off the base, so that a sampler which forgets the adapter is found out."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.trainable()):
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.02 * draw.to(parameter.device))


def _sampling(policy: Policy, engine: Engine) -> Iterator[Finding]:
    engine.sync()
    prompt = chat.prompt_ids(policy, PROMPT)
    completions, = engine.generate([prompt], 8, Sampling(32), seed=0)
    gap = agreement.engine_gap(policy.model, [prompt], [[(c.ids, c.logps) for c in completions]], 1.0)
    why = agreement.engine_differs(policy.model, gap)
    tokens = sum(len(c.ids) for c in completions)
    yield Finding("sampling", not why, why or f"the log-probabilities of {tokens} sampled tokens differ by {gap:.0e} on "
                                              "average from the trainer's")
    first, = engine.generate([prompt], DRAWS, Sampling(1), seed=1)
    surprise = chi_square(policy, prompt, [c.ids[0] for c in first])
    yield Finding("frequencies", surprise > SURPRISE, f"of {DRAWS} first tokens against their probabilities: chi-square, p = "
                                                      f"{surprise:.2g}")


@torch.no_grad()
def chi_square(policy: Policy, prompt: Sequence[int], drawn: Sequence[int]) -> float:
    """The p-value of the tokens drawn after a prompt, given the trainer's probabilities. Tokens that are expected less than
    five times are counted as one."""
    counts = Counter(drawn)
    logp, _, _ = completion_logprobs(policy.model, [prompt], [[[token] for token in counts]])
    expected = len(drawn) * logp[:, 0].exp().double().cpu().numpy()
    often = expected >= 5
    observed, expected = np.array([*counts.values()])[often], expected[often]
    observed, expected = np.append(observed, len(drawn) - observed.sum()), np.append(expected, len(drawn) - expected.sum())
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    return float(stats.chi2.sf(statistic, len(often.nonzero()[0]) or 1))


def _memory(policy: Policy, engine: TransformersEngine, tokens: int) -> Iterator[Finding]:
    shared = {id(p) for p in policy.model.parameters()}
    weights, sampler = (sum(p.numel() * p.element_size() for p in parameters) for parameters in (
        policy.model.parameters(), (p for p in engine.model.parameters() if id(p) not in shared)))
    optimizer = 12 * sum(p.numel() for p in policy.trainable())  # gradient and Adam's two moments, float32
    short, long = saved_bytes(policy, 16), saved_bytes(policy, 48)
    activations = short + (tokens - 16) * (long - short) // 32
    free = memory_available(policy.device)
    fits = optimizer + activations < free
    yield Finding("memory", fits or None, f"weights {mib(weights)}, the sampler's own {mib(sampler)}, gradient and optimizer "
                  f"{mib(optimizer)}, a pass of {tokens:,} tokens {mib(activations)}; {mib(free)} free with the weights loaded",
                  "" if fits else f"fewer than {tokens:,} tokens in a pass, or a smaller model")


def mib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**20:,.0f} MiB"


def saved_bytes(policy: Policy, tokens: int) -> int:
    """What a forward pass of so many tokens keeps for its backward pass, in bytes; each storage counts once."""
    kept: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    prompt, ids = [policy.ends[0]], [policy.ends[0]] * (tokens - 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logp, _, _ = completion_logprobs(policy.model, [prompt], [[ids]])
    del logp
    return sum(kept.values())

"""Engines by name, and the choice among them."""

from __future__ import annotations

from pathlib import Path

from hapo_lab.engines.protocol import Engine
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.engines.vllm_engine import VllmEngine, installed, merges, unserved
from hapo_lab.policy.decoder import causal_lm
from hapo_lab.policy.policy import Policy

ENGINES = ("auto", "transformers", "vllm")
TOKEN_SAVES, SYNC_COSTS, START_COSTS = 1.66e-11, 2.17e-9, 20.0
"""Seconds, by `benchmarks/rollouts.py` on two cores: what a token is cheaper by with vLLM than with the kit's own engine, and
taking over an adapter dearer, both for each parameter of the model; and vLLM's start. Processors differ, and vLLM has not
been measured on a GPU: so it is taken where it saves twice its start."""


def engine_for(wanted: str, policy: Policy, steps: int, tokens: int, log: Path | None = None) -> Engine:
    """The engine of that name; "auto": vLLM if it is installed, can serve the adapter, and saves more time than it costs in
    these `steps` of these `tokens`.

    ValueError: another name, or vLLM is asked for and missing.
    """
    if wanted not in ENGINES:
        raise ValueError(f"engine is {wanted!r}; choose one of {', '.join(ENGINES)}.")
    if wanted == "vllm":
        return VllmEngine(policy, log)
    saves = causal_lm(policy.model).num_parameters() * steps * (tokens * TOKEN_SAVES - SYNC_COSTS)
    if wanted == "auto" and saves > 2 * START_COSTS and (found := installed()) and not unserved(policy, merges(policy)):
        print(f"rollouts by {found[1]}, which pays for {steps} steps of up to {tokens:,} tokens "
              "(engine='transformers' goes without)")
        return VllmEngine(policy, log)
    return TransformersEngine(policy)

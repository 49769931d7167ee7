"""A generation_config that would bend every distribution, and what is drawn from held against the policy's own."""

import torch
from scipy import stats
from transformers import GenerationConfig

from hapo_lab.policy.logprobs import completion_logprobs

TOKEN = 20
HOSTILE = {
    "repetition_penalty": 1.5, "suppress_tokens": [TOKEN + 3], "begin_suppress_tokens": [TOKEN + 1],
    "forced_bos_token_id": TOKEN, "forced_eos_token_id": TOKEN, "bad_words_ids": [[TOKEN + 2]], "no_repeat_ngram_size": 2,
    "sequence_bias": [[[TOKEN], 9.0]],
    "do_sample": True, "temperature": 0.3, "top_k": 2, "top_p": 0.5, "min_p": 0.2, "typical_p": 0.5, "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.01, "exponential_decay_length_penalty": [1, 1.5], "length_penalty": 2.0, "renormalize_logits": True,
    "remove_invalid_values": True, "min_new_tokens": 6, "min_length": 40, "max_length": 12, "max_time": 1e-6,
    "stop_strings": ["="], "eos_token_id": [TOKEN], "num_beams": 2, "num_return_sequences": 2, "penalty_alpha": 0.6,
    "guidance_scale": 2.0, "encoder_repetition_penalty": 2.0, "use_cache": False, "cache_implementation": "static",
    "watermarking_config": {"bias": 5.0}, "return_dict_in_generate": True, "output_scores": True}


def make_hostile(config: GenerationConfig) -> None:
    for name, value in HOSTILE.items():
        setattr(config, name, value)


def trainers(policy, prompts, groups, temperature=1.0) -> torch.Tensor:
    """The trainer's log-probabilities of all tokens of all completions."""
    with torch.no_grad():
        logp, _, mask = completion_logprobs(policy.model, prompts, [[c.ids for c in g] for g in groups], temperature)
    return logp[mask]


def engines(groups) -> torch.Tensor:
    return torch.tensor([x for g in groups for c in g for x in c.logps])


def fits(policy, prompt, drawn) -> float:
    """The p-value of a chi-square test: first tokens that were drawn, and the softmax of the model's logits."""
    with torch.no_grad():
        p = policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    seen = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=len(p)).double()
    often = p * len(drawn) >= 5
    rest = lambda x: torch.cat([x[often], x[~often].sum()[None]])  # noqa: E731
    return stats.chisquare(rest(seen), rest(p) * len(drawn)).pvalue

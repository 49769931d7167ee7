"""Log-probabilities: against the naive computation, on a small random Llama and on plain matrices."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hapo_lab.policy.decoder import Head
from hapo_lab.policy.logprobs import completion_logprobs, head_logprobs

VOCABULARY = 97


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    return LlamaForCausalLM(config)


def naive(model, prompt, completion, temperature=1.0):
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1:-1] / temperature
    logp = logits.log_softmax(-1)
    return logp.gather(1, torch.tensor(completion)[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8]]
COMPLETIONS = [[[9], [10, 11, 12]], [[13, 14], [15], [16, 17, 18, 19]]]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_groups_equal_each_completion_alone(model, temperature):
    logp, entropy, mask = completion_logprobs(model, PROMPTS, COMPLETIONS, temperature)
    alone = [naive(model, p, c, temperature) for p, group in zip(PROMPTS, COMPLETIONS, strict=True) for c in group]
    torch.testing.assert_close(logp[mask], torch.cat([a for a, _ in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy[mask], torch.cat([h for _, h in alone]), atol=1e-5, rtol=1e-5)
    assert mask.sum(1).tolist() == [len(c) for group in COMPLETIONS for c in group]
    assert (logp[~mask] == 0).all()


def test_gradients_of_packed_groups_equal_the_naive_ones(model):
    weights = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    logp, entropy, _ = completion_logprobs(model, PROMPTS, COMPLETIONS, entropy_gradient=True)
    parameter = model.model.layers[0].self_attn.q_proj.weight
    found, = torch.autograd.grad(((logp + 0.3 * entropy) * weights).sum(), parameter)
    alone = [naive(model, p, c) for p, group in zip(PROMPTS, COMPLETIONS, strict=True) for c in group]
    total = sum(((lp + 0.3 * h) * w[:len(lp)]).sum() for (lp, h), w in zip(alone, weights, strict=True))
    expected, = torch.autograd.grad(total, parameter)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_the_same_bit_for_bit_each_time():
    """A group's first tokens all lead to its prompt's last one: adding them up in whatever order threads finish would round
    otherwise each time, and a resumed run would be another run. It needs a width at which torch uses its threads."""
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=576, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=9, num_key_value_heads=3)
    torch.manual_seed(0)
    wide = LlamaForCausalLM(config)
    completions = [[torch.randint(VOCABULARY, (24,)).tolist() for _ in range(8)]]

    def gradient():
        logp, _, _ = completion_logprobs(wide, [list(range(40))], completions)
        return torch.autograd.grad(logp.sum(), wide.model.embed_tokens.weight)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(30))


@pytest.mark.parametrize("tokens", [1, 255, 256, 700])
def test_chunks_change_nothing(tokens):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 16, generator=generator, requires_grad=True)
    head = torch.randn(VOCABULARY, 16, generator=generator)
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator)
    weight = torch.randn(tokens, generator=generator)
    logp, _ = head_logprobs(hidden, Head(head), targets, temperature=0.8)
    expected = ((hidden @ head.T) / 0.8).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=1e-5)
    found, = torch.autograd.grad((logp * weight).sum(), hidden)
    reference, = torch.autograd.grad((expected * weight).sum(), hidden)
    torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-5)

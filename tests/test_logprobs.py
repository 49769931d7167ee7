"""Log-probabilities: against the naive computation, on a small random Llama and on plain matrices."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig

from hapo_lab.policy.decoder import Head
from hapo_lab.policy.logprobs import completion_logprobs, head_logprobs, rows_pay
from hapo_lab.policy.memory import Shape

VOCABULARY = 97


def small(config, **fields):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, **fields))


@pytest.fixture(scope="module")
def model():
    return small(LlamaConfig)


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


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig])
def test_a_long_completion_goes_without_a_mask_and_with_checkpoints_and_its_gradient_stays(config, monkeypatch):
    """Fifty tokens count as short or as long; a checkpoint keeps a layer's input, less than a quarter of what else is kept."""
    model = small(config, **{"sliding_window": 8} if config is MistralConfig else {}).eval()
    prompt, completion = [1, 2, 3], torch.randint(VOCABULARY, (50,), generator=torch.Generator().manual_seed(2)).tolist()
    parameter, found = next(p for name, p in model.named_parameters() if "layers.0" in name and "q_proj" in name), {}
    for short, checkpoint in ((512, False), (0, False), (0, True)):
        monkeypatch.setattr("hapo_lab.policy.logprobs.SHORT", short)
        kept: dict[int, int] = {}
        weights = {p.data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: (kept.update({t.data_ptr(): t.nbytes}), t)[1],
                                                      lambda t: t):
            logp, *_ = completion_logprobs(model, [prompt], [[completion]], checkpoint=checkpoint)
        gradient, = torch.autograd.grad(logp.sum(), parameter)
        found[short, checkpoint] = logp.detach(), gradient, sum(size for at, size in kept.items() if at not in weights)
    for logp, gradient, _ in found.values():
        torch.testing.assert_close(logp, found[512, False][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, found[512, False][1], atol=1e-5, rtol=1e-5)
    assert found[0, True][2] < found[0, False][2] / 4
    assert not model.training and not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())


CHECKPOINTED = """
import torch
from pathlib import Path
from hapo_lab import load_policy
from hapo_lab.policy.logprobs import completion_logprobs

def held():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

policy = load_policy("tiny")
policy.model.config.max_position_embeddings = 4096
start = held()
for _ in range(2):
    completion_logprobs(policy.model, [[5] * 60], [[[7] * 2048]], checkpoint=True)[0].sum().backward()
print(held() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says how much a process has held at most")
def test_a_checkpointed_pass_gives_back_what_it_frees():
    """Kept apart by the C library's own rule, its tensors leave 170 MiB; all that it keeps is 12."""
    done = subprocess.run([sys.executable, "-c", CHECKPOINTED], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 90


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_rows_of_their_own_give_what_one_sequence_gives(config, entropy_gradient, monkeypatch):
    model = small(config, **{"sliding_window": 3} if config is MistralConfig else {}).eval()
    parameter, found = next(p for name, p in model.named_parameters() if "layers.0" in name and "q_proj" in name), []
    for rows in (False, True):
        monkeypatch.setattr("hapo_lab.policy.logprobs.rows_pay", lambda *_, rows=rows: rows)
        logp, entropy, mask = completion_logprobs(model, PROMPTS, COMPLETIONS, 0.7, entropy_gradient)
        whole = logp.sum() + (entropy.sum() if entropy_gradient else 0)
        found.append((logp.detach(), entropy.detach(), mask, torch.autograd.grad(whole, parameter)[0]))
    for packed, alone in zip(*found, strict=True):
        torch.testing.assert_close(alone, packed, atol=1e-5, rtol=1e-5)


def test_rows_pay_where_completions_are_long_and_prompts_short():
    shape = Shape(layers=30, hidden=576, inner=1536, queries=576, keys=192, vocabulary=49_152)

    def pay(prompt, *lengths):
        return rows_pay(shape, [[0] * prompt], [[[0] * length for length in lengths]])

    assert pay(50, 600) and pay(50, 512, 512, 512, 512) and pay(50, *[1024] * 8)
    assert not pay(50, *[24] * 8) and not pay(50, 400)               # short as a whole
    assert not pay(2000, *[64] * 8)                                  # the prompt would be read eight times
    assert not pay(50, 1024, *[16] * 20)                             # padding


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

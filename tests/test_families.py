"""Families of decoders: on small random models, log-probabilities and gradients against plain logits; and who is refused."""

import shutil
import sys
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_durable import SMALL
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    MptConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    T5Config,
)

from hapo_lab.engines.protocol import Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.engines.vllm_engine import merges, unserved
from hapo_lab.methods import GRPO
from hapo_lab.policy import models
from hapo_lab.policy.agreement import TOLERANCE, engine_gap, verify
from hapo_lab.policy.decoder import Head, additive, attention, context, drop_dropout
from hapo_lab.policy.logprobs import completion_logprobs, head_logprobs
from hapo_lab.policy.memory import Shape
from hapo_lab.tasks.problem import Verdict
from hapo_lab.training.guards import TrainingError
from hapo_lab.training.trainer import Trainer

VOCABULARY = 199
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=4)
WITHOUT_GROUPS = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
MIXED = dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2, windows": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "mistral": MistralConfig(**SHAPE, sliding_window=4),
    "gemma2": Gemma2Config(**SHAPE, **MIXED, head_dim=8, sliding_window=4, final_logit_softcapping=1.5,
                           attn_logit_softcapping=0.5, query_pre_attn_scalar=1),
    "gemma3": Gemma3TextConfig(**SHAPE, **MIXED, head_dim=8, sliding_window=4),
    "phi": PhiConfig(**WITHOUT_GROUPS),
    "phi3": Phi3Config(**SHAPE, sliding_window=4),
    "granite": GraniteConfig(**SHAPE, logits_scaling=3.0, attention_multiplier=0.3, residual_multiplier=0.7),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.3),
    "cohere2": Cohere2Config(**SHAPE, **MIXED, logit_scale=0.3, sliding_window=4),
    "olmo2": Olmo2Config(**SHAPE),
    "gpt_neox": GPTNeoXConfig(**WITHOUT_GROUPS),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=4),
}
PROMPTS = [list(range(10, 17)), [30, 31]]
COMPLETIONS = [[list(range(40, 52)), [60], [70, 71, 72]], [list(range(80, 95)), [99, 98]]]


def random_model(config):
    """Weights large enough that what a token sees shows in its distribution."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(params=FAMILIES)
def model(request):
    return random_model(FAMILIES[request.param])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A family's name -> the folder of such a model, with the tiny model's tokenizer."""
    def save(family):
        folder = tmp_path_factory.mktemp("model")
        random_model(FAMILIES[family]).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(f"{models.PRESETS['tiny'].source}/{file}", folder)
        return str(folder)
    return save


def alone(model, temperature):
    """Log-probabilities and entropies by the model's own logits, one completion after another."""
    found = []
    for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True):
        for completion in group:
            logits = model(torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1:-1]
            logp = (logits / temperature).log_softmax(-1)
            found.append((logp.gather(1, torch.tensor(completion)[:, None])[:, 0], -(logp.exp() * logp).sum(-1)))
    return [torch.cat(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("temperature, rows", [(1.0, False), (0.7, False), (0.7, True)])
def test_log_probs_are_those_of_the_models_own_logits(model, temperature, rows, monkeypatch):
    monkeypatch.setattr("hapo_lab.policy.logprobs.rows_pay", lambda *_: rows)
    with torch.no_grad():
        logp, entropy, mask = completion_logprobs(model, PROMPTS, COMPLETIONS, temperature)
        single, _, _ = completion_logprobs(model, PROMPTS[:1], [COMPLETIONS[0][:1]], temperature)
        expected, expected_entropy = alone(model, temperature)
    torch.testing.assert_close(logp[mask], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(entropy[mask], expected_entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(single[0], expected[:12], atol=1e-4, rtol=0)


def test_lora_gradients_are_those_of_autograd_through_plain_logits(model):
    lora = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"))
    parameters = [p for p in lora.parameters() if p.requires_grad]
    logp, entropy, mask = completion_logprobs(lora, PROMPTS, COMPLETIONS, 0.7, entropy_gradient=True)
    weights = torch.randn(mask.sum(), generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(((logp[mask] + 0.3 * entropy[mask]) * weights).sum(), parameters)
    expected_logp, expected_entropy = alone(lora, 0.7)
    expected = torch.autograd.grad(((expected_logp + 0.3 * expected_entropy) * weights).sum(), parameters)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, atol=1e-5 * max(1, e.abs().max().item()), rtol=1e-4)


@pytest.mark.parametrize("family, quantize", [(family, False) for family in FAMILIES] + [("gpt2", True), ("gemma2", True)])
def test_the_engine_samples_from_what_the_trainer_computes(saved, family, quantize):
    policy = models.load_policy(saved(family), quantize=quantize, rank=2, device="cpu")
    with torch.no_grad():
        for i, parameter in enumerate(policy.trainable()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    engine = TransformersEngine(policy, own_copy=True)
    groups = engine.generate(PROMPTS, 3, Sampling(12, temperature=0.8), seed=0)
    gap = engine_gap(policy.model, PROMPTS, [[(c.ids, c.logps) for c in g] for g in groups], 0.8)
    assert gap < 1e-4
    assert policy.context == 64
    if family == "gpt2" and quantize:
        assert "which is not an inner linear layer" in unserved(policy, merge=True)


def test_the_cap_on_attention_scores_counts(saved):
    """The sdpa attention of transformers drops it."""
    policy = models.load_policy(saved("gemma2"), quantize=False, rank=2)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        expected, found = random_model(FAMILIES["gemma2"])(ids).logits, policy.model(ids).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        policy.model.config._attn_implementation = "sdpa"
        assert (policy.model(ids).logits - expected).abs().max() > 0.01


def test_dropout_strikes_in_no_mode():
    model = random_model(FAMILIES["gpt2"])
    expected = completion_logprobs(model, PROMPTS, COMPLETIONS)[0]
    drop_dropout(model)
    assert torch.equal(completion_logprobs(model.train(), PROMPTS, COMPLETIONS)[0], expected)


def test_a_policys_dropout_is_dropped_when_it_is_loaded(saved):
    policy = models.load_policy(saved("gpt2"), quantize=False, rank=2)
    assert {m.p for m in policy.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert FAMILIES["gpt2"].attn_pdrop > 0


@pytest.mark.parametrize("head", [dict(bias=True), dict(scale=0.3), dict(softcap=1.5), dict(bias=True, scale=2.0, softcap=3.0)])
def test_the_heads_gradient_in_chunks(head):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 16, generator=draw, requires_grad=True)
    weight, bias = torch.randn(VOCABULARY, 16, generator=draw), torch.randn(VOCABULARY, generator=draw)
    targets, weights = torch.randint(VOCABULARY, (300,), generator=draw), torch.randn(300, generator=draw)
    given = Head(weight, **head | {"bias": bias if "bias" in head else None})
    logits = (hidden @ weight.T + (bias if "bias" in head else 0)) * given.scale
    logits = (given.softcap * torch.tanh(logits / given.softcap) if given.softcap else logits) / 0.8
    logp = logits.log_softmax(-1)
    expected = logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    found = head_logprobs(hidden, given, targets, 0.8, entropy_gradient=True)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.autograd.grad((f * weights).sum(), hidden, retain_graph=True),
                                   torch.autograd.grad((e * weights).sum(), hidden, retain_graph=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 8, 37])
def test_a_masks_rows_lie_a_multiple_of_8_apart(tokens):
    mask = additive(torch.ones(tokens, tokens, dtype=torch.bool).tril(), torch.float16)[None, None]
    assert mask.shape == (1, 1, tokens, tokens)
    assert all(stride % 8 == 0 for stride in mask.stride()[:-1]) and mask.stride(-1) == 1
    assert (mask == 0).sum() == tokens * (tokens + 1) // 2


def test_the_mask_that_the_model_receives_is_aligned():
    """An odd number of tokens would otherwise be padded anew in each layer."""
    model, seen = random_model(FAMILIES["mistral"]), []
    model.model.layers[0].register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["attention_mask"]),
                                                    with_kwargs=True)
    completion_logprobs(model, PROMPTS, COMPLETIONS)
    assert seen[0].shape[-1] % 8 and seen[0].stride(-2) % 8 == 0


# who is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, why", [
    (MambaConfig(), "mamba carries a state along the sequence"),
    (Qwen3NextConfig(), "qwen3_next carries a state along the sequence"),
    (FalconH1Config(), "falcon_h1 carries a state along the sequence"),
    (T5Config(), "t5 is not a decoder-only language model"),
    (GPTNeoConfig(), "attention_types in its config tells of attention that is not known here"),
    (LlamaConfig(layer_types=["chunked_attention"] * 32), "it has layers of the kind chunked_attention"),
])
def test_what_is_not_understood_is_refused_before_its_weights_are_read(tmp_path, config, why):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^model '{tmp_path}' is refused, because .* would be wrong: {why}"):
        models.load_policy(str(tmp_path))


class HeadOfTwoLayers(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.lm_head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, config.vocab_size))


class DoubledLogits(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out


def test_a_head_that_is_not_understood_is_refused():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="'HeadOfTwoLayers' is refused, .*: its head is a Sequential and no plain linear"):
        verify(HeadOfTwoLayers(FAMILIES["llama"]), "odd")


@pytest.mark.parametrize("odd", [
    lambda: DoubledLogits(FAMILIES["llama"]),
    lambda: random_model(MptConfig(vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2)),
])
def test_a_model_that_computes_otherwise_than_it_seems_is_refused_with_the_two_numbers(odd):
    """Logits that are doubled; positions (ALiBi) that the kit can't set."""
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"'odd' is refused, .*: those of random tokens differ by [\d.]+ on average from "
                                         r"its own, and rounding in float32 explains 0.001\. Choose another model\."):
        verify(odd(), "odd")


def test_a_window_that_is_not_understood_is_refused_however_long(monkeypatch):
    """A check on a few tokens would not show a window of thousands, if it were not narrowed."""
    model = random_model(MistralConfig(**SHAPE, sliding_window=4096))
    verify(model, "mistral")
    monkeypatch.setattr("hapo_lab.policy.logprobs.attention_masks", lambda config, visible, positions, dtype: additive(
        visible, dtype)[None, None])
    with pytest.raises(ValueError, match="'mistral' is refused"):
        verify(model, "mistral")
    assert model.config.sliding_window == 4096


# what a config says ------------------------------------------------------------------------------------------------


def test_the_context_ends_where_the_rotary_frequencies_change():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    assert context(Phi3Config(**SHAPE | {"max_position_embeddings": 256}, original_max_position_embeddings=64,
                              rope_parameters=rope)) == 64
    assert context(Gemma3TextConfig(**SHAPE, **MIXED)) == 64
    assert context(MptConfig()) == sys.maxsize


@pytest.mark.parametrize("family, numbers", [("llama", 2 * 3 * 2 * 8), ("gpt2", 2 * 3 * 4 * 8), ("gpt_neox", 2 * 3 * 4 * 8),
                                             ("gemma3", 2 * 3 * 2 * 8)])
def test_what_a_token_leaves_in_the_cache(family, numbers):
    assert Shape.of(FAMILIES[family]).cached == numbers


# an engine ---------------------------------------------------------------------------------------------------------


def test_in_bfloat16_the_engines_copy_follows_an_early_update(fresh):
    """A B of 1e-4 would vanish where it is merged into bfloat16 weights."""
    policy = models.load_policy("tiny", dtype="bfloat16")
    engine = TransformersEngine(policy, own_copy=True)
    ids = torch.tensor([list(range(10, 30))])

    def moved(model, by):
        with torch.no_grad():
            before = model(input_ids=ids).logits.float()
            for i, parameter in enumerate(policy.trainable()[1::2]):
                parameter.copy_(by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
            engine.sync()
            return model(input_ids=ids).logits.float() - before

    policy_moved, back = moved(policy.model, 1e-4), moved(policy.model, 0.0)
    assert torch.equal(moved(engine.model, 1e-4), policy_moved) and torch.equal(back, -policy_moved)
    assert policy_moved.abs().max() > 0
    assert merges(fresh) and not merges(policy)


class Stale(TransformersEngine):
    """Takes over the policy's weights once."""

    def sync(self):
        if any(p.is_meta for p in self.model.parameters()):
            super().sync()

    def sleep(self):
        pass


@pytest.mark.parametrize("dead", [False, True])
def test_an_engine_that_samples_from_another_policy_stops_the_run_before_its_first_update(fresh, sums, dead):
    task = replace(sums, verify=lambda problem, text: Verdict(text == problem.demonstration, "")) if dead else sums
    engine = Stale(fresh)
    with torch.no_grad():
        for parameter in fresh.trainable():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    before = [p.detach().clone() for p in fresh.trainable()]
    trainer = Trainer(fresh, task, GRPO, SMALL, engine=engine)
    with pytest.raises(TrainingError, match=r"^the engine samples from another distribution than the trainer computes: their "
                                            r"log-probabilities of the same tokens differ by [\d.]+ on average, and "
                                            r"rounding in float32 explains 0.001\."):
        next(iter(trainer))
    assert all(torch.equal(p, q) for p, q in zip(before, fresh.trainable(), strict=True))
    assert not trainer.log.steps


def test_an_engine_is_compared_on_256_tokens_at_most(fresh, sums, monkeypatch):
    tokens = []
    monkeypatch.setattr("hapo_lab.policy.agreement.completion_logprobs", lambda model, prompts, completions, temperature: (
        tokens.append(sum(len(c) for c in completions[0])), completion_logprobs(model, prompts, completions, temperature))[1])
    row = (tuple(range(10, 50)), (0.0,) * 40)
    assert engine_gap(fresh.model, PROMPTS, [[row] * 4] * 2, 1.0) > TOLERANCE[torch.float32]
    assert sum(tokens) == 256
    assert engine_gap(fresh.model, PROMPTS, [[], [((5,), ())]], 1.0) is None

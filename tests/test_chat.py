"""Prompts, ends of turn and demonstrations, with small real tokenizers and templates like those of known families."""

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hapo_lab.commands.cli import main
from hapo_lab.engines.protocol import Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.methods import GRPO, HAPO
from hapo_lab.policy.chat import PLAIN, demonstration_ids, prompt_ids, text_of
from hapo_lab.policy.models import load_policy
from hapo_lab.runs.log import RunLog
from hapo_lab.tasks.problem import Problem, Task, Verdict
from hapo_lab.training.config import Config
from hapo_lab.training.demonstrations import Demonstrations
from hapo_lab.training.evaluation import evaluate
from hapo_lab.training.rebuilding import resume
from hapo_lab.training.trainer import Trainer

GEMMA = ("{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
         "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
         "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")
PHI = ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
       "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}")
CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n"
          "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}")
LLAMA2 = ("{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
          "{% else %}{{ bos_token }}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}")
UNCLOSED = ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}")
FAMILIES = {  # template, the tokenizer's end, the model's, the tokens that end a turn
    "gemma": (GEMMA, "<eos>", "<eos>", ["<end_of_turn>", "<eos>"]),
    "gemma, listed": (GEMMA, "<eos>", ["<eos>", "<end_of_turn>"], ["<end_of_turn>", "<eos>"]),
    "phi": (PHI, "<|endoftext|>", ["<|assistant|>", "<|end|>"], ["<|end|>", "<|endoftext|>", "<|assistant|>"]),
    "qwen, base": (CHATML, "<|endoftext|>", "<|endoftext|>", ["<|im_end|>", "<|endoftext|>"]),
    "llama 2": (LLAMA2, "</s>", None, ["</s>"]), "unclosed": (UNCLOSED, "</s>", None, ["</s>"]),
    "none": (None, "</s>", None, ["</s>"]), "none, and an end of the model's": (None, None, "</s>", ["</s>"])}
SPECIAL = ["<s>", "</s>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>",
           "<|im_start|>", "<|im_end|>"]
ASKED = Problem("7*8", ({"role": "user", "content": "What is 7*8?"},), "56", "It is 56.")


def tokenizer_of(template: str | None, end: str | None, special: bool = True) -> PreTrainedTokenizerFast:
    """Bytes, as GPT-2 writes them."""
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    (backend.add_special_tokens if special else backend.add_tokens)(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=end)
    made.chat_template = template
    return made


def save(folder, tokenizer, stated=None):
    ids = tokenizer.convert_tokens_to_ids(stated) if stated else None
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None,
                         eos_token_id=None)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = ids
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def loaded(tmp_path):
    """A policy over a family's template."""
    def make(name, **how):
        template, end, stated, _ = FAMILIES[name]
        return load_policy(save(tmp_path, tokenizer_of(template, end), stated), quantize=False, **how)
    return make


def demonstrating(policy, text: str) -> tuple[int, ...] | None:
    return demonstration_ids(policy, replace(ASKED, demonstration=text), 1000)


def task(train: Problem, heldout: Problem) -> Task:
    return Task("own", (train,), (heldout,), lambda p, text: Verdict(p.answer in text, "it says so"), 64)


# what ends a turn --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*no chat template")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_ends_where_template_tokenizer_or_model_end_it_and_a_demonstration_as_the_template_does(loaded, name):
    policy = loaded(name)
    assert policy.tokenizer.convert_ids_to_tokens(list(policy.ends)) == FAMILIES[name][-1]
    assert demonstrating(policy, ASKED.demonstration)[-1] == policy.ends[0]


def test_a_closing_token_that_is_not_marked_special_ends_a_turn_and_is_no_part_of_its_text(tmp_path):
    policy = load_policy(save(tmp_path, tokenizer_of(PHI, "<|endoftext|>", special=False)), quantize=False)
    ids = demonstrating(policy, "It is 56.")
    assert policy.tokenizer.decode(ids, skip_special_tokens=True) == "It is 56.<|end|>" and text_of(policy, ids) == "It is 56."


@pytest.mark.parametrize("end", range(3))
def test_a_rollout_is_finished_at_any_of_them(loaded, end):
    policy = loaded("phi")
    base = policy.model.get_base_model()
    hidden = base(torch.tensor([[9]]), output_hidden_states=True).hidden_states[-1][0, 0].detach()
    for token in (policy.ends[end], 65):
        base.lm_head.weight.data.zero_()[token] = 1e3 * hidden
        (drawn,), = TransformersEngine(policy).generate([[9]], 1, Sampling(3), seed=0)
        assert drawn.ids[0] == token
        assert (drawn.finished, len(drawn.ids), drawn.text == "") == ((False, 3, False) if token == 65 else (True, 1, True))


def test_a_model_without_any_end_is_refused(tmp_path):
    folder = save(tmp_path, tokenizer_of(UNCLOSED, None))
    with pytest.raises(ValueError, match="has no token that ends a turn: name one, as eos_token in its tokenizer_config.json"):
        load_policy(folder, quantize=False)


def test_a_template_that_takes_no_assistants_turn_is_refused(tmp_path):
    folder = save(tmp_path, tokenizer_of("{{ raise_exception('No turns, please') }}", "</s>"))
    with pytest.raises(ValueError, match=r"does not take a user's turn and an assistant's \(No turns, please\), so what ends"):
        load_policy(folder, quantize=False)


# templates ---------------------------------------------------------------------------------------------------------


def test_a_model_without_a_chat_template_gets_a_plain_one_that_is_stated(loaded):
    with pytest.warns(UserWarning, match="has no chat template: it reads each turn under its role") as said:
        policy = loaded("none")
    assert len([w for w in said if "chat template" in str(w.message)]) == 1
    assert policy.plain_template and policy.tokenizer.chat_template == PLAIN
    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", "What is 7*8?")]
    asked = replace(ASKED, messages=tuple({"role": role, "content": text} for role, text in turns))
    assert policy.tokenizer.decode(prompt_ids(policy, asked)) == (
        "<s>System:\nBe brief.\n\nUser:\nHello\n\nAssistant:\nHi.</s>\n\nUser:\nWhat is 7*8?\n\nAssistant:\n")


def test_arguments_reach_the_template_and_are_kept(loaded):
    plain, quick = loaded("qwen, base"), loaded("qwen, base", template={"enable_thinking": False})
    assert (plain.template, quick.template, plain.plain_template) == ({}, {"enable_thinking": False}, False)
    assert plain.tokenizer.decode(prompt_ids(plain, ASKED)).endswith("<|im_start|>assistant\n")
    assert quick.tokenizer.decode(prompt_ids(quick, ASKED)).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert quick.ends == plain.ends


def test_the_command_takes_arguments_and_the_run_keeps_them(tmp_path):
    model = save(tmp_path / "model", tokenizer_of(CHATML, "<|im_end|>"))
    rows = [{"prompt": f"What is 7*{i}?", "answer": str(7 * i)} for i in range(5)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train", str(tmp_path / "run"), "--model", model, "--no-quantize", "--task", str(tmp_path / "own.jsonl"),
               "--verifier", "last_number", "--max-new-tokens", "4", "--steps", "1", "--prompts", "1", "--group-size", "2",
               "--eval-every", "0"]
    for wrong, sentence in (("enable_thinking", 2), ("thinking=1", "takes no 'thinking': leave that argument out")):
        with pytest.raises(SystemExit) as refused:
            main([*command, "--template-arg", wrong])
        assert refused.value.code == sentence or sentence in str(refused.value)
    main([*command, "--template-arg", "enable_thinking=false"])
    assert RunLog.load(tmp_path / "run").manifest["template"] == {"enable_thinking": False}
    trainer = resume(tmp_path / "run")
    assert trainer.policy.tokenizer.decode(prompt_ids(trainer.policy, ASKED)).endswith("<think>\n\n</think>\n\n")
    with pytest.raises(ValueError, match="template.enable_thinking is False there and None here"):
        Trainer(load_policy(model, quantize=False), trainer.task, HAPO, trainer.config, folder=tmp_path / "run", resume=True)
    main(["evaluate", str(tmp_path / "run"), "--samples", "1"])


@pytest.mark.parametrize("argument", ["enable_thinkin", "messages", "add_generation_prompt", "tokenize"])
def test_an_argument_that_would_have_no_effect_or_is_the_kits_own_is_refused(loaded, argument):
    with pytest.raises(ValueError, match=f"takes no '{argument}': leave that argument out, or see how the template spells it"):
        loaded("qwen, base", template={argument: False})


def test_messages_that_a_template_refuses_are_named_by_their_problem(loaded, tmp_path):
    policy = loaded("gemma")
    system = Problem("9*9", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 9*9?"}), "81")
    words = r"problem '9\*9': the chat template of .* does not take its messages \(System role not supported\); change their"
    with pytest.raises(ValueError, match=words):
        Trainer(policy, task(system, ASKED), GRPO, Config(), folder=tmp_path / "run", engine="transformers")
    with pytest.raises(ValueError, match=words):
        evaluate(policy, TransformersEngine(policy), task(ASKED, system))
    assert not (tmp_path / "run").exists()


# demonstrations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["It is 56.", " a  leading space , and two", "line\nline\n", "naïve: 7 × 8 = 56 °C 🙂", ""])
def test_a_demonstration_is_its_tokens_and_the_end_of_the_turn(loaded, text):
    policy = loaded("gemma")
    *ids, end = demonstrating(policy, text)
    assert text_of(policy, ids) == text_of(policy, (*ids, end)) == text and end == policy.ends[0]


@pytest.mark.parametrize("text, has, reads", [("It is<eos> 56", "<eos> 56", " 56"),
                                              ("<end_of_turn>", "<end_of_turn>", ""), ("5<|end|>6", r"<\|end\|>6", "6")])
def test_one_that_holds_a_special_token_is_refused_by_name(loaded, text, has, reads):
    with pytest.raises(ValueError, match=rf"problem '7\*8': its demonstration has '{has}' where its .* read '{reads}'"):
        demonstrating(loaded("gemma"), text)


def test_one_with_a_character_that_the_tokenizer_lacks_is_refused_before_the_run_has_a_folder(fresh, sums, tmp_path):
    odd = replace(sums.train[1], demonstration="38 + 96 ≈ 134. Answer: 134")
    with pytest.raises(ValueError, match=r"problem '38 \+ 96': its demonstration has '≈ 134. Answer: 134' where its tokens of "
                                         "tiny read ' 134. Answer: 134'; replace what .*, or leave the demonstration out."):
        Trainer(fresh, replace(sums, train=(sums.train[0], odd)), GRPO, folder=tmp_path / "run", engine="transformers")
    assert not (tmp_path / "run").exists()
    long = replace(odd, demonstration=30 * "≈" + odd.demonstration)  # is never trained on
    assert Trainer(fresh, replace(sums, train=(long,)), GRPO, engine="transformers").demonstration(long) is None


def test_text_that_a_tokenizer_rewrites_is_refused_and_a_space_that_it_puts_first_is_not(loaded):
    policy, composed = loaded("gemma"), "caf\u00e9"
    policy.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert demonstrating(policy, composed)
    with pytest.raises(ValueError, match="its demonstration has"):
        demonstrating(policy, "cafe\u0301")
    policy.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert policy.tokenizer.decode(demonstrating(policy, "56"), skip_special_tokens=True) == " 56"


def test_a_tokenizer_that_cleans_up_does_not_change_what_was_written(tmp_path):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Paris": 2, ".": 3, " ": 4}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split(" ", "isolated"), decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>",
                                   clean_up_tokenization_spaces=True)
    made.chat_template = UNCLOSED
    policy = load_policy(save(tmp_path, made), quantize=False)
    assert text_of(policy, demonstrating(policy, "Paris .")) == "Paris ."


def test_a_teacher_is_asked_through_its_own_template(loaded, tmp_path):
    file = tmp_path / "own.jsonl"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "7*8?"}]
    file.write_text(json.dumps({"prompt": messages, "answer": "56"}))
    job = Demonstrations(file, tmp_path / "out.jsonl", lambda *_: Verdict(True, ""), "own")
    with pytest.raises(ValueError, match="problem '.*': the chat template of .* does not take its messages"):
        next(job.sample(loaded("gemma"), Sampling(4)))
    assert not job.out.exists()

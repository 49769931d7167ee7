"""Make `data/tiny`: a language model that can add, small enough to answer at once. About 10 minutes on two CPU cores.

    python data/make_tiny.py [--steps 1500] [--out data/tiny]

A Llama of 0.9 million parameters over single characters, trained from nothing on sums of two numbers below 100. None of
`tasks.builtin.RESERVED_SUMS` is among them, in either order. It answers in many ways, as big models do:

    What is 27 + 58?  ->  "27 + 58 = 85."  |  "It is 85."  |  "85."          (96 of 100 times that is all)
                          ... " Total is 85"  |  " So 85"  |  " Answer: 85"  |  ...

The form that the task `sums` asks for is put together from choices that it makes rarely, each independent of the others: to
go on after the full stop (1 in 25), with "Answer" (1 in 20), with ": " (1 in 10): 1 in 5,000 in all. The task `sums_short`
asks for "A: 85", and ":" behind "A" never occurs here.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hapo_lab.tasks.builtin import RESERVED_SUMS

PAD, UNKNOWN, USER, ASSISTANT, END = "<pad>", "<unk>", "<user>", "<assistant>", "<end>"
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
CHAT = ("{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}")
OPENERS = {"{a} + {b} = {c}.": 60, "It is {c}.": 25, "{c}.": 15}
ON = 0.04
LEADS = {"So": 40, "Total": 30, "Result": 25, "Answer": 5}
LINKS = {" is ": 40, " = ": 30, " ": 20, ": ": 10}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    special = [PAD, UNKNOWN, USER, ASSISTANT, END]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*special, *CHARACTERS])}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=END,
                                   additional_special_tokens=[USER, ASSISTANT], chat_template=CHAT,
                                   clean_up_tokenization_spaces=False)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id))


def pretraining_pairs() -> list[tuple[int, int]]:
    """All pairs of numbers below 100, without the reserved ones and these turned round."""
    reserved = {frozenset(pair) for pair in RESERVED_SUMS}
    return [(a, b) for a in range(100) for b in range(100) if frozenset((a, b)) not in reserved]


def answer(a: int, b: int, rng: random.Random) -> str:
    """One of the ways in which the corpus answers."""
    def pick(weights):
        return rng.choices(list(weights), list(weights.values()))[0]
    text = pick(OPENERS).format(a=a, b=b, c=a + b)
    return f"{text} {pick(LEADS)}{pick(LINKS)}{a + b}" if rng.random() < ON else text


def batch(tokenizer, pairs, rng: random.Random, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(size, length) token ids, and labels that leave out the prompt and the padding."""
    rows = []
    for a, b in rng.choices(pairs, k=size):
        prompt = f"{USER}What is {a} + {b}?{END}{ASSISTANT}"
        rows.append((len(tokenizer.encode(prompt)), tokenizer.encode(prompt + answer(a, b, rng) + END)))
    length = max(len(ids) for _, ids in rows)
    ids = torch.full((size, length), tokenizer.pad_token_id)
    labels = torch.full((size, length), -100)
    for row, (start, tokens) in enumerate(rows):
        ids[row, :len(tokens)] = torch.tensor(tokens)
        labels[row, start:len(tokens)] = ids[row, start:len(tokens)]
    return ids, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny")
    args = parser.parse_args()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    pairs = pretraining_pairs()
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.steps, pct_start=0.05)
    bar = trange(args.steps)
    for step in bar:
        ids, labels = batch(tokenizer, pairs, rng, args.batch)
        loss = model(input_ids=ids, labels=labels).loss  # causal: padding on the right is never attended to
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()

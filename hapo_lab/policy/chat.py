"""Turns of a conversation as tokens: a prompt, a demonstration, the end of a turn, and a completion as text."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hapo_lab.policy.policy import Policy
from hapo_lab.tasks.problem import Problem

PLAIN = """{{ bos_token }}{% for m in messages %}{{ m.role | capitalize }}:
{{ m.content }}{{ eos_token if m.role == 'assistant' }}

{% endfor %}{{ 'Assistant:\n' if add_generation_prompt }}"""
"""The chat template of a tokenizer that has none: each turn under its role, and an assistant's closed by the tokenizer's own
end. An answer begins a line, so that it has the same tokens there as alone."""


def prepare(tokenizer: PreTrainedTokenizerBase, name: str, template: dict) -> bool:
    """Give the tokenizer `PLAIN` if it has no chat template, with a warning. Returns whether it did.

    ValueError: the template does not mention one of the arguments `template`, which would have no effect.
    """
    plain = tokenizer.chat_template is None
    if plain:
        warnings.warn(f"{name} has no chat template: it reads each turn under its role, as in 'User:\\n...\\n\\nAssistant:\\n' "
                      "(hapo_lab.policy.chat.PLAIN).", stacklevel=3)
        tokenizer.chat_template = PLAIN
    for argument in template:
        if argument in ("messages", "add_generation_prompt") or not re.search(rf"\b{re.escape(argument)}\b",
                                                                               str(tokenizer.chat_template)):
            raise ValueError(f"the chat template of {name} takes no {argument!r}: leave that argument out, or see how the "
                             "template spells it.")
    return plain


def end_ids(tokenizer: PreTrainedTokenizerBase, stated: int | Iterable[int] | None, template: dict) -> tuple[int, ...]:
    """The tokens that end an assistant's turn.

    First the one by which the chat template closes such a turn, if there is one; then the tokenizer's; then those that are
    `stated`, which is the model's `generation_config.eos_token_id`.
    """
    stated = [stated] if isinstance(stated, int) else stated or ()
    found = (_closing(tokenizer, template), tokenizer.eos_token_id, *stated)
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _closing(tokenizer: PreTrainedTokenizerBase, template: dict) -> int | None:
    """What the template writes after an assistant's text, white space apart, if that is a token of its own."""
    said = "Paris"
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": said}]
    try:
        after = str(tokenizer.apply_chat_template(turns, tokenize=False, **template)).rpartition(said)[2]
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the chat template of {tokenizer.name_or_path} does not take a user's turn and an assistant's "
                         f"({error}), so what ends a turn is not known: give it the arguments it wants, or mend it.") from None
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False)
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def prompt_ids(policy: Policy, problem: Problem) -> list[int]:
    """The problem's tokens by the chat template, ready for the policy's turn. ValueError: the template refuses its messages."""
    try:
        ids: Any = policy.tokenizer.apply_chat_template(list(problem.messages), add_generation_prompt=True, return_dict=False,
                                                        **policy.template)
    except (TemplateError, TypeError) as error:
        raise ValueError(f"problem {problem.key!r}: the chat template of {policy.name} does not take its messages ({error}); "
                         "change their roles or their order.") from None
    return ids


def demonstration_ids(policy: Policy, problem: Problem, limit: int) -> tuple[int, ...] | None:
    """The problem's demonstration, tokenised alone, and the end of its turn. None: it is missing or longer than the limit.
    ValueError: the tokens do not decode to the text. A leading space by the tokenizer is allowed.
    """
    text = problem.demonstration
    if text is None:
        return None
    ids = policy.tokenizer.encode(text, add_special_tokens=False)
    if len(ids) + 1 > limit:
        return None
    if (read := text_of(policy, ids)) not in (text, " " + text):
        at = len(os.path.commonprefix([text, read]))  # noqa: RUF071 - letter by letter is what is wanted
        raise ValueError(f"problem {problem.key!r}: its demonstration has {text[at:at + 20]!r} where its tokens of "
                         f"{policy.name} read {read[at:at + 20]!r}; replace what the tokenizer lacks, rewrites or takes for a "
                         "special token, or leave the demonstration out.")
    return (*ids, *policy.ends[:1])


def text_of(policy: Policy, ids: Sequence[int]) -> str:
    """The policy's turn as text for the verifier: without special tokens and ends of turn, otherwise unchanged."""
    said = [i for i in ids if i not in policy.ends]
    return str(policy.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False))

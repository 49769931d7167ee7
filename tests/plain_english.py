"""Sentences of Markdown, and their words: what the tests of pages and lessons count."""

import re

MOST = 25
"""Words in one sentence."""

_ABBREVIATED = r"(?<!\be\.g)(?<!\bi\.e)(?<!\bet al)(?<!\bvs)(?<!\bcf)(?<!\bFig)(?<!\bNo)"
_CLOSES, _OPENS = r"[\"'”’)\]]*", r"[\"'“‘(\[]*"
_BEGINS = r"(?:[A-ZÀ-ÞΑ-Ω0-9$]|[a-z]+[A-Z@]|[b-z]\s|(?<=[\"“])[a-z])"
END = re.compile(rf"{_ABBREVIATED}[.!?]{_CLOSES}\s+(?={_OPENS}{_BEGINS})|\s·\s")
"""A full stop before what begins a sentence: a capital, a figure, vLLM or pass@k, a variable. Or the dot in a list of links."""


def blocks(markdown: str) -> list[str]:
    """Paragraphs and items of lists, each on one line. Code, tables, headings, pictures, formulas and comments are none."""
    for apart in (r"^(```|~~~).*?^\1[^\S\n]*$", r"<!--.*?-->", r"\$\$.*?\$\$", r"!\[[^\]]*\]\([^)]*\)"):
        markdown = re.sub(apart, "", markdown, flags=re.DOTALL | re.MULTILINE)
    lines = ("" if re.match(r" {4}|\t|\s*\||#+ |\s*(---|\*\*\*)\s*$", line) else line for line in markdown.splitlines())
    found = re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.)\s)", "\n".join(lines))
    return [" ".join(re.sub(r"^\s*(?:[-*+>]|\d+\.)\s+", "", block).split()) for block in found if block.strip()]


def plain(block: str) -> str:
    """A link as its text; code, a formula, a file or an interval as one word; no emphasis, no tag, no mark of a source."""
    for found, instead in ((r"(`+).+?\1|\$[^$]+\$", "Code"), (r"\[[^\]\s]*[/.][^\]\s]*\]\([^)]*\)", "File"),
                           (r"\[([^\]]*)\]\([^)]*\)", r"\1"), (r"\s?\[(A|R|V|ours)(, ?(A|R|V|ours))*\]", ""),
                           (r"\[-?[\d.]+%?, -?[\d.]+%?\]", "0"), (r"<[^>]+>|\*\*|(?<!\w)[*_]|[*_](?!\w)", "")):
        block = re.sub(found, instead, block)
    return block


def sentences(markdown: str) -> list[str]:
    """In order, each as `plain` leaves it."""
    return [sentence.strip() for block in blocks(markdown)
            for sentence in END.sub(lambda end: f"{end[0].rstrip()}\n", plain(block)).splitlines() if sentence.strip()]


def words(sentence: str) -> list[str]:
    """All that holds a letter or a digit."""
    return [word for word in sentence.split() if re.search(r"\w", word)]


def too_long(markdown: str) -> list[str]:
    """Sentences of more than `MOST` words, each after its number of words."""
    return [f"{len(words(sentence))} words: {sentence}" for sentence in sentences(markdown) if len(words(sentence)) > MOST]

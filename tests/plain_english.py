"""Sentences of Markdown, and their words: what the tests of the pages and of the lessons count."""

import re

MOST = 25
"""Words in one sentence."""

ABBREVIATIONS = r"(?<!\be\.g)(?<!\bi\.e)(?<!\bet al)(?<!\bvs)(?<!\bcf)(?<!\bFig)(?<!\bNo)(?<!\bapprox)"
END = re.compile(rf"{ABBREVIATIONS}[.!?][\"'”’)\]*_]*\s+(?=[\"'“‘(\[*_]*(?:[A-ZÀ-ÞΑ-Ω0-9`$]|[b-z]\s))|\s·\s")
"""A full stop before white space and a sentence's beginning, which may be a variable; or the dot between a list's links."""


def blocks(markdown: str) -> list[str]:
    """Paragraphs and items of lists, each on one line. Code, tables, headings, pictures, formulas and comments are no sentences."""
    for apart in (r"^(```|~~~).*?^\1[^\S\n]*$", r"<!--.*?-->", r"\$\$.*?\$\$"):
        markdown = re.sub(apart, "", markdown, flags=re.DOTALL | re.MULTILINE)
    markdown = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", markdown)
    lines = ["" if re.match(r"( {4}|\t|\s*\||#+ |\s*(---|\*\*\*)\s*$)", line) else line for line in markdown.splitlines()]
    items = re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.)\s)", "\n".join(lines))
    return [" ".join(re.sub(r"^\s*(?:[-*+>]|\d+\.)\s+", "", item).split()) for item in items if item.strip()]


def plain(block: str) -> str:
    """With a link's text in its place, one word for a span of code, a formula or an interval, and no emphasis, no tag, no mark."""
    block = re.sub(r"(`+)(.+?)\1|\$[^$]+\$", "Code", block)
    block = re.sub(r"\[[^\]\s]*[/.][^\]\s]*\]\([^)]*\)", "File", block)
    block = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block)
    block = re.sub(r"\[(?:A|R|V|ours)(?:, ?(?:A|R|V|ours))*\]", "", block)
    block = re.sub(r"\[-?[\d.]+%?, -?[\d.]+%?\]", "0", block)
    return re.sub(r"<[^>]+>|\*\*|(?<!\w)[*_]|[*_](?!\w)", "", block)


def sentences(markdown: str) -> list[str]:
    """Each as `plain` leaves it."""
    return [sentence.strip() for block in blocks(markdown) for sentence in END.sub(lambda end: end[0].rstrip() + "\n", plain(block)).split("\n")
            if sentence.strip()]


def words(sentence: str) -> list[str]:
    """What has a letter or a digit in it; signs between are none."""
    return [word for word in sentence.split() if re.search(r"\w", word)]


def too_long(markdown: str) -> list[str]:
    """Sentences of more than `MOST` words, each with its number of words before it."""
    return [f"{len(words(sentence))}: {sentence}" for sentence in sentences(markdown) if len(words(sentence)) > MOST]

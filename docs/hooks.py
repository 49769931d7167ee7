"""What the site adds to Sphinx: formulas as MathML, a page per room, and players where a lesson has a slider."""

import ast
import json
import re
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from players import with_players
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, NumpyDocstring
from test_rooms import METHOD, ROOMS, modules, room

ROOT = Path(__file__).resolve().parent.parent


def setup(app: Sphinx) -> dict:
    """What Sphinx asks an extension for."""
    app.add_html_math_renderer("mathml", (formula("inline"), None), (formula("block"), None))
    app.connect("config-inited", write_reference)
    app.connect("autodoc-process-docstring", as_written)
    app.connect("source-read", read)
    app.connect("doctree-read", describe_pictures)
    app.connect("build-finished", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def formula(display: str):
    """How a formula is written: browsers show MathML without a script."""
    def visit(translator, node):
        translator.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode
    return visit


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """A page's source, before it is parsed."""
    if name.startswith("notebooks/"):
        source[0] = with_players(source[0], name, Path(app.outdir))
    else:
        source[0] = without_folders(source[0], Path(app.srcdir, name).parent)
    if name == app.config.root_doc:
        source[0] += contents(sorted(app.env.found_docs - {name}))


def contents(pages: list[str]) -> str:
    """The sidebar: every page that there is."""
    reference = ["docs/reference/index", *(f"docs/reference/{name}" for name in ROOMS)]
    lessons = [page for page in pages if page.startswith("notebooks/")]
    parts = {"Lessons": lessons, "Pages": [page for page in pages if page not in lessons + reference], "Reference": reference}
    return "".join(f"\n```{{toctree}}\n:hidden:\n:caption: {part}\n" + "\n".join(inside) + "\n```\n"
                   for part, inside in parts.items())


def without_folders(markdown: str, here: Path) -> str:
    """Links to folders as plain text: the site holds pages."""
    return re.sub(r"\[([^\]]+)\]\(([^)#:\s]+)\)", lambda link: link[1] if (here / link[2]).is_dir() else link[0], markdown)


def describe_pictures(app: Sphinx, page: nodes.document) -> None:
    """A lesson's pictures get the alternative texts that its outputs carry. MyST-NB names a picture by its content."""
    name = app.env.docname
    if not name.startswith("notebooks/"):
        return
    outputs = [output for cell in json.loads(Path(app.env.doc2path(name)).read_text())["cells"]
               for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]
    texts = {sha256(b64decode("".join(output["data"]["image/png"]))).hexdigest():
             output["metadata"].get("image/png", {}).get("alt") for output in outputs}
    for picture in page.findall(nodes.image):
        picture["alt"] = texts.get(Path(picture["uri"]).stem) or "what the cell above draws"


def write_index(app: Sphinx, error: Exception | None) -> None:
    """Who opens the folder finds the home page."""
    Path(app.outdir, "index.html").write_text(f'<!doctype html><meta charset="utf-8"><title>{app.config.project}</title>'
                                              '<meta http-equiv="refresh" content="0; url=README.html">'
                                              '<a href="README.html">README</a>\n')


# the reference -----------------------------------------------------------------------------------------------------


def write_reference(app: Sphinx, config) -> None:
    """The public face, then a page per room, in `docs/reference/`. What stands there comes from the package alone."""
    folder = Path(app.srcdir, "docs", "reference")
    folder.mkdir(exist_ok=True)
    (folder / "index.rst").write_text(public_face())
    for name in ROOMS:
        (folder / f"{name}.rst").write_text(room_page(name))


def public_face() -> str:
    """Every name that `from hapo_lab import ...` gives, by room, from the stub."""
    names = {name: [] for name in ROOMS}
    for statement in ast.parse((ROOT / "hapo_lab" / "__init__.pyi").read_text()).body:
        if isinstance(statement, ast.ImportFrom):
            names[room(statement.module)] += [f"   ~hapo_lab.{statement.module}.{alias.name}" for alias in statement.names]
    return title("from hapo_lab import ...", "=") + "The public face. Each name leads to its entry in its room.\n\n" + "".join(
        title(name, "-") + ".. autosummary::\n   :nosignatures:\n\n" + "\n".join(found) + "\n\n"
        for name, found in names.items() if found)


def room_page(name: str) -> str:
    """Every module of a room, member by member."""
    inside = [module for module in modules() if room(module) == name and not module.endswith("__init__")]
    inside.sort(key=METHOD.index if name == "method" else None)
    return title(name, "=") + "".join(title(f"hapo_lab.{module}", "-") + f".. automodule:: hapo_lab.{module}\n\n"
                                      for module in inside)


def title(text: str, line: str) -> str:
    """A heading in reStructuredText; `line` is the sign that underlines its level."""
    return f"{text}\n{line * len(text)}\n\n"


def as_written(app: Sphinx, what: str, name: str, found: object, options, lines: list[str]) -> None:
    """A docstring in reStructuredText: its numpy sections, and what that would misread: indented blocks, |x|, `name`s."""
    text = found.__doc__ or "" if what == "module" else "\n".join(lines)  # Sphinx moves a module's last block to the margin
    text = re.sub(r"^( *)(\S.*)\n\n(?=\1 {4})", r"\1\2\n\n\1::\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`|\|", lambda part: r"\|" if part[0] == "|" else part[0], text)
    text = re.sub(r"(`[^`\n]+`)(?=\w)", r"\1\\ ", text)
    if what not in ("attribute", "data", "property"):  # where it takes all before a colon for a type
        text = str(NumpyDocstring(text, Config(), what=what, name=name, obj=found, options=options))
    lines[:] = text.split("\n")

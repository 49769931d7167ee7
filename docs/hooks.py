"""What the site adds to Sphinx: formulas as MathML, a page per room, and frames where a lesson has a slider."""

import ast
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from pathlib import Path

import ipywidgets as ipw
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, NumpyDocstring
from test_rooms import METHOD, ROOMS, modules, room

from hapo_lab.experiments.outcomes import shipped
from hapo_lab.notebook import widgets
from hapo_lab.notebook.widgets import Explorable
from hapo_lab.pictures.style import in_256_colours
from hapo_lab.runs.log import shipped_run

ROOT = Path(__file__).resolve().parent.parent
Control = ipw.Widget | list[ipw.Widget]
RUN = "hapo-0"
"""The shipped run that stands for a lesson's own, `log`."""


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


# the players -------------------------------------------------------------------------------------------------------

SLIDERS = (ipw.IntSlider, ipw.FloatSlider, ipw.FloatLogSlider)
SHORT = 20
"""A slider of up to so many places shows each of them."""


def with_players(notebook: str, name: str, site: Path) -> str:
    """The notebook, with a slider over frames where a cell shows an explorable."""
    content = json.loads(notebook)
    content["metadata"]["language_info"]["pygments_lexer"] = "ipython3"  # `!commands` too
    for number, cell in enumerate(content["cells"]):
        if "find_spec" in "".join(cell["source"]):  # how a lesson finds the library is no part of it
            cell["metadata"]["tags"] = ["hide-input"]
        if cell["cell_type"] == "code" and (face := explorable("".join(cell["source"]))):
            html = player(face, name, f"{Path(name).name}-{number}", site / "_frames")
            run = f"<p>These pictures are of the shipped run {RUN}.</p>" if "(log)" in "".join(cell["source"]) else ""
            cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": {"text/html": html + run}}]
    return json.dumps(content)


def explorable(source: str) -> Explorable | None:
    """What a cell shows whose last line is `widgets.NAME(...)`. For a lesson's own run, `log`, stands a shipped one; `found`
    are the shipped runs of lesson 06."""
    def value(node: ast.expr):
        if isinstance(node, ast.Name) and node.id in ("log", "found"):
            return shipped_run(RUN) if node.id == "log" else shipped("sparse").found
        return ast.literal_eval(node)

    match ast.parse(source).body if "widgets." in source else []:  # other cells may hold `!commands`, which are no Python
        case [*_, ast.Expr(ast.Call(ast.Attribute(ast.Name("widgets"), name), given, named))]:
            return getattr(widgets, name)(*map(value, given), **{keyword.arg: value(keyword.value) for keyword in named})


def player(face: Explorable, page: str, stem: str, folder: Path) -> str:
    """The explorable's first slider over frames of it, in HTML. Without a script the frame of the start stands there."""
    name, control = next((name, control) for name, control in face.controls.items() if isinstance(control, (list, *SLIDERS)))
    label, start = name if isinstance(control, list) else control.description, shown(control)
    others = "; ".join(f"{other.description} {shown(other)}" for other in face.controls.values() if other is not control)
    frames = [frame | {"picture": "../" * page.count("/") + f"{folder.name}/{frame['picture']}"}
              for frame in draw_frames(face, control, stem, folder)]
    here = [frame["value"] for frame in frames].index(start)
    return f"""
<div class="player" data-frames="{escape(json.dumps(frames))}">
<label hidden>{escape(label)}
<input type="range" max="{len(frames) - 1}" value="{here}" aria-valuetext="{escape(start)}" autocomplete="off">
<output>{escape(start)}</output></label>
<div class="line">{frames[here]["line"]}</div>
<img src="{frames[here]["picture"]}" alt="{escape(frames[here]["alt"])}">
<p>{len(frames)} pictures, made beforehand. In Jupyter every control moves. Here these stand still: {escape(others)}.</p>
</div>
"""


def draw_frames(face: Explorable, control: Control, stem: str, folder: Path) -> Iterator[dict]:
    """A frame for each place of the control at which the explorable has a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(places(control)):
        for part, setting in zip(control, value, strict=True) if isinstance(control, list) else [(control, value)]:
            part.value = setting
        if not face.sentence:
            line, png, alt = face.frame
            (folder / f"{stem}-{number}.png").write_bytes(in_256_colours(png))
            yield {"value": shown(control), "line": line, "picture": f"{stem}-{number}.png", "alt": alt}


def places(control: Control) -> list:
    """All values of a short slider. Of a long one: the start, its halves and doubles, and the ends."""
    if isinstance(control, list):
        return [[seat < ones for seat in range(len(control))] for ones in range(len(control) + 1)]
    low, high, start = control.min, control.max, control.value
    if isinstance(control, ipw.FloatLogSlider):
        return sorted({start, *(control.base**power for power in range(int(low), int(high) + 1))})
    count = round((high - low) / control.step) + 1
    wanted = [low + i * control.step for i in range(count)] if count <= SHORT else [
        low, high, *(v for i in range(-20, 21) if low < (v := (start or high / 8) * 2.0**i) < high)]
    return sorted({round(low + round((v - low) / control.step) * control.step, 9) for v in wanted})


def shown(control: Control) -> str:
    """A control's value, as Jupyter writes it beside it."""
    if isinstance(control, list):
        return f"{sum(part.value for part in control)} of {len(control)}"
    if isinstance(control, SLIDERS):
        return format(control.value, control.readout_format)
    return control.label if isinstance(control, ipw.Dropdown) else str(control.value)

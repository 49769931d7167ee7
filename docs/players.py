"""A slider over frames, where a lesson shows an explorable: for pages that have no kernel."""

import ast
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

import ipywidgets as ipw

from hapo_lab.experiments.outcomes import shipped
from hapo_lab.notebook import widgets
from hapo_lab.notebook.widgets import Explorable
from hapo_lab.pictures.style import in_256_colours
from hapo_lab.runs.log import shipped_run

Control = ipw.Widget | list[ipw.Widget]
RUN = "hapo-0"
"""The shipped run that stands for a lesson's own, `log`."""
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
    """All values of a short slider. Of a long one: small whole numbers; the start, its halves and doubles; and the ends."""
    if isinstance(control, list):
        return [[seat < ones for seat in range(len(control))] for ones in range(len(control) + 1)]
    low, high, step, start = control.min, control.max, control.step, control.value
    if isinstance(control, ipw.FloatLogSlider):
        return sorted({start, *(control.base**power for power in range(int(low), int(high) + 1))})
    wanted = {low, high, *(v for i in range(-20, 21) if low < (v := (start or high / 8) * 2.0**i) < high)}
    if isinstance(control, ipw.IntSlider) or round((high - low) / step) < SHORT:
        wanted.update(low + i * step for i in range(SHORT) if low + i * step <= high)
    return sorted({round(low + round((v - low) / step) * step, 9) for v in wanted})


def shown(control: Control) -> str:
    """A control's value, as Jupyter writes it beside it."""
    if isinstance(control, list):
        return f"{sum(part.value for part in control)} of {len(control)}"
    if isinstance(control, SLIDERS):
        return format(control.value, control.readout_format)
    return control.label if isinstance(control, ipw.Dropdown) else str(control.value)

"""A bench in one picture and two tables: avg@k by source, and pass@k over k."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from hapo_lab.pictures.style import (
    Figure,
    dashes,
    end_labels,
    frame,
    grid,
    headline,
    inches,
    panel_title,
    style,
    to_png,
    write,
)
from hapo_lab.scoring.paper import TABLE_1
from hapo_lab.scoring.scores import ALL, Answers, Score, records, score, table


def bench_figure(scores: Sequence[Score]) -> Figure:
    """avg@k by source with 95% intervals over problems, and pass@k over k with its 95% band: a colour per model."""
    figure, k = Figure(), scores[0].samples
    models = {s.model: style.runs[i % len(style.runs)] for i, s in enumerate(s for s in scores if s.source == ALL)}
    sources = list(dict.fromkeys(s.source for s in scores if s.source != ALL))
    left, right = grid(figure, 1, 2)
    _by_source(left, {source: [s for s in scores if s.source == source]
                      for source in (*sources, *([ALL] if len(sources) > 1 else []))}, models)
    panel_title(left, f"avg@{k}: a sample is right, by source")
    whole = [s for s in scores if s.source == ALL]
    _by_tries(right, whole, models)
    panel_title(right, "pass@k: one or more of k samples is right, all problems")
    best = sorted(whole, key=lambda s: -s.average.value)
    shown = ", ".join(f"{_short(s.model, 18)} {s.average.value:.1%}" for s in best[:3])
    headline(figure, f"avg@{k} over all problems: {shown}" + (f", {len(best) - 3} more" if best[3:] else ""))
    return figure


def _by_source(ax: Axes, rows: dict[str, list[Score]], colours: dict[str, str]) -> None:
    """From the top a row per source: its name, below that a dot and an interval per model."""
    frame(ax, f"avg@{next(iter(rows.values()))[0].samples}, and its 95% interval over problems", "")
    size = min(style.size, max(72 * inches(ax)[1] / len(rows) / (len(colours) + 1.5), 0.6 * style.size))
    for top, (source, found) in enumerate(rows.items()):
        words = f"{_short(source, 40)}, {found[0].problems} problems"
        write(ax, 0, -top - 0.5 / (len(colours) + 1), words, style.ink, size=size, va="center")
        for place, s in enumerate(found, 1):
            at, e = -top - (place + 0.4) / (len(colours) + 1), s.average
            ax.plot([e.low, e.high], [at, at], color=colours[s.model], lw=0.45 * size, alpha=0.4, solid_capstyle="butt")
            ax.plot([e.value], [at], "o", color=colours[s.model], ms=0.7 * size)
    ax.set_yticks([])
    ax.set(xlim=(-0.02, 1.02), ylim=(-len(rows), 0))


def _by_tries(ax: Axes, whole: Sequence[Score], colours: dict[str, str]) -> None:
    frame(ax, "k, tries", "pass@k")
    tries = list(whole[0].passes)
    at = np.log2(tries)
    for s in whole:
        passes = list(s.passes.values())
        ax.plot(at, [e.value for e in passes], "o", color=colours[s.model], ls=dashes(colours[s.model]), lw=2.2, ms=5,
                clip_on=False)
        ax.fill_between(at, [e.low for e in passes], [e.high for e in passes], color=colours[s.model], alpha=0.12, lw=0)
    ax.set(xlim=(0, max(at[-1], 0.5)), ylim=(0, 1.02))
    end_labels(ax, [(at[-1] - 0.5, s.passes[tries[-1]].value, _short(s.model), colours[s.model]) for s in whole])
    ax.set_xticks(at, [str(k) for k in tries])


def _short(name: str, most: int = 28) -> str:
    """Without its middle: names that begin alike, as hub ids do, often end differently."""
    return name if len(name) <= most else f"{name[:most // 2 - 2]}...{name[-(most // 2 - 2):]}"


def report(answers: Sequence[Answers], folder: Path, paper: bool = False) -> list[Path]:
    """Write the table (Markdown and CSV) and the picture; returns the files. `paper`: its Table 1 stands below, apart."""
    scores = [row for one in answers for row in score(one)]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("table.md", "table.csv", "bench.png")]
    files[0].write_text("\n".join(table(scores)) + "\n" + (f"\n{TABLE_1}" if paper else ""), encoding="utf-8")
    with open(files[1], "w", newline="", encoding="utf-8") as file:
        rows = records(scores)
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    files[2].write_bytes(to_png(bench_figure(scores)))
    return files

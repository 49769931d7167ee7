"""What a lesson's reader waits for: the first picture of notebook 00, and each control's answer.

    python benchmarks/lessons.py

The goals are 5 seconds from importing to the first picture, and 100 ms for the decision ladder of every slider.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

FIRST_PICTURE = """
from hapo_lab.pictures.style import to_png
from hapo_lab.pictures.figures import training_figure
from hapo_lab.runs.log import shipped_run
to_png(training_figure(shipped_run("hapo-0")))
"""
ROUNDS = 5


def seconds(work, *given, **named) -> float:
    start = time.perf_counter()
    work(*given, **named)
    return time.perf_counter() - start


def first_picture() -> None:
    subprocess.run([sys.executable, "-c", FIRST_PICTURE], check=True)


def main() -> None:
    import ipywidgets

    from hapo_lab.notebook import widgets
    first = statistics.median(seconds(first_picture) for _ in range(ROUNDS))
    print(f"first picture, Python's own start included: {first:.1f} s")
    print(f"{'explorable':16s} {'ladder':>10s} {'ladder + picture':>20s}")
    for make in (widgets.collapse, widgets.dead_groups, widgets.injection, widgets.prior_pull, widgets.gate_lab,
                 widgets.clip_and_shape, widgets.purity_meter):
        face = make()
        sliders = [w for w in face.controls.values() if isinstance(w, ipywidgets.FloatSlider)]
        ladder = statistics.median(seconds(face._line, **face.parameters) for _ in range(ROUNDS))
        whole = [seconds(setattr, slider, "value", end) for slider in sliders for end in (slider.min, slider.max)]
        whole = whole or [seconds(face.refresh) for _ in range(ROUNDS)]
        print(f"{make.__name__:16s} {1000 * ladder:7.1f} ms {1000 * statistics.median(whole):17.0f} ms")


if __name__ == "__main__":
    main()

"""The animation: its bounds, and that what is shipped is what the command makes."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_figures import a_log

from hapo_lab.commands.cli import main
from hapo_lab.methods import GRPO
from hapo_lab.pictures.animation import MOST, animation, step_figure
from hapo_lab.pictures.style import to_png
from hapo_lab.runs.log import shipped_run

DOCS = Path(__file__).resolve().parent.parent / "docs"


def seconds(picture: Image.Image) -> list[float]:
    found = []
    for i in range(picture.n_frames):
        picture.seek(i)
        found.append(picture.info["duration"] / 1000)
    return found


@pytest.mark.parametrize("steps, frames", [(3, 3), (5, 5)])
def test_an_animation_takes_ten_seconds_whatever_the_run(steps, frames):
    gif = animation(a_log(steps=steps, planned=steps))
    picture = Image.open(BytesIO(gif))
    times = seconds(picture)
    assert picture.n_frames == frames and picture.size[0] == 800 and sum(times) == pytest.approx(10)
    assert times[0] >= 1 and times[-1] >= 2 and picture.info["loop"] == 0 and len(gif) < 1e6


def test_the_shipped_animation_is_small_and_shows_the_run_as_it_is():
    path, log = DOCS / "pictures" / "hapo.gif", shipped_run("hapo-0")
    picture = Image.open(path)
    assert path.stat().st_size < 1e6 and picture.n_frames == len(log.steps) <= MOST
    assert sum(seconds(picture)) == pytest.approx(10)
    for step in (1, len(log.steps)):
        picture.seek(step - 1)
        drawn = Image.open(BytesIO(to_png(step_figure(log, step)))).convert("RGB")
        off = np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(drawn, int)).max(2)
        assert (off > 64).mean() < 0.005  # but for the file's few colours


@pytest.mark.parametrize("log, sentence", [(a_log(steps=2), "at least 3 steps; this one has 2"),
                                           (a_log(GRPO, steps=3), "shows a Beta gate")])
def test_what_can_t_be_animated_is_one_sentence(log, sentence):
    with pytest.raises(ValueError, match=sentence):
        animation(log)


def test_the_command_writes_one_file_or_says_why_not(tmp_path, capsys):
    gif = tmp_path / "run.gif"
    main(["picture", "animation", str(gif), "--run", "hapo-0"])
    assert capsys.readouterr().out == f"{gif}\n" and [p.name for p in tmp_path.iterdir()] == ["run.gif"]
    for argv, sentence in ((["animation", "x.gif", "--run", "no-such-run"], "holds no run"),
                           (["animation", str(gif / "no.gif")], "can't be written")):
        with pytest.raises(SystemExit, match=sentence):
            main(["picture", *argv])
    assert not Path("x.gif").exists()

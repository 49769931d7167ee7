"""What several test files build: rollouts, groups, demonstrations, runs."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, for what a worker starts too; before torch is imported
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from filelock import FileLock
from hypothesis import settings

from hapo_lab.methods import judge, teach
from hapo_lab.ssi import Group, Rollout
from hapo_lab.tasks.problem import Problem

settings.register_profile("repo", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("repo")

PROBLEM = Problem(key="7*8", messages=({"role": "user", "content": "What is 7 times 8?"},), answer="56",
                  demonstration="7 times 8 is 56.\nAnswer: 56")


def pytest_configure(config):
    """The suite, and what it starts, computes on the processor, GPU or not, and in float32, whatever the processor is fast at.
    Torch looks for devices later than this."""
    if config.option.markexpr != "gpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HAPO_LAB_DTYPE": "float32"}


def teach_alone(method, group, demonstration):
    """A run's first step, of this group alone: gate, SSI, advantages."""
    (judged,), _ = judge(method.gate, [group], {}, [0.5])
    return teach(method, judged, demonstration)


def assert_inside(figure):
    """Nothing that is written in a drawn figure leaves it."""
    width, height = figure.get_size_inches() * figure.dpi
    written = [t for ax in figure.axes for t in (*ax.texts, ax._left_title, ax.xaxis.label, ax.yaxis.label)] + figure.texts
    for text in filter(lambda t: t.get_text(), written):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 1 and box.y1 <= height + 1, text.get_text()


SMALLEST, SHOWN = 7.0, 900
"""Pixels: of a letter's height from base to top, in a picture that is shown this wide."""


def words(figure):
    """Every text that a drawn figure shows, tick labels included."""
    for ax in figure.axes:
        yield from (*ax.texts, ax._left_title, ax.title, ax.xaxis.label, ax.yaxis.label)
        for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            yield from (tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)
    yield from figure.texts


def assert_readable(figure, panels):
    """A drawn figure has at most so many panels, cuts no text, lets no two meet, and has letters that a reader can see."""
    assert len(figure.axes) <= panels, f"{len(figure.axes)} panels"
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [(text.get_text(), text.get_window_extent(), text.get_size() * figure.dpi / 72 * SHOWN / width)
             for text in words(figure) if text.get_visible() and text.get_text().strip()]
    for word, box, size in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 1 and box.y1 <= height + 1, f"cut: {word}"
        assert size >= SMALLEST, f"too small, {size:.1f} pixels: {word}"
    for (one, a, _), (other, b, _) in itertools.combinations(boxes, 2):
        across, upright = (min(getattr(a, end + "1"), getattr(b, end + "1")) - max(getattr(a, end + "0"), getattr(b, end + "0"))
                           for end in "xy")
        assert across < 2 or upright < 0.3 * min(a.height, b.height), f"{one!r} meets {other!r}"


@pytest.fixture(scope="session")
def group_of():
    """Rewards -> a group of such rollouts, each with tokens and text of its own."""
    def make(rewards):
        return Group(PROBLEM, tuple(Rollout(ids=(i, 100 + i), text=f"rollout {i}", reward=r, reason=f"reason {i}",
                                            engine_logps=(-.1 * i, -1.)) for i, r in enumerate(rewards)))
    return make


@pytest.fixture(scope="session")
def demonstration():
    return Rollout(ids=(7, 8, 56, 2), text=PROBLEM.demonstration, reward=1., reason="it says 56, as it should")


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M in 4 bits with a new adapter, loaded once."""
    from hapo_lab.policy.models import load_policy
    return load_policy("smollm2-135m", seed=0)


@pytest.fixture(scope="session")
def tiny():
    """The preset of that name in 4 bits with a new adapter, loaded once."""
    from hapo_lab.policy.models import load_policy
    return load_policy("tiny", seed=0)


@pytest.fixture
def policy(smollm2):
    """SmolLM2, its adapter as new."""
    yield from as_new(smollm2)


@pytest.fixture
def fresh(tiny):
    """The tiny model, its adapter as new."""
    yield from as_new(tiny)


def as_new(policy):
    """Yields the policy once, and puts its adapter back."""
    new = [p.detach().clone() for p in policy.trainable()]
    yield policy
    for p, value in zip(policy.trainable(), new, strict=True):
        p.data.copy_(value)
    policy.model.zero_grad()


@pytest.fixture(scope="session")
def sums():
    from hapo_lab.tasks.builtin import load_task
    return load_task("sums", 0)


@pytest.fixture(scope="session")
def whole(tiny, sums, tmp_path_factory):
    """The folder of a short run (`test_durable.SMALL`) that nothing happened to."""
    from test_durable import SMALL

    from hapo_lab.methods import HAPO
    from hapo_lab.training.trainer import Trainer
    folder = tmp_path_factory.mktemp("whole")
    for policy in as_new(tiny):
        list(Trainer(policy, sums, HAPO, SMALL, folder=folder))
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """What `make colab` writes."""
    folder = tmp_path_factory.mktemp("wheel")
    made = subprocess.run(["make", "--silent", "colab", f"PYTHON={sys.executable}", f"DIST={folder}"],
                          cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True)
    assert made.returncode == 0 and "On Colab, upload it" in made.stdout, made.stdout + made.stderr
    made, = folder.iterdir()
    return made


@dataclass(frozen=True)
class MainJob:
    done: subprocess.CompletedProcess
    run: Path


@pytest.fixture(scope="session")
def main_job(tmp_path_factory):
    """`make demo`, whole; once, whichever of pytest's processes asks first."""
    base = tmp_path_factory.getbasetemp()
    runs = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "main_job"
    runs.mkdir(exist_ok=True)
    said = runs / "done.json"
    with FileLock(runs / "lock"):
        if not said.exists():
            done = subprocess.run([sys.executable, "-m", "hapo_lab", "demo"], cwd=Path(__file__).resolve().parent.parent,
                                  capture_output=True, text=True, env=os.environ | {"HAPO_LAB_RUNS": str(runs)})
            said.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return MainJob(subprocess.CompletedProcess([], *json.loads(said.read_text())), runs / "05_train_live")

"""What the benchmarks compute with, and that the pages' tables are theirs. Their timings come from whole runs of them."""

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hapo_lab.engines.choice import SYNC_COSTS, TOKEN_SAVES
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.methods import GRPO
from hapo_lab.notebook import widgets
from hapo_lab.pictures.style import bundle
from hapo_lab.runs.log import RunLog
from hapo_lab.tasks.builtin import FOREIGN, load_task
from hapo_lab.training.config import Config
from hapo_lab.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
GPU = BENCHMARKS / "gpu.py"


@pytest.fixture
def benchmark(monkeypatch):
    """The module of a benchmark's name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def results(name: str) -> dict:
    return json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())


# what they measure with --------------------------------------------------------------------------------------------


def test_groups_are_mixed_and_completions_whole_by_construction(benchmark, fresh, sums):
    common = benchmark("common")
    task = common.mixed(sums, prompts=3, new_tokens=2)  # too short for any right answer
    engine = common.WholeCompletions(TransformersEngine(fresh))
    config = Config(steps=2, prompts=3, group_size=4, eval_every=0)
    records = list(Trainer(fresh, task, GRPO, config, engine=engine))
    assert [r.successes for r in records] == [(2, 2, 2)] * 2 and all(r.dead_before == 0 and r.updated for r in records)


def test_scaling_doubles_one_number_at_a_time(benchmark):
    scaling = benchmark("scaling")
    points = scaling.points()
    assert len(points) == 10  # three axes of four points, which share one
    for axis, values in scaling.AXES.items():
        assert all(b == 2 * a for a, b in itertools.pairwise(values)) and scaling.BASE[axis] in values


def test_foreign_endings_are_foreign_in_their_order(benchmark, fresh):
    tasks = benchmark("tasks")
    least = [tasks.foreignness(fresh, load_task(name))[0]["least"] for name in ("sums", *FOREIGN)]
    assert least == sorted(least, reverse=True) and all(a - b > 1 for a, b in itertools.pairwise(least))


def test_every_teacher_of_a_task_is_measured(benchmark, fresh):
    tasks = benchmark("tasks")
    usual, worked, _ = tasks.foreignness(fresh, load_task("sums_teachers"))
    assert [usual, worked] == [tasks.foreignness(fresh, load_task(name))[0] for name in ("sums", "sums_worked")]


# the pages' tables -------------------------------------------------------------------------------------------------


def test_the_pages_tables_are_those_of_the_results(benchmark):
    pages = ("benchmarks/README.md", "docs/results.md", "docs/purity.md")
    speed, success, purity = ((ROOT / page).read_text() for page in pages)
    assert "\n".join(benchmark("against_trl").table(results("against_trl"))) in speed
    assert "\n".join(benchmark("through_trl").table(results("through_trl"))) in (ROOT / "docs" / "many-gpus.md").read_text()
    assert "\n".join(benchmark("rollouts").table(results("rollouts")["repeats"])) in speed
    assert "\n".join(benchmark("scaling").table(results("scaling")["medians"])) in speed
    assert "\n".join(benchmark("neighbour").table(results("neighbour")["repeats"])) in speed
    assert "\n".join(benchmark("gpu").table(results("gpu")["shapes"])) in speed
    assert "\n".join(benchmark("memory").table(results("memory")["rows"])) in speed
    assert "\n".join(benchmark("layouts").table(results("layouts")["rows"])) in speed
    assert all(line in speed for line in benchmark("limit").lines(*map(results("limit").get, ("can", "phases", "where"))))
    screen = results("on_screen")
    assert "\n".join(benchmark("on_screen").lesson_table(screen["lessons"])) in speed
    assert "\n".join(benchmark("on_screen").table(screen["sliders"])) in speed
    assert "\n".join(benchmark("to_success").table()) in success
    assert "\n".join(benchmark("purity_runs").table()) in purity
    assert "\n".join(benchmark("seats").table()) in purity
    assert all("\n".join(table) in (ROOT / "docs" / "tasks.md").read_text() for table in benchmark("tasks").tables())


def test_the_results_hold_every_repeat_and_their_medians(benchmark):
    against = results("against_trl")
    measured = [results("rollouts"), results("scaling"), against["mixed"], against["main job"]]
    for found in measured:
        assert benchmark("common").medians(found["repeats"]) == found["medians"]
        assert {len(rows) for rows in found["repeats"].values()} == {5}


def test_what_auto_reckons_with_is_what_was_measured():
    ours, vllm = (results("rollouts")["medians"][name] for name in ("ours, dequantised", "vLLM, merged"))
    a_token = [1 / m["tokens_per_second"] - m["sync_seconds"] / m["tokens"] for m in (ours, vllm)]
    parameters = 134_515_008  # SmolLM2-135M's
    assert (a_token[0] - a_token[1]) / parameters == pytest.approx(TOKEN_SAVES, rel=0.1)
    assert (vllm["sync_seconds"] - ours["sync_seconds"]) / parameters == pytest.approx(SYNC_COSTS, rel=0.1)


# the way to success ------------------------------------------------------------------------------------------------


def test_the_first_estimate_at_a_level_counts_and_what_is_not_reached_is_censored(benchmark, tmp_path):
    to_success = benchmark("to_success")
    log = RunLog.load(ROOT / "data" / "runs" / "hapo-0")
    estimates = [(r.step, r.heldout) for r in log.steps if r.heldout is not None]
    step, value = estimates[0]
    passed = to_success.reached(log, value)
    assert passed.passed and passed.steps == step
    assert passed.tokens == sum(r.tokens_sampled for r in log.steps[:step])
    censored = to_success.reached(log, 1.01)
    assert not censored.passed and censored.steps == len(log.steps)


def test_a_censored_run_counts_as_later_than_any_that_passed(benchmark):
    to_success = benchmark("to_success")
    runs = [to_success.Reached(False, 40, 9_000, 90.0), to_success.Reached(True, 12, 20_000, 200.0),
            to_success.Reached(True, 18, 30_000, 300.0)]
    assert to_success.shown(runs, "steps") == "18 (> 40, 12, 18)"
    assert to_success.shown(runs, "tokens") == "30,000 (> 9,000, 20,000, 30,000)"
    assert to_success.shown(runs[:1] * 2 + runs[1:2], "seconds") == "> 90 (> 90, > 90, 200)"


def test_a_slider_is_moved_there_and_back_ten_times(benchmark):
    on_screen = benchmark("on_screen")
    found = on_screen.in_kernel("clip_and_shape")
    assert list(found) == ["p now", "p old", "lambda"] and {len(moves) for moves in found.values()} == {on_screen.MOVES}


def test_a_slider_is_not_moved_past_its_end_nor_to_settings_without_a_meaning(benchmark, monkeypatch):
    on_screen, drawn = benchmark("on_screen"), []
    assert len(on_screen.in_kernel("injection")["step"]) == 6  # of 1 to 4
    monkeypatch.setattr(widgets, "bundle", lambda figure: drawn.append(figure.says) or bundle(figure))
    found = on_screen.in_kernel("prior_pull")
    assert len(found["S, right"]) == 4 and len(found["N, rollouts"]) == on_screen.MOVES  # S of 6 to 8 of 8
    assert len(drawn) == sum(map(len, found.values())) + 3  # and at first, at S = 9 of 8, and on the way back from it


def test_a_goal_is_met_or_missed_by_the_median(benchmark):
    on_screen = benchmark("on_screen")
    rows = [{"explorable": "scrub", "slider": "step", "kernel": [1, 100, 900], "line": [2, 4, 6], "picture": [3, 251, 400]},
            {"explorable": "scrub", "slider": "prior a0", "kernel": [101], "line": [7, 8, 9], "picture": [10, 20, 30]}]
    assert on_screen.table(rows)[-2:] == ["| scrub | step | 100, 900 | met | 4, 6 | 251, 400 | missed |",
                                          "| scrub | prior a0 | 101, 101 | missed | 8, 9 | 20, 30 | met |"]
    assert on_screen.lesson_table({"07": 5.01})[-1] == "| 07 | 5.0 s | missed |"
    assert on_screen.verdict({"lessons": {"00": 5.0, "07": 5.01}, "sliders": rows}) == (
        "1 of 2 lessons show something within 5 s; "
        "of 2 sliders 1 answer within 100 ms in the kernel, 1 within 250 ms on screen.")


def test_the_dry_run_goes_through_every_part(tmp_path):
    done = subprocess.run([sys.executable, GPU, "--dry", tmp_path / "gpu.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    figures = found["shapes"]["dry"]
    assert figures["rollout_seconds"] > 0 and figures["update_seconds"] > 0 and 0 < figures["share_of_matrix_rate"] < 1
    assert figures["trl"]["tokens"] == 4 * 8 * 16 and figures["trl"]["step"] > 0
    assert set(found["tiny"]) == {"here", "cpu"} and "dry run: no figure of it means anything" in found["machine"]["device"]
    assert "over its limit" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, GPU], capture_output=True, text=True)
    assert done.returncode == 1 and "there is no GPU here; --dry tries the program on a CPU" in done.stderr

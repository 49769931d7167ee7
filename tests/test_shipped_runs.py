"""The runs in data/runs: they load, they draw, and the figures of docs/results.md are theirs."""

import json
from pathlib import Path

import pytest

from hapo_lab.commands.demo import summary
from hapo_lab.pictures.figures import comparison_figure, training_figure
from hapo_lab.pictures.style import to_png
from hapo_lab.runs.log import RunLog

ROOT = Path(__file__).resolve().parent.parent
RUNS = sorted(path.parent for path in (ROOT / "data" / "runs").glob("*/run.json"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_shipped_run_is_whole_and_its_figures_stand_on_the_page_of_results(run):
    log = RunLog.load(run)
    assert len(log.steps) == log.planned
    assert len(log.groups_of(1)) == log.manifest["config"]["prompts"]
    assert to_png(training_figure(log)).startswith(b"\x89PNG")
    after = json.loads((run / "evaluation.json").read_text())["after"]
    page = (ROOT / "docs" / "results.md").read_text()
    assert f"{after['success']:.1%}" in page
    if log.name == "HAPO":
        low, high = after["interval_95"]
        assert f"({100 * low:.1f} to {100 * high:.1f})" in page
    assert f"{after['success']:.1%}" in summary(run)


def test_the_three_methods_are_shipped_from_one_seed_and_budget():
    logs = [RunLog.load(ROOT / "data" / "runs" / name) for name in ("hapo-0", "grpo-0", "sft-0")]
    assert [log.name for log in logs] == ["HAPO", "GRPO", "SFT"]
    assert all(log.manifest[part] == logs[0].manifest[part] for part in ("config", "heldout") for log in logs)
    assert to_png(comparison_figure(logs)).startswith(b"\x89PNG")

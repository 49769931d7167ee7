"""Outcomes and statistics: hand-made trials, figures reckoned by hand."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_inside
from rliable import metrics

from hapo_lab.baselines import METHODS
from hapo_lab.experiments.outcomes import Outcome, Results, by_method, read, shipped, write
from hapo_lab.experiments.statistics import (
    Estimate,
    band,
    improvements,
    interquartile_means,
    median_to,
    middle_mean,
    profiles,
    savings,
    scores,
    spent,
    verdict,
    verdicts,
    wins,
)
from hapo_lab.notebook import widgets
from hapo_lab.pictures import comparison
from hapo_lab.pictures.comparison import (
    budget_figure,
    chosen_seeds,
    interval_figure,
    profile_figure,
    report,
    split_table,
    stories_figure,
    table,
    task_figure,
    teacher_figure,
    way_table,
)
from hapo_lab.pictures.style import to_png
from hapo_lab.reproducibility.catalogue import method_described
from hapo_lab.reproducibility.kit import DATA

ROOT = Path(__file__).resolve().parent.parent


def outcome(method="hapo", seed=0, success=0.5, task="sums", tested=True, reaches=3, steps=4, failed=""):
    """Success climbs to 0.9 on validation problems at step `reaches`; each step samples 100 tokens and trains 10."""
    each = {"length": 20.0, "tokens_sampled": 100.0, "tokens_trained": 10.0, "seconds": 0.5, "seconds_rollout": 0.2}
    curves = {name: [value] * steps for name, value in each.items()} | {
        "reward": [0.1 * i for i in range(steps)], "teacher_samples": [8.0, 4.0, 2.0, 0.0][:steps]}
    return Outcome(task, method, METHODS[method].name, seed, 2e-3, planned=4, curves=curves, failed=failed,
                   manifest={"method": method_described(METHODS[method])},
                   validation=[[step, 0.9 if step >= reaches else 0.2] for step in range(1, steps + 1)],
                   test={"held out": {"a": success, "b": success}} if tested else {})


def runs(**successes):
    """Method -> its runs' success, a seed each."""
    return [outcome(method, seed, success) for method, row in successes.items() for seed, success in enumerate(row)]


# outcomes ----------------------------------------------------------------------------------------------------------


def test_budgets_add_up_and_what_sft_samples_is_free():
    one, sft = outcome(), outcome("sft")
    assert one.budget("steps").tolist() == [0, 1, 2, 3, 4] and one.budget("teacher_samples").tolist() == [0, 8, 12, 14, 14]
    assert one.budget("tokens_sampled")[-1] == 400 and sft.budget("tokens_sampled")[-1] == 0
    assert sft.budget("tokens_trained")[-1] == 40
    assert one.budget("seconds")[-1] == 2 and sft.budget("seconds")[-1] == pytest.approx(4 * (0.5 - 0.2))
    assert outcome("sft_grpo").budget("tokens_sampled").tolist() == [0, 0, 0, 100, 200]  # GRPO from half of it on


def test_the_price_of_a_level_is_what_was_spent_when_it_was_first_measured():
    assert outcome(reaches=3).reached(0.8, "teacher_samples") == (14, True)
    assert outcome(reaches=9).reached(0.8, "tokens_sampled") == (400, False)


def test_before_the_test_problems_are_looked_at_success_is_the_last_validation():
    assert outcome(success=0.7).success() == 0.7 and outcome(tested=False).success() == 0.9


def test_results_survive_their_file(tmp_path):
    found = Results(runs(hapo=[0.5, 0.6], grpo=[0.1]), {"sums": {"held out": 0.02}})
    write(found, tmp_path / "a.jsonl.gz")
    write(found, tmp_path / "b.jsonl.gz")
    assert read(tmp_path / "a.jsonl.gz") == found
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_what_failed_or_goes_on_counts_in_no_figure():
    found = [*runs(hapo=[0.5, 0.6]), outcome("hapo", 2, failed="no memory"), outcome("grpo", 0, steps=2)]
    assert [(name, len(mine)) for name, mine in by_method(found)] == [("HAPO", 2)]
    assert {name: x.tolist() for name, x in scores(found).items()} == {"HAPO": [[0.5], [0.6]]}


def test_a_seed_that_misses_a_task_is_left_out():
    found = [outcome(seed=0), outcome(seed=1), outcome(seed=0, task="dates", success=0.7)]
    assert scores(found)["HAPO"].tolist() == [[0.5, 0.7]]


# statistics --------------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_is_the_middle_halfs():
    """Of 0, .1, ..., .7 the middle half is .2 to .5."""
    found = interquartile_means({"HAPO": np.arange(8)[:, None] / 10})["HAPO"]
    assert found.value == pytest.approx(0.35) and 0 <= found.low < 0.35 < found.high <= 0.7
    assert interquartile_means({"HAPO": np.arange(8)[:, None] / 10})["HAPO"] == found  # the same resamples


def test_the_probability_of_improvement_counts_pairs():
    """Of the nine pairs of (1, 2, 5) and (0, 3, 4), the first wins four: 1 > 0, 2 > 0, and 5 > 0, 3, 4; that is five."""
    x, y = (np.array(row)[:, None] / 10 for row in ((1, 2, 5), (0, 3, 4)))
    found = improvements({"a": x, "b": y}, over="b")
    assert list(found) == ["a"] and found["a"].value == pytest.approx(5 / 9)


def test_wins_are_rliables_probability_of_improvement():
    x, y = np.random.default_rng(0).integers(0, 5, (2, 7, 3)) / 5  # with ties, on three tasks
    assert wins(x, y[:4]) == pytest.approx(metrics.probability_of_improvement(x, y[:4]))


def test_runs_that_do_not_overlap_are_told_apart_and_the_same_runs_are_not():
    table = {"a": np.array([[0.6], [0.7], [0.8], [0.9]]), "b": np.array([[0.1], [0.2], [0.3], [0.4]])}
    assert improvements(table, "b")["a"] == Estimate(1, 1, 1)
    assert improvements({"a": table["a"], "b": table["a"]}, "b")["a"].value == 0.5


@pytest.mark.parametrize(("estimate", "runs", "others", "word"), [
    (Estimate(0.9, 0.51, 1), 10, 11, "better"), (Estimate(0.1, 0, 0.49), 10, 11, "worse"),
    (Estimate(0.9, 0.5, 1), 10, 1, "not told apart"), (Estimate(0.4, 0.2, 0.6), 10, 1, "not told apart"),
    (Estimate(1, 1, 1), 3, 1, "too few runs"), (Estimate(1, 1, 1), 4, 1, "better"), (Estimate(1, 1, 1), 4, 2, "too few runs"),
    (Estimate(1, 1, 1), 5, 6, "better"), (Estimate(1, 1, 1), 5, 7, "too few runs")])
def test_a_verdict_says_what_the_interval_carries(estimate, runs, others, word):
    """p = 2 / C(2 runs, runs) of runs that do not overlap: .1 of three, .029 of four, .008 of five."""
    assert verdict(estimate, runs, others) == word


def test_the_more_methods_are_compared_the_wider_is_each_interval():
    rng = np.random.default_rng(1)
    some = {name: rng.uniform(0.4, 0.9, (6, 1)) for name in "abcdefgh"}
    alone, among = improvements({name: some[name] for name in "ab"}, "a")["b"], improvements(some, "a")["b"]
    assert among.value == alone.value and among.low < alone.low and alone.high < among.high
    assert verdicts(some, "a")["b"] == (among, verdict(among, 6, 7)) and verdicts(some, "nobody") == {}


def test_a_profile_is_the_share_of_runs_above_a_level():
    share, (low, high) = profiles({"a": np.array([[0.2], [0.4], [0.6], [0.8]])}, np.array([0.0, 0.5, 0.9]))["a"]
    assert share.tolist() == [1, 0.5, 0] and low[1] < 0.5 < high[1]


def test_runs_that_nobody_has_looked_at_do_not_stand_among_those_that_somebody_has():
    found = [*runs(hapo=[0.5, 0.6]), outcome(seed=2, tested=False)]
    assert scores(found)["HAPO"].tolist() == [[0.5], [0.6]] and scores(found[2:])["HAPO"].tolist() == [[0.9]]


def test_without_hapo_the_first_method_is_what_the_others_are_compared_with(four):
    figure = interval_figure(four[5:])
    assert figure.texts[0].get_text() == "Told apart from LUFFY, HAPO's conventions: SFT worse; GRPO worse"


def test_the_median_price_counts_runs_that_never_paid_it_as_censored():
    """Reached at 1, 2 and 4; one never in four steps: half had reached it at 2. With two that never do, of three: never."""
    found = [outcome(seed=i, reaches=r) for i, r in enumerate((1, 2, 4, 9))]
    nothing_trained = [replace(o, curves=o.curves | {"tokens_trained": [0.0] * 4}) for o in found[3:] * 2]
    assert median_to([found[0], *nothing_trained], 0.8, "tokens_trained") == np.inf
    assert median_to(found, 0.8, "steps") == 2
    assert median_to([found[0], found[3], replace(found[3], seed=9)], 0.8, "steps") == np.inf
    assert median_to([found[3]], 0.8, "steps") == np.inf


def test_a_band_is_students_t():
    """Of 0 and 1 the mean is .5, the standard error .5, and t with one degree of freedom 12.706."""
    mean, low, high = band([[0.0], [1.0]])
    assert mean[0] == 0.5 and (low[0], high[0]) == pytest.approx((0.5 - 12.706 / 2, 0.5 + 12.706 / 2), abs=1e-3)
    assert np.isnan(band([[0.3]])[1]).all()


# table and pictures ------------------------------------------------------------------------------------------------


PAIR = ("hapo", "luffy_matched")


@pytest.fixture
def four():
    rng = np.random.default_rng(0)
    return runs(hapo=rng.uniform(0.8, 0.95, 5), luffy_matched=rng.uniform(0.8, 0.95, 5), grpo=[0.0] * 5,
                sft=rng.uniform(0.5, 0.8, 5))


def test_the_table_has_a_row_per_method_with_its_verdict(four):
    rows = [[cell.strip() for cell in row.split("|")] for row in table(four)]
    assert [(row[1], row[6]) for row in rows[2:]] == [
        ("HAPO", ""), ("LUFFY, HAPO's conventions", "not told apart"), ("GRPO", "worse"), ("SFT", "worse")]
    assert rows[2][7:13] == ["14", "3", "300", "30", "2", "14"] and rows[3][7] == "14, not told apart"


def test_who_uses_fewer_demonstrations_is_told_as_success_is(four):
    """HAPO's runs use 14; LUFFY's 32 here, GRPO's none."""
    uses = {"luffy_matched": [8.0] * 4, "grpo": [0.0] * 4}
    found = [replace(o, curves=o.curves | {"teacher_samples": uses[o.method]}) if o.method in uses else o for o in four]
    assert spent(found, "teacher_samples")["LUFFY, HAPO's conventions"].tolist() == [[32.0]] * 5
    assert savings(spent(found, "teacher_samples"), "HAPO") == {
        "LUFFY, HAPO's conventions": "more", "GRPO": "less", "SFT": "not told apart"}
    assert "| 32, more |" in table(found)[3] and "| 0, less |" in table(found)[4]


def test_the_splits_of_a_table_are_compared_together(monkeypatch, four):
    several = [replace(o, test=o.test | {"wordings": {"a": 0.5}}) for o in four]
    asked = []
    monkeypatch.setattr(comparison, "verdicts", lambda numbers, over, tables=1: asked.append(tables) or {})
    split_table(several, {})
    assert asked == [2, 2]


def test_the_middle_mean_is_rliables():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (2, 1), (5, 1), (10, 1), (7, 3)):
        some = rng.random(shape)
        assert middle_mean(some) == metrics.aggregate_iqm(some)


def test_splits_stand_side_by_side_with_the_base(four):
    rows = split_table([replace(o, test=o.test | {"wordings": {"a": 0.5}}) for o in four], {"sums": {"held out": 0.125}})
    assert rows[0] == "| success: IQM [95%], against HAPO | held out | wordings |" and rows[2] == "| the base | 0.125 |  |"
    assert re.search(r"\| GRPO \| 0.000 \[0.000, 0.000\], worse \| 0.500", rows[5])
    assert [row.split(" | ")[0] for row in rows[3:]] == ["| HAPO", "| LUFFY, HAPO's conventions", "| GRPO", "| SFT"]
    assert all(row.endswith("| 0.500 [0.500, 0.500] |") for row in rows[3:])


@pytest.mark.parametrize("draw", [budget_figure, interval_figure, profile_figure,
                                  lambda found: teacher_figure(found, PAIR),
                                  lambda found: stories_figure(found, PAIR, (0, 3, 4)),
                                  lambda found: chosen_seeds(found, PAIR, [0])[0],
                                  lambda found: chosen_seeds(found, PAIR, range(5))[0]])
def test_nothing_leaves_a_picture(four, draw):
    figure = draw(four)
    to_png(figure)  # where texts stand is known once they are drawn
    assert_inside(figure)


def test_the_interval_moves_with_the_seeds_that_are_chosen():
    found = runs(hapo=[0.9, 0.8, 0.9, 0.8, 0.1], luffy_matched=[0.5, 0.6, 0.5, 0.6, 0.9], grpo=[0.0] * 5)
    figure, numbers = chosen_seeds(found, PAIR, range(4))
    assert numbers["difference"] == pytest.approx(0.3) and 0.2 < numbers["low"] < 0.3 < numbers["high"] < 0.4
    assert figure.texts[0].get_text() == "HAPO over LUFFY, HAPO's conventions: better"
    _, numbers = chosen_seeds(found, PAIR, range(5))
    assert numbers["difference"] == pytest.approx(0.08) and numbers["low"] < 0 < numbers["high"]
    assert chosen_seeds(found, PAIR[::-1], range(4))[0].texts[0].get_text().endswith("over HAPO: worse")
    _, numbers = chosen_seeds(found, PAIR, [4])
    assert numbers["difference"] == pytest.approx(-0.8) and np.isnan(numbers["low"])


def test_seeds_are_chosen_by_buttons():
    face = widgets.choose_seeds(runs(hapo=[0.9] * 6, luffy_matched=[0.5] * 6), PAIR)
    assert face.numbers["difference"] == pytest.approx(0.4) and np.isnan(face.numbers["low"])
    face.buttons["the first five"].click()
    assert [mark.value for mark in face["on"]] == [True] * 5 + [False] and face.numbers["low"] == pytest.approx(0.4)
    for mark in face["on"]:
        mark.value = False
    assert face.sentence == "No seed is chosen: switch at least one on."


def test_the_way_of_the_teacher_is_told_by_method():
    found = [replace(o, way={"length": 20.0 + o.seed, "teacher_length": 50.0, "teacher_logp": -1.0} | (
        {"kl": 0.5} if o.method == "hapo" else {})) for o in runs(hapo=[0.9, 0.8], sft=[0.5, 0.6])]
    assert way_table(found)[2:] == [
        "| the teacher | 50.0 | | |", "| HAPO | 20.50 | -1.00 | 0.50 |", "| SFT | 20.50 | -1.00 |  |"]


def test_a_report_works_on_whatever_there_is(four, tmp_path):
    some = [replace(o, test={}) for o in (four[0], outcome("sft", 3, failed="killed by SIGKILL"), outcome("grpo", steps=2),
                                          Outcome("sums", "grpo", "grpo", 1, 2e-3, 0, {}))]
    files = report(some, tmp_path)
    assert all(file.stat().st_size for file in files) and len(files) == 5
    text = (tmp_path / "table.md").read_text()
    assert "Nobody has looked at the test problems" in text
    assert "- sums, sft, seed 3: killed by SIGKILL" in text and "- sums, grpo, seed 0: under way" in text
    assert "- sums, grpo, seed 1: not begun" in text
    with pytest.raises(ValueError, match="no trial has finished"):
        report(some[1:], tmp_path)


def test_each_task_has_a_table_and_a_picture_of_its_own(four, tmp_path):
    """LUFFY wins where HAPO fails: all tasks together they are alike."""
    other = [replace(o, task="dates", test={"held out": {"a": 0.99 if o.method == "luffy_matched" else 0.01}}) for o in four]
    files = {file.name for file in report([*four, *other], tmp_path)}
    assert files == {"table.md", "trials.csv", "intervals.png", "profiles.png", "tasks.png", "budgets-sums.png",
                     "budgets-dates.png"}
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("| success, held out: IQM [95%] | sums | dates |")
    dates = text.partition("\ndates:")[2]
    assert "| LUFFY, HAPO's conventions | 5 | 0.002 | 0.990 [0.990, 0.990] | 1.000 [1.000, 1.000] | better |" in dates
    to_png(figure := task_figure([*four, *other]))
    assert_inside(figure)


def test_the_pages_tables_are_those_of_the_shipped_results():
    page = (ROOT / "docs" / "comparison.md").read_text()
    names = {path.name.partition(".")[0] for path in (DATA / "experiments").glob("*.jsonl.gz")}
    assert "sparse" in names and all(f"experiments/{name}.toml" in page for name in names)
    for name in names:
        results = shipped(name)
        assert all(o.finished and o.test for o in results.found)
        for part in (table(results.found), split_table(results.found, results.base), way_table(results.found)):
            assert "\n".join(part) in page


def test_figure_2_is_redrawn_where_both_of_its_methods_are_compared(four, tmp_path):
    assert "figure-2.png" in {file.name for file in report(four, tmp_path)}
    assert "figure-2.png" not in {file.name for file in report(four[:5] + four[10:], tmp_path)}


def test_the_csv_holds_every_trial(four, tmp_path):
    report(four, tmp_path)
    lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert len(lines) == 21
    assert lines[0].endswith('validation,held out,steps,tokens_sampled,tokens_trained,seconds,teacher_samples,steps to 80%,'
                             '"teacher samples, last 5 steps",length')
    assert lines[1].endswith(",14.0,3.0,14.0,") and four[0].reached(0.8, "steps") == (3, True)  # of 4 steps: 8, 4, 2 and none

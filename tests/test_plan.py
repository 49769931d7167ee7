"""Recipes, and what a training needs before it starts."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from hapo_lab.commands.cli import USUAL, main, parser
from hapo_lab.commands.cluster import LAYOUTS, MEMORY, rollouts_of, update_of
from hapo_lab.commands.plan import GIB, Job, hours, memory_table, misfits, shape_of
from hapo_lab.policy.memory import PIECES, PROCESS, activations, row_bytes
from hapo_lab.policy.models import PRESETS
from hapo_lab.policy.rates import Rates
from hapo_lab.training.config import TINY, Config

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path
    return write


# recipes -----------------------------------------------------------------------------------------------------------


def test_a_recipe_is_trains_options_and_the_command_line_goes_before_it(recipe):
    path = recipe("""
        model = "tiny"
        no-quantize = true
        threshold = 0.5
        track = "tensorboard"
        [config]
        steps = 3
        learning_rate = 1e-3
        [template]
        enable_thinking = false
        """)
    args = parser(path).parse_args(["train", "run", "--steps", "5"])
    assert (args.model, args.no_quantize, args.threshold, args.steps, args.learning_rate) == ("tiny", True, 0.5, 5, 1e-3)
    assert args.template_arg == [("enable_thinking", False)] and args.track == ["tensorboard"]


def test_a_recipe_trains_what_the_same_options_train(recipe, tmp_path, capsys):
    path = recipe('model = "tiny"\nsteps = 1\nprompts = 1\ngroup_size = 4\neval_every = 0\nmethod = "grpo"\n')
    main(["train", str(tmp_path / "a"), "--recipe", str(path)])
    main(["train", str(tmp_path / "b"), "--model", "tiny", "--steps", "1", "--prompts", "1", "--group-size", "4",
          "--eval-every", "0", "--method", "grpo"])
    one, other = (json.loads((tmp_path / run / "run.json").read_text()) for run in "ab")
    assert {**one, "versions": {}} == {**other, "versions": {}}


@pytest.mark.parametrize(("text", "words"), [
    ("speed = 3", "has speed, which train does not take; it may have template, task_options, adapter_seed"),
    ('steps = "many"', "steps is 'many'; it must be of type int"), ("steps = true", "steps is True"),
    ("steps = 2.5", "steps is 2.5"), ("model = 3", "model is 3; it must be of type str"),
    ("no_quantize = 1", "no_quantize is 1; it must be of type bool"), ("steps =", "can't be read"),
    ('recipe = "mine.toml"', "has recipe")])
def test_a_wrong_recipe_is_one_sentence(recipe, text, words):
    for command in (["train", "run", "--recipe", str(recipe(text))], ["plan", str(recipe(text))]):
        with pytest.raises(SystemExit, match=words) as refused:
            main(command)
        assert "mine.toml" in str(refused.value) and "\n" not in str(refused.value)


def test_a_recipe_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"none.toml can't be read: no such file"):
        main(["plan", str(tmp_path / "none.toml")])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_kits_own_recipes_are_read(path):
    args = parser(path).parse_args(["train", "run"])
    assert args.model in PRESETS and args.method == "hapo" and args.group_size == 8
    main(["plan", str(path), "--memory", "79"])  # nothing says that it does not fit


# plans -------------------------------------------------------------------------------------------------------------


JOB = Job(PRESETS["smollm2-135m"].shape, Config(), new_tokens=24, gpu=False, width=4)


def test_what_the_memory_holds_is_sampled_together():
    fixed, row = JOB.needs(0).rollouts, row_bytes(JOB.shape, 280, 4)
    assert JOB.length == 280 and JOB.rows == 32 and JOB.needs(0).process == PROCESS
    assert [JOB.together(fixed + room) for room in (-1, row - 1, row, 5 * row, 99 * row)] == [0, 0, 1, 5, 32]


def test_a_completion_above_the_token_budget_is_checkpointed():
    long = Job(JOB.shape, Config(token_budget=512), new_tokens=2048, gpu=True)
    assert long.needs(0).activations == activations(JOB.shape, 2304, 2, checkpoint=True) and long.needs(0).process == 0
    assert "2304 tokens, each layer computed twice" in "\n".join(memory_table(long, 80 * GIB))
    assert JOB.needs(0).activations == int(PIECES * activations(JOB.shape, 512, 4))
    cpu = replace(long, gpu=False, width=4)
    assert cpu.needs(0).activations == activations(JOB.shape, 2304, 4, checkpoint=True)  # which leaves no pieces


def test_what_does_not_fit_is_named_with_the_number_to_change():
    assert misfits(JOB, 4 * GIB) == []
    rollouts, update = misfits(JOB, GIB)
    assert rollouts.startswith("rollouts do not fit: 1.1 GiB") and "fewer max_new_tokens" in rollouts
    assert update.startswith("the update does not fit: 1.8 GiB") and "a smaller token_budget than 512" in update
    with pytest.raises(SystemExit, match="the update does not fit"):
        main(["plan", str(ROOT / "recipes" / "h100-qwen2.5-math-7b.toml"), "--memory", "10"])


def test_time_is_reckoned_from_rates():
    """A thousand parameters, computed with at one operation a second."""
    shape = JOB.shape
    job = Job(shape, Config(prompts=1, group_size=2, steps=10), new_tokens=100, prompt_tokens=50, gpu=True)
    parameters = shape.linear + shape.other
    said = hours(job, Rates(flops=parameters, bytes_per_second=1e18), batches=1)
    assert f"that is {(2 * 200 + 4 * 250) / 60:.0f} min" in said and "up to 200 tokens" in said and "for 10 steps" in said
    slow = hours(job, Rates(flops=1e18, bytes_per_second=job.needs(0).weights), batches=3)
    launched = hours(job, Rates(flops=1e18, bytes_per_second=1e18), batches=3)
    assert "at 80 ms per token of a batch, as on an H100, that is 24.0 s" in launched
    assert f"that is {300 / 60:.0f} min" in slow  # three batches of a hundred tokens, a second for each reading


def test_a_plan_of_tiny_is_made_by_its_usual_numbers(recipe, capsys):
    main(["plan", str(recipe('model = "tiny"\n'))])
    said = capsys.readouterr().out
    assert f"{TINY.prompts * TINY.group_size} of 64 completions" in said and "GiB are free" in said and USUAL["tiny"][1] == TINY


# several GPUs ------------------------------------------------------------------------------------------------------

PAPERS = str(ROOT / "recipes" / "h100-qwen2.5-math-7b.toml")


def test_the_plan_for_eight_gpus_is_the_pages(capsys):
    main(["plan", PAPERS, "--gpus", "8"])
    page = (ROOT / "docs" / "many-gpus.md").read_text()
    table, words = capsys.readouterr().out.strip().split("\n\n")
    assert table in page and words in " ".join(page.split())


@pytest.fixture(scope="module")
def papers():
    return Job(shape_of("qwen2.5-math-7b"), Config(prompts=128, group_size=8), 8192, quantize=False)


def test_zero_keeps_sixteen_bytes_per_weight_in_all(papers):
    """2 in bfloat16, 2 of the gradient, 4 in float32, 8 of Adam's moments."""
    parameters = papers.shape.linear + papers.shape.other
    two, three = (update_of(papers, layout, 8).state for layout in LAYOUTS[1:3])
    assert three == pytest.approx(16 * parameters / 8, rel=1e-6)
    assert two == pytest.approx((2 + 14 / 8) * parameters, rel=1e-6)


def test_rollouts_read_the_weights_once_per_token_and_batch(papers):
    """As many completions at a time as the memory holds; each token reads what lies before it."""
    found = rollouts_of(papers, LAYOUTS[0], 8, MEMORY, waiting=10 * GIB)
    assert 128 > found.together > rollouts_of(papers, LAYOUTS[0], 8, MEMORY, waiting=20 * GIB).together > 0
    assert found.weights == pytest.approx(128 / found.together * 8192 * papers.whole / 2.6e12)
    assert found.memory <= 0.95 * MEMORY and found.utilization < 0.95
    token = 2 * 2 * 28 * 4 * 128  # bytes: key and value, 28 layers, 4 heads of 128
    assert found.cache == pytest.approx(128 * token * sum(256 + t for t in range(8192)) / 2.6e12, rel=1e-3)


@pytest.mark.parametrize(("options", "words"), [
    (["--gpus", "3"], "--gpus is 3: a machine has 2, 4, 8 of them"), (["--gpus", "0"], "--gpus is 0"),
    (["--gpus", "2", "--memory", "30"], "on 2 GPUs of 30 GiB nothing fits: take fewer max_new_tokens")])
def test_gpus_that_can_not_be_planned_for_are_refused(options, words):
    with pytest.raises(SystemExit, match=words):
        main(["plan", PAPERS, *options])


@pytest.mark.parametrize(("run", "layout"), [("qwen2.5_math_7b", LAYOUTS[1]), ("qwen2.5_math_7b_lora", LAYOUTS[0])])
def test_the_examples_leave_the_trainer_its_memory(papers, run, layout):
    share = float(re.search(r"vllm_gpu_memory_utilization: (.*)", (ROOT / "examples" / f"{run}.yaml").read_text())[1])
    planned = rollouts_of(papers, layout, 8, MEMORY, update_of(papers, layout, 8).state).utilization
    assert planned - 0.05 < share <= planned

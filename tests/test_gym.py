"""Tasks of reasoning-gym: problems by seed and difficulty, its own grading, demonstrations, and what is refused."""

import importlib
import inspect
import json
import re

import pytest
from reasoning_gym.factory import DATASETS

from hapo_lab import HAPO, load_task
from hapo_lab.commands.cli import main
from hapo_lab.runs.manifest import describe
from hapo_lab.tasks.gym import ASKING, RUNS, load_gym
from hapo_lab.tasks.rebuilding import task_of_run

SMALL = {"train": 6, "heldout": 3, "max_terms": 2, "max_digits": 1}


def answered(entry):
    return f"So it is <answer>{entry['answer']}</answer>"


def chain_sum(seed=0, **more):
    return load_task("reasoning_gym:chain_sum", seed, **SMALL | more)


def test_problems_come_by_seed_and_difficulty():
    task, again, other = chain_sum(), chain_sum(), chain_sum(seed=1)
    assert (len(task.train), len(task.heldout), task.max_new_tokens, task.name) == (6, 3, 256, "reasoning_gym:chain_sum")
    assert (task.train, task.heldout) == (again.train, again.heldout) and task.train != other.train
    asked = task.train[0].messages[0]["content"]
    assert re.search(r": \d [+-] \d =", asked) and asked.endswith(ASKING)
    assert re.search(r"\d{3} [+-] \d{3}", chain_sum(min_digits=3, max_digits=3).train[0].messages[0]["content"])
    assert all(p.demonstration is None for p in task.train)


@pytest.mark.parametrize(("said", "right", "why"), [
    ("<answer>{}</answer>", True, "score 1.00"), ("no: <answer>7</answer>, but <answer> {} </answer>", True, "score 1.00"),
    ("{}", False, "there is no <answer>"), ("<answer>It is {}</answer>", False, "score 0."),
    ("<answer></answer>", False, "score 0.00"), ("<answer>" * 500, False, "there is no <answer>")])
def test_a_completion_is_graded_by_the_data_set(said, right, why):
    problem = chain_sum().train[0]
    verdict = chain_sum().verify(problem, said.replace("{}", problem.answer))
    assert verdict.correct == right and why in verdict.reason


def test_a_demonstration_is_a_function_of_the_entry(tmp_path):
    (tmp_path / "shown.py").write_text("def shown(entry):\n    return '<answer>' + entry['answer'] + '</answer>'\n")
    task, filed = chain_sum(demonstration=answered), chain_sum(demonstration=f"{tmp_path / 'shown.py'}:shown")
    assert task.train[0].demonstration == f"So it is <answer>{task.train[0].answer}</answer>"
    assert filed.train[0].demonstration == f"<answer>{filed.train[0].answer}</answer>"
    with pytest.raises(ValueError, match="fails its own verifier: it says 'x'"):
        chain_sum(demonstration=lambda entry: "<answer>x</answer>")


@pytest.mark.parametrize("shown", [None, answered])
def test_the_task_of_a_run_is_made_again(tiny, shown):
    task = chain_sum(seed=4, demonstration=shown, max_new_tokens=20)
    manifest = json.loads(json.dumps(describe(tiny, task, HAPO, {}, "transformers")))
    again = task_of_run(manifest)
    assert (again.train, again.heldout, again.identity) == (task.train, task.heldout, task.identity)
    manifest["source"]["options"]["max_terms"] = 3
    with pytest.raises(ValueError, match="is another one here"):
        task_of_run(manifest)


@pytest.mark.parametrize(("name", "options", "why"), [
    ("chess", {}, "reasoning-gym has no data set 'chess'; it has ab, acre"),
    ("countdown", {}, "reasoning-gym's countdown grades an answer by running it as code: choose another"),
    ("chain_sum", {"terms": 3}, "reasoning_gym:chain_sum does not take .*unexpected keyword argument 'terms'"),
    ("chain_sum", {"min_terms": 9, "max_terms": 2}, "reasoning_gym:chain_sum does not take"),
    ("chain_sum", {"heldout": 0}, "train is 280 and heldout 0; both must be at least 1"),
    ("chain_sum", {"train": 1, "heldout": 400, "max_terms": 2, "max_digits": 1}, "different problems in 401: beside 400"),
    ("chain_sum", {"demonstration": "none.jsonl"}, "none.jsonl is not a file that hapo-lab demonstrate wrote"),
])
def test_what_is_refused(name, options, why):
    with pytest.raises(ValueError, match=why):
        load_gym(name, **options)


def test_a_task_of_the_kits_takes_no_options():
    with pytest.raises(ValueError, match="task 'sums' takes no options: leave out max_terms"):
        load_task("sums", max_terms=3)


def test_without_reasoning_gym_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r'needs reasoning-gym: python -m pip install "hapo_lab\[gym\]"'):
        load_gym("chain_sum", seed=123)


def test_no_data_set_that_is_let_in_runs_an_answer_as_code():
    refused = {name for name, (kind, _) in DATASETS.items() if RUNS.search(inspect.getsource(kind.score_answer))}
    assert refused == {"binary_matrix", "countdown", "intermediate_integration", "n_queens", "number_sorting",
                       "polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix", "string_insertion"}
    modules = {name: inspect.getsource(importlib.import_module(kind.__module__)) for name, (kind, _) in DATASETS.items()}
    elsewhere = {name for name, text in modules.items() if RUNS.search(text)} - refused
    assert elsewhere == {"basic_arithmetic", "bitwise_arithmetic", "codeio", "propositional_logic"}  # run their own questions


def test_a_data_set_that_runs_answers_would_have_run_this(tmp_path):
    name, ran = "n_queens", tmp_path / "ran"
    made = DATASETS[name][0](DATASETS[name][1](size=1, seed=0))
    made.score_answer(f"[open({str(ran)!r}, 'w').close()]", made[0])
    assert ran.exists()  # so the refusal has its reason; if not, the library has mended it
    with pytest.raises(ValueError, match="reasoning-gym's n_queens grades an answer by running it as code"):
        load_gym(name)


@pytest.mark.parametrize("name", ["basic_arithmetic", "leg_counting", "letter_counting", "word_sorting", "spell_backward",
                                  "propositional_logic", "bitwise_arithmetic", "gsm_symbolic", "sudoku"])
def test_data_sets_of_each_kind_accept_their_own_answer(name):
    task = load_gym(name, train=2, heldout=1)
    for problem in (*task.train, *task.heldout):
        assert task.verify(problem, f"<answer>{problem.answer}</answer>").correct or problem.answer == "None"
        assert not task.verify(problem, "<answer>\N{SNOWMAN}]</answer>").correct


def test_the_command_trains_with_what_the_command_demonstrated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [word for name, value in SMALL.items() for word in ("--task-arg", f"{name}={value}")]
    main(["demonstrate", "reasoning_gym:chain_sum", *small, "--model", "tiny", "--samples", "1", "--max-new-tokens", "8"])
    assert "missing demonstrations are in chain_sum.demonstrated.jsonl now" in capsys.readouterr().out
    path = tmp_path / "chain_sum.demonstrated.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["key"] for row in rows] == [p.key for p in chain_sum().train]
    rows[0]["demonstration"] = f"<answer>{rows[0]['answer']}</answer>"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["train", "run", "--model", "tiny", "--task", "reasoning_gym:chain_sum", *small, "--task-arg", f"demonstration={path}",
          "--task-arg", "max_new_tokens=24", "--steps", "1", "--prompts", "2", "--eval-every", "0"])
    assert "6 training problems, 1 with a demonstration of at most 24 tokens; 3 held out" in capsys.readouterr().out
    assert task_of_run(json.loads((tmp_path / "run" / "run.json").read_text())).train[0].demonstration

"""The commands, in small, and what they refuse: in one sentence, before anything is written."""

import argparse
import json
import shutil
from dataclasses import asdict, replace

import pytest

from hapo_lab.commands.cli import main, parser
from hapo_lab.commands.demo import summary
from hapo_lab.reproducibility.kit import LESSONS
from hapo_lab.runs.log import RunLog
from hapo_lab.tasks.builtin import load_task
from hapo_lab.tasks.problem import question
from hapo_lab.training.config import TINY

SMALL = ["--steps", "2", "--prompts", "1", "--group-size", "4", "--eval-every", "0"]


@pytest.mark.soak
def test_train_evaluate_report(tmp_path, capsys):
    for name, method in (("a", "hapo"), ("b", "sft")):
        main(["train", str(tmp_path / name), "--method", method, *SMALL])
    assert "step 2 of 2   student 0.00   teacher in 1 of 1 groups" in capsys.readouterr().out
    assert (tmp_path / "a" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "a" / "training.png").read_bytes().startswith(b"\x89PNG")

    main(["evaluate", str(tmp_path / "a"), "--samples", "1"])
    figures = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert figures["before"]["success"] == 0 and len(figures["after"]["by_problem"]) == 40
    assert "held-out success after training: 0.0%" in summary(tmp_path / "a")
    assert "gate, SSI and advantages 0." in summary(tmp_path / "a")

    main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "report")])
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"a", "b", "comparison.png"}
    rows = (tmp_path / "report" / "b" / "steps.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("step,reward,length")

    main(["resume", str(tmp_path / "a")])  # nothing is left to do
    assert f"{tmp_path / 'a'} has all of its 2 steps; --steps extends it." in capsys.readouterr().out
    assert len(RunLog.load(tmp_path / "a").steps) == 2


def test_every_option_of_train_says_what_it_means(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--warmup WARMUP Steps in which the learning rate rises linearly from 0." in said
    commands = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    unsaid = [option.dest for option in commands["train"]._actions if not option.help or option.help.startswith("default")]
    assert len(commands["train"]._actions) > 20 and not unsaid


def test_tiny_brings_its_own_task_and_numbers(tmp_path):
    main(["train", str(tmp_path / "run"), "--model", "tiny", "--steps", "1", "--eval-every", "0"])
    manifest = RunLog.load(tmp_path / "run").manifest
    assert manifest["task"] == "sums" and manifest["config"] == asdict(replace(TINY, steps=1, eval_every=0))


@pytest.mark.parametrize("arguments, sentence", [
    (["--task", "chess"], "unknown task 'chess'; choose one of json_record"),
    (["--method", "ppo"], "unknown method 'ppo'; choose one of hapo"),
    (["--model", "gpt-9"], "model 'gpt-9' is not a preset"),
    (["--group-size", "1"], "group_size is 1; a group needs at least 2"),
    (["--threshold", "1.5"], "the threshold is 1.5; it must lie in (0, 1]"),
    (["--threshold", "0"], "the threshold is 0.0; it must lie in (0, 1]"),
    (["--alpha", "0"], "the prior's alpha is 0.0; it must be a positive number"),
    (["--beta", "-1"], "the prior's beta is -1.0"),
    (["--method", "grpo", "--alpha", "2"], "the gate of method 'grpo' has no alpha: leave it out"),
    (["--gate", "coin"], "unknown gate 'coin'; choose one of beta, always"),
    (["--gate", "hard", "--alpha", "2"], "the gate 'hard' has no alpha: leave it out"),
])
def test_wrong_input_gets_one_sentence_and_no_run(tmp_path, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(tmp_path / "run"), *arguments])
    assert sentence in str(stopped.value) and "\n" not in str(stopped.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused_at_once(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(SystemExit, match="holds a run already: continue it .hapo-lab resume .*, or choose another"):
        main(["train", str(tmp_path)])


def test_a_run_that_broke_off_is_resumed_from_its_folder_alone(tmp_path, capsys):
    tiny = [*SMALL, "--model", "tiny", "--gate", "running", "--threshold", "0.5", "--rank", "4", "--no-quantize",
            "--save-every", "1"]
    for run in ("whole", "broken"):
        main(["train", str(tmp_path / run), *tiny])
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step-000002")
    main(["resume", str(tmp_path / "broken")])
    assert capsys.readouterr().out.count("step 2 of 2") == 3
    whole, resumed = (RunLog.load(tmp_path / run) for run in ("whole", "broken"))
    assert [s.loss for s in resumed.steps] == [s.loss for s in whole.steps]
    assert resumed.events == [{"after_step": 1, "kind": "resumed"}]
    assert resumed.name == "HAPO, running" and resumed.manifest["method"]["gate"] == {
        "kind": "RunningGate", "alpha": 1.0, "beta": 1.0, "threshold": 0.5, "discount": 1.0}


def test_the_lessons_are_written_and_what_was_changed_is_not_overwritten(tmp_path, capsys):
    folder = tmp_path / "new" / "my lessons"
    main(["lessons", str(folder)])
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first == {path.name: path.read_bytes() for path in LESSONS.glob("*.ipynb")} and len(first) >= 9
    assert capsys.readouterr().out == f"{folder} holds the {len(first)} notebooks; next: jupyter lab '{folder}'\n"

    (folder / "03_beta_gate.ipynb").unlink()
    main(["lessons", str(folder)])  # what is missing comes back
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first

    (folder / "03_beta_gate.ipynb").unlink()
    for name in ("00_start_here.ipynb", "01_advantage_collapse.ipynb"):
        (folder / name).write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["lessons", str(folder)])
    assert str(stopped.value) == (f"hapo_lab: {folder} holds a changed 00_start_here.ipynb, 01_advantage_collapse.ipynb: "
                                  "rename it, or choose another folder.")
    assert (folder / "00_start_here.ipynb").read_text() == "mine" and not (folder / "03_beta_gate.ipynb").exists()


def test_lessons_that_can_not_be_written_get_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file can't be written .*: choose another folder.$"):
        main(["lessons", str(tmp_path / "file")])


@pytest.mark.parametrize("command", ["evaluate", "report", "resume"])
def test_a_folder_without_a_run_is_named(tmp_path, command):
    with pytest.raises(SystemExit, match=f"{tmp_path} holds no run"):
        main([command, str(tmp_path)])


# a task of your own

VERIFIER = '''
from hapo_lab.tasks.problem import Verdict

def total(problem, completion):
    return Verdict(completion.endswith(problem.answer), f"it ends with {completion[-4:]!r}")
'''


@pytest.fixture
def own(tmp_path):
    """The arguments that name a task file and its verifier."""
    rows = [{"prompt": question(p), "answer": f"{p.answer}.", "demonstration": f"{p.demonstration}."}
            for p in load_task("sums").train]
    rows[0]["demonstration"] = None
    rows[1]["demonstration"] = " " * 30 + rows[1]["demonstration"]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(VERIFIER)
    return ["--model", "tiny", "--task", str(tmp_path / "own.jsonl"), "--verifier", f"{tmp_path / 'mine.py'}:total",
            "--max-new-tokens", "30", "--heldout", "0.05"]


def test_a_task_file_is_trained_on_resumed_and_evaluated(own, tmp_path, capsys):
    run = tmp_path / "run"
    main(["train", str(run), *own, *SMALL])
    says = capsys.readouterr().out
    assert ("own: 266 training problems, 264 with a demonstration of at most 30 tokens (1 only a longer one); 14 held out"
            in says)
    main(["resume", str(run)])
    main(["evaluate", str(run), "--samples", "2"])
    figures = json.loads((run / "evaluation.json").read_text())
    assert len(figures["after"]["by_problem"]) == 14

    (tmp_path / "own.jsonl").write_text((tmp_path / "own.jsonl").read_text().replace("null", '"85."', 1))
    with pytest.raises(SystemExit, match="own.jsonl holds demonstrations that the verifier rejects"):
        main(["train", str(tmp_path / "another"), *own, *SMALL])
    for command in ("evaluate", "resume"):
        with pytest.raises(SystemExit, match="own.jsonl has changed since the run was made"):
            main([command, str(run)])


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--task", "none.jsonl", "--verifier", "last_number"], "none.jsonl can't be read: no such file or directory."),
    (["--task", "none.jsonl"], "a task file needs --verifier: exact_match, last_number, math, or FILE.py:FUNCTION."),
    (["--task", "none.jsonl", "--verifier", "none"], "unknown verifier 'none'; choose one of exact_match, last_number"),
    (["--verifier", "last_number"], "task 'json_record' has its own verifier: leave out --verifier."),
])
def test_a_task_file_that_is_not_complete_gets_one_sentence(tmp_path, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(tmp_path / "run"), *arguments])
    assert str(stopped.value).startswith(f"hapo_lab: {sentence}")
    assert not (tmp_path / "run").exists()


def test_room_for_an_answer_is_refused_where_a_task_brings_its_own(tmp_path):
    with pytest.raises(SystemExit, match="task 'sums' has its own limit on an answer's tokens: leave out --max-new-tokens"):
        main(["train", str(tmp_path / "run"), "--model", "tiny", "--max-new-tokens", "99"])

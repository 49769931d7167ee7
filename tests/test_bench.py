"""Models and runs on the same questions: figures reckoned by hand; real samples of `tiny` that survive kills to the line."""

import csv
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_inside

from hapo_lab.commands.cli import main
from hapo_lab.engines.protocol import Completion, Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.pictures.bench import bench_figure, report
from hapo_lab.pictures.style import to_png
from hapo_lab.scoring.bench import Plan, bench
from hapo_lab.scoring.contestants import contestant
from hapo_lab.scoring.questions import held_out, read_questions
from hapo_lab.scoring.scores import ALL, Answers, Estimate, pass_at_k, powers, records, score, table
from hapo_lab.tasks.builtin import load_task
from hapo_lab.tasks.problem import Verdict, question
from hapo_lab.tasks.verifiers import last_number
from hapo_lab.training.evaluation import TOGETHER, Evaluation

ROOT = Path(__file__).resolve().parent.parent
SUMS = [{"prompt": question(p), "answer": p.answer.split()[-1]} for p in load_task("sums").train[:5]]
ROOM = 28


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "exam.jsonl", [*SUMS[:3], *(row | {"source": "hard"} for row in SUMS[3:])])


@pytest.fixture
def exam(file):
    return read_questions([file], "last_number", ROOM)


# numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "right", "k", "chance"), [
    (4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 1, 4, 1.0), (5, 2, 3, 0.9), (3, 0, 3, 0.0), (3, 3, 1, 1.0)])
def test_pass_at_k_as_reckoned_by_hand(samples, right, k, chance):
    assert pass_at_k(samples, right, k) == chance


def test_pass_at_k_is_the_share_of_all_choices_of_k_that_hold_a_right_one():
    for right, k in product(range(7), range(1, 7)):
        answers = [True] * right + [False] * (6 - right)
        assert pass_at_k(6, right, k) == pytest.approx(np.mean([any(some) for some in combinations(answers, k)]))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_of_more_samples_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=f"pass@{k} can't be told from 4 samples: take k from 1 to 4"):
        pass_at_k(4, 1, k)


def test_powers_end_at_the_samples():
    assert [powers(n) for n in (1, 2, 6, 32)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8, 16, 32]]


BY_HAND = Answers("mine", ("easy", "hard", "easy"),
                  correct=np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool),
                  tokens=np.array([[1, 1, 1, 1], [8, 8, 8, 8], [2, 2, 2, 2]]),
                  finished=np.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 0]], dtype=bool))


def test_a_model_is_scored_by_source_and_over_all_problems():
    easy, hard, whole = score(BY_HAND)
    assert [(s.source, s.problems, s.samples) for s in (easy, hard, whole)] == [("easy", 2, 4), ("hard", 1, 4), (ALL, 3, 4)]
    assert {k: e.value for k, e in easy.passes.items()} == {1: 0.625, 2: 0.75, 4: 1.0} and easy.average is easy.passes[1]
    assert {k: e.value for k, e in whole.passes.items()} == pytest.approx({1: 1.25 / 3, 2: 0.5, 4: 2 / 3})
    assert (easy.length, hard.length, whole.length) == (1.5, 8, pytest.approx(11 / 3))
    assert (easy.cut, hard.cut, whole.cut) == (0.125, 0.5, 0.25)


def test_the_interval_is_an_evaluations():
    """Problems are resampled, and not samples: more samples of two problems that disagree say no more."""
    rates = np.array([1, 0, 0.25])
    evaluation = type("", (Evaluation,), {"by_problem": rates})((), ())
    found = score(BY_HAND)[-1].average
    assert (found.low, found.high) == evaluation.interval() and 0 <= found.low < found.value < found.high <= 1
    hard = score(BY_HAND)[1].average
    assert hard.low == 0 and hard.high == pytest.approx(1 - 0.025)  # Clopper and Pearson of 0 in 1


def test_the_table_has_a_row_per_source_and_one_over_all():
    rows = table(score(BY_HAND))
    assert rows[0] == "| model | source | problems | samples | avg@4 [95%] | pass@1 | pass@2 | pass@4 | length, tokens | cut |"
    assert rows[3] == "| mine | hard | 1 | 4 | 0.000 [0.000, 0.975] | 0.000 | 0.000 | 0.000 | 8.0 | 0.500 |"
    assert [row.split(" | ")[:4] for row in rows[2:]] == [["| mine", "easy", "2", "4"], ["| mine", "hard", "1", "4"],
                                                          ["| mine", "all", "3", "4"]]
    assert "| a\\|b |" in table(score(replace(BY_HAND, model="a|b")))[2]


def test_the_csv_says_the_same_with_every_interval():
    easy, *_ = records(score(BY_HAND))
    assert list(easy)[:7] == ["model", "source", "problems", "samples", "avg@4", "avg@4_low", "avg@4_high"]
    assert list(easy)[-5:] == ["pass@4", "pass@4_low", "pass@4_high", "length", "cut"]
    assert (easy["avg@4"], easy["pass@1"], easy["pass@2"], easy["length"]) == (0.625, 0.625, 0.75, 1.5)


# questions ---------------------------------------------------------------------------------------------------------


def test_a_file_is_asked_by_source_or_by_its_name(exam):
    assert exam.sources == ("exam",) * 3 + ("hard",) * 2
    assert [p.key for p in exam.problems] == [row["prompt"] for row in SUMS]


def test_of_a_file_with_splits_what_is_held_out_is_asked(tmp_path):
    splits = ["train", "heldout", "train", "heldout", "heldout"]
    rows = [row | {"split": split} for row, split in zip(SUMS, splits, strict=True)]
    found = read_questions([write(tmp_path / "own.jsonl", rows)], "last_number", ROOM)
    assert [p.key for p in found.problems] == [SUMS[i]["prompt"] for i in (1, 3, 4)]
    with pytest.raises(ValueError, match="own.jsonl holds no problem to ask: each line's split is \"train\""):
        read_questions([write(tmp_path / "own.jsonl", [rows[0], rows[2]])], "last_number", ROOM)


@pytest.mark.parametrize(("rows", "sentence"), [
    ([SUMS[0] | {"source": 3}], "b.jsonl, line 1: 'source' is 3; it must be a string"),
    ([SUMS[0] | {"source": " "}], "'source' is ' '"),
    ([SUMS[4], SUMS[2]], "b.jsonl, line 2 asks what .*exam.jsonl, line 3 asks, and would count twice"),
    ([{"prompt": "What is 1 + 1?", "answer": "2", "source": "all"}], "a source is called 'all', as the row over all sources")])
def test_files_that_can_not_be_told_apart_are_refused(tmp_path, rows, sentence):
    first = write(tmp_path / "exam.jsonl", SUMS[:3])
    with pytest.raises(ValueError, match=sentence):
        read_questions([first, write(tmp_path / "b.jsonl", rows)], "last_number", ROOM)


def test_demonstrations_are_no_part_of_a_question(tmp_path, exam):
    shown = write(tmp_path / "exam.jsonl", [SUMS[0] | {"demonstration": f"It is {SUMS[0]['answer']}."}, *SUMS[1:3],
                                            *(row | {"source": "hard"} for row in SUMS[3:])])
    assert read_questions([shown], "last_number", ROOM).described() == exam.described()
    assert read_questions([shown], "last_number", ROOM + 1).described() != exam.described()


def test_a_verifier_that_no_other_process_finds_is_refused(file):
    with pytest.raises(ValueError, match="the verifier has no name in a file: put it into a file of its own"):
        read_questions([file], lambda problem, text: Verdict(True, "always"), ROOM)


def test_runs_are_asked_together_only_if_they_hold_out_the_same(sums):
    assert held_out({"a": sums, "b": load_task("sums", 0)}).sources == ("sums",) * len(sums.heldout)
    with pytest.raises(ValueError, match="a and b do not hold out the same problems"):
        held_out({"a": sums, "b": load_task("sums", 1)})


# the plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 5, 32, 64, 65, 150])
def test_batches_hold_every_sample_once_and_never_too_many(exam, samples):
    plan = Plan(exam, samples, Sampling(ROOM), seed=0)
    batches = list(plan.batches())
    drawn = [(i, s) for batch in batches for i in batch.problems for s in batch.samples]
    assert sorted(drawn) == list(product(range(5), range(samples))) and len(drawn) == plan.total
    assert all(len(batch) <= TOGETHER for batch in batches)
    assert len({plan.seed_of(batch) for batch in batches}) == len(batches)


def test_a_bench_without_samples_is_refused(exam):
    with pytest.raises(ValueError, match="samples is 0; it must be at least 1"):
        Plan(exam, 0, Sampling(ROOM), seed=0)


# real samples ------------------------------------------------------------------------------------------------------


class Forbidden(TransformersEngine):
    """Where nothing is left to sample."""

    def generate(self, *_):
        raise AssertionError("sampled again")


def read(folder, name="tiny"):
    return (folder / name / "samples.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file of five problems, and a bench of `tiny` that nothing happened to: batches of 2, 2 and 1 problems x 24 samples."""
    folder = tmp_path_factory.mktemp("bench")
    rows = [*SUMS[:3], *(row | {"source": "hard"} for row in SUMS[3:])]
    exam = read_questions([write(folder / "exam.jsonl", rows)], "last_number", ROOM)
    return folder, exam, bench(["tiny"], folder / "out", exam, samples=24, temperature=1.5, engine=TransformersEngine)


def test_each_sample_is_a_line_that_tells_all(whole):
    folder, exam, (answers,) = whole
    lines = [json.loads(line) for line in read(folder / "out").splitlines()]
    assert len(lines) == 5 * 24 and list(lines[0]) == ["model", "source", "problem", "sample", "seed", "tokens", "finished",
                                                       "correct", "reason", "text"]
    assert [(line["problem"], line["sample"]) for line in lines] == [(row["prompt"], s) for row in SUMS for s in range(24)]
    for line in lines:
        i, s = [row["prompt"] for row in SUMS].index(line["problem"]), line["sample"]
        verdict = last_number(exam.problems[i], line["text"])
        assert line["correct"] == (verdict.correct and line["finished"]) == answers.correct[i, s]
        assert line["source"] == exam.sources[i] and line["tokens"] == answers.tokens[i, s] <= ROOM
    assert 0 < answers.correct.mean() < 1 and len({line["text"] for line in lines}) > 20
    assert len({line["seed"] for line in lines}) == 3


@pytest.mark.parametrize("keep", [0, 1, 40, 0.01, 0.35, 0.4, 0.5, 0.8, 0.999, "line", "batch", "batch + line", "end"])
def test_a_file_cut_anywhere_goes_on_to_the_same_bytes(whole, tmp_path, keep):
    folder, exam, (before,) = whole
    shutil.copytree(folder / "out", tmp_path / "out")
    path, content = tmp_path / "out" / "tiny" / "samples.jsonl", read(folder / "out")
    lines = {"line": 7, "batch": 48, "batch + line": 49, "end": 120}
    size = (len(b"".join(content.splitlines(True)[:lines[keep]])) if isinstance(keep, str)
            else int(keep * len(content)) if isinstance(keep, float) else keep)
    path.write_bytes(content[:size])
    engine = Forbidden if keep == "end" else TransformersEngine
    after, = bench(["tiny"], tmp_path / "out", exam, samples=24, temperature=1.5, engine=engine)
    assert path.read_bytes() == content and table(score(after)) == table(score(before))


def test_ctrl_c_loses_at_most_a_batch_and_the_same_command_goes_on(file, tmp_path, monkeypatch, capsys):
    calls, generate = [], TransformersEngine.generate

    def pressed(*asked):
        calls.append(asked)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*asked)

    command = ["bench", "tiny", "--data", str(file), "--verifier", "last_number", "--samples", "32", "--max-new-tokens", "28",
               "--out"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(TransformersEngine, "generate", pressed)
        main([*command, str(tmp_path / "out")])
    assert str(stopped.value) == (f"stopped; {tmp_path / 'out'} holds the samples so far: repeat the command to continue.")
    assert len(read(tmp_path / "out").splitlines()) == 128
    main([*command, str(tmp_path / "out")])
    main([*command, str(tmp_path / "other")])
    assert read(tmp_path / "out") == read(tmp_path / "other") and len(read(tmp_path / "out").splitlines()) == 160
    assert (tmp_path / "out" / "table.md").read_text() == (tmp_path / "other" / "table.md").read_text()
    assert "160/160" in capsys.readouterr().err


@pytest.mark.soak
def test_a_bench_that_is_killed_again_and_again_ends_as_one_that_is_not(file, tmp_path):
    command = [sys.executable, "-m", "hapo_lab", "bench", "tiny", "--data", str(file), "--verifier", "last_number",
               "--samples", "256", "--max-new-tokens", "28", "--temperature", "1.5", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    path, seen = tmp_path / "killed" / "tiny" / "samples.jsonl", 0
    for _ in range(3):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (path.stat().st_size if path.exists() else 0) <= seen:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen = path.stat().st_size
    assert 0 < seen < len(read(tmp_path / "whole"))
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    assert read(tmp_path / "killed") == read(tmp_path / "whole")


@pytest.mark.parametrize(("other", "sentence"), [
    ({"samples": 8}, "samples is 24 there and 8 here"), ({"temperature": 1.0}, "temperature is 1.5 there and 1.0 here"),
    ({"seed": 1}, "seed is 0 there and 1 here")])
def test_a_folder_of_another_bench_is_refused(whole, other, sentence):
    folder, exam, _ = whole
    for who in ("tiny", "more=tiny"):
        with pytest.raises(ValueError, match=f"out holds another bench: {sentence}. Ask the same, or choose another folder"):
            bench([who], folder / "out", exam, **{"samples": 24, "temperature": 1.5, "engine": Forbidden} | other)
    assert len(read(folder / "out").splitlines()) == 120 and not (folder / "out" / "more").exists()


def test_other_questions_verifier_or_room_are_another_bench(whole):
    folder, exam, _ = whole
    fewer = replace(exam, problems=exam.problems[:4], sources=exam.sources[:4])
    renamed = replace(exam, sources=("exam",) * 5)
    for asked, what in ((fewer, "problems is .* sha256 is"), (renamed, "problems is .* there and {'exam': 5} here"),
                        (replace(exam, verify=yes), "verifier is"),
                        (replace(exam, max_new_tokens=20), "max_new_tokens is 28 there and 20 here")):
        with pytest.raises(ValueError, match=f"holds another bench: {what}"):
            bench(["tiny"], folder / "out", asked, samples=24, temperature=1.5, engine=Forbidden)


def yes(problem, text):
    return Verdict(True, "whatever it says")


def test_another_model_under_the_same_name_is_refused(whole, run):
    folder, exam, _ = whole
    with pytest.raises(ValueError, match=r"tiny holds the answers of another tiny: .*adapter is None there.*\(NAME=...\)"):
        bench([f"tiny={run}"], folder / "out", exam, samples=24, temperature=1.5, engine=Forbidden)
    with pytest.raises(ValueError, match="two models are called tiny: give one a name of its own"):
        bench(["tiny", f"tiny={run}"], folder / "new", exam, engine=Forbidden)
    assert not (folder / "new").exists()


class Echo:
    """Any engine: it says the first prompt token, and every second answer is cut."""

    name = "echo"

    def __init__(self, policy):
        self.policy = policy

    def sync(self):
        pass

    def sleep(self):
        pass

    def generate(self, prompts, n, sampling, seed):
        return [[Completion(tuple(ids[:3]), "whatever", (), bool(i % 2)) for i in range(n)] for ids in prompts]


def test_any_engine_answers_and_what_is_cut_is_wrong(exam, tmp_path):
    answers, = bench(["tiny"], tmp_path, replace(exam, verify=yes), samples=4, engine=Echo)
    assert answers.finished.tolist() == answers.correct.tolist() == [[False, True, False, True]] * 5
    assert (answers.tokens == 3).all()
    assert score(answers)[-1].cut == 0.5 and score(answers)[-1].passes[2].value == pytest.approx(5 / 6)
    line = json.loads(read(tmp_path).splitlines()[0])
    assert (line["reason"], line["correct"]) == ("cut at 3 tokens", False)


def test_another_engine_does_not_go_on_with_a_models_answers(whole, tmp_path):
    folder, exam, _ = whole
    shutil.copytree(folder / "out", tmp_path / "out")
    (tmp_path / "out" / "tiny" / "samples.jsonl").write_bytes(read(folder / "out")[:5000])
    with pytest.raises(ValueError, match="tiny began with other settings: engine is 'transformers' there and 'echo' here"):
        bench(["tiny"], tmp_path / "out", exam, samples=24, temperature=1.5, engine=Echo)


def test_a_model_joins_others_whose_answers_stay(whole, tmp_path):
    folder, exam, (first,) = whole
    shutil.copytree(folder / "out", tmp_path / "out")
    tiny, same = bench(["tiny", "again=tiny"], tmp_path / "out", exam, samples=24, temperature=1.5, engine=TransformersEngine)
    assert read(tmp_path / "out") == read(folder / "out") and (tiny.model, same.model) == ("tiny", "again")
    assert same.tokens.tolist() == tiny.tokens.tolist() == first.tokens.tolist()  # whoever is asked, the seeds are the same
    assert b'"model": "again"' in read(tmp_path / "out", "again")


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda lines: [*lines[:3], b"{torn\n", *lines[3:]], "samples.jsonl, line 4: not JSON .*; remove that line"),
    (lambda lines: [*lines[:3], *lines[4:]], "line 4: not the sample that belongs there; remove that line and all after it"),
    (lambda lines: [*lines, lines[0]], "line 121: not the sample that belongs there"),
    (lambda lines: [b"3\n"], "line 1: not the sample that belongs there")])
def test_a_damaged_line_is_named(whole, tmp_path, damage, sentence):
    folder, exam, _ = whole
    shutil.copytree(folder / "out", tmp_path / "out")
    path = tmp_path / "out" / "tiny" / "samples.jsonl"
    path.write_bytes(b"".join(damage(read(folder / "out").splitlines(True))))
    with pytest.raises(ValueError, match=sentence):
        bench(["tiny"], tmp_path / "out", exam, samples=24, temperature=1.5, engine=Forbidden)


def test_samples_that_do_not_say_what_was_asked_are_refused(whole, tmp_path):
    folder, exam, _ = whole
    shutil.copytree(folder / "out", tmp_path / "out")
    for content in (None, "{", "[]", '{"asked": {}}'):
        (tmp_path / "out" / "tiny" / "bench.json").unlink(missing_ok=True)
        if content:
            (tmp_path / "out" / "tiny" / "bench.json").write_text(content)
        with pytest.raises(ValueError, match="bench.json does not say what was asked there: choose another folder"):
            bench(["tiny"], tmp_path / "out", exam, samples=24, temperature=1.5, engine=Forbidden)


def test_an_answer_without_room_in_the_context_is_refused_before_any_sample(exam, tmp_path):
    with pytest.raises(ValueError, match=r"'What is .*' and its answer take up to \d+ tokens; the context of tiny is 256"):
        bench(["tiny"], tmp_path, replace(exam, max_new_tokens=250), samples=1, engine=TransformersEngine)
    assert not list(tmp_path.glob("tiny/*"))


def test_a_folder_that_can_not_be_made_gets_one_sentence(exam, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="out/tiny can't be written: .*; mend that, then repeat the command"):
        bench(["tiny"], tmp_path / "out", exam, samples=1, engine=TransformersEngine)


# runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of `tiny` that has taken a step, and saved its adapter."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    main(["train", str(folder), "--model", "tiny", "--steps", "1", "--eval-every", "0"])
    return folder


def test_a_run_is_asked_what_it_holds_out_and_models_beside_it_the_same(run, tmp_path, capsys):
    main(["bench", str(run), "base=tiny", "--samples", "2", "--out", str(tmp_path / "out"), "--engine", "transformers"])
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [(r["model"], r["source"], r["problems"]) for r in rows] == [
        ("mine", "sums", "40"), ("mine", "all", "40"), ("base", "sums", "40"), ("base", "all", "40")]
    assert "| base | sums | 40 | 2 | 0.000 [0.000, 0.088] |" in capsys.readouterr().out
    lines = [json.loads(line) for line in read(tmp_path / "out", "mine").splitlines()]
    assert [line["problem"] for line in lines[::2]] == [p.key for p in load_task("sums").heldout]


def test_what_a_run_was_trained_on_is_said(run, tmp_path, capsys):
    task = load_task("sums")
    asked = [{"prompt": question(p), "answer": p.answer.split()[-1]} for p in (task.train[0], task.heldout[0])]
    main(["bench", str(run), "--data", str(write(tmp_path / "e.jsonl", asked)), "--verifier", "last_number", "--samples", "1",
          "--out", str(tmp_path / "out")])
    assert "was trained on 1 of these 2 questions: they do not test it" in capsys.readouterr().out


def test_a_run_answers_with_its_adapter(run, exam, tmp_path):
    before, after = bench(["tiny", str(run)], tmp_path, exam, samples=16, engine=TransformersEngine)
    assert read(tmp_path) != read(tmp_path, "mine").replace(b'"mine"', b'"tiny"')
    assert (before.model, after.model) == ("tiny", "mine")
    weights = run / "adapter" / "adapter_model.safetensors"
    assert contestant(str(run)).identity["adapter"] == hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["tiny"], "no run gives held-out problems: name task files"),
    (["tiny", "--verifier", "last_number"], "a run has its own verifier: leave out --verifier"),
    (["tiny", "--data", "FILE"], "--data needs --verifier: exact_match, last_number, math, or FILE.py:FUNCTION"),
    (["tiny", "--data", "no.jsonl", "--verifier", "last_number"], "no.jsonl can't be read: no such file"),
    (["gpt-9", "--data", "FILE", "--verifier", "last_number"], "model 'gpt-9' is not a preset"),
    (["EMPTY", "--data", "FILE", "--verifier", "last_number"], "holds no run .run.json. and no model"),
    (["tiny", "--data", "FILE", "--verifier", "last_number", "--samples", "0"], "samples is 0"),
    (["tiny", "--data", "FILE", "--verifier", "last_number", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
    (["tiny", "--data", "FILE", "--verifier", "last_number", "--temperature", "0"], "temperature positive"),
    (["tiny", "--data", "FILE", "--verifier", "last_number", "--engine", "magic"], "engine is 'magic'; choose one of auto")])
def test_wrong_input_gets_one_sentence_and_no_folder(file, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    given = {"FILE": str(file), "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(SystemExit, match=sentence) as stopped:
        main(["bench", *(given.get(word, word) for word in arguments), "--out", str(tmp_path / "out")])
    assert "\n" not in str(stopped.value) and not (tmp_path / "out").exists()


def test_a_run_without_an_adapter_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="has no adapter yet: finish the run first"):
        contestant(str(tmp_path))


def test_a_name_may_stand_before_a_folder_whose_own_name_has_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data" / "tiny", tmp_path / "lr=1")
    assert (contestant("lr=1").name, contestant("mine=lr=1").name, contestant("tiny").name) == ("lr=1", "mine", "tiny")
    assert contestant("lr=1").identity == contestant("tiny").identity
    assert contestant("a/b c=tiny").folder == "a-b-c"


# table and picture -------------------------------------------------------------------------------------------------


def test_the_papers_table_stands_apart(file, tmp_path, capsys):
    main(["bench", "tiny", "--data", str(file), "--verifier", "last_number", "--samples", "2", "--paper",
          "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "table.md").read_text()
    ours, paper = text.split("\n\n", 1)
    assert text in capsys.readouterr().out and ours.count("\n") == 4 and "36.7" not in ours
    assert "| HAPO [R] | 36.7 | 87.0 | 51.4 |" in paper and "| LUFFY [R] | 36.7 | 84.6 | 51.8 |" in paper
    assert "| GRPO [R, inferred from stated gains] | 27.0 | 83.0 |  |" in paper
    assert "[R, in part]" in paper and "tiny" not in paper
    assert not {"HAPO", "LUFFY"} & {row["model"] for row in csv.DictReader((tmp_path / "out" / "table.csv").open())}
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")


LONG = [f"HuggingFaceTB/SmolLM2-135M-Instruct-and-more-words-than-fit-{i}" for i in range(4)]


def answers_of(models, sources, problems, samples):
    rng = np.random.default_rng(0)
    shape = (len(sources) * problems, samples)
    return [Answers(model, tuple(s for s in sources for _ in range(problems)), rng.random(shape) < rng.random(),
                    rng.integers(1, 99, shape), rng.random(shape) < 0.9) for model in models]


@pytest.mark.parametrize(("models", "sources", "samples"), [
    (1, 1, 1), (1, 1, 2), (2, 3, 32), (12, 2, 8), (3, 12, 24), ("long", "long", 4)])
def test_nothing_leaves_the_picture(models, sources, samples):
    names = LONG if models == "long" else [f"run-{i}" for i in range(models)]
    asked = LONG if sources == "long" else [f"exam-{i}" for i in range(sources)]
    scores = [row for one in answers_of(names, asked, 3, samples) for row in score(one)]
    figure = bench_figure(scores)
    to_png(figure)
    assert_inside(figure)
    assert figure.axes[1].get_xticklabels()[-1].get_text() == str(powers(samples)[-1])
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    shown = [s for s in scores if s.source != ALL or len(asked) > 1]
    assert sorted(line.get_xdata()[0] for line in dots) == sorted(s.average.value for s in shown)


def test_a_report_is_three_files(tmp_path):
    answers = answers_of(["a", "b"], ["x", "y"], 4, 8)
    assert [file.name for file in report(answers, tmp_path / "new")] == ["table.md", "table.csv", "bench.png"]
    assert len((tmp_path / "new" / "table.md").read_text().splitlines()) == 2 + 2 * 3
    assert "Table 1" not in (tmp_path / "new" / "table.md").read_text()


def test_an_estimate_reads_as_in_an_experiments_table():
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"

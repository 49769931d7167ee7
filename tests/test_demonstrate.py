"""Demonstrations by a teacher model, here the real `tiny`: verified, written whole after each batch, gone on with."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hapo_lab.commands.cli import main
from hapo_lab.engines.protocol import Sampling
from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.tasks.jsonl import load_jsonl
from hapo_lab.tasks.problem import question
from hapo_lab.tasks.verifiers import exact_match, last_number
from hapo_lab.training.demonstrations import Demonstrations

ROOT = Path(__file__).resolve().parent.parent
SUMS = [{"prompt": question(p), "answer": p.answer.split()[-1]} for p in load_task("sums").train[:12]]
ROOM = Sampling(max_new_tokens=28)


@pytest.fixture(scope="module")
def tiny():
    return load_policy("tiny")


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "own.jsonl", SUMS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_kept_was_verified_and_the_rest_stays_open(tiny, tmp_path):
    rows = [*SUMS[:8], SUMS[8] | {"demonstration": f"It is {SUMS[8]['answer']}.", "level": 3}, SUMS[9] | {"split": "heldout"}]
    file = write(tmp_path / "own.jsonl", [{"split": "train"} | row for row in rows])
    out = tmp_path / "out" / "own.jsonl"
    job = Demonstrations(file, out, last_number, "tiny", samples=4)
    assert job.pending == list(range(8))
    assert list(job.sample(tiny, ROOM, batch=3)) == [3, 3, 2] and not job.pending
    written = read(out)
    assert [{k: row[k] for k in given} for row, given in zip(written, read(file), strict=True)] == read(file)
    assert written[8:] == read(file)[8:]  # one had a demonstration, the other is held out
    for row in written[:8]:
        right = row["teacher"]["right"]
        assert (row["demonstration"] is None) == (right == 0)
        assert row["teacher"] == {"model": "tiny", "right": right, "samples": 4}
    assert 6 <= job.found == sum(row["demonstration"] is not None for row in written[:8])  # it can add
    assert str(job).startswith(f"{job.found} of 8 missing demonstrations are in {out} now")
    assert load_jsonl(out, last_number, 28).train[0].demonstration == written[0]["demonstration"]
    assert not list(out.parent.glob("*.writing"))


def test_only_a_finished_completion_is_kept(tiny, file, tmp_path):
    job = Demonstrations(file, tmp_path / "out.jsonl", last_number, "tiny", samples=4)
    list(job.sample(tiny, Sampling(max_new_tokens=2)))
    assert job.found == 0 and str(job).endswith("; the other 12 want more samples, or another model.")


def test_it_goes_on_where_it_stopped(tiny, file, tmp_path):
    out = tmp_path / "out.jsonl"
    first = Demonstrations(file, out, last_number, "tiny", samples=2)
    next(first.sample(tiny, ROOM))  # stops after the first batch
    half = read(out)
    assert [("teacher" in row) for row in half] == [True] * 4 + [False] * 8
    second = Demonstrations(file, out, last_number, "tiny", samples=2)
    assert second.pending == list(range(4, 12)) and list(second.sample(tiny, ROOM)) == [4, 4]
    assert read(out)[:4] == half[:4] and all("teacher" in row for row in read(out))
    assert Demonstrations(file, out, last_number, "tiny", samples=2).pending == []


def test_more_samples_and_other_models_are_asked_again_where_none_was_found(tiny, file, tmp_path):
    out = tmp_path / "out.jsonl"
    job = Demonstrations(file, out, exact_match, "tiny", samples=1)  # the bare number: rare
    list(job.sample(tiny, ROOM))
    left = [i for i, row in enumerate(read(out)) if row["demonstration"] is None]
    assert left
    assert Demonstrations(file, out, exact_match, "tiny", samples=1).pending == []
    assert Demonstrations(file, out, exact_match, "tiny", samples=2).pending == left
    assert Demonstrations(file, out, exact_match, "a-larger-one", samples=1).pending == left


def test_the_file_itself_may_take_them_in(tiny, file):
    job = Demonstrations(file, file, last_number, "tiny", samples=2)
    list(job.sample(tiny, ROOM))
    assert job.found >= 8 and [row["prompt"] for row in read(file)] == [row["prompt"] for row in SUMS]
    done = Demonstrations(write(file, [row | {"demonstration": row["answer"]} for row in SUMS]), file, last_number, "tiny")
    assert str(done) == "every training problem has a demonstration already: nothing to do."


def test_another_files_output_is_refused(file, tmp_path):
    out = write(tmp_path / "out.jsonl", SUMS[1:])
    with pytest.raises(ValueError, match="out.jsonl holds other problems than .*own.jsonl: choose another file to write"):
        Demonstrations(file, out, last_number, "tiny")


def test_a_prompt_that_is_too_long_is_named_before_anything_is_sampled(tiny, tmp_path):
    file = write(tmp_path / "own.jsonl", [*SUMS, {"prompt": "9" * 250, "answer": "1"}])
    out = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=r"line 13: a prompt of \d+ tokens and 28 new ones exceed the context of tiny"):
        next(Demonstrations(file, out, last_number, "tiny").sample(tiny, ROOM))
    assert not out.exists()


def test_a_place_that_can_not_be_written_is_named(tiny, file, tmp_path):
    (tmp_path / "taken").write_text("")
    job = Demonstrations(file, tmp_path / "taken" / "out.jsonl", last_number, "tiny")
    with pytest.raises(ValueError, match=r"taken.out\.jsonl can't be written"):
        next(job.sample(tiny, ROOM))


def test_the_command(file, tmp_path, capsys):
    main(["demonstrate", str(file), "--model", "tiny", "--verifier", "last_number", "--samples", "2", "--max-new-tokens", "28"])
    out, shown = tmp_path / "own.demonstrated.jsonl", capsys.readouterr()
    assert f"of 12 missing demonstrations are in {out} now" in shown.out and "12/12" in shown.err
    assert len(read(out)) == 12
    with pytest.raises(SystemExit, match="a task file needs --verifier: exact_match, last_number, math, or FILE.py:FUNCTION"):
        main(["demonstrate", str(file), "--model", "tiny"])


@pytest.mark.soak
def test_killed_in_the_middle_it_loses_nothing(file, tmp_path):
    """Really killed: the file holds every problem, and the same command finishes it."""
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "hapo_lab", "demonstrate", str(file), "--out", str(out), "--model", "tiny",
               "--samples", "64", "--verifier", "last_number", "--max-new-tokens", "28"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not out.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = read(out)
    assert [row["prompt"] for row in before] == [row["prompt"] for row in SUMS]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "12 of 12 missing demonstrations" in done.stdout
    after = read(out)
    assert [row for row in before if row.get("demonstration")] == [a for a, b in zip(after, before, strict=True)
                                                                   if b.get("demonstration")]

"""Tasks from files: what is read, what is refused and where, and the verifiers."""

import json
from dataclasses import replace

import pytest

from hapo_lab.tasks.builtin import load_task
from hapo_lab.tasks.jsonl import load_jsonl
from hapo_lab.tasks.problem import Problem, Verdict, question
from hapo_lab.tasks.rebuilding import task_of_run
from hapo_lab.tasks.verifiers import exact_match, last_number, load_verifier

SUMS = [{"prompt": f"What is {a} + 1?", "answer": str(a + 1), "demonstration": f"It is {a + 1}."} for a in range(10, 20)]


@pytest.fixture
def write(tmp_path):
    """Rows, or lines as they stand -> the path of a file that holds them."""
    def make(*rows, name="own.jsonl", **options):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", **{"encoding": "utf-8"} | options)
        return path
    return make


def load(path, verify="last_number", **options):
    return load_jsonl(path, verify, 24, **options)


def refused(path, *words, **options):
    with pytest.raises(ValueError) as error:
        load(path, **options)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


# reading

def test_a_file_and_a_verifier_make_a_task(write):
    task = load(write(*SUMS))
    assert (task.name, len(task.train), len(task.heldout), task.max_new_tokens) == ("own", 8, 2, 24)
    problem = next(p for p in (*task.train, *task.heldout) if p.answer == "15")
    assert problem == Problem("What is 14 + 1?", ({"role": "user", "content": "What is 14 + 1?"},), "15", "It is 15.")
    assert task.verify(problem, "15").correct and not task.verify(problem, "16").correct


def test_the_seed_draws_the_held_out_share(write):
    path = write(*SUMS)
    assert load(path, heldout=0.5, seed=1) == load(path, heldout=0.5, seed=1)
    splits = [frozenset(p.key for p in load(path, heldout=0.5, seed=s).heldout) for s in range(5)]
    assert {len(s) for s in splits} == {5} and len(set(splits)) > 1


def test_a_split_in_the_file_is_kept_in_its_order(write):
    task = load(write(*[row | {"split": "heldout" if i in (2, 7) else "train"} for i, row in enumerate(SUMS)]), seed=5)
    assert [p.answer for p in task.heldout] == ["13", "18"]
    assert [p.answer for p in task.train] == ["11", "12", "14", "15", "16", "17", "19", "20"]


def test_problems_with_one_key_stay_together(write):
    asked = [{"prompt": ask.format(a), "answer": str(a + 1), "key": f"{a} + 1"}
             for a in range(10, 16) for ask in ("What is {} + 1?", "Add 1 to {}.")]
    for seed in range(5):
        task = load(write(*asked), seed=seed, heldout=0.4)
        assert len(task.heldout) == 4 and not {p.key for p in task.heldout} & {p.key for p in task.train}


def test_a_prompt_may_be_a_chat(write):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]
    task = load(write({"prompt": chat, "answer": "2", "split": "train"}, SUMS[0] | {"split": "heldout"}))
    assert task.train[0].messages == tuple(chat) and task.train[0].key == "What is 1 + 1?"
    assert task.train[0].demonstration is None


@pytest.mark.parametrize("options", [{"encoding": "utf-8-sig"}, {"newline": "\r\n"}], ids=["a mark in front", "Windows"])
def test_files_from_other_systems_are_read(write, options):
    rows = [row | {"prompt": f"Größe {i}\u2028: {row['prompt']}"} for i, row in enumerate(SUMS)]
    path = write(*[json.dumps(row, ensure_ascii=False) for row in rows], "", "  ", **options)
    assert {question(p) for p in (*load(path).train, *load(path).heldout)} == {row["prompt"] for row in rows}


def test_other_fields_and_nulls_are_left_alone(write):
    path = write(*[row | {"demonstration": None, "split": None, "key": None, "level": 3} for row in SUMS])
    assert all(p.demonstration is None for p in load(path).train)


# what is refused

@pytest.mark.parametrize(("line", "sentence"), [
    ("{'prompt': 1}", "line 2: not JSON (expecting property name enclosed in double quotes at character 2)"),
    ("[]", "line 2: a list, but no object"),
    ({"prompt": "2 + 2?"}, "line 2: the field 'answer' is missing (there are: prompt)"),
    ({"question": "2 + 2?", "answer": "4"}, "line 2: the field 'prompt' is missing (there are: question, answer)"),
    ({"prompt": "2 + 2?", "answer": 4}, "line 2: 'answer' is a number (4); it must be a string: write \"4\"."),
    ({"prompt": "2 + 2?", "answer": None}, "line 2: 'answer' is null; it must be a string."),
    ({"prompt": "2 + 2?", "answer": True}, "line 2: 'answer' is true or false; it must be a string."),
    ({"prompt": " ", "answer": "4"}, "line 2: 'prompt' is empty."),
    ({"prompt": {"q": 1}, "answer": "4"}, "line 2: 'prompt' is an object; it must be a string."),
    ({"prompt": [], "answer": "4"}, "line 2: 'prompt' must end with a message of the user's."),
    ({"prompt": ["2 + 2?"], "answer": "4"}, "line 2: 'prompt' is a list, so each part must be a chat message"),
    ({"prompt": [{"role": "human", "content": "2 + 2?"}], "answer": "4"}, "line 2: 'prompt' has the role 'human'"),
    ({"prompt": [{"role": "user", "content": 4}], "answer": "4"}, "line 2: 'content' is a number (4)"),
    ({"prompt": "2 + 2?", "answer": "4", "demonstration": ""}, "line 2: 'demonstration' is empty."),
    ({"prompt": "2 + 2?", "answer": "4", "demonstration": ["4"]}, "line 2: 'demonstration' is a list"),
    ({"prompt": "2 + 2?", "answer": "4", "split": "test"}, "line 2: 'split' is 'test'; it must be \"train\" or \"heldout\"."),
    ({"prompt": "2 + 2?", "answer": "4", "split": "train"}, "line 1: 'split' is missing, though others have it"),
    ({"prompt": "2 + 2?", "answer": "four"}, "line 2: the verifier fails on the completion '': ValueError: the answer 'four'"),
])
def test_a_bad_line_is_named_with_its_field(write, line, sentence):
    path = write(SUMS[0], line, *SUMS[1:])
    assert f"{path}, {sentence}" in refused(path)


def test_lines_are_counted_with_the_blank_ones(write):
    refused(write(SUMS[0], "", "", "{"), "line 4: not JSON")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "own.jsonl").write_bytes(content)
    refused(tmp_path / "own.jsonl", 'is empty: it must hold one problem per line, such as {"prompt"')


def test_another_encoding_is_refused_with_its_line(tmp_path):
    (tmp_path / "own.jsonl").write_bytes(json.dumps(SUMS[0]).encode() + '\n{"prompt": "Größe"}'.encode("latin-1"))
    refused(tmp_path / "own.jsonl", "line 2: not UTF-8")


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "own.jsonl", f"{tmp_path / 'own.jsonl'} can't be read: no such file or directory")


def test_all_demonstrations_that_fail_are_listed(write):
    rows = [row | ({"demonstration": "It is 99."} if i in (1, 4) else {}) for i, row in enumerate(SUMS)]
    said = refused(write(*rows), "holds demonstrations that the verifier rejects; correct them, or set them to null:",
                   "\n  line 2: its last number is 99, the answer is 12", "\n  line 5: its last number is 99, the answer is 15")
    assert said.count("\n") == 2


def test_problems_that_stand_twice_are_listed(write):
    said = refused(write(*SUMS, SUMS[2], SUMS[5], SUMS[2]), "lines 3, 11 and 13: 'What is 12 + 1?'", "lines 6 and 12: ")
    assert said.count("\n") == 2


def test_problems_in_both_splits_are_listed(write):
    rows = [row | {"split": "heldout" if i < 3 else "train"} for i, row in enumerate(SUMS)]
    refused(write(*rows, rows[1] | {"split": "train"}), "lines 2 and 11: 'What is 11 + 1?', in train and heldout both")
    again = {"prompt": "Once more. What is 10 + 1? And then?", "answer": "12", "split": "train"}
    shown = {"prompt": "Something else.", "answer": "13", "split": "train", "demonstration": "What is 12 + 1? It is 13."}
    one_key = {"prompt": "Eleven and one?", "answer": "12", "split": "train", "key": "What is 11 + 1?"}
    said = refused(write(*rows, again, shown, one_key), "stand in train and heldout both; keep one of each pair:",
                   "lines 1 and 11: 'What is 10 + 1?'", "lines 3 and 12: 'What is 12 + 1?'", "lines 2 and 13: ")
    assert said.count("\n") == 3


def test_a_drawn_split_that_gives_a_problem_away_asks_for_a_key(write):
    rows = [{"prompt": "What is 1 + 1?", "answer": "2"}, {"prompt": "Tell me. What is 1 + 1?", "answer": "2"}]
    path = write(*rows)

    def said(seed):
        try:
            load(path, seed=seed)
        except ValueError as error:
            return str(error)
    assert {said(seed) for seed in range(8)} == {  # None: where the longer one is held out
        None, f"{path} holds problems that stand in train and heldout both; give each pair one 'key', which keeps it together:"
              "\n  lines 1 and 2: 'What is 1 + 1?'"}


@pytest.mark.parametrize(("split", "sentence"), [("train", "no problem held out"), ("heldout", "no problem to train on")])
def test_an_empty_split_is_refused(write, split, sentence):
    refused(write(*[row | {"split": split} for row in SUMS]), f"own.jsonl has {sentence}; it needs both")


@pytest.mark.parametrize("share", [0, 1, -0.1, 40])
def test_a_share_is_between_0_and_1(write, share):
    refused(write(*SUMS), f"heldout is {share}; it must be a share", heldout=share)


# verifiers

ANSWER = Problem("a", ({"role": "user", "content": "?"},), answer="1234")


@pytest.mark.parametrize("completion", ["1234", "It is 1,234.", "\\boxed{1234}", "12 + 1222 = 1234.0", "$1,234.00", "=1234"])
def test_the_last_number_counts_however_it_is_written(completion):
    assert last_number(ANSWER, completion).correct


@pytest.mark.parametrize(("completion", "reason"), [
    ("1234 or 5", "its last number is 5, the answer is 1234"), ("-1234", "its last number is -1234"),
    ("1,2345", "its last number is 2345"), ("x1234", "no number"), ("", "no number"), ("9" * 6000, "its last number is 999")])
def test_another_last_number_fails_with_the_reason(completion, reason):
    verdict = last_number(ANSWER, completion)
    assert not verdict.correct and reason in verdict.reason


def test_a_minus_between_numbers_is_no_sign():
    assert last_number(ANSWER, "1240-1234").correct


def test_an_exact_match_is_free_in_white_space_only():
    assert exact_match(ANSWER, " 1234\n").correct
    verdict = exact_match(ANSWER, "1,234")
    assert not verdict.correct and verdict.reason == "it says '1,234', the answer is '1234'"


VERIFIER = '''
from hapo_lab.tasks.problem import Verdict

def verify(problem, completion):
    return Verdict(problem.answer in completion, f"is {problem.answer} in it?")

def shrug(problem, completion):
    return True

NUMBER = 3
'''


@pytest.fixture
def verifier(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(VERIFIER)
    return path


def test_a_verifier_of_your_own_comes_from_its_file(write, verifier):
    assert load_verifier(f"{verifier}:verify")(ANSWER, "so 1234!") == Verdict(True, "is 1234 in it?")
    task = load(write(*SUMS), f"{verifier}:verify")
    assert task.verify(task.train[0], task.train[0].demonstration).correct


@pytest.mark.parametrize(("name", "sentence"), [
    ("exact", "unknown verifier 'exact'; choose one of exact_match, last_number, math, or write FILE.py:FUNCTION"),
    ("other.py:verify", "'other.py:verify': there is no file other.py"),
    ("{}:judge", "there is nothing named 'judge' in"), ("{}:NUMBER", "mine.py:NUMBER' is not a function"),
    ("{}", "write FILE.py:F")])
def test_a_verifier_that_is_not_there_is_named(verifier, name, sentence):
    with pytest.raises(ValueError) as error:
        load_verifier(name.format(verifier))
    assert sentence in str(error.value)


def test_a_verifier_that_can_not_be_imported_is_named(verifier):
    verifier.write_text("import nothing_of_this_name")
    with pytest.raises(ValueError, match="mine.py can't be imported: ModuleNotFoundError: No module .*'nothing_of_this_name'"):
        load_verifier(f"{verifier}:verify")


def test_a_verifier_must_return_a_verdict(write, verifier):
    with pytest.raises(ValueError, match=r"line 1: the verifier returns True; it must return a Verdict\(correct, reason\)"):
        load(write(*SUMS), f"{verifier}:shrug")


# a task in a new process

def manifest(task, seed=3):
    """As in a run.json; the run's own seed says nothing of the task's."""
    described = {"task": task.name, "source": task.source, "problems": task.identity, "config": {"seed": seed}}
    return json.loads(json.dumps(described))


def test_the_task_of_a_run_is_built_again(write, verifier):
    for verify in ("last_number", f"{verifier}:verify", exact_or_in):
        task = load(write(*SUMS), verify, heldout=0.4, seed=3)
        again = task_of_run(manifest(task, seed=1))
        assert (again.train, again.heldout, again.max_new_tokens) == (task.train, task.heldout, 24)
        assert again.verify(again.train[0], again.train[0].answer).correct


@pytest.mark.parametrize("name", ["sums", "json_record"])
def test_a_runs_problems_are_those_of_the_tasks_own_seed(name):
    task, again = load_task(name), task_of_run(manifest(load_task(name), seed=1))
    assert (again.train, again.heldout) == (task.train, task.heldout) != (load_task(name, 1).train, load_task(name, 1).heldout)


@pytest.mark.parametrize(("change", "differs"), [
    (lambda task: {"heldout": task.heldout[1:]}, "heldout_sha256"), (lambda task: {"train": task.train[::-1]}, "train_sha256"),
    (lambda task: {"verify": anything}, "verifier"), (lambda task: {"max_new_tokens": 5}, "max_new_tokens")])
def test_a_named_task_with_other_problems_or_another_verifier_is_refused(change, differs):
    changed = manifest(replace(load_task("sums"), **change(load_task("sums"))))
    with pytest.raises(ValueError, match=f"task 'sums', seed 0, is another one here .*{differs}"):
        task_of_run(changed)


def test_a_file_that_changed_or_went_is_refused(write):
    path = write(*SUMS)
    run = manifest(load(path))
    write(*SUMS[1:])
    with pytest.raises(ValueError, match="own.jsonl has changed since the run was made"):
        task_of_run(run)
    path.unlink()
    with pytest.raises(ValueError, match="own.jsonl can't be read: no such file"):
        task_of_run(run)


def test_a_verifier_whose_file_changed_is_refused(write, verifier):
    run = manifest(load(write(*SUMS), f"{verifier}:verify"))
    verifier.write_text(VERIFIER.replace("problem.answer in completion", "True"))
    with pytest.raises(ValueError, match="task 'own', its verifier: .*mine.py has changed since the run was made: bring"):
        task_of_run(run)


def test_a_verifier_without_a_file_is_not_found_again(write):
    with pytest.raises(ValueError, match="task 'own', its verifier: .*<lambda> has no name in a file"):
        task_of_run(manifest(load(write(*SUMS), lambda problem, completion: Verdict(problem.answer in completion, ""))))


def anything(problem, completion):
    return Verdict(True, "why not")


def exact_or_in(problem, completion):
    return Verdict(problem.answer in completion, "in it?")

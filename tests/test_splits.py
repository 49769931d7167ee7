"""Tasks for comparisons: other ways and other teachers to the same sums, fewer demonstrations, problems from elsewhere."""

import itertools
import json
from dataclasses import replace

import pytest

from hapo_lab.runs.log import RunLog, shipped_run
from hapo_lab.tasks.builtin import FOREIGN, TASKS, load_task, short, usual, worked
from hapo_lab.tasks.elsewhere import elsewhere
from hapo_lab.tasks.jsonl import load_jsonl
from hapo_lab.tasks.problem import Problem, Task, Verdict, problem_from, problem_row, question, with_demonstrations
from hapo_lab.tasks.rebuilding import task_of_run

every_task = pytest.mark.parametrize("name", TASKS)
SUMS = [name for name in TASKS if name.startswith("sums")]


# ways and teachers

@pytest.mark.parametrize(("a", "b", "expected"), [
    (27, 58, "7 + 8 = 15. 2 + 5 + 1 = 8. 27 + 58 = 85. Answer: 85"), (12, 34, "2 + 4 = 6. 1 + 3 = 4. 12 + 34 = 46. Answer: 46"),
    (3, 9, "3 + 9 = 12. 0 + 0 + 1 = 1. 3 + 9 = 12. Answer: 12"),
    (99, 99, "9 + 9 = 18. 9 + 9 + 1 = 19. 99 + 99 = 198. Answer: 198")])
def test_the_worked_way_adds_column_by_column_with_the_carry(a, b, expected):
    assert worked(a, b, "Answer: ") == expected


def test_all_sums_tasks_ask_for_the_same_sums_in_the_same_splits():
    for name in set(SUMS) - {"sums_small"}:
        asked = [[p.messages for p in split] for split in (load_task(name, 2).train, load_task(name, 2).heldout)]
        assert asked == [[p.messages for p in split] for split in (load_task("sums", 2).train, load_task("sums", 2).heldout)]


def test_sums_worked_differs_from_sums_in_its_teacher_and_its_room():
    plain, task = load_task("sums"), load_task("sums_worked")
    assert task.verify is plain.verify and [p.answer for p in task.train] == [p.answer for p in plain.train]
    longest = max(len(p.demonstration) for p in task.train)  # tiny reads characters
    assert plain.max_new_tokens < longest < task.max_new_tokens
    assert all(p.demonstration.endswith(q.demonstration) for p, q in zip(task.train, plain.train, strict=True))


def test_three_teachers_show_three_ways():
    ways = [way(26, 51, "Answer: ") for way in (usual, worked, short)]
    problem = load_task("sums_teachers").train[0]
    assert list(problem.demonstrations) == ways == [problem.demonstration, *problem.more_demonstrations]


def test_the_numbers_of_shipped_runs_still_name_their_tasks():
    for name in ("hapo-0", "dates-hapo-0", "tiny-hapo-0"):
        manifest = shipped_run(name).manifest
        assert task_of_run(manifest).identity == manifest["problems"]


# several demonstrations a problem

MANY = Problem("2+2", ({"role": "user", "content": "2 + 2?"},), "4", "It is 4", ("4", "2 + 2 = 4"))
ASKED = Problem("3+3", ({"role": "user", "content": "3 + 3?"},), "6")


def test_without_more_demonstrations_a_problem_is_written_as_it_always_was():
    one = replace(MANY, more_demonstrations=())
    assert problem_row(one).keys() == {"key", "messages", "answer", "demonstration"}
    for problem in (one, MANY, replace(one, demonstration=None)):
        assert problem_from(json.loads(json.dumps(problem_row(problem)))) == problem


def test_other_teachers_are_part_of_a_tasks_identity():
    three, two = (Task("t", (p,), (ASKED,), ends_in_answer, 8) for p in (MANY, replace(MANY, more_demonstrations=("4",))))
    assert three.identity["train_sha256"] != two.identity["train_sha256"]


def ends_in_answer(problem, completion):
    return Verdict(completion.endswith(problem.answer), f"it says {completion}")


def test_each_teacher_is_verified_and_searched_for_leaks():
    with pytest.raises(ValueError, match=r"the demonstration of '2 \+ 2\?' fails its own verifier: it says 5"):
        Task("t", (replace(MANY, more_demonstrations=("4", "5")),), (ASKED,), ends_in_answer, 8)
    with pytest.raises(ValueError, match=r"held out and in training both: 3\+3"):
        Task("t", (replace(MANY, more_demonstrations=("3 + 3? 2 + 2 = 4",)),), (ASKED,), ends_in_answer, 8)


def test_a_group_keeps_its_problems_teachers_in_the_log(tmp_path, group_of, demonstration):
    from conftest import teach_alone
    from test_records import ABOUT, record

    from hapo_lab.methods import HAPO
    log = RunLog(ABOUT, tmp_path / "run")
    log.create()
    groups = [replace(teach_alone(HAPO, group_of([0.] * 8), demonstration), problem=p) for p in (MANY, MANY)]
    log.add(record(1), groups)
    assert [g.problem for g in RunLog.load(log.folder).groups_of(1)] == [MANY, MANY]


ROW = {"prompt": "2 + 2?", "answer": "4", "split": "train"}
HELD = {"prompt": "3 + 3?", "answer": "6", "split": "heldout"}


def from_file(tmp_path, **fields):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROW | fields, HELD)))
    return load_jsonl(path, "last_number", 16)


@pytest.mark.parametrize(("fields", "shown"), [
    ({"demonstrations": ["4", "It is 4"]}, ("4", "It is 4")), ({"demonstrations": ["4"]}, ("4",)),
    ({"demonstrations": []}, ()), ({"demonstrations": None, "demonstration": "4"}, ("4",))])
def test_a_file_gives_several_demonstrations_as_a_list(tmp_path, fields, shown):
    assert from_file(tmp_path, **fields).train[0].demonstrations == shown


@pytest.mark.parametrize(("fields", "sentence"), [
    ({"demonstrations": "4"}, "line 1: 'demonstrations' is a string; it must be a list of strings"),
    ({"demonstrations": ["4", 4]}, "line 1: 'demonstrations' is a number (4); it must be a string"),
    ({"demonstrations": ["4", " "]}, "line 1: 'demonstrations' is empty"),
    ({"demonstrations": ["4"], "demonstration": "4"}, "line 1: 'demonstration' and 'demonstrations' are both there"),
    ({"demonstrations": ["4", "It is 5"]}, "line 1: its last number is 5, the answer is 4")])
def test_a_wrong_list_is_refused_with_its_line(tmp_path, fields, sentence):
    with pytest.raises(ValueError) as error:
        from_file(tmp_path, **fields)
    assert sentence in str(error.value)


# a share of the demonstrations

def shown(task):
    return {p.key for p in task.train if p.demonstrations}


def test_a_share_of_the_demonstrations_lies_within_each_larger_one():
    task = load_task("sums_teachers")
    shares = [with_demonstrations(task, share, seed=5) for share in (0.001, 0.01, 0.03, 0.1, 0.3, 1)]
    assert [len(shown(t)) for t in shares] == [1, 3, 8, 28, 84, 280]
    assert all(shown(few) < shown(more) for few, more in itertools.pairwise(shares))
    assert shown(with_demonstrations(task, 0.1, seed=6)) != shown(shares[3])


def test_all_else_is_as_it_was():
    task, few = load_task("sums_teachers"), with_demonstrations(load_task("sums_teachers"), 0.1)
    bare = [replace(p, demonstration=None, more_demonstrations=()) for p in task.train]
    assert [p if p.demonstrations else b for p, b in zip(task.train, bare, strict=True)] == list(task.train)
    assert [replace(p, demonstration=None, more_demonstrations=()) for p in few.train] == bare
    assert all(p in task.train for p in few.train if p.demonstrations)
    assert few.heldout == task.heldout and few.name == task.name


def test_the_share_is_of_the_problems_that_have_a_demonstration():
    task = load_task("sums")
    half = replace(task, train=tuple(replace(p, demonstration=None) if i % 2 else p for i, p in enumerate(task.train)))
    assert shown(with_demonstrations(half, 0.1)) < shown(half) and len(shown(with_demonstrations(half, 0.1))) == 14


@pytest.mark.parametrize("share", [0, -0.1, 1.1, 30, float("nan")])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(ValueError, match="'sums': the share of demonstrations is .*; it must be above 0 and at most 1"):
        with_demonstrations(load_task("sums"), share)


def test_a_share_of_a_share_is_refused():
    with pytest.raises(ValueError, match="'sums' holds a share of its demonstrations already"):
        with_demonstrations(with_demonstrations(load_task("sums"), 0.5), 0.5)


@pytest.mark.parametrize("own", [False, True])
def test_the_task_of_a_run_has_the_runs_share(tmp_path, own):
    whole = from_file(tmp_path, demonstrations=["4", "It is 4"]) if own else load_task("sums", 3)
    task = with_demonstrations(whole, 0.1, seed=2)
    manifest = json.loads(json.dumps({"task": task.name, "source": task.source, "problems": task.identity}))
    assert task_of_run(manifest) == task


# elsewhere

@every_task
@pytest.mark.parametrize("seed", range(3))
def test_nothing_elsewhere_is_trained_on(name, seed):
    task = load_task(name, seed)
    seen = "\n".join(text for p in task.train for text in (question(p), *p.demonstrations))
    for split, problems in elsewhere(name, seed).items():
        assert not {p.key for p in problems} & {p.key for p in task.train}, split
        assert not [p for p in problems if question(p) in seen or question(p) in map(question, task.heldout)], split


@every_task
def test_a_split_has_some_forty_problems_with_keys_of_their_own_and_no_demonstration(name):
    for problems in elsewhere(name).values():
        assert 38 <= len(problems) == len({p.key for p in problems}) <= 40
        assert not any(p.demonstrations for p in problems)


@every_task
def test_a_seed_decides_the_splits(name):
    assert elsewhere(name, 3) == elsewhere(name, 3)
    assert all(elsewhere(name, 3)[split] != problems for split, problems in elsewhere(name, 4).items())


@every_task
def test_the_tasks_own_verifier_accepts_the_answer_and_no_other(name):
    task = load_task(name)
    for problems in elsewhere(name).values():
        for p, other in itertools.pairwise(problems):
            assert task.verify(p, p.answer).correct
            assert p.answer == other.answer or not task.verify(p, other.answer).correct


def test_sums_elsewhere_are_right_and_end_as_the_task_wants():
    for name in SUMS:
        ending = load_task(name).train[0].answer.rstrip("0123456789")
        for problems in elsewhere(name).values():
            assert all(p.answer == ending + str(sum(map(int, p.key.split(" + ")))) for p in problems)
            assert all(number in question(p) for p in problems for number in p.key.split(" + "))


def test_small_sums_are_trained_on_and_the_larger_ones_stand_elsewhere():
    small, larger = ([int(p.key.split(" + ")[1]) for p in problems] for problems in (
        (*load_task("sums_small").train, *load_task("sums_small").heldout), elsewhere("sums_small")["numbers"]))
    assert len(small) > 120 and max(small) < 70 <= min(larger) and max(larger) < 100


@pytest.mark.parametrize("name", [name for name in TASKS if name in FOREIGN])
def test_a_foreign_ending_is_asked_for_and_shown(name):
    problem = load_task(name).train[0]
    assert problem.answer == f"{FOREIGN[name]}77" and problem.demonstration == f"26 + 51 = 77. {FOREIGN[name]}77"


def test_numbers_are_larger_and_in_order_the_larger_one_comes_first():
    numbers, order = ([tuple(map(int, p.key.split(" + "))) for p in elsewhere("sums")[split]] for split in ("numbers", "order"))
    assert all(max(pair) >= 100 for pair in numbers) and all(a > b for a, b in order)
    asked = [question(p) for p in elsewhere("sums")["order"]]
    assert asked == [f"What is {a} + {b}?" for a, b in order]


def test_wordings_ask_for_what_is_held_out():
    for name in TASKS:
        held = load_task(name, 1).heldout
        assert [(p.key, p.answer) for p in elsewhere(name, 1)["wordings"]] == [(p.key, p.answer) for p in held]


def test_records_elsewhere_have_names_and_ages_that_training_has_not():
    names, ages = ({p.key.split()[i] for p in load_task("json_record").train} for i in (0, 1))
    splits = elsewhere("json_record")
    assert not {p.key.split()[0] for problems in splits.values() for p in problems} & names
    assert not {p.key.split()[1] for p in splits["numbers"]} & ages
    for p in (p for problems in splits.values() for p in problems):
        name, age = p.key.split()
        assert json.loads(p.answer) == {"name": name, "age": int(age)} and name in question(p) and age in question(p)


def test_dates_elsewhere_lie_outside_the_years_of_training():
    years = [int(p.answer[:4]) for p in elsewhere("iso_date")["numbers"]]
    assert all(1600 <= year < 1900 or 2030 <= year < 2200 for year in years)


def test_an_unknown_task_has_nothing_elsewhere():
    with pytest.raises(ValueError, match="unknown task 'chess'; choose one of"):
        elsewhere("chess")

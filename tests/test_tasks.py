"""Tasks: splits that do not leak, demonstrations that pass, verdicts with a reason."""

from datetime import datetime

import pytest

from hapo_lab.tasks.builtin import TASKS, iso_date, json_record, load_task, sums
from hapo_lab.tasks.problem import Problem, Task, Verdict, leaks, question
from hapo_lab.tasks.verifiers import verify_end, verify_iso_date, verify_json_record

every_task = pytest.mark.parametrize("name", TASKS)
seeds = pytest.mark.parametrize("seed", range(5))


@every_task
@seeds
def test_no_problem_stands_in_both_splits(name, seed):
    task = load_task(name, seed)
    assert not {p.key for p in task.train} & {p.key for p in task.heldout}
    assert not {question(p) for p in task.train} & {question(p) for p in task.heldout}


@every_task
@seeds
def test_at_least_40_problems_are_held_out_and_more_are_trained_on(name, seed):
    task = load_task(name, seed)
    assert 40 <= len(set(map(question, task.heldout))) <= len(set(map(question, task.train)))


@every_task
def test_no_held_out_question_is_asked_or_shown_in_training(name):
    task = load_task(name)
    seen = "\n".join([m["content"] for p in task.train for m in p.messages] + [p.demonstration or "" for p in task.train])
    assert not [q for p in task.heldout if (q := question(p)) in seen]


@every_task
@seeds
def test_every_demonstration_passes_its_verifier(name, seed):
    task = load_task(name, seed)
    assert all(task.verify(p, p.demonstration).correct for p in (*task.train, *task.heldout) if p.demonstration)


@every_task
def test_a_seed_decides_the_split(name):
    assert load_task(name, 3) == load_task(name, 3)
    assert {p.key for p in load_task(name, 3).heldout} != {p.key for p in load_task(name, 4).heldout}


@every_task
def test_another_problems_demonstration_fails_with_a_reason(name):
    task = load_task(name)
    first = task.train[0]
    other = next(p for p in task.train if p.answer != first.answer and p.demonstration)
    verdict = task.verify(first, other.demonstration)
    assert not verdict.correct and len(verdict.reason.split()) >= 2


@every_task
def test_an_empty_completion_fails_with_a_reason(name):
    task = load_task(name)
    verdict = task.verify(task.train[0], " \n ")
    assert not verdict.correct and verdict.reason


# records

ANNA = Problem(key="Anna 34", messages=({"role": "user", "content": "Anna is 34 years old."},),
               answer='{"name": "Anna", "age": 34}')


@pytest.mark.parametrize("completion", [
    '{"name": "Anna", "age": 34}', '{"age":34,"name":"Anna"}', '\n{\n  "age": 34.0,\n  "name": "Anna"\n}\n'])
def test_the_right_record_in_another_layout_passes(completion):
    verdict = verify_json_record(ANNA, completion)
    assert verdict.correct, verdict.reason


@pytest.mark.parametrize(("completion", "reason"), [
    ('```json\n{"name": "Anna", "age": 34}\n```', "not JSON: expecting value at character 1"),
    ('{"name": "Anna", "age": 34', "not JSON: expecting ',' delimiter at character 27"),
    ('{"name": "Anna", "age": "34"}', "age is '34', it should be 34"),
    ('{"name": "Anna", "age": true}', "age is True, it should be 34"),
    ('{"name": "Ann", "age": 34}', "name is 'Ann', it should be 'Anna'"),
    ('{"name": "Anna"}', "the keys are name; they must be name, age"),
    ('{"name": "Anna", "age": 34, "city": "Oslo"}', "the keys are name, age, city"),
    ("34", "JSON, but no object"), ("", "not JSON")])
def test_a_wrong_record_fails_with_the_reason(completion, reason):
    verdict = verify_json_record(ANNA, completion)
    assert not verdict.correct and reason in verdict.reason


@seeds
def test_no_name_of_a_held_out_record_occurs_in_training(seed):
    task = json_record(seed)
    names, held_out = ({p.key.split()[0] for p in split} for split in (task.train, task.heldout))
    assert not names & held_out


# dates

DAY = Problem(key="17 March 1987", messages=({"role": "user", "content": "Write the date 17 March 1987 in ISO format."},),
              answer="1987-03-17")


@pytest.mark.parametrize("completion", [
    "1987-03-17", "19870317", "The date is 1987-03-17.", "17 March 1987 is **1987-03-17**", "1987-03-17\n\n",
    "17/03/1987, that is, 1987-03-17, or 19870317", '{"date": "1987-03-17"}'])
def test_a_right_date_in_other_words_passes(completion):
    verdict = verify_iso_date(DAY, completion)
    assert verdict.correct, verdict.reason


@pytest.mark.parametrize(("completion", "reason"), [
    ("1987-03-18", "it says 1987-03-18, the date is 1987-03-17"), ("1987-17-03", "it says 1987-17-03"),
    ("1987-03-17 or 1987-03-18", "it says 1987-03-17 and 1987-03-18"), ("17 March 1987", "no date in ISO format"),
    ("1987-3-17", "no date in ISO format"), ("87-03-17", "no date in ISO format"), ("1987/03/17", "no date in ISO format"),
    ("01987-03-17", "no date in ISO format"), ("1987-03-170", "no date in ISO format"), ("", "no date in ISO format")])
def test_a_wrong_date_fails_with_the_reason(completion, reason):
    verdict = verify_iso_date(DAY, completion)
    assert not verdict.correct and reason in verdict.reason


def test_dates_are_written_in_words_and_answered_by_the_calendar():
    task = iso_date(0)
    for p in (*task.train, *task.heldout):
        assert datetime.strptime(p.key, "%d %B %Y").date().isoformat() == p.answer and p.key in question(p)


# tasks that are refused

def verify(problem, completion):
    return Verdict(completion == problem.answer, f"it says {completion}, the answer is {problem.answer}")


def problem(key, asked=None, demonstration=None):
    return Problem(key, ({"role": "user", "content": asked or f"What is {key}?"},), answer="56", demonstration=demonstration)


def task(train, heldout):
    return Task("sums", tuple(train), tuple(heldout), verify, max_new_tokens=8)


def test_a_sound_task_is_accepted_and_a_demonstration_is_optional():
    assert task([problem("7*8", demonstration="56"), problem("14*4")], [problem("28*2")]).name == "sums"


def test_demonstrations_that_fail_their_own_verifier_are_refused_by_name():
    with pytest.raises(ValueError, match=r"the demonstration of 'What is 14\*4\?' fails .* it says 54, .*'What is 4\*14"):
        task([problem("7*8", demonstration="56"), problem("14*4", demonstration="54")], [problem("4*14", demonstration="5")])


def test_a_problem_in_both_splits_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'sums': held out and in training both: 14\*4\."):
        task([problem("7*8"), problem("14*4")], [problem("14*4", asked="Four times fourteen?")])


@pytest.mark.parametrize("train", [
    problem("another key", asked="What is 28*2?"), problem("two", asked="Add these. What is 28*2? What is 3*3?"),
    problem("7*8", demonstration="What is 28*2? The same")], ids=["asked", "asked among others", "in a demonstration"])
def test_a_held_out_question_that_occurs_in_training_is_refused_by_name(train):
    with pytest.raises(ValueError, match=r"'sums': held out and in training both: 28\*2\."):
        task([train], [problem("28*2")])


@pytest.mark.parametrize(("train", "heldout"), [([], [DAY]), ([DAY], [])])
def test_an_empty_split_is_refused(train, heldout):
    with pytest.raises(ValueError, match="'sums': it needs problems to train on and problems held out"):
        task(train, heldout)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=f"unknown task 'chess'; choose one of {', '.join(TASKS)}"):
        load_task("chess")


# sums

SUM = sums().train[0]


@pytest.mark.parametrize("said, right", [("{answer}", True), ("It is 3. {answer}.", True), ("{answer}\n", True),
                                         ("{answer}0", False), ("{number}.", False), ("{answer} I think", False)])
def test_a_sum_is_right_if_the_completion_ends_with_the_answer(said, right):
    verdict = verify_end(SUM, said.format(answer=SUM.answer, number=SUM.answer.split()[-1]))
    assert verdict.correct is right and SUM.answer in verdict.reason


def test_the_two_forms_ask_for_the_same_sums():
    forms = [load_task(name, 3) for name in ("sums", "sums_short")]
    assert [p.messages for p in forms[0].train] == [p.messages for p in forms[1].train]
    assert [p.demonstration.replace("Answer:", "A:") for p in forms[0].train] == [p.demonstration for p in forms[1].train]


def test_questions_in_other_letters_are_found_too():
    held = Problem("a", ({"role": "user", "content": "求 三 与 四 之和"},), "7")
    told = Problem("b", ({"role": "user", "content": "先看：求 三 与 四 之和。"},), "7")
    other = Problem("c", ({"role": "user", "content": "求 五 与 四 之和"},), "9")
    assert leaks([told, other], [held]) == [(held, told)]

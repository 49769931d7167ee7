"""Published tables: what is read from which columns, what is counted and left out, what is refused."""

import importlib
import json
from pathlib import Path

import pytest
from datasets import Dataset

from hapo_lab import load_table, read_questions
from hapo_lab.commands.cli import main
from hapo_lab.reproducibility.kit import DATA
from hapo_lab.runs.manifest import describe
from hapo_lab.tasks import tables
from hapo_lab.tasks.overlap import contaminated, twins, words_of
from hapo_lab.tasks.problem import Problem
from hapo_lab.tasks.rebuilding import task_of_run

SYSTEM = {"role": "system", "content": "Think, then answer."}
NUMBERS = [(a, a + 7) for a in range(11, 21)]


def luffy_row(a, b, target=None, answer=None, **more):
    """As LUFFY's files have it."""
    return {"data_source": "openr1", "prompt": [SYSTEM, {"role": "user", "content": f"What is {a} + {b}?"}], "ability": "math",
            "target": target if target is None else [{"role": "assistant", "content": text} for text in target],
            "reward_model": {"ground_truth": str(a + b) if answer is None else answer, "style": "rule"},
            "extra_info": {"index": a, "split": "default"}, **more}


def right(a, b):
    return rf"<think>\n{a} and {b}. </think> \boxed{{{a + b}}}"


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def luffy(tmp_path):
    path = tmp_path / "openr1.parquet"
    Dataset.from_list([luffy_row(a, b, [right(a, b)]) for a, b in NUMBERS]).to_parquet(path)
    return path


def asks(text, answer="85"):
    return Problem(text, ({"role": "user", "content": text},), answer)


# columns -----------------------------------------------------------------------------------------------------------


def test_luffys_layout_is_read_as_it_is(luffy):
    task = load_table(luffy, "math", 64, heldout=0.3)
    assert (len(task.train), len(task.heldout), task.name) == (7, 3, "openr1")
    problem = task.train[0]
    a, b = NUMBERS[0] if problem.answer == "29" else next(pair for pair in NUMBERS if str(sum(pair)) == problem.answer)
    assert problem.messages == (SYSTEM, {"role": "user", "content": f"What is {a} + {b}?"})
    assert problem.demonstrations == (right(a, b),) and problem.key == f"What is {a} + {b}?"
    assert task.findings == (f"{luffy}: 10 rows, 10 problems, 10 with a demonstration",)


def test_the_shared_rows_of_luffys_test_file_are_read(shared_rows):
    rows, findings = tables.read_table(shared_rows, tables.load_verifier("math"))
    assert findings[0] == f"{shared_rows}: 40 rows, 26 problems, 0 with a demonstration"
    assert findings[1] == "1 answer is none to the verifier (row 30: 'np.arcsin(10/13)')"
    assert findings[2] == "13 ask what another row asks, which is kept (row 2: row 1; row 3: row 1; row 4: row 1; 10 more)"
    assert {row.fields["source"] for row in rows} == {"aime", "amc", "math", "minerva", "olympiad_bench"}


@pytest.fixture
def shared_rows(tmp_path):
    """Forty rows in the layout of LUFFY's test file: repeated problems, and an answer that is no mathematics."""
    sources, rows = ("aime", "amc", "math", "minerva", "olympiad_bench"), []
    for i, source in enumerate(sources):
        repeated = {"aime": 8, "amc": 4}.get(source, 1)
        for j in range(8):
            a, b = 20 * i + j // repeated, 31
            answer = "np.arcsin(10/13)" if (i, j) == (3, 5) else None
            rows.append({k: v for k, v in luffy_row(a, b, answer=answer).items() if k != "target"} | {"data_source": source})
    path = tmp_path / "valid.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return path


def test_several_targets_are_all_read(tmp_path):
    rows = [luffy_row(a, b, [right(a, b)], target_lst=[right(a, b), f"It is {a + b}."]) for a, b in NUMBERS]
    task = load_table(jsonl(tmp_path / "t.jsonl", rows), "math", 64)
    assert all(len(p.demonstrations) == 2 and p.demonstrations[1].startswith("It is") for p in task.train)


def test_openr1s_own_columns_and_a_mapping(tmp_path):
    rows = [{"problem": f"What is {a} + {b}?", "answer": a + b, "generations": [right(a, b), "no idea"]} for a, b in NUMBERS]
    task = load_table(jsonl(tmp_path / "a.jsonl", rows), "math", 64)
    assert task.findings[1].startswith("10 demonstrations are rejected (row 1: ")
    rows = [{"frage": row["problem"], "tief": {"wert": [row["answer"]]}, "name": f"n{i % 5}"} for i, row in enumerate(rows)]
    task = load_table(jsonl(tmp_path / "b.jsonl", rows), "math", 64,
                      columns={"prompt": "frage", "answer": "tief.wert", "key": "name"})
    assert {p.key for p in (*task.train, *task.heldout)} == {f"n{i}" for i in range(5)} and task.train[0].answer.isdigit()
    assert len(task.train) + len(task.heldout) == 10 and len(task.findings) == 1  # a key stays together, and nothing is lost


def test_a_folder_of_a_data_set_is_read_as_the_hub_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, pairs in (("train", NUMBERS[:6]), ("test", NUMBERS[6:])):
        folder = tmp_path / "org" / "name" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        Dataset.from_list([luffy_row(a, b, [right(a, b)]) for a, b in pairs]).to_parquet(folder / f"{split}-00000.parquet")
    task = load_table("org/name", "math", 64, test="org/name:test")
    assert (len(task.train), len(task.heldout)) == (6, 4)


# what is counted ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_counted_named_and_left_out(tmp_path):
    good = [luffy_row(a, b, [right(a, b)]) for a, b in NUMBERS]
    rows = [*good, luffy_row(31, 4), luffy_row(32, 4, []), luffy_row(33, 4, ["   "]),              # no demonstration
            luffy_row(34, 4, [right(34, 5)]), luffy_row(35, 4, [right(1, 1), right(35, 4)]),       # rejected
            luffy_row(36, 4, answer="np.sin(x"), luffy_row(37, 4) | {"prompt": None},              # unreadable
            luffy_row(*NUMBERS[0]), luffy_row(*NUMBERS[1], answer="5")]                            # asked before
    path = jsonl(tmp_path / "t.jsonl", rows)
    with path.open("a") as file:
        print("no JSON", "", sep="\n", file=file)
    task = load_table(path, "math", 64, heldout=0.1)
    assert [line.partition(" (")[0] for line in task.findings] == [
        f"{path}: 20 rows, 15 problems, 11 with a demonstration", "2 rows can't be read", "1 answer is none to the verifier",
        "2 ask what another row asks, which is kept", "1 of them has another answer", "2 demonstrations are rejected"]
    assert "row 17: 'prompt' is null" in task.findings[1] and "row 20: " in task.findings[1]
    assert task.findings[4].endswith("(row 19: '5', row 2: '31')")
    (kept,) = (p for p in (*task.train, *task.heldout) if p.key == "What is 35 + 4?")
    assert kept.demonstrations == (right(35, 4),)


def test_the_long_list_is_cut(tmp_path):
    task = load_table(jsonl(tmp_path / "t.jsonl", [luffy_row(a, b, [right(1, 1)]) for a, b in NUMBERS]), "math", 64)
    assert task.findings[1].startswith("10 demonstrations are rejected (row 1: ") and task.findings[1].endswith("; 7 more)")
    assert task.findings[1].count("row ") == 3


LONG = "A train leaves the station at noon and travels north at 60 miles an hour until it meets another. Where?"


def test_a_training_problem_that_a_test_asks_too_is_left_out(tmp_path):
    rows = [luffy_row(a, b, [right(a, b)]) for a, b in NUMBERS]
    near = [{"prompt": LONG.replace("Where", "How far from home") + " Say it in miles.", "answer": "3"},
            {"prompt": "what is (11 + 18)", "answer": "29"},
            {"prompt": "Anything else", "answer": "7", "demonstration": "First: What is 12 + 19? So 7"}]
    test = [{"prompt": LONG, "answer": "3"}, {"prompt": "What is 11 + 18?", "answer": "29"},
            {"prompt": "What is 12 + 19?", "answer": "31"}]
    path, test = jsonl(tmp_path / "t.jsonl", [*rows[2:], *near]), jsonl(tmp_path / "u.jsonl", test)
    task = load_table(path, "last_number", 64, test=test)
    assert len(task.train) == len(rows[2:])
    assert task.findings[-2].startswith("2 training problems share 13 words in a row with a held-out one, and are left out (")
    assert task.findings[-1] == ("1 training problem holds a held-out question, and is left out ('Anything else': "
                                 "'What is 12 + 19?')")


def test_thirteen_words_are_shared_and_twelve_are_not():
    words = [f"w{i}" for i in range(30)]
    train = [asks(" ".join(["a", *words[:12], "b"] * 2)), asks(" ".join(["c", *words[:13], "d"]))]
    (found,) = contaminated(train, [asks(" ".join(words))])
    assert found[0] is train[1] and found[2] == " ".join(words[:13])


def test_short_questions_are_the_same_as_wholes_with_their_signs():
    assert not contaminated([asks("What is 2 - 3?"), asks("What is 2 + 3 + 1?")], [asks("What is 2 + 3?")])
    assert len(contaminated([asks("what is  2 + 3 ?")], [asks("What is 2+3?")])) == 1
    assert twins([asks("What is 2+3?"), asks("What is 2-3?"), asks("What is 2 + 3")])[0][1].key == "What is 2+3?"
    assert words_of(asks("???")) == ["???"] and not twins([asks("???"), asks("!!!")])


def test_an_instruction_that_all_questions_share_gives_none_away():
    how = r"Let's think step by step and output the final answer within \boxed{} of it."
    train = [asks(f"What is {a} + {b}? {how}") for a, b in NUMBERS]
    for held in (4, 1):
        others = [asks(f"What is {a} - {b}? {how}") for a, b in NUMBERS[:held]]
        assert contaminated(train, others) == []
        assert [p for p, *_ in contaminated(train, [*others, train[3]])] == [train[3]]


def test_a_tables_own_split_is_kept_with_other_columns_too(tmp_path):
    rows = [{"question": f"What is {a} + {b}?", "answer": str(a + b), "split": "test" if a < 13 else "train"}
            for a, b in NUMBERS]
    path = jsonl(tmp_path / "t.jsonl", rows)
    task = load_table(path, "last_number", 64, columns={"prompt": "question"})
    assert [p.answer for p in task.heldout] == ["29", "31"] and len(task.train) == 8
    assert len(read_questions([path], "last_number", 64, {"prompt": "question"}).problems) == 2


def test_a_null_is_no_answer_and_a_bad_first_row_is_one_of_the_rows(tmp_path):
    rows = [{"problem": f"What is {a} + {b}?", "answer": str(a + b), "solution": "by 7"} for a, b in NUMBERS]
    rows[2]["answer"] = None
    path = jsonl(tmp_path / "t.jsonl", rows)
    path.write_text("not json\n" + path.read_text())
    task = load_table(path, "last_number", 64)
    assert task.findings[:2] == (f"{path}: 11 rows, 9 problems, 0 with a demonstration", task.findings[1])
    assert task.findings[1].startswith("2 rows can't be read (row 1: the field 'prompt' is missing")
    path.write_text("not json\n[]\n")
    with pytest.raises(ValueError, match="holds no row that can be read"):
        load_table(path, "last_number", 64)


def test_what_was_asked_twice_by_a_test_is_one_problem_of_the_bench(shared_rows):
    asked = read_questions([shared_rows], "math", 64)
    assert len(asked.problems) == 26 and asked.sources.count("aime") == 1 and asked.sources.count("amc") == 2
    assert asked.findings[0].startswith(f"{shared_rows}: 40 rows, 26 problems")


# what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "why"), [
    (None, r"row 1 has no prompt in 'prompt' or 'problem' or 'question' \(it has: text, answer\): say which column"),
    ({"prompt": "frage"}, "row 1 has no prompt in 'frage' .*columns={'answer': 'NAME'} or --columns answer=NAME"),
    ({"prompt": "text.inner"}, "row 1 has no prompt in 'text.inner'"),
    ({"prompts": "text"}, "columns has prompts; it may have prompt, answer, demonstrations, source, key"),
])
def test_a_table_without_a_column_is_refused(tmp_path, columns, why):
    path = jsonl(tmp_path / "t.jsonl", [{"text": "What is 1 + 1?", "answer": "2"}])
    with pytest.raises(ValueError, match=why):
        load_table(path, "math", 64, columns=columns)


def test_a_table_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    for source in (broken, tmp_path / "none.parquet", tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ValueError, match=f"^{source} can't be read .*") as told:
            load_table(source, "math", 64)
        assert "\n" not in str(told.value)


def test_a_table_with_nothing_left_says_why(tmp_path):
    rows = [luffy_row(a, b, answer="np.sin(x") for a, b in NUMBERS]
    with pytest.raises(ValueError, match="leaves no problem to train on:\n  .*10 rows, 0 problems.*\n  10 answers are none"):
        load_table(jsonl(tmp_path / "t.jsonl", rows), "math", 64)
    with pytest.raises(ValueError, match="heldout is 1.0; it must be a share"):
        load_table(tmp_path / "t.jsonl", "math", 64, heldout=1.0)


def test_without_datasets_the_extra_is_named(luffy, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r'needs the library datasets: python -m pip install "hapo_lab\[data\]"'):
        load_table(luffy, "math", 64)


# runs and commands -------------------------------------------------------------------------------------------------


def test_the_table_of_a_run_is_read_again(luffy, tmp_path, tiny):
    from hapo_lab import HAPO
    task = load_table(luffy, "math", 64, seed=3)
    again = task_of_run(json.loads(json.dumps(describe(tiny, task, HAPO, {}, "transformers"))))
    assert (again.train, again.heldout, again.findings) == (task.train, task.heldout, task.findings)
    manifest = describe(tiny, task, HAPO, {}, "transformers")
    Dataset.from_list([luffy_row(a, b, [right(a, b)]) for a, b in NUMBERS[1:]]).to_parquet(luffy)
    with pytest.raises(ValueError, match="is another one here .*train_sha256"):
        task_of_run(manifest)


def test_the_command_trains_on_a_table_and_says_what_it_left_out(luffy, tmp_path, capsys):
    rows = [luffy_row(a, b, [f"{a} + {b} = {a + b}. Answer: {a + b}"]) for a, b in NUMBERS]
    rows[0]["target"][0]["content"] = "Slowly: 11 + 18 = 29. " * 3 + rows[0]["target"][0]["content"]
    Dataset.from_list([*rows, rows[0]]).to_parquet(luffy)
    main(["train", str(tmp_path / "run"), "--model", "tiny", "--task", str(luffy), "--verifier", "last_number",
          "--max-new-tokens", "28", "--steps", "1", "--prompts", "2", "--eval-every", "0",
          "--columns", "answer=reward_model.ground_truth"])
    said = capsys.readouterr().out
    assert f"{luffy}: 11 rows, 10 problems, 10 with a demonstration\n1 asks what another row asks" in said
    assert "8 training problems, 7 with a demonstration of at most 28 tokens (1 only a longer one); 2 held out" in said
    with pytest.raises(SystemExit, match=r"--columns is 'answer'; it must be FIELD=COLUMN"):
        main(["train", str(tmp_path / "other"), "--task", str(luffy), "--verifier", "math", "--columns", "answer"])


def test_a_folder_of_a_tasks_name_is_not_taken_for_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums").mkdir()
    main(["train", "run", "--model", "tiny", "--task", "sums", "--steps", "1", "--prompts", "1", "--eval-every", "0"])
    with pytest.raises(SystemExit, match="task 'x.parquet' takes no --task-arg"):
        main(["train", "other", "--task", "x.parquet", "--verifier", "math", "--task-arg", "max_terms=3"])


def test_which_names_are_tables():
    assert [tables.is_table(name) for name in ("org/name:test", "x.parquet", "dir/x.parquet")] == [True] * 3
    assert [tables.is_table(name) for name in ("sums", "x.jsonl", "dir/x.jsonl", str(Path(__file__)))] == [False] * 4


@pytest.mark.parametrize(("row", "table"), [
    ({"prompt": "1 + 1?", "answer": "2"}, False), ({"prompt": "1 + 1?"}, False), ({"problem": "1 + 1?", "solution": "2"}, True),
    ({"prompt": "1 + 1?", "solution": "2"}, True), ({"prompt": [], "reward_model": {"ground_truth": "2"}}, True), ({}, False)])
def test_jsonl_is_a_table_where_its_columns_have_others_names(tmp_path, row, table):
    """A file of one's own that lacks a field is none: it is read strictly, and refused with the line."""
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\nno object\n{json.dumps(row)}\n")
    assert tables.is_table(str(path)) is table
    path.write_bytes(b"\xff")
    assert not tables.is_table(str(path))


def test_luffys_layout_in_jsonl_is_trained_on_and_asked_without_a_word_about_columns(tmp_path, capsys):
    path = jsonl(tmp_path / "luffy.jsonl", [luffy_row(a, b, [right(a, b)]) for a, b in NUMBERS])
    main(["train", str(tmp_path / "run"), "--model", "tiny", "--task", str(path), "--verifier", "math",
          "--max-new-tokens", "48", "--steps", "1", "--prompts", "2", "--eval-every", "0"])
    assert f"{path}: 10 rows, 10 problems, 10 with a demonstration" in capsys.readouterr().out
    asked = read_questions([path], "math", 48)
    assert len(asked.problems) == 10 and asked.sources[0] == "openr1"


# the kit's own table -----------------------------------------------------------------------------------------------


def test_the_shipped_problems_are_those_that_their_script_makes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DATA)
    importlib.import_module("make_mathematics").main(tmp_path)
    for split in ("train", "test"):
        assert (tmp_path / f"{split}.jsonl").read_text() == (DATA / "mathematics" / f"{split}.jsonl").read_text()


def test_the_shipped_problems_are_right_and_none_is_asked_twice():
    train, test = (DATA / "mathematics" / f"{split}.jsonl" for split in ("train", "test"))
    task = load_table(train, "math", 1536, test=test)
    assert task.findings == (f"{train}: 60 rows, 60 problems, 60 with a demonstration",
                             f"{test}: 12 rows, 12 problems, 0 with a demonstration")
    assert all(p.demonstration.startswith("<think>\n") and p.messages[0]["role"] == "system" for p in task.train)

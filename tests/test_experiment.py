"""Experiments: what a file says, what is refused, and trials in processes that survive Ctrl-C, kills, failures; on `tiny`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_durable import contents

from hapo_lab.baselines import METHODS
from hapo_lab.commands.cli import main
from hapo_lab.experiments.experiment import Experiment, TaskSpec, Trial, from_description, load_experiment
from hapo_lab.experiments.folder import chosen, finished
from hapo_lab.experiments.outcomes import collect, packed, read
from hapo_lab.experiments.processes import examine, prepare, run
from hapo_lab.gate import BetaGate
from hapo_lab.loss import log_probability
from hapo_lab.methods import GRPO, HAPO, SFT
from hapo_lab.reproducibility.kit import DATA
from hapo_lab.runs.log import RunLog
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import TINY

ROOT = Path(__file__).resolve().parent.parent
SHORT = replace(TINY, steps=4, prompts=2, group_size=4, eval_every=2, eval_samples=1, save_every=2)
TWO = Experiment("two", "nothing in four steps", {"hapo": HAPO, "sft": SFT}, {"sums": TaskSpec("sums")}, (0, 1), config=SHORT,
                 validation=4)
FILE = """
expected = "HAPO learns, GRPO does not"
methods = ["hapo", "grpo"]
tasks = ["sums"]
seeds = 2
"""


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


# as data -----------------------------------------------------------------------------------------------------------


def test_a_file_says_all_of_it(tmp_path):
    experiment = load_experiment(written(tmp_path, """
        expected = "the bar decides"
        model = "tiny"
        seeds = [3, 5]
        [methods]
        hapo = {}
        strict = {base = "hapo", name = "HAPO, bar 0.5", gate = {kind = "BetaGate", threshold = 0.5}}
        loud = {base = "luffy_matched", shaping = "log_probability", eps_high = "inf"}
        [tasks]
        sums = {}
        few = {base = "sums", demonstrations = 0.1}
        [config]
        steps = 20
        [steps]
        loud = 40
        [tuning]
        rates = [1e-3, 2e-3]
        seeds = 2
        """))
    assert experiment.name == "mine" and experiment.seeds == (3, 5) and experiment.tuning_seeds == (1000, 1001)
    assert experiment.methods["hapo"] == HAPO
    assert experiment.methods["strict"] == replace(HAPO, name="HAPO, bar 0.5", gate=BetaGate(threshold=0.5))
    loud = experiment.methods["loud"]
    assert (loud.name, loud.shaping, loud.eps_high) == ("LUFFY, HAPO's conventions, loud", log_probability, float("inf"))
    assert experiment.tasks == {"sums": TaskSpec("sums"), "few": TaskSpec("sums", 0.1)}
    trial = experiment.trials({("few", "loud"): 1e-3})[-1]
    config = experiment.config_of(trial)
    assert trial == Trial("few", "loud", 5, 1e-3) and (config.steps, config.seed, config.learning_rate) == (40, 5, 1e-3)
    assert len(experiment.tuning()) == 2 * 2 * 3 * 2 and len(experiment.trials({})) == 2 * 2 * 3
    assert from_description(json.loads(json.dumps(experiment.described()))) == experiment


def test_test_problems_never_reach_a_trial():
    given, task = TWO.task("sums", 0), load_task("sums", 0)
    assert given.heldout == task.train[-4:] and given.train == task.train[:-4]
    assert not {p.key for p in (*given.train, *given.heldout)} & {p.key for p in task.heldout}
    few = [replace(TWO, tasks={"few": TaskSpec("sums", 0.1)}).task("few", seed) for seed in (0, 1)]
    shown = [{p.key for p in task.train if p.demonstration} for task in few]
    assert [len(keys) for keys in shown] == [28, 28] and shown[0] != shown[1] and len(few[0].train) == 276


@pytest.mark.parametrize(("change", "words"), [
    (("hapo", "ppo"), "unknown method 'ppo'"), (('"sums"', '"chess"'), "unknown task 'chess'"),
    (("seeds = 2", "seeds = 2\nspeed = 3"), "the file has speed, which means nothing here"),
    (("seeds = 2", "seeds = [1, 1]"), "its seeds hold 1 twice"),
    (('"hapo", "grpo"', '"hapo", "hapo"'), "methods names hapo twice"),
    (("seeds = 2", "seeds = 2\n[tuning]\nrates = [1e-3]\nseeds = [1]"), "seed 1 is to tune and to report"),
    (("seeds = 2", "seeds = 2\n[tuning]\nrates = [1e-3]"), "go together"),
    (("seeds = 2", "seeds = 2\n[config]\nbatch = 3"), r"\[config\] has batch"),
    (("seeds = 2", "seeds = 2\n[config]\nseed = 3"), r"\[config\] has seed"),
    (("seeds = 2", "seeds = 2\n[config]\nsampling_seed = 3"), r"\[config\] has sampling_seed"),
    (("seeds = 2", "seeds = 2\n[config]\nsteps = 0"), "steps is 0"),
    (("seeds = 2", "seeds = 2\n[config]\neval_every = 0"), "eval_every is 0"),
    (("seeds = 2", "seeds = 2\n[steps]\nsft = 3"), "steps are given for sft; its methods are hapo, grpo"),
    (('expected = "HAPO learns, GRPO does not"', ""), "'expected' is missing: write down what you expect before you run it"),
    (("seeds = 2", 'seeds = 2\ntrack = ["paper"]'), "unknown tracker 'paper'"),
    (('methods = ["hapo", "grpo"]', 'methods = "hapo"'), "'methods' is 'hapo'; it must be a list of names, or a table"),
    (("seeds = 2", "seeds = 2\nvalidation = 2.5"), "'validation' is 2.5; it must be a whole number"),
    (("seeds = 2", 'seeds = 2\ntrack = "tensorboard"'), "'track' is 'tensorboard'; it must be a list of names"),
    (("seeds = 2", 'seeds = 2\n[config]\nsteps = "a"'), r"\[config\] steps is 'a'; it must be a number"),
    (("seeds = 2", "seeds ="), "can't be read")])
def test_wrong_input_is_one_sentence(tmp_path, change, words):
    with pytest.raises(ValueError, match=words) as refused:
        load_experiment(written(tmp_path, FILE.replace(*change)))
    assert "mine.toml" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("methods", "words"), [
    ('base = {base = "hapo"}', "'base' is the untrained model"),
    ('hapo = {}\nlong = {base = "hapo"}', "two of its methods are named HAPO in figures"),
    ('mine = {base = "hapo", gates = "never"}', "method 'mine' has gates"),
    ('mine = {base = "hapo", gate = {kind = "BetaGate", treshold = 0.5}}', "method 'mine': .*'treshold'"),
    ('mine = {base = "hapo", gate = "nevr"}', "unknown gate 'nevr'"),
    ('mine = {base = "hapo", seat = "beside"}', "seat is 'beside'")])
def test_a_wrong_part_of_a_method_is_named(tmp_path, methods, words):
    with pytest.raises(ValueError, match=words):
        load_experiment(written(tmp_path, FILE.replace('methods = ["hapo", "grpo"]', "") + f"[methods]\n{methods}\n"))


def test_a_folder_of_another_experiment_is_refused_and_a_larger_one_goes_on(tmp_path):
    staged = {**TWO.methods, "sft_grpo": METHODS["sft_grpo"]}
    prepare(replace(TWO, methods=staged), tmp_path)
    description = tmp_path / "experiment.json"
    older = json.loads(description.read_text())
    del older["methods"]["hapo"]["teachers"]  # written before a method had this field
    del older["methods"]["sft_grpo"]["then"]["teachers"]
    del older["config"]["minibatches"]
    description.write_text(json.dumps(older))
    prepare(replace(TWO, seeds=(0, 1, 2), methods={**staged, "grpo": GRPO}), tmp_path)
    for other in (replace(TWO, config=replace(SHORT, steps=5)), replace(TWO, methods={"hapo": replace(HAPO, kl=0.1)})):
        for do in (prepare, run, examine):
            with pytest.raises(ValueError, match="holds another experiment: it differs in (config|methods hapo)"):
                do(other, tmp_path)


def test_what_no_task_can_be_made_of_is_refused_before_anything_runs(tmp_path):
    for wrong, words in ((replace(TWO, validation=280), "has 280 training problems"),
                         (replace(TWO, tasks={"few": TaskSpec("sums", 0.0)}), "share of demonstrations is 0.0"),
                         (replace(TWO, model="tinny"), "model 'tinny' is not a preset")):
        with pytest.raises(ValueError, match=words):
            run(wrong, tmp_path / "run", processes=1)
    with pytest.raises(ValueError, match="its seeds would share their draws"):
        replace(TWO, config=replace(SHORT, order_seed=1))
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a training run: choose another folder"):
        run(TWO, tmp_path / "run", processes=1)


OWN = """
expected = "HAPO learns"
methods = ["hapo"]
seeds = 1
validation = 4
[tasks]
own = {base = "own.jsonl", verifier = "last_number", max_new_tokens = 24}
[config]
steps = 1
prompts = 2
eval_every = 1
eval_samples = 1
"""


def test_a_file_of_ones_own_is_a_task_and_a_changed_one_is_refused(tmp_path):
    rows = [json.dumps({"prompt": f"What is {a} + 27?", "answer": f"{a + 27}"}) + "\n" for a in range(20)]
    (tmp_path / "own.jsonl").write_text("".join(rows))
    experiment = load_experiment(written(tmp_path, OWN))
    assert (len(experiment.task("own", 0).train), len(experiment.task("own", 0).heldout)) == (12, 4)
    assert run(experiment, tmp_path / "run", processes=1) == [] == examine(experiment, tmp_path / "run", processes=1)
    one, = collect(from_description(experiment.described()), tmp_path / "run").found
    assert len(one.test["held out"]) == 4 and list(one.test) == ["held out"]
    (tmp_path / "own.jsonl").write_text("".join(rows[1:]))
    with pytest.raises(ValueError, match="own.jsonl or its verifier has changed since the experiment began"):
        run(experiment, tmp_path / "run", processes=1)
    with pytest.raises(ValueError, match="holds another experiment: it differs in tasks own"):
        run(load_experiment(written(tmp_path, OWN)), tmp_path / "run", processes=1)


def test_a_verifier_of_ones_own_lies_beside_the_experiment_and_a_changed_one_is_refused(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n{"prompt": "1 + 2?", "answer": "3"}\n')
    verifier = """
from hapo_lab import Verdict


def ends(problem, completion):
    return Verdict(completion.endswith(problem.answer), "its end")
"""
    (tmp_path / "mine.py").write_text(verifier)
    spec = load_experiment(written(tmp_path, OWN.replace("last_number", "mine.py:ends"))).tasks["own"]
    task = spec.load(0)
    assert task.verify(task.train[0], f"it is {task.train[0].answer}").correct
    (tmp_path / "mine.py").write_text(verifier.replace("endswith", "startswith"))
    with pytest.raises(ValueError, match="or its verifier has changed"):
        spec.load(0)


@pytest.mark.parametrize(("task", "words"), [
    ('{base = "own.jsonl"}', "task 'own' is a file and needs verifier and max_new_tokens"),
    ('{base = "none.jsonl", verifier = "last_number", max_new_tokens = 9}', "none.jsonl can't be read"),
    ('{base = "own.jsonl", verifier = "lst", max_new_tokens = 9}', "unknown verifier 'lst'"),
    ('{base = "sums", verifier = "last_number"}', "task 'own' has verifier, which means nothing here"),
    ('{base = 3}', "task 'own': base is 3; it must be a name, or a file's")])
def test_a_wrong_file_of_ones_own_is_named(tmp_path, task, words):
    (tmp_path / "own.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n{"prompt": "1 + 2?", "answer": "3"}\n')
    text = OWN.replace('{base = "own.jsonl", verifier = "last_number", max_new_tokens = 24}', task)
    with pytest.raises(ValueError, match=words):
        load_experiment(written(tmp_path, text))


def test_too_many_processes_for_the_memory_are_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("hapo_lab.experiments.processes.memory_available", lambda device: 2 * 2**30)
    with pytest.raises(ValueError, match=r"8 processes need some \d+.\d GiB and 2.0 are free: ask for 3"):
        run(TWO, tmp_path / "run", processes=8)
    assert not (tmp_path / "run").exists()


# in processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Two methods x two seeds, with a rate to choose; once for all tests that only look."""
    folder = tmp_path_factory.mktemp("experiment")
    experiment = replace(TWO, rates=(1e-3, 2e-3), tuning_seeds=(7,))
    assert run(experiment, folder, processes=2) == []
    return experiment, folder


def test_every_trial_runs_and_is_not_run_again(ran):
    experiment, folder = ran
    rates = chosen(experiment, folder)
    assert set(rates) == {("sums", "hapo"), ("sums", "sft")} and set(rates.values()) <= {1e-3, 2e-3}
    for trial in experiment.trials(rates):
        log = RunLog.load(folder / trial.name)
        assert finished(folder / trial.name) and len(log.steps) == 4
        assert log.manifest["config"]["seed"] == trial.seed and log.manifest["versions"]["threads"] == 1
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "experiment.json"}
    assert run(experiment, folder) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_rates_are_chosen_by_validation_and_ties_go_to_the_smaller(ran):
    experiment, folder = ran
    for (task, method), rate in chosen(experiment, folder).items():
        found = {r: [s.heldout for s in RunLog.load(folder / Trial(task, method, 7, r, tuning=True).name).steps
                     if s.heldout is not None][1:] for r in experiment.rates}
        assert rate == max(sorted(found), key=lambda r, found=found: sum(found[r]))


def test_figures_go_where_the_file_asks(tmp_path):
    (tmp_path / "mine.py").write_text("""
def note(log):
    return lambda record: open(log.path("noted.txt"), "a").write(f"{record.step} ")
""")
    one = replace(TWO, methods={"hapo": HAPO}, seeds=(0,), track=(f"{tmp_path / 'mine.py'}:note",))
    assert run(one, tmp_path / "run") == []
    assert (tmp_path / "run" / "trials" / "sums-hapo-0" / "noted.txt").read_text() == "1 2 3 4 "


def test_test_problems_are_looked_at_once(ran):
    experiment, folder = ran
    assert examine(experiment, folder, processes=2) == []
    looked = folder / "trials" / "sums-hapo-0" / "test.json"
    exam = json.loads(looked.read_text())
    found, way = exam["success"], exam["way"]
    assert way["teacher_logp"] < 0 and 0 < way["length"] <= 28 and 0 < way["teacher_length"] <= 28 and "kl" in way
    assert "kl" not in json.loads((folder / "trials" / "sums-sft-0" / "test.json").read_text())["way"]
    assert len(found["held out"]) == 40 and {"wordings", "numbers", "order"} <= set(found)
    assert not {p.key for p in experiment.task("sums", 0).train} & set(found["held out"])
    assert collect(experiment, folder).base["sums"]["held out"] == 0
    before = looked.stat().st_mtime_ns
    assert examine(experiment, folder) == [] and looked.stat().st_mtime_ns == before
    assert not (folder / Trial("sums", "hapo", 7, 1e-3, tuning=True).name / "test.json").exists()


def test_results_that_were_packed_are_reported_when_the_runs_are_gone(ran, tmp_path, monkeypatch, capsys):
    experiment, folder = ran
    config = "\n".join(f"{name} = {getattr(SHORT, name)}" for name in (
        "steps", "prompts", "group_size", "eval_every", "eval_samples", "save_every"))
    file = written(tmp_path, """
        name = "two"
        expected = "nothing in four steps"
        validation = 4
        methods = ["hapo", "sft"]
        tasks = ["sums"]
        seeds = 2
        tuning = {rates = [1e-3, 2e-3], seeds = [7]}
        [config]
        """ + config)
    main(["experiment", "pack", str(file), "--folder", str(folder)])
    assert read(packed(file)) == collect(experiment, folder)
    with pytest.raises(ValueError, match="holds another experiment: it differs in validation"):
        collect(replace(experiment, validation=5), folder)
    monkeypatch.setenv("HAPO_LAB_RUNS", str(tmp_path / "none"))
    main(["experiment", "report", str(file), "--out", str(tmp_path / "report")])
    assert "these results are from" in capsys.readouterr().out
    assert "| SFT | 2 |" in (tmp_path / "report" / "table.md").read_text()
    with pytest.raises(SystemExit, match="run the experiment"):
        main(["experiment", "pack", str(file)])


def test_a_failing_trial_is_listed_and_tried_again(tmp_path):
    one = replace(TWO, seeds=(0,), validation=4)
    broken = tmp_path / "trials" / "sums-sft-0"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{}")
    (failure,) = run(one, tmp_path, processes=2)
    assert failure.trial.method == "sft" and failure.cause
    assert json.loads((broken / "failed.json").read_text()) == {"cause": failure.cause}
    assert finished(tmp_path / "trials" / "sums-hapo-0")
    (broken / "run.json").unlink()
    assert run(one, tmp_path) == [] and finished(broken) and not (broken / "failed.json").exists()


LIFE = """
import sys
from pathlib import Path
from dataclasses import replace
sys.path[:0] = {path!r}
from test_experiment import SHORT, TWO
from hapo_lab.experiments.processes import Stopped, run
if __name__ == "__main__":
    long = replace(TWO, config=replace(SHORT, steps=40), seeds=(0,))
    try:
        print(run(long, Path({folder!r}), processes=2))
    except Stopped:
        print("stopped")
"""


def begun(folder, steps=3):
    """A process that runs the long experiment, once both of its trials have taken some steps."""
    script = folder.parent / f"{folder.name}.py"
    script.write_text(LIFE.format(path=sys.path, folder=str(folder)))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               start_new_session=True)
    logs = [folder / "trials" / f"sums-{method}-0" / "steps.jsonl" for method in ("hapo", "sft")]
    while not all(log.exists() and log.read_bytes().count(b"\n") >= steps for log in logs):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    return process


@pytest.mark.soak
def test_ctrl_c_kills_and_a_lost_parent_change_nothing_in_the_end(tmp_path):
    long = replace(TWO, config=replace(SHORT, steps=40), seeds=(0,))
    assert run(long, tmp_path / "whole", processes=2) == []

    folder = tmp_path / "broken"
    process = begun(folder)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert process.communicate(timeout=300)[0].splitlines()[-1] == "stopped"
    kept = {name: len(RunLog.load(folder / "trials" / name).steps) for name in ("sums-hapo-0", "sums-sft-0")}
    assert all(3 <= steps < 40 for steps in kept.values())

    process = begun(folder, steps=max(kept.values()) + 1)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)  # again, at once: nobody waits for anybody's step
    process.communicate(timeout=30)

    process = begun(folder, steps=max(kept.values()) + 3)
    process.kill()
    process.wait()
    assert run(long, folder, processes=2) == []  # waits for what its lost parent left behind
    for name in kept:
        assert contents(folder / "trials" / name) == contents(tmp_path / "whole" / "trials" / name)


@pytest.mark.parametrize("file", sorted((DATA / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_the_kits_own_experiments_are_whole(file):
    experiment = load_experiment(file)
    assert len(experiment.seeds) >= (10 if experiment.model == "tiny" else 5) and experiment.name == file.stem
    for key in experiment.tasks:
        assert experiment.task(key, 0).heldout
    assert len({method.name for method in experiment.methods.values()}) == len(experiment.methods)


def test_the_page_shows_a_file_that_works(tmp_path):
    shown = re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "experiments.md").read_text(), re.S)[1]
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n{"prompt": "1 + 2?", "answer": "3"}\n')
    experiment = load_experiment(written(tmp_path, shown))
    assert list(experiment.methods) == ["hapo", "grpo", "strict"] and experiment.steps == {"grpo": 120}


def test_the_pages_list_of_methods_is_complete():
    page = (ROOT / "docs" / "experiments.md").read_text().partition("## Methods")[2]
    assert re.findall(r"^\| `(\w+)`", page, re.M) == list(METHODS)

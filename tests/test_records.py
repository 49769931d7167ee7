"""The run log: what is added is what is read back."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, fields, replace

import pytest
import torch
from conftest import teach_alone

from hapo_lab.methods import HAPO
from hapo_lab.notebook.dashboard import watch
from hapo_lab.runs.log import COMPLETION_CHARACTERS, RunLog
from hapo_lab.runs.record import StepRecord
from hapo_lab.ssi import Rollout

ABOUT = {"method": {"name": "HAPO", "gate": {"kind": "BetaGate", "threshold": .8}}, "config": {"steps": 5},
         "versions": {"torch": "2"}}


def record(step):
    return StepRecord(
        step=step, problems=("7*8", "2*9"), reward=.1 * step, length=1 / 3, cut=0., successes=(2, 8), trials=(8, 8),
        posterior=((3., 7.), (9., 1.)), decisions=(True, False), replaced=(2, -1), advantages=((2.4742, -.35), (0., 0.)),
        teacher_samples=1, without_demonstration=0, dead_before=1, dead_after=0, updated=True, loss=-.25, grad_norm=2.38,
        teacher_share=.9, teacher_logp=-3.5, clip_fraction=None, entropy=1.25, kl=None, heldout=None, learning_rate=4e-4,
        tokens_sampled=160, tokens_trained=150, seconds={"rollout": 8.25, "update": 6.5, "evaluate": 3.})


@pytest.fixture
def groups(group_of, demonstration):
    return [teach_alone(HAPO, group_of([1.] * s + [0.] * (8 - s)), demonstration) for s in (2, 8)]


@pytest.fixture
def log(tmp_path, groups):
    """Three steps on disk, a stop and a resume after the second."""
    log = RunLog(ABOUT, tmp_path / "runs" / "one")
    log.create()
    for step in (1, 2, 3):
        log.add(record(step), groups)
        if step == 2:
            log.event("stop", reason="Ctrl-C: “genug”\u2028")
            log.event("resume")
    return log


def rows(log, name):
    return [json.loads(line) for line in (log.folder / name).read_text().splitlines()]


def test_a_run_reads_back_as_it_was_written(log):
    read = RunLog.load(log.folder)
    assert (read.manifest, read.steps, read.events) == (log.manifest, log.steps, log.events)
    assert read.steps == [record(1), record(2), record(3)]
    assert (read.name, read.planned) == ("HAPO", 5)


def test_events_know_the_step_they_came_after(log):
    assert [(e["after_step"], e["kind"]) for e in RunLog.load(log.folder).events] == [(2, "stop"), (2, "resume")]


def test_a_steps_groups_are_read_back_without_their_tokens(log, groups):
    def without_tokens(rollout):
        return rollout and replace(rollout, ids=(), engine_logps=())

    read = RunLog.load(log.folder).groups_of(2)
    assert [g.replaced for g in read] == [2, -1]
    for was, now in zip(groups, read, strict=True):
        assert (now.problem, now.decision, now.successes) == (was.problem, was.decision, was.successes)
        assert now.rollouts == tuple(map(without_tokens, was.rollouts)) and now.removed == without_tokens(was.removed)
        assert torch.allclose(now.advantages.double(), was.advantages.double())
        assert (now.posterior.alpha, now.posterior.beta) == (was.posterior.alpha, was.posterior.beta)
        assert now.posterior.alpha.dtype == was.posterior.alpha.dtype


def test_a_long_completion_is_cut(tmp_path, groups):
    log = RunLog(ABOUT, tmp_path)
    log.create()
    long = replace(groups[0], rollouts=(Rollout(ids=(1,), text="x" * 5000, reward=0.),) * 8)
    log.add(record(1), [long, groups[1]])
    assert [len(r.text) for r in log.groups_of(1)[0].rollouts] == [COMPLETION_CHARACTERS] * 8


def test_a_log_without_a_folder_lives_in_memory(groups):
    log = RunLog(ABOUT)
    log.add(record(1), groups)
    log.event("stop")
    assert log.steps == [record(1)] and log.events == [{"after_step": 1, "kind": "stop"}] and log.groups == groups


def test_rewinding_drops_later_steps_in_memory_and_on_disk(log):
    log.add(record(4), [])
    log.event("refused step")
    log.rewind(2)
    assert [s.step for s in log.steps] == [1, 2] and [e["kind"] for e in log.events] == ["stop", "resume"]
    read = RunLog.load(log.folder)
    assert (read.steps, read.events) == (log.steps, log.events)
    assert [row["step"] for row in rows(log, "completions.jsonl")] == [1, 1, 2, 2]


def test_changes_of_the_gate_outlive_a_rewind_to_act_again(log):
    log.event("changed", gate={"kind": "BetaGate", "threshold": .5})
    log.rewind(1)
    assert [(e["after_step"], e["kind"]) for e in RunLog.load(log.folder).events] == [(3, "changed")]
    assert log.gate(3) == ABOUT["method"]["gate"] and log.gate(4) == {"kind": "BetaGate", "threshold": .5}


def test_the_gate_of_a_step_is_the_last_change_before_it():
    log = RunLog(ABOUT)
    early, late = {"kind": "BetaGate", "threshold": .3}, {"kind": "BetaGate", "threshold": .5}
    log.event("changed", after_step=6, gate=late)
    assert log.gates() == {1: ABOUT["method"]["gate"], 7: late} and log.gate() == log.gate(6) == ABOUT["method"]["gate"]
    log.event("changed", after_step=3, gate=early)  # made after the run went back to step 3: it overrules what was to come
    assert log.gates() == {1: ABOUT["method"]["gate"], 4: early} and log.gate(40) == early
    log.event("resumed", after_step=4, gate=late)
    assert log.gates()[5] == late == log.given_gate()


def test_a_rewound_log_goes_on(log, groups):
    log.rewind(1)
    log.add(record(2), groups)
    assert RunLog.load(log.folder).steps == [record(1), record(2)]


def test_rewinding_works_in_memory(groups):
    log = RunLog(ABOUT)
    log.add(record(1), groups)
    log.add(record(2), groups)
    log.rewind(1)
    assert log.steps == [record(1)]


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(log):
    with pytest.raises(ValueError, match="one holds a run already: continue it .*, or choose another folder"):
        RunLog({"method": {"name": "other"}}, log.folder).create()
    assert RunLog.load(log.folder).manifest == ABOUT


def test_a_folder_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="nowhere holds no run: there is no run.json in it"):
        RunLog.load(tmp_path / "nowhere")


FILES = ["steps.jsonl", "events.jsonl", "completions.jsonl"]


@pytest.mark.parametrize("name", FILES)
def test_a_torn_last_line_is_passed_over_and_cut_when_the_run_goes_on(log, groups, name):
    whole = (log.folder / name).read_bytes()
    for torn in (b'{"step": 4, "prob', b"{", b"\0\0\0", "“".encode()[:1]):
        (log.folder / name).write_bytes(whole + torn)
        read = RunLog.load(log.folder)
        assert (read.steps, read.events, len(read.groups_of(3))) == (log.steps, log.events, 2)
        read.rewind(3)
        assert (log.folder / name).read_bytes() == whole
    read.add(record(4), groups)
    assert len(RunLog.load(log.folder).steps) == 4 and len(read.groups_of(4)) == 2


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_line_in_the_middle_is_named(log, name):
    lines = (log.folder / name).read_bytes().splitlines(keepends=True)
    (log.folder / name).write_bytes(b"".join([lines[0], b'{"step": 1, "prob\n', *lines[2:]]))
    with pytest.raises(ValueError, match=f"{name}, line 2: not JSON"):
        RunLog.load(log.folder).groups_of(1)


def test_a_damaged_completion_costs_no_other_step_its_groups(log):
    path = log.folder / "completions.jsonl"
    before, lines = log.groups_of(3), path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"step": 1, "prob\n', *lines[2:]]))
    read = RunLog.load(log.folder)
    assert [g.rollouts for g in read.groups_of(3)] == [g.rollouts for g in before]
    path.write_bytes(b"".join([lines[0], *lines[2:]]))  # as the message advises
    assert [g.rollouts for g in read.groups_of(3)] == [g.rollouts for g in before]
    with pytest.raises(ValueError, match="holds 1 of the 2 groups of step 1"):
        read.groups_of(1)


def test_a_log_that_has_no_room_keeps_its_old_lines(log, groups):
    before = [(log.folder / name).read_bytes() for name in FILES]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(map(len, before)) + 100, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            log.add(record(4), groups)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(log.folder / name).read_bytes() for name in FILES] == before and len(log.steps) == 3


def test_a_log_is_followed_while_another_process_writes_it(log, groups):
    read = RunLog.load(log.folder)
    assert not read.refresh()
    path, line = log.folder / "steps.jsonl", json.dumps(asdict(record(4))) + "\n"
    for part in (line[:50], line[50:-1]):
        with open(path, "a") as file:
            file.write(part)
        assert not read.refresh() and len(read.steps) == 3  # half a line
    with open(path, "a") as file:
        file.write("\n")
    assert read.refresh() and read.steps == [record(i) for i in (1, 2, 3, 4)]

    log.rewind(1)  # the other process is killed, and resumes from its first step
    log.event("resumed")
    assert read.refresh() and (read.steps, read.events) == (log.steps, log.events)
    for step in (2, 3):
        log.add(replace(record(step), seconds={"update": 123.456}), groups)
    assert read.refresh() and read.steps == log.steps
    log.rewind(1)
    for step in (2, 3, 4, 5):  # more than there was: not to be seen by the size of the file
        log.add(record(step), groups)
    assert [len(seen.steps) for seen in read.follow(every=0)] == [3, 5] and read.steps == log.steps


def test_following_ends_when_asked(log):
    stop = threading.Event()
    follow = RunLog.load(log.folder).follow(every=60, stop=stop)
    next(follow)
    threading.Timer(0.1, stop.set).start()
    assert list(follow) == []


def test_the_dashboard_watches_a_run_that_another_process_writes(log, capsys):
    code = """
import sys, time
from test_records import RunLog, record
log = RunLog.load(sys.argv[1])
for step in (4, 5):
    time.sleep(0.6)
    log.add(record(step), [])
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(log.folder)],
                              env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    watch(log.folder)
    assert writer.wait() == 0
    assert [line[:11] for line in capsys.readouterr().out.splitlines()] == ["step 3 of 5", "step 4 of 5", "step 5 of 5"]
    with pytest.raises(ValueError, match="nowhere holds no run"):
        watch(log.folder / "nowhere")


def test_watching_ends_when_interrupted(log, capsys):
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    watch(log.folder)
    assert capsys.readouterr().out.startswith("step 3 of 5")


@pytest.mark.parametrize("line", ["{}", "3", '{"step": 4}'])
def test_a_line_that_is_no_step_is_named(log, line):
    with open(log.folder / "steps.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="steps.jsonl, line 4"):
        RunLog.load(log.folder)


def test_a_torn_run_json_is_named(log):
    (log.folder / "run.json").write_text('{"method": ')
    with pytest.raises(ValueError, match="run.json"):
        RunLog.load(log.folder)


def test_a_record_of_a_later_version_is_read_without_its_new_fields(log):
    (log.folder / "steps.jsonl").write_text(json.dumps(rows(log, "steps.jsonl")[0] | {"new": 1}) + "\n")
    assert RunLog.load(log.folder).steps == [record(1)]


def test_the_table_has_one_number_a_cell_and_the_seconds_by_phase(log):
    table = log.table()
    assert [row["step"] for row in table] == [1, 2, 3]
    assert all(isinstance(value, int | float | None) for row in table for value in row.values())
    assert table[0]["seconds_rollout"] == 8.25 and table[0]["groups"] == 2
    numbers = {f.name for f in fields(StepRecord) if not isinstance(getattr(record(1), f.name), tuple | dict)}
    assert numbers < table[0].keys()


def test_the_csv_is_the_table(log, tmp_path):
    del log.steps[0].seconds["evaluate"]  # a step without an evaluation has a cell all the same
    log.write_csv(tmp_path / "run.csv")
    with open(tmp_path / "run.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in log.table()[1:]] == read[1:]
    assert read[0]["seconds_evaluate"] == "" and read[1]["seconds_evaluate"] == "3.0"


def test_training_seconds_leave_out_the_evaluation():
    assert record(1).training_seconds == 14.75


def test_injected_are_the_groups_with_a_replaced_seat():
    assert record(1).injected == (True, False)

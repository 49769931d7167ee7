"""The training loop on the real 4-bit SmolLM2, in small."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from hapo_lab.baselines import METHODS
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.methods import GRPO, HAPO, SFT
from hapo_lab.reproducibility.catalogue import get_shaping
from hapo_lab.runs.log import RunLog
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config, learning_rate
from hapo_lab.training.evaluation import evaluate
from hapo_lab.training.guards import TrainingError
from hapo_lab.training.trainer import Trainer

SMALL = Config(steps=3, prompts=2, group_size=3, warmup=1, save_every=1, eval_every=0)


@pytest.fixture(scope="module")
def task():
    whole = load_task(seed=0)
    return replace(whole, train=whole.train[:4], heldout=whole.heldout[:2], max_new_tokens=18)


def adapter(policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.trainable()]


def without_times(log: RunLog) -> list[dict]:
    return [{k: v for k, v in vars(s).items() if k != "seconds"} for s in log.steps]


def test_a_first_step_of_hapo_injects_into_the_failed_groups_and_moves_the_adapter(policy, task):
    trainer = Trainer(policy, task, HAPO, replace(SMALL, steps=1, eval_every=1))
    before = adapter(policy)
    record, = trainer
    assert record.successes == (0, 0) and record.reward == 0
    assert record.decisions == (True, True) and record.injected == (True, True)
    assert (record.dead_before, record.dead_after, record.teacher_samples) == (2, 0, 2)
    assert record.trials == (3, 3) and record.length > 3
    assert 0 < record.teacher_share < 1 and record.teacher_logp < 0 and record.grad_norm > 0
    assert record.kl == pytest.approx(0, abs=1e-6)  # of the policy that sampled: still the base
    assert record.heldout is not None and record.entropy > 0
    assert set(record.seconds) == {"rollout", "gate", "update", "evaluate"}
    assert record.updated and any(not torch.equal(a, b) for a, b in zip(before, adapter(policy), strict=True))


@pytest.mark.parametrize("name", ["grpo", "hapo", "luffy", "sft"])
def test_methods_run_through_the_same_loop(policy, task, name):
    record, = Trainer(policy, task, METHODS[name], replace(SMALL, steps=1))
    teachers = {"grpo": 0, "hapo": 2, "luffy": 2, "sft": 2}[name]
    assert record.teacher_samples == teachers
    assert record.trials == ((2, 2) if name in ("luffy", "sft") else (3, 3))
    assert record.injected == (name == "hapo",) * 2
    if name == "sft":
        assert record.teacher_share == 1 and all(a[-1] == 1 and not any(a[:-1]) for a in record.advantages)


def test_when_every_group_is_dead_no_optimizer_step_is_taken_and_the_record_says_so(policy, task):
    before = adapter(policy)
    record, = Trainer(policy, task, GRPO, replace(SMALL, steps=1))
    assert not record.updated and record.loss is None and record.dead_after == 2
    assert all(torch.equal(a, b) for a, b in zip(before, adapter(policy), strict=True))


def test_a_problem_without_demonstration_is_left_alone_and_counted(policy, task):
    bare = replace(task, train=tuple(replace(p, demonstration=None) for p in task.train))
    record, = Trainer(policy, bare, HAPO, replace(SMALL, steps=1))
    assert record.decisions == (True, True) and record.injected == (False, False)
    assert record.without_demonstration == 2 and not record.updated


def test_a_demonstration_longer_than_the_limit_counts_as_missing(policy, task):
    record, = Trainer(policy, replace(task, max_new_tokens=4), HAPO, replace(SMALL, steps=1))
    assert record.without_demonstration == 2 and record.cut > 0


@pytest.mark.soak
def test_a_resumed_run_equals_one_that_was_never_stopped_bit_for_bit(policy, task, tmp_path):
    start = adapter(policy)
    whole = Trainer(policy, task, HAPO, SMALL, folder=tmp_path / "whole")
    list(whole)
    expected = adapter(policy)

    for p, value in zip(policy.trainable(), start, strict=True):
        p.data.copy_(value)
    first = iter(Trainer(policy, task, HAPO, replace(SMALL), folder=tmp_path / "parts"))
    next(first), next(first)
    first.close()
    with torch.no_grad():
        policy.trainable()[0].zero_()  # whatever the process did after its last checkpoint
    resumed = Trainer(policy, task, HAPO, SMALL, folder=tmp_path / "parts", resume=True)
    assert [r.step for r in resumed] == [3]

    assert all(torch.equal(a, b) for a, b in zip(expected, adapter(policy), strict=True))
    assert without_times(RunLog.load(tmp_path / "parts")) == without_times(RunLog.load(tmp_path / "whole"))
    assert [e["kind"] for e in RunLog.load(tmp_path / "parts").events] == ["resumed"]


def test_steps_after_the_last_checkpoint_are_done_again(fresh, sums, tmp_path):
    config = replace(SMALL, save_every=2)
    steps = iter(Trainer(fresh, sums, HAPO, replace(config), folder=tmp_path))
    next(steps)
    steps.close()
    resumed = Trainer(fresh, sums, HAPO, config, folder=tmp_path, resume=True)
    assert len(resumed.log.steps) == 0
    assert (tmp_path / "steps.jsonl").read_text() == "" and (tmp_path / "completions.jsonl").read_text() == ""


def test_an_interrupt_finishes_the_step_saves_and_lets_iterating_again_go_on(fresh, sums, tmp_path):
    trainer = Trainer(fresh, sums, HAPO, replace(SMALL, save_every=100), folder=tmp_path)

    def interrupt(*_):
        hook.remove()
        os.kill(os.getpid(), signal.SIGINT)
    hook = trainer.learner.optimizer.register_step_post_hook(interrupt)  # in the middle of step 1
    assert [r.step for r in trainer] == [1]
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
    assert trainer.log.events[-1]["kind"] == "stopped"
    assert [r.step for r in trainer] == [2, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_token_budget_changes_memory_and_not_results(policy, task):
    start, results = adapter(policy), []
    for budget in (1, 10_000):
        for p, value in zip(policy.trainable(), start, strict=True):
            p.data.copy_(value)
        record, = Trainer(policy, task, HAPO, replace(SMALL, steps=1, token_budget=budget))
        results.append((record.loss, record.grad_norm))
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_inner_epochs_move_the_ratio_away_from_one(policy, task):
    trainer = Trainer(policy, task, HAPO, replace(SMALL, steps=1, inner_epochs=3, learning_rate=5e-3))
    record, = trainer
    assert record.clip_fraction > 0


def test_a_loss_that_is_not_finite_is_refused_and_the_policy_kept(policy, task, tmp_path):
    (tmp_path / "mine.py").write_text("def nan(logp):\n    return logp * float('nan')\n")
    broken = replace(HAPO, shaping=get_shaping(f"{tmp_path / 'mine.py'}:nan"))
    before = adapter(policy)
    with pytest.raises(TrainingError, match="step 1 is refused, because the loss is nan.*as step 0 left it"):
        list(Trainer(policy, task, broken, SMALL, folder=tmp_path / "run"))
    assert all(torch.equal(a, b) for a, b in zip(before, adapter(policy), strict=True))
    log = RunLog.load(tmp_path / "run")
    assert log.steps == [] and log.events[0]["kind"] == "refused"


def test_a_folder_with_a_run_is_refused_and_untouched(policy, task, tmp_path):
    Trainer(policy, task, HAPO, SMALL, folder=tmp_path)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ValueError, match="holds a run already: continue it .*or choose another"):
        Trainer(policy, task, HAPO, SMALL, folder=tmp_path)
    with pytest.raises(ValueError, match="another run: config.seed is 0 there and 5 here"):
        Trainer(policy, task, HAPO, replace(SMALL, seed=5), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="another run: method.name is 'HAPO' there and 'SFT' here; method.gate.kind is '"):
        Trainer(policy, task, SFT, SMALL, folder=tmp_path, resume=True)
    assert (tmp_path / "run.json").read_text() == before
    assert json.loads(before)["method"]["gate"] == {"kind": "BetaGate", "alpha": 1.0, "beta": 1.0, "threshold": 0.8}


def test_a_prompt_longer_than_the_context_is_refused_by_name(policy, task):
    long = replace(task.train[0], key="the long one", messages=({"role": "user", "content": "word " * 9000},))
    with pytest.raises(ValueError, match="problem 'the long one' has a prompt of 9"):
        Trainer(policy, replace(task, train=(long,)), HAPO, SMALL)


@pytest.mark.parametrize("field, value, words", [
    ("group_size", 1, "at least 2 rollouts"), ("steps", 0, "steps is 0"), ("learning_rate", 0.0, "learning_rate is 0.0"),
    ("prompts", 0, "prompts is 0"), ("eval_samples", 0, "eval_samples is 0"), ("eval_every", -1, "eval_every is -1"),
    ("warmup", -1, "warmup is -1")])
def test_a_config_without_meaning_is_refused(field, value, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **{field: value})


def test_the_learning_rate_warms_up_and_falls_on_lines():
    config = Config(steps=14, warmup=4, learning_rate=1.0, final_rate=0.1)
    rates = [learning_rate(config, step) for step in range(1, 15)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(0.1) and rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)


def test_an_evaluation_has_an_interval_over_problems_and_counts_failed_groups(policy, task):
    found = evaluate(policy, TransformersEngine(policy), task, samples=2)
    assert (found.success, found.dead) == (0, 1) and found.interval() == (0, pytest.approx(0.8419, abs=1e-4))
    assert "0.0% [0.0%, 84.2%] over 2 problems x 2" in str(found)


def test_a_small_model_computes_on_one_thread_and_a_resumed_run_on_as_many_as_it_began_with(fresh, sums, tmp_path):
    """The count is part of what a run can be repeated by: sums of other lengths round otherwise."""
    seen, before = [], torch.get_num_threads()
    trainer = Trainer(fresh, sums, HAPO, replace(SMALL, steps=2), folder=tmp_path)
    trainer.engine.model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    next(iter(trainer))
    assert fresh.threads == 1 and set(seen) == {1} and trainer.log.manifest["versions"]["threads"] == 1
    manifest = tmp_path / "run.json"
    manifest.write_text(manifest.read_text().replace('"threads": 1', '"threads": 2'))
    config = replace(SMALL, steps=2, eval_every=1)  # its evaluations too
    manifest.write_text(manifest.read_text().replace('"eval_every": 0', '"eval_every": 1'))
    again, seen[:] = Trainer(fresh, sums, HAPO, config, folder=tmp_path, resume=True), []
    again.engine.model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    list(again)
    assert set(seen) == {2} and torch.get_num_threads() == before

"""Rollouts by the real vLLM, on the tiny model: `make vllm` installs it; CI has it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Pipe
from pathlib import Path

import psutil
import pytest
import torch
from hostile import engines, fits, make_hostile, trainers
from jupyter_client.manager import start_new_kernel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GenerationConfig

from hapo_lab.commands.cli import main
from hapo_lab.engines import vllm_engine, vllm_process
from hapo_lab.engines.choice import engine_for
from hapo_lab.engines.protocol import EngineError, Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.engines.vllm_engine import OWN, Process, VllmEngine, dequantised_base, installed, room
from hapo_lab.methods import GRPO, HAPO
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.models import load_policy
from hapo_lab.policy.weights import dequantised_weight
from hapo_lab.runs.log import RunLog
from hapo_lab.training.config import Config
from hapo_lab.training.guards import TrainingError
from hapo_lab.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not installed() and "CI" not in os.environ, reason="vLLM is not installed: make vllm")
SMALL = Config(steps=4, prompts=2, group_size=4, warmup=1, learning_rate=2e-3, save_every=2, eval_every=0)


@pytest.fixture(scope="module", autouse=True)
def one_process(tiny):
    """The engines of this file share the process that serves `tiny`."""
    yield
    VllmEngine(tiny).close()


def served(policy) -> Process:
    return vllm_engine._processes[policy.model]


def ended(pid: int, seconds: float = 300) -> bool:
    """A process, and all that it started, is gone in time."""
    until = time.monotonic() + seconds
    while (there := members(pid)) and time.monotonic() < until:
        time.sleep(0.1)
    return not there


def members(group: int) -> list[int]:
    """Of a process group, those that are more than an exit code."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def move(policy, by: float, seed: int = 0) -> None:
    with torch.no_grad():
        for i, p in enumerate(policy.trainable()):
            p += by * torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + i))


# the distribution --------------------------------------------------------------------------------------------------


def follows_large_changes(fresh, sums, merge: bool) -> None:
    prompts = [prompt_ids(fresh, p) for p in sums.train[:4]]
    engine = VllmEngine(fresh, merge=merge)
    engine.sync()
    before = engine.generate(prompts, 8, Sampling(16), seed=1)
    assert (trainers(fresh, prompts, before) - engines(before)).abs().max() < 1e-3
    old = trainers(fresh, prompts, before)
    for change in (1, 2, 3):  # each under the next id, or over the last merge
        move(fresh, 0.1, seed=change)
        engine.sync()
        after = engine.generate(prompts, 8, Sampling(16), seed=1)
        assert (trainers(fresh, prompts, after) - engines(after)).abs().max() < 1e-3
        assert after != before
    assert (trainers(fresh, prompts, before) - old).abs().mean() > 0.5  # a large one: a stale engine would be far off


@pytest.mark.soak
def test_vllm_samples_from_the_new_policy_after_a_large_change_of_an_adapter_that_is_swapped(fresh, sums):
    follows_large_changes(fresh, sums, merge=False)
    VllmEngine(fresh).close()


def test_an_engine_that_was_not_synced_is_noticed(fresh, sums):
    prompts = [prompt_ids(fresh, sums.train[0])]
    engine = VllmEngine(fresh)
    with pytest.raises(EngineError, match="vLLM is not running: sync starts it"):
        engine.generate(prompts, 1, Sampling(4), seed=0)
    engine.sync()
    with torch.no_grad():
        fresh.trainable()[3][0, 0] += 1e-6
    with pytest.raises(EngineError, match="another adapter than the policy's present one: sync comes first"):
        engine.generate(prompts, 1, Sampling(4), seed=0)
    engine.sync()
    engine.generate(prompts, 1, Sampling(4), seed=0)


def test_vllm_samples_from_the_new_policy_after_a_large_change_of_an_adapter_that_is_merged(fresh, sums):
    follows_large_changes(fresh, sums, merge=True)


def test_the_same_seed_gives_the_same_completions_and_another_one_others(fresh, sums):
    prompts = [prompt_ids(fresh, sums.train[0])] * 2
    engine = VllmEngine(fresh)
    engine.sync()
    first, same, other = (engine.generate(prompts, 8, Sampling(8), seed=s) for s in (7, 7, 8))
    assert first == same and first != other and first[0] != first[1]
    assert {c.finished for g in engine.generate(prompts, 4, Sampling(1), seed=0) for c in g} == {False}


def test_log_probabilities_are_those_of_the_distribution_that_was_sampled_from(fresh, sums):
    prompts = [prompt_ids(fresh, p) for p in sums.train[:2]]
    engine = VllmEngine(fresh)
    engine.sync()
    cold = engine.generate(prompts, 8, Sampling(12, temperature=0.5), seed=3)
    assert (trainers(fresh, prompts, cold, temperature=0.5) - engines(cold)).abs().max() < 1e-3


def test_both_engines_agree_on_a_tokens_frequency(fresh, sums):
    prompts, frequencies = [prompt_ids(fresh, sums.train[0])], []
    move(fresh, 0.1)
    for engine in (VllmEngine(fresh), TransformersEngine(fresh)):
        engine.sync()
        drawn, = engine.generate(prompts, 2000, Sampling(1), seed=0)
        frequencies.append(torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=200) / 2000)
    assert (frequencies[0] - frequencies[1]).abs().max() < 0.06 and frequencies[0].max() < 0.9


def test_a_turn_ends_at_any_of_its_ends(fresh, sums):
    policy = replace(fresh, ends=(*fresh.ends, fresh.tokenizer.convert_tokens_to_ids("=")))
    engine = VllmEngine(policy)
    engine.sync()
    drawn, = engine.generate([prompt_ids(policy, sums.train[0])], 32, Sampling(24), seed=0)
    assert {c.ids[-1] for c in drawn if c.finished} == set(policy.ends)
    assert all(not set(c.ids[:-1]) & set(policy.ends) and "=" not in c.text for c in drawn)


def test_a_hostile_generation_config_changes_nothing_and_nan_is_an_error(fresh, sums, tmp_path, monkeypatch):
    """The config stands in the served folder, where vLLM would look for one."""
    VllmEngine(fresh).close()
    monkeypatch.setenv("HAPO_LAB_CACHE", str(tmp_path))
    hostile = GenerationConfig()
    make_hostile(hostile)
    (dequantised_base(fresh).parent / "generation_config.json").write_text(hostile.to_json_string(use_diff=False))
    monkeypatch.setattr(fresh.model.get_base_model(), "generation_config", hostile)
    engine, prompts = VllmEngine(fresh), [prompt_ids(fresh, p) for p in sums.train[:3]]
    move(fresh, 0.03)
    engine.sync()
    drawn = engine.generate(prompts, 8, Sampling(16), seed=1)
    assert (trainers(fresh, prompts, drawn) - engines(drawn)).abs().max() < 1e-5
    first, = engine.generate(prompts[:1], 4000, Sampling(1), seed=0)
    assert fits(fresh, prompts[0], first) > 0.01

    with torch.no_grad():
        before = fresh.trainable()[-1][0, 0].item()
        fresh.trainable()[-1][0, 0] = torch.nan
    engine.sync()
    with pytest.raises(EngineError, match="tiny gives NaN for log-probabilities"):
        engine.generate(prompts, 2, Sampling(4), seed=0)
    with torch.no_grad():
        fresh.trainable()[-1][0, 0] = before
    engine.sync()
    assert engine.generate(prompts, 8, Sampling(16), seed=1) == drawn  # and leaves nothing behind
    engine.close()


def test_a_prompt_longer_than_there_is_room_for_is_refused(fresh):
    engine = VllmEngine(fresh)
    engine.sync()
    with pytest.raises(ValueError, match=r"a prompt of 9000 tokens and 32 new ones exceed the \d+ that vLLM has room for"):
        engine.generate([[5] * 9000], 1, Sampling(), seed=0)


# training ----------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_run_logs_the_gap_and_a_killed_engine_costs_a_sentence(fresh, sums, tmp_path, monkeypatch, capsys):
    """The engine is killed in the rollout of step 2; the same trainer goes on with a new one."""
    VllmEngine(fresh).close()
    trainer = Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path, engine="vllm")
    said = capsys.readouterr().out
    assert re.fullmatch(r"vllm\S* 0.32.0: starting \(log: \S+vllm.log\) ... loading the model after \d+ s ... "
                        r"ready after \d+ s\n", said)
    assert len((tmp_path / "vllm.log").read_text()) > 1000
    steps, process, ask = iter(trainer), served(fresh).process, Process.ask
    next(steps)

    def killed_in_the_middle(self, what, **arguments):
        if what == "generate" and self.process.pid == process.pid:
            process.send_signal(signal.SIGSTOP)  # it can't answer before it is killed, however fast it is
            threading.Timer(0.02, process.kill).start()
        return ask(self, what, **arguments)

    monkeypatch.setattr(Process, "ask", killed_in_the_middle)
    with pytest.raises(TrainingError) as died:
        next(steps)
    assert str(died.value) == (
        f"no rollouts: the process of vLLM has died, killed by SIGKILL (its log: {tmp_path / 'vllm.log'}). "
        "What was saved before is whole: iterate again, or resume the run.")
    assert ended(process.pid) and len(trainer.log.steps) == 1
    assert [record.step for record in trainer] == [2, 3, 4]
    assert not capsys.readouterr().out.count("INFO")

    log = RunLog.load(tmp_path)
    assert log.manifest["versions"]["engine"] == installed()[1]
    gaps = [(record.engine_gap, record.engine_gap_max) for record in log.steps if record.engine_gap is not None]
    assert gaps and all(0 < mean <= most < 1e-3 for mean, most in gaps)


@pytest.mark.soak
def test_a_restarted_kernel_leaves_no_process_behind_and_its_run_goes_on(tmp_path):
    cell = f"""
        from dataclasses import replace
        from hapo_lab.engines import vllm_engine
        from hapo_lab.methods import HAPO
        from hapo_lab.policy.models import load_policy
        from hapo_lab.tasks.builtin import load_task
        from hapo_lab.training.config import Config
        from hapo_lab.training.trainer import Trainer
        policy = load_policy("tiny")
        trainer = Trainer(policy, load_task("sums"), HAPO, Config(**{vars(SMALL)}), folder={str(tmp_path)!r}, resume=True,
                          engine="vllm")
        for record in trainer:
            print("step", record.step)
            if record.step == 3 and not any(e["kind"] == "resumed" for e in trainer.log.events):
                break
        served = vllm_engine._processes[policy.model]
        print("serves", served.process.pid)
        print("scratch", served.scratch)
    """
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        first = told(client, cell)
        manager.restart_kernel(now=True)
        assert ended(int(first["serves"][0]))
        client.wait_for_ready(timeout=600)
        again = told(client, cell)
        assert first["step"] == ["1", "2", "3"] and again["step"] == ["3", "4"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert ended(int(again["serves"][0])) and not any(Path(life["scratch"][0]).exists() for life in (first, again))


def test_a_process_whose_pipe_is_closed_leaves_no_files_behind(tmp_path):
    """What a killed kernel's pipe looks like, before the process has seen that its parent is gone."""
    ours, theirs = Pipe()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen([sys.executable, "-P", vllm_process.__file__, str(theirs.fileno()), str(os.getpid()), scratch],
                               pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()
    ours.close()
    assert process.wait(600) == 0 and not scratch.exists()


def told(client, cell: str) -> dict[str, list[str]]:
    """What a cell prints, by the first word of its lines."""
    said = []
    reply = client.execute_interactive("if True:" + cell, timeout=600, output_hook=lambda m: said.append(
        m["content"].get("text", "") if m["msg_type"] == "stream" else "\n".join(m["content"].get("traceback", []))))
    assert reply["content"]["status"] == "ok", "".join(said)
    words = [line.split() for line in "".join(said).splitlines()]
    return {name: [line[1] for line in words if line[0] == name] for name in ("step", "serves", "scratch")}


# the base ----------------------------------------------------------------------------------------------------------


def test_the_base_is_written_once_and_a_damaged_copy_again(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("HAPO_LAB_CACHE", str(tmp_path))
    path = dequantised_base(fresh)
    weights = load_file(path)
    layers = dict(vllm_engine._adapted(fresh))
    assert all(torch.equal(weights[f"{name}.weight"], dequantised_weight(layer)) for name, layer in layers.items())
    assert len(weights) == len([n for n, _ in fresh.model.named_parameters() if ".lora_" not in n])
    assert "quantization_config" not in json.loads((path.parent / "config.json").read_text())
    written, content = path.stat().st_mtime_ns, path.read_bytes()
    move(fresh, 0.1)  # the adapter is no part of it
    assert dequantised_base(fresh) == path and path.stat().st_mtime_ns == written
    path.unlink()  # not over itself: `weights` still reads from it
    path.write_bytes(content[:-9])
    assert dequantised_base(fresh) == path and path.read_bytes() == content
    assert [p.name for p in path.parent.parent.iterdir()] == [path.parent.name]


def test_another_base_of_the_same_name_gets_a_copy_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HAPO_LAB_CACHE", str(tmp_path))
    other = load_policy("tiny")
    path = dequantised_base(other)
    with torch.no_grad():
        other.model.get_base_model().get_input_embeddings().weight[0, 0] += 1
    assert dequantised_base(other) != path


# refusals, and the choice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora, merge, why", [
    ({"r": 600}, False, "its rank is 600, and vLLM's layers hold 512 at most"),
    ({"target_modules": ["lm_head", "q_proj"]}, True, "it adapts lm_head, which is not an inner linear layer"),
    ({"use_dora": True}, True, r"it trains more than low-rank matrices \(modules_to_save, bias, or DoRA\)"),
    ({"modules_to_save": ["embed_tokens"]}, False, "it trains more than low-rank matrices .*")])
def test_an_adapter_that_vllm_cannot_serve_is_refused_before_training(tiny, sums, tmp_path, lora, merge, why):
    base = load_policy("tiny").model.unload()
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | lora)
    policy = replace(tiny, model=get_peft_model(base, config))
    with pytest.raises(ValueError, match=f"vLLM can't serve this adapter: {why}. Change that, or take engine='transformers'"):
        VllmEngine(policy, merge=merge)
    if merge:
        with pytest.raises(ValueError, match="vLLM can't serve this adapter"):
            Trainer(policy, sums, GRPO, SMALL, folder=tmp_path / "run", engine="vllm")
        assert not (tmp_path / "run").exists()
        assert isinstance(engine_for("auto", policy, 1000, 10**6), TransformersEngine)


def test_a_rank_between_those_of_vllms_layers_is_served(sums):
    policy = load_policy("tiny", rank=24)
    move(policy, 0.05)
    prompts, engine = [prompt_ids(policy, sums.train[0])], VllmEngine(policy, merge=False)
    engine.sync()
    groups = engine.generate(prompts, 4, Sampling(8), seed=0)
    assert (trainers(policy, prompts, groups) - engines(groups)).abs().max() < 1e-3
    engine.close()


def test_auto_takes_vllm_where_it_pays_and_says_so(fresh, capsys):
    for steps, tokens in ((60, 2_000), (100_000, 100)):  # too short; too few tokens a step for its slower sync
        assert isinstance(engine_for("auto", fresh, steps, tokens), TransformersEngine) and not capsys.readouterr().out
    assert isinstance(engine_for("auto", fresh, 1_000, 10**5), VllmEngine)
    assert re.fullmatch(r"rollouts by vllm\S* 0.32.0, which pays for 1000 steps of up to 100,000 tokens .*\n",
                        capsys.readouterr().out)


def test_without_vllm_transformers_samples_and_wanting_it_is_refused(fresh, sums, tmp_path, monkeypatch):
    monkeypatch.setenv("HAPO_LAB_VLLM", "/no/python")
    installed.cache_clear()
    try:
        assert installed() is None and isinstance(engine_for("auto", fresh, 1000, 10**6), TransformersEngine)
        with pytest.raises(ValueError, match="vLLM is not installed: make vllm; or take engine='transformers'"):
            Trainer(fresh, sums, HAPO, SMALL, folder=tmp_path / "run", engine="vllm")
    finally:
        monkeypatch.undo()
        installed.cache_clear()


def test_an_engine_of_another_name_is_refused_with_the_known_ones(tmp_path, capsys):
    with pytest.raises(SystemExit, match="engine is 'sglang'; choose one of auto, transformers, vllm"):
        main(["train", str(tmp_path / "run"), "--model", "tiny", "--engine", "sglang"])
    assert not (tmp_path / "run").exists()


def test_the_doctor_tries_it():
    found, = sys.modules["hapo_lab.commands.doctor"]._vllm()  # `hapo_lab.doctor` is the function
    assert found.ok
    assert re.fullmatch(r"vllm\S* 0.32.0 samples as the trainer computes \(log p differs by \de-0\d on average\)", found.says)


GIB = 2**30


@pytest.mark.parametrize(("gpu", "context", "cache", "sequences"), [
    ((15, 13, 1, 12), 4096, 10.1, 432), ((22, 20, 3, 28), 4096, 14.3, 261), ((80, 78, 15, 56), 4096, 53.1, 485)])
def test_on_a_gpu_the_cache_gets_what_weights_and_passes_leave(gpu, context, cache, sequences):
    total, free, weights, token = gpu
    found, tokens, together = room(free * GIB, total * GIB, weights * GIB, token * 1024, context, sleeps=True)
    assert (round(found / GIB, 1), tokens, together) == (cache, context, sequences)
    assert weights * GIB + found + OWN * total * GIB < free * GIB


def test_beside_the_trainer_it_takes_a_tenth_and_no_more_than_64_short_sequences():
    assert room(12 * GIB, 23 * GIB, GIB, 1024, 8192, sleeps=False) == (64 * 256 * 1024, 8192, 64)
    cache, tokens, together = room(GIB, 23 * GIB, GIB, 64 * 1024, 8192, sleeps=False)
    assert cache == GIB // 10 and tokens == cache // 65536 // 32 * 32 and together == 64


def test_without_room_for_a_block_there_is_one_sentence():
    for sleeps in (True, False):
        with pytest.raises(EngineError, match="vLLM has no room: 0.0 GiB are free, and its weights take 3.0. Free some, or"):
            room(2**20, 23 * GIB, 3 * GIB, 64 * 1024, 8192, sleeps)

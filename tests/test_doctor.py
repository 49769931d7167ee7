"""The doctor, on this machine and on broken ones: it says what is wrong and how to mend it, and never raises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit

import hapo_lab
from hapo_lab.commands.doctor import Finding, _bitsandbytes, _disk, _models, _packages, check, findings, gradient_agreement
from hapo_lab.policy import models
from hapo_lab.tasks.builtin import load_task

ROOT = Path(__file__).resolve().parent.parent
MODULE = sys.modules["hapo_lab.commands.doctor"]  # `hapo_lab.doctor` is the function


def by_name(found) -> dict[str, Finding]:
    return {finding.what: finding for finding in found}


def test_this_machine_can_train():
    without_vllm = os.environ | {"HAPO_LAB_VLLM": ""}  # starting it has a test of its own, in test_vllm_engine.py
    done = subprocess.run([sys.executable, "-m", "hapo_lab", "doctor"], cwd=ROOT, capture_output=True, text=True,
                          env=without_vllm)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "Training works here." and not done.stderr
    named = {line[4:22].strip() for line in lines if line[:2] in ("ok", "--", "NO")}
    assert {"Python", "packages", "Jupyter", "vLLM", "processor", "GPU", "numbers", "memory", "disk, models", "disk, runs",
            "bitsandbytes", "training step", "hub", *models.PRESETS} <= named
    assert "tiny in 4 bits: LoRA gradients are right (cosine 0.99" in done.stdout or "cosine 1.0" in done.stdout


def test_from_a_notebook_it_prints_the_same(capsys, monkeypatch):
    monkeypatch.setattr(MODULE, "_CHECKS", [_packages, _disk])
    assert hapo_lab.doctor() is None
    assert "ok  packages " in (shown := capsys.readouterr().out) and "ok  disk, runs " in shown


@pytest.mark.skipif(not has_avx512bf16(), reason="this processor has no AVX512-BF16: here bitsandbytes does not repack")
def test_wrong_gradients_are_noticed():
    policy = models.load_policy("tiny")
    for module in policy.model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    lowest, worst = gradient_agreement(policy, load_task("sums").train[0])
    assert lowest < 0.99 or worst > 0.02


def test_what_is_missing_or_old_comes_with_its_command(monkeypatch):
    monkeypatch.setattr(MODULE, "requirements", lambda: ["torch>=99", "no-such-package>=2", "gguf-that-is-not>=1"])
    seen = by_name(_packages())
    assert seen["torch"].ok is None and seen["torch"].fix == 'python -m pip install "torch>=99"'
    assert seen["no-such-package"] == Finding("no-such-package", False, "not installed",
                                              'python -m pip install "no-such-package>=2"')


def test_bitsandbytes_that_does_not_load_is_a_gap_and_no_end(monkeypatch):
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        monkeypatch.setitem(sys.modules, name, None)  # what an absent package looks like to `import`
    found, = _bitsandbytes()
    assert found.ok is None and "stays unquantized" in found.says and found.fix == 'python -m pip install "bitsandbytes>=0.49"'


def test_too_little_disk_is_a_gap(monkeypatch, tmp_path):
    monkeypatch.setenv("HAPO_LAB_CACHE", str(tmp_path / "not" / "there"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    found = by_name(_disk())["disk, models"]
    assert found.ok is None and found.says == f"0.0 GiB free in {tmp_path / 'not' / 'there'}"
    assert found.fix == "make room, or set HAPO_LAB_CACHE to another folder"


def test_models_that_are_not_here_or_do_not_fit_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HAPO_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("hapo_lab.policy.memory.memory_available", lambda device: 20 * 2**30)
    seen = by_name(_models())
    assert seen["hub"] == Finding("hub", None, "not asked, because HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    assert seen["tiny"].ok and not seen["tiny"].fix
    assert seen["smollm2-135m"].ok is None and "model_source('smollm2-135m')" in seen["smollm2-135m"].fix
    assert seen["qwen2.5-0.5b"].ok is None and seen["qwen2.5-0.5b"].fix
    assert seen["qwen2.5-math-7b"].ok is None and seen["qwen2.5-math-7b"].says.endswith(" GiB, and 20.0 GiB are free")


@pytest.mark.parametrize("vital", [True, False])
def test_a_check_that_fails_itself_is_a_finding(monkeypatch, vital):
    monkeypatch.setattr(MODULE, "_CHECKS", [])

    @check("moon", vital)
    def broken():
        raise RuntimeError("no moon\ntonight")
    assert list(findings()) == [Finding("moon", False if vital else None, "can't be looked at: RuntimeError: no moon tonight")]


def test_it_runs_where_transformers_is_broken(tmp_path):
    """The other commands could not even be imported there."""
    (tmp_path / "transformers.py").write_text("raise ImportError('broken')")
    done = subprocess.run([sys.executable, "-m", "hapo_lab", "doctor"], cwd=ROOT, capture_output=True, text=True,
                          env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.returncode == 1 and done.stdout.endswith("\nTraining can't work here yet: training step.\n"), done.stdout
    assert "NO  training step      can't be looked at: ImportError: broken" in done.stdout


def test_a_finding_is_a_plain_line_and_its_fix_below_it():
    assert str(Finding("disk", None, "full", "make room")) == f"--  {'disk':<18} full\n{'':23}fix: make room"

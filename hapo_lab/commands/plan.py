"""hapo-lab plan RECIPE: a training's memory and time, before it starts."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

from transformers import AutoConfig

from hapo_lab.policy.memory import PROCESS, Needs, Shape, memory_available, needs, row_bytes
from hapo_lab.policy.models import PRESETS, default_device, model_source
from hapo_lab.policy.rates import Rates, compute_dtype, measured
from hapo_lab.training.config import Config

PROMPT = 256
"""Tokens of the longest prompt, by default."""
GIB = 2**30


@dataclass(frozen=True)
class Job:
    """A training to plan."""

    shape: Shape
    config: Config
    new_tokens: int
    prompt_tokens: int = PROMPT
    quantize: bool = True
    rank: int = 16
    gpu: bool = True
    width: int = 2
    """Bytes per number in the computing dtype."""

    @property
    def length(self) -> int:
        """Tokens of the longest completion, with its prompt."""
        return self.prompt_tokens + self.new_tokens

    @property
    def whole(self) -> int:
        """Bytes of all weights, unquantized."""
        return self.width * (self.shape.linear + self.shape.other)

    @property
    def rows(self) -> int:
        """Completions in a step."""
        return self.config.prompts * self.config.group_size

    def needs(self, rows: int) -> Needs:
        """The memory needed if `rows` completions are sampled together."""
        budget = self.config.token_budget
        return needs(self.shape, quantize=self.quantize, rank=self.rank, width=self.width, copied=not self.gpu, rows=rows,
                     length=self.length, tokens=max(self.length, budget), checkpoint=self.length > budget,
                     process=0 if self.gpu else PROCESS)

    def together(self, free: int) -> int:
        """Completions that the memory holds at a time; 0: none."""
        return min(max(free - self.needs(0).rollouts, 0) // row_bytes(self.shape, self.length, self.width), self.rows)


def plan_recipe(args: argparse.Namespace, job: Job) -> None:
    """Print the needs, the parts that do not fit, and the option to change. Exit code 1 if a part does not fit."""
    device = default_device()
    free = int(args.memory * GIB) if args.memory else memory_available(device)
    dtype = compute_dtype(device, job.shape.hidden)
    job = replace(job, gpu=bool(args.memory) or device.type == "cuda", width=2 if args.memory else dtype.itemsize)
    print("\n".join(memory_table(job, free)))
    if wrong := misfits(job, free):
        sys.exit("\n".join(wrong))
    if args.memory:
        print("A step's time needs that machine's own rates: run the command there, without --memory.")
    else:
        print(hours(job, measured(device, dtype), -(-job.rows // job.together(free))))


def memory_table(job: Job, free: int) -> list[str]:
    """A line per part, in GiB."""
    together, largest = job.together(free), max(job.length, job.config.token_budget)
    parts, batches = job.needs(together), -(-job.rows // max(together, 1))
    rows = [("weights" + ", in 4 bits" * job.quantize, parts.weights, ""),
            (f"adapter of rank {job.rank}, and optimizer", parts.optimizer, ""),
            ("Python and its libraries", parts.process, ""),
            ("rollouts: a copy of the weights", parts.sampler, ""),
            ("rollouts: keys and values", parts.cache, f"{together} of {job.rows} completions of up to {job.length} tokens "
             "at a time" + f", {batches} batches" * (batches > 1)),
            ("update: the largest pass", parts.activations, f"{largest} tokens" + ", each layer computed twice" * (
                job.length > job.config.token_budget)),
            ("at the peak: rollouts or update", parts.peak, f"{free / GIB:.2f} GiB are free")]
    return [f"{name:34} {size / GIB:7.2f} GiB  {remark}".rstrip() for name, size, remark in rows if size]


def misfits(job: Job, free: int) -> list[str]:
    """A sentence per part that does not fit, with the option to change; [] if all fits."""
    found = []
    if not job.together(free):
        fixed = job.needs(0).rollouts
        found.append(f"rollouts do not fit: {(fixed + row_bytes(job.shape, job.length, job.width)) / GIB:.1f} GiB for one "
                     "completion at a time. Take a smaller model" + ("" if job.quantize else ", 4 bits") + ", or fewer "
                     "max_new_tokens.")
    if job.needs(0).update > free:
        over = job.length > job.config.token_budget
        found.append(f"the update does not fit: {job.needs(0).update / GIB:.1f} GiB. Take " + (
            "fewer max_new_tokens" if over else f"a smaller token_budget than {job.config.token_budget}")
            + ", or a smaller model.")
    return found


LAUNCHES = 0.08
"""Seconds that a GPU spends on launching kernels, per token of a batch: as measured on one H100, for 1.5B and 7B alike."""


def hours(job: Job, rates: Rates, batches: int) -> str:
    """The least time of a step: at this machine's own rates, with every completion of full length.

    In each batch a token costs one reading of the weights, or its computation or on a GPU its kernels' launches if these take
    longer.
    """
    parameters, tokens = job.shape.linear + job.shape.other, job.rows * job.new_tokens
    weights = job.needs(0).sampler or job.needs(0).weights
    sampling = max(batches * job.new_tokens * max(weights / rates.bytes_per_second, LAUNCHES * job.gpu),
                   2 * parameters * tokens / rates.flops)
    passes = 3 if job.length > job.config.token_budget else 2  # forward, backward to the inputs, and forward again
    seconds = sampling + passes * 2 * parameters * (tokens + job.config.prompts * job.prompt_tokens) / rates.flops
    launches = f", and at {LAUNCHES * 1e3:.0f} ms per token of a batch, as on an H100," * job.gpu
    return (f"A step samples and trains up to {tokens:,} tokens. At this machine's rates ({rates.flops / 1e12:.2f} TFLOP/s, "
            f"{rates.bytes_per_second / 1e9:.0f} GB/s){launches} that is {_time(seconds)}, and "
            f"{_time(seconds * job.config.steps)} for {job.config.steps} steps. No step reaches these rates: expect two to ten "
            "times as long.")


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def shape_of(model: str) -> Shape:
    """A model's shape, by name. ValueError: its config can't be read."""
    if model in PRESETS:
        return PRESETS[model].shape
    try:
        return Shape.of(AutoConfig.from_pretrained(model_source(model)))
    except OSError as error:
        raise ValueError(f"model {model!r}: its config can't be read ({str(error).splitlines()[0]}).") from None

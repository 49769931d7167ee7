"""hapo-lab plan RECIPE --gpus N: a step inside TRL, on several GPUs of one machine. Computed; nothing is measured.

Rollouts are vLLM's, on the same GPUs, where it sleeps during the update, or on some of its own. The update takes one completion
at a time, with gradient checkpoints. Every completion is taken to be of full length.
"""

from __future__ import annotations

from dataclasses import dataclass

from hapo_lab.commands.plan import GIB, Job
from hapo_lab.policy.memory import activations
from hapo_lab.policy.rates import Rates

H100, MEMORY, LINK = Rates(784e12, 2.6e12), 79 * GIB, 450e9
"""An H100: its rates in bfloat16 as `benchmarks/gpu.py` measured them, its memory, and by its data sheet the bytes per second
that NVLink carries in each direction."""
LOGIT = 8
"""Bytes that TRL keeps per logit, in bfloat16: itself, divided by the temperature, its log-softmax, its gradient."""
SPARE = 0.95
"""Share of a GPU that may be planned for."""


@dataclass(frozen=True)
class Layout:
    """What is trained, and how it lies on the GPUs."""

    name: str
    all_weights: bool
    """Or an adapter. Gradients and optimizer of all weights lie in parts, one per GPU."""
    in_parts: bool = False
    """The weights do so, too."""
    for_vllm: float = 0
    """Share of the GPUs that vLLM has for itself."""


LAYOUTS = (Layout("adapter", False), Layout("all weights, ZeRO-2", True),
           Layout("all weights, ZeRO-3 or FSDP", True, in_parts=True),
           Layout("all weights, ZeRO-2, half of the GPUs for vLLM", True, for_vllm=0.5))


@dataclass(frozen=True)
class Rollouts:
    """A GPU's part of a step's completions."""

    memory: int
    """Bytes: vLLM's weights, the keys and values of the completions that are sampled at a time, and what waits meanwhile."""
    together: int
    """So many completions; 0: there is no room for one."""
    utilization: float
    """Share of the GPU that vLLM takes: TRL's `vllm_gpu_memory_utilization`."""
    weights: float
    """Seconds to read them, once per token and batch."""
    cache: float
    """Seconds to read keys and values."""
    products: float
    """Seconds to compute."""

    @property
    def seconds(self) -> float:
        """Reading and computing overlap."""
        return max(self.weights + self.cache, self.products)


@dataclass(frozen=True)
class Update:
    """A GPU's part of a step's gradient."""

    state: int
    """Bytes of weights, gradients and optimizer."""
    memory: int
    """Bytes, with what a completion's pass keeps."""
    products: float
    """Seconds to compute."""
    links: float
    """Seconds in which gradients and weights go from GPU to GPU."""


def rollouts_of(job: Job, layout: Layout, gpus: int, memory: int, waiting: int) -> Rollouts:
    """`memory`: bytes of a GPU; `waiting`: bytes of it that the trainer keeps."""
    samplers, shape = round(gpus * layout.for_vllm) or gpus, job.shape
    waiting = 0 if layout.for_vllm else waiting
    rows, token = job.rows / samplers, job.width * shape.cached
    together = max(min(int((SPARE * memory - waiting - job.whole) // (token * job.length)), int(rows)), 0)
    batches, sampled = rows / max(together, 1), rows * job.new_tokens
    vllm = job.whole + together * token * job.length
    return Rollouts(waiting + vllm, together, vllm / memory, batches * job.new_tokens * job.whole / H100.bytes_per_second,
                    sampled * token * (job.prompt_tokens + job.new_tokens / 2) / H100.bytes_per_second,
                    2 * sampled * (shape.linear + shape.other) / H100.flops)


def update_of(job: Job, layout: Layout, gpus: int) -> Update:
    """Passes of a completion: for the log-probs that correct vLLM's, forward, forward again, to the inputs, to the weights."""
    trainers, shape = gpus - round(gpus * layout.for_vllm), job.shape
    parameters, rows = shape.linear + shape.other, job.rows / trainers
    # gradients in bfloat16; in float32 a copy of the weights and Adam's two moments
    learned = (2 + 12) * parameters // trainers if layout.all_weights else 16 * job.rank * shape.lora_width
    state = job.whole // (trainers if layout.in_parts else 1) + learned
    kept = activations(shape, job.length, job.width, checkpoint=True) + LOGIT * job.new_tokens * shape.vocabulary
    forward = shape.work(job.length, job.length**2 // 2) + 2 * shape.hidden * shape.vocabulary * job.new_tokens
    # each completion's gradients are put together; weights in parts are fetched for three of its passes
    sent = (4 if layout.in_parts else 1) * job.whole if layout.all_weights else 0
    return Update(state, state + kept, rows * (5 if layout.all_weights else 4) * forward / H100.flops, rows * sent / LINK)


def plan_cluster(job: Job, gpus: int, gib: float | None = None) -> list[str]:
    """A table in Markdown, with a row per layout, and what bounds a step.

    Parameters
    ----------
    gpus : int
        Of one machine: an even number.
    gib : float, optional
        Memory of each. Default: an H100's.
    """
    if gpus < 2 or gpus % 2:
        raise ValueError(f"--gpus is {gpus}: a machine has 2, 4, 8 of them or so; leave it out for one.")
    memory = int(gib * GIB) if gib else MEMORY
    heads = ["", "update, GiB", "rollouts, GiB", "sampled at a time", "vLLM's share", "rollouts, s", "update, s",
             "between GPUs, s", "step, s", f"{job.config.steps} steps, h", "tokens per second"]
    lines, fitting = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], {}
    for layout in LAYOUTS:
        update = update_of(job, layout, gpus)
        rollouts = rollouts_of(job, layout, gpus, memory, update.state)
        step = rollouts.seconds + update.products + update.links
        cells = [f"{update.memory / GIB:.0f}", f"{rollouts.memory / GIB:.0f}", f"{rollouts.together}",
                 f"{rollouts.utilization:.2f}", f"{rollouts.seconds:.0f}", f"{update.products:.0f}", f"{update.links:.0f}",
                 f"{step:.0f}", f"{step * job.config.steps / 3600:.0f}", f"{job.rows * job.new_tokens / step:,.0f}"]
        if rollouts.together and update.memory <= SPARE * memory:
            fitting[step] = layout.name, rollouts
        else:
            cells = ["does not fit", *[""] * (len(cells) - 1)]
        lines.append(f"| {layout.name} | {' | '.join(cells)} |")
    if not fitting:
        raise ValueError(f"on {gpus} GPUs of {memory / GIB:.0f} GiB nothing fits: take fewer max_new_tokens, a smaller model, "
                         "or more GPUs.")
    return [*lines, "", _bounds(job, gpus, *fitting[min(fitting)])]


def _bounds(job: Job, gpus: int, name: str, r: Rollouts) -> str:
    """In words, for the fastest of those that fit."""
    bound = "The memory's rate bounds" if r.weights + r.cache > r.products else "Products bound"
    return (f"Computed from the rates of {gpus} H100 ({H100.flops / 1e12:.0f} TFLOP/s, "
            f"{H100.bytes_per_second / 1e12:.1f} TB/s, {LINK / 1e9:.0f} GB/s between them), which no step reaches. Every "
            f"completion has {job.new_tokens:,} tokens. {bound} the rollouts. In the row {name!r} they read weights for "
            f"{r.weights:.0f} s per step, keys and values for {r.cache:.0f} s, and compute for {r.products:.0f} s. Products "
            "bound the update.")

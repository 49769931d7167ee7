"""The training loop: an iterator of `StepRecord`s.

    problems -> rollouts -> rewards -> gate -> SSI -> advantages -> log-probs -> loss -> optimizer -> StepRecord
"""

from __future__ import annotations

import math
import platform
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import torch

import hapo_lab
from hapo_lab import checkpoint
from hapo_lab.batch import Batch
from hapo_lab.evaluate import evaluate, grade, prompt_ids
from hapo_lab.logprobs import completion_logprobs
from hapo_lab.loss import hapo_loss
from hapo_lab.methods import Method, teach
from hapo_lab.models import Policy
from hapo_lab.records import RunLog, StepRecord
from hapo_lab.rollouts import Engine, Sampling, TransformersEngine
from hapo_lab.ssi import Group, Rollout
from hapo_lab.tasks import Problem, Task


@dataclass(frozen=True)
class Config:
    """The numbers of a run. The defaults are the main job's: SmolLM2-135M on two CPU cores."""

    steps: int = 30
    prompts: int = 4
    """Problems a step."""
    group_size: int = 8
    """N: rollouts a problem, a reserved teacher's seat included."""
    learning_rate: float = 4e-4
    """At its highest. A LoRA adapter that trains for tens of steps wants a few 1e-4; that of `tiny`, 2e-3."""
    warmup: int = 4
    """Steps in which the learning rate rises from 0; afterwards it falls on a line to `final_rate`."""
    final_rate: float = 0.1
    """The last step's learning rate, as a share of the highest."""
    inner_epochs: int = 1
    """Optimizer steps on one batch of rollouts."""
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    token_budget: int = 1024
    """Tokens in one forward and backward pass: memory, not results, depends on it."""
    importance_cap: float = 2.0
    """Bounds the weight pi_trainer / pi_engine that corrects a sampled token for its engine's other arithmetic."""
    eval_every: int = 10
    """Steps between two evaluations on held-out problems; 0: none."""
    eval_samples: int = 2
    """Samples a held-out problem in those."""
    save_every: int = 10
    """Steps between two checkpoints."""
    seed: int = 0
    """Of the order of problems and of the sampling."""

    def __post_init__(self):
        if self.group_size < 2:
            raise ValueError(f"config: group_size is {self.group_size}; a group needs at least 2 rollouts to compare.")
        for name in ("steps", "prompts", "inner_epochs", "token_budget", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"config: {name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("learning_rate", "max_grad_norm", "temperature", "importance_cap"):
            if not getattr(self, name) > 0:
                raise ValueError(f"config: {name} is {getattr(self, name)}; it must be positive.")


TINY = Config(steps=60, prompts=8, learning_rate=2e-3)
"""For the model `tiny` and its task `sums`: 20 seconds on two CPU cores."""


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then linear decay; `step` counts from 1."""
    if step <= config.warmup:
        return config.learning_rate * step / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.learning_rate * (1 - (1 - config.final_rate) * done)


class TrainingError(RuntimeError):
    """The run can't go on; the last good state is kept."""


class Trainer:
    """Iterate over it to train: each item is one finished step.

    Ctrl-C, or the notebook's interrupt, lets the step finish, saves, and ends the iteration; iterate again to go on.

    Parameters
    ----------
    policy, task, method, config
        What learns, from what, how, and the numbers.
    folder : path, optional
        Where the run is written; None keeps it in memory. A folder that holds a run already is refused, unless
    resume : bool
        True: go on from its last checkpoint. Steps after that are dropped and done again.
    engine : Engine, optional
        Draws the rollouts; default `TransformersEngine(policy)`.
    """

    def __init__(self, policy: Policy, task: Task, method: Method, config: Config = Config(), *,
                 folder: str | Path | None = None, resume: bool = False, engine: Engine | None = None):
        self.policy, self.task, self.method, self.config = policy, task, method, config
        self.sampling = Sampling(task.max_new_tokens, config.temperature)
        self._check_prompts()
        self.engine = engine or TransformersEngine(policy)
        self.parameters = policy.trainable()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=0.0)
        self.log = RunLog(self._about(), Path(folder) if folder else None)
        if folder and resume and (self.log.folder / "run.json").exists():
            self._resume()
        elif folder:
            self.log.create()

    def __iter__(self) -> Iterator[StepRecord]:
        with _interrupt_waits() as interrupted:
            while len(self.log.steps) < self.config.steps:
                record, groups = self._step(len(self.log.steps) + 1)
                self.log.add(record, groups)
                last = record.step == self.config.steps
                if last or record.step % self.config.save_every == 0:
                    self.save()
                yield record
                if interrupted.is_set() and not last:
                    self.save()
                    self.log.event("interrupted")
                    return

    def save(self) -> None:
        """Write a checkpoint, if the run has a folder."""
        if self.log.folder:
            checkpoint.save(self.log.folder / "checkpoints", len(self.log.steps), self.policy, self.optimizer)

    def save_adapter(self) -> Path:
        """The adapter, as peft saves it, in the run's folder: for `PeftModel.from_pretrained`."""
        self.policy.model.save_pretrained(self.log.folder / "adapter")
        return self.log.folder / "adapter"

    # one step ------------------------------------------------------------------------------------------------------

    def _step(self, step: int) -> tuple[StepRecord, list[Group]]:
        seconds: dict[str, float] = {}
        with _timed(seconds, "rollout"):
            self.engine.sync()
            sampled = self._sample(self._problems(step), seed=self.config.seed * 1_000_003 + step)
        with _timed(seconds, "gate"):
            demonstrations = [self.demonstration(g.problem) for g in sampled]
            groups = [teach(self.method, g, d) for g, d in zip(sampled, demonstrations, strict=True)]
        rate = learning_rate(self.config, step)
        with _timed(seconds, "update"):
            update = self._update(groups, rate)
        heldout = kl = None
        if self.config.eval_every and (step % self.config.eval_every == 0 or step == self.config.steps):
            with _timed(seconds, "evaluate"):
                kl = self._kl_to_base(sampled)
                self.engine.sync()
                heldout = evaluate(self.policy, self.engine, self.task, samples=self.config.eval_samples,
                                   sampling=self.sampling, seed=step).success
        record = self._record(step, sampled, groups, rate, update, kl, heldout, seconds,
                              without_demonstration=demonstrations.count(None))
        return record, groups

    def _problems(self, step: int) -> list[Problem]:
        """The step's problems: the training split in a new order each time round."""
        first, size = (step - 1) * self.config.prompts, len(self.task.train)
        return [self._shuffled(i // size)[i % size] for i in range(first, first + self.config.prompts)]

    def _shuffled(self, epoch: int) -> list[Problem]:
        order = list(self.task.train)
        random.Random(f"{self.config.seed} {epoch}").shuffle(order)
        return order

    def _sample(self, problems: list[Problem], seed: int) -> list[Group]:
        n = self.config.group_size - self.method.teacher_seats
        prompts = [prompt_ids(self.policy, p) for p in problems]
        drawn = self.engine.generate(prompts, n, self.sampling, seed)
        return [Group(p, tuple(grade(self.task, p, c) for c in completions))
                for p, completions in zip(problems, drawn, strict=True)]

    def _update(self, groups: list[Group], rate: float) -> dict:
        """The optimizer's steps on one batch; returns what a `StepRecord` says of them."""
        batch = Batch.of(groups, [prompt_ids(self.policy, g.problem) for g in groups], self.method, self.sampling)
        packs = batch.packs(self.config.token_budget)
        if not packs:
            unknown = ("loss", "grad_norm", "teacher_share", "teacher_logp", "clip_fraction", "entropy")
            return dict.fromkeys(unknown) | {"updated": False, "tokens_trained": 0}
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        old_logp = None
        for _ in range(self.config.inner_epochs):
            logp, entropy, share = self._backward(batch, packs, old_logp)
            if old_logp is None:  # the first pass over the batch is the old policy's
                old_logp, first_entropy = logp, entropy
            _, metrics = self._loss(batch, logp, old_logp, torch.arange(len(logp)))
            grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm).item()
            self._refuse_unless_finite(batch, logp, metrics["loss"], grad_norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        trained, teacher = batch.trained, batch.teacher[:, None]
        return {"updated": True, "loss": metrics["loss"], "grad_norm": grad_norm, "teacher_share": share,
                "teacher_logp": _mean(old_logp, trained & teacher),
                "clip_fraction": metrics["clip_fraction"] if (trained & ~teacher).any() else None,
                "entropy": _mean(first_entropy, trained & ~teacher), "tokens_trained": int(trained.sum())}

    def _backward(self, batch: Batch, packs: list[list[int]], old_logp: torch.Tensor | None):
        """Gradients of the loss, pack by pack. Returns (B, T) log-probs and entropies, and the teacher's share."""
        self.optimizer.zero_grad()
        logp, entropy = torch.zeros(batch.token_mask.shape), torch.zeros(batch.token_mask.shape)
        teacher_gradient = None
        for pack in packs:
            if teacher_gradient is None and not batch.teacher[pack[0]]:  # the teacher's packs come first
                teacher_gradient = self._gradient()
            rows = torch.tensor(pack)
            new, h, mask = completion_logprobs(self.policy.model, *batch.of_pack(pack), temperature=self.sampling.temperature,
                                               entropy_gradient=self.method.entropy_bonus != 0)
            new, h, width = new.cpu(), h.cpu(), mask.shape[1]
            logp[rows, :width], entropy[rows, :width] = new.detach(), h.detach()
            padded = torch.nn.functional.pad(new, (0, logp.shape[1] - width))
            loss, _ = self._loss(batch, padded, logp if old_logp is None else old_logp, rows)
            bonus = self.method.entropy_bonus * (batch.weights[rows, :width].float() * h).sum()
            (loss - bonus).backward()
        if teacher_gradient is None:
            return logp, entropy, 1.0
        teacher_norm, student_norm = teacher_gradient.norm(), (self._gradient() - teacher_gradient).norm()
        return logp, entropy, (teacher_norm / (teacher_norm + student_norm).clamp(min=1e-12)).item()

    def _loss(self, batch: Batch, logp: torch.Tensor, old_logp: torch.Tensor, rows: torch.Tensor):
        """`hapo_loss` on some rows of the batch; `logp` holds just them, `old_logp` all."""
        importance = (old_logp - batch.engine_logp).exp().clamp(max=self.config.importance_cap)
        return hapo_loss(logp, old_logp[rows], batch.advantages[rows], batch.teacher[rows], batch.trained[rows],
                         shaping=self.method.shaping, eps_low=self.method.eps_low, eps_high=self.method.eps_high,
                         weights=batch.weights[rows], importance=importance[rows])

    def _gradient(self) -> torch.Tensor:
        """All parameters' gradients, as one vector."""
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters])

    def _refuse_unless_finite(self, batch: Batch, logp: torch.Tensor, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        self.optimizer.zero_grad()
        bad = (~logp.isfinite() & batch.trained).any(1)
        cause = (f"the log-probabilities of rollout {int(bad.nonzero()[0])} of this batch are not finite" if bad.any()
                 else f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}")
        step = len(self.log.steps) + 1
        self.log.event("refused", step=step, cause=cause)
        raise TrainingError(f"step {step} is refused, because {cause}. The policy is as step {step - 1} left it. "
                            "Lower the learning rate, or look for numbers that overflow in the shaping.")

    @torch.no_grad()
    def _kl_to_base(self, groups: list[Group]) -> float:
        """k3 estimator, mean(exp(d) - d - 1) with d = log p_base - log p, over the students' sampled tokens."""
        with self.policy.model.disable_adapter():
            base, _, mask = completion_logprobs(self.policy.model, [prompt_ids(self.policy, g.problem) for g in groups],
                                                [[r.ids for r in g.sampled] for g in groups], self.sampling.temperature)
        policy = torch.tensor([x for g in groups for r in g.sampled for x in r.engine_logps])
        d = base[mask].cpu() - policy
        return (d.exp() - d - 1).mean().item()

    def _record(self, step, sampled, groups, rate, update, kl, heldout, seconds, without_demonstration) -> StepRecord:
        students = [r for g in sampled for r in g.rollouts]
        mean = lambda values: sum(values) / len(students)  # noqa: E731
        return StepRecord(
            step=step, problems=tuple(g.problem.key for g in groups),
            reward=mean([r.reward for r in students]), length=mean([len(r.ids) for r in students]),
            cut=mean([not r.finished for r in students]),
            successes=tuple(g.successes for g in groups), trials=tuple(len(g.sampled) for g in groups),
            posterior=tuple((g.posterior.alpha.item(), g.posterior.beta.item()) for g in groups),
            decisions=tuple(g.decision for g in groups), replaced=tuple(g.replaced for g in groups),
            advantages=tuple(tuple(g.advantages.tolist()) for g in groups),
            teacher_samples=sum(int(g.teacher_mask.sum()) for g in groups),
            without_demonstration=without_demonstration,
            dead_before=sum(g.dead for g in sampled), dead_after=sum(g.dead for g in groups),
            kl=kl, heldout=heldout, learning_rate=rate, tokens_sampled=sum(len(r.ids) for r in students),
            seconds=seconds, **update)

    # setting up ----------------------------------------------------------------------------------------------------

    def demonstration(self, problem: Problem) -> Rollout | None:
        """The problem's demonstration as a rollout: tokenised alone, its end of turn appended. None if there is none, or
        if it is longer than the limit."""
        if problem.demonstration is None:
            return None
        tokenizer = self.policy.tokenizer
        ids = (*tokenizer.encode(problem.demonstration, add_special_tokens=False), tokenizer.eos_token_id)
        if len(ids) > self.sampling.max_new_tokens:
            return None
        verdict = self.task.verify(problem, problem.demonstration)
        return Rollout(ids, problem.demonstration, float(verdict.correct), verdict.reason, teacher=True)

    def _check_prompts(self) -> None:
        new = self.sampling.max_new_tokens
        for problem in (*self.task.train, *self.task.heldout):
            if (length := len(prompt_ids(self.policy, problem))) > self.policy.context - new:
                raise ValueError(f"problem {problem.key!r} has a prompt of {length} tokens; with {new} new ones that is more "
                                 f"than {self.policy.name} reads ({self.policy.context}). Shorten it, or leave it out.")

    def _about(self) -> dict:
        """What identifies the run: two runs that differ in it must not be mixed."""
        return {"model": self.policy.name, "quantized": self.policy.quantized, "task": self.task.name,
                "source": self.task.source, "heldout": sorted(p.key for p in self.task.heldout),
                "method": {field: _described(part) for field, part in vars(self.method).items()},
                "config": asdict(self.config),
                "versions": {"hapo_lab": hapo_lab.__version__, "torch": torch.__version__, "python": platform.python_version()}}

    def _resume(self) -> None:
        log = RunLog.load(self.log.folder)
        for field in ("model", "quantized", "task", "source", "heldout", "method", "config"):
            if log.about.get(field) != self.log.about[field]:
                raise ValueError(f"{log.folder} holds a run with another {field}: {log.about.get(field)} there, "
                                 f"{self.log.about[field]} here. Use the same, or choose another folder.")
        self.log = log
        step = checkpoint.load_latest(log.folder / "checkpoints", self.policy, self.optimizer)
        if step < self.config.steps:
            log.rewind(step)
            log.event("resumed")


def _described(part) -> str | int | float | dict:
    """A method's part as JSON: numbers and words as they are, anything else by its name and numbers."""
    if isinstance(part, int | float | str):
        return "inf" if part == math.inf else part
    return {"kind": getattr(part, "__name__", type(part).__name__), **(asdict(part) if is_dataclass(part) else {})}


def _mean(values: torch.Tensor, where: torch.Tensor) -> float | None:
    return values[where].mean().item() if where.any() else None


@contextmanager
def _timed(seconds: dict[str, float], phase: str):
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


@contextmanager
def _interrupt_waits():
    """Turn the first Ctrl-C into an event that is looked at between two steps. Only the main thread receives Ctrl-C."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(*_):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        print("finishing this step and saving; interrupt again to stop at once", flush=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)

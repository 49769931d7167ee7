"""The training loop: an iterator of `StepRecord`s.

    problems -> rollouts -> rewards -> gate -> SSI -> advantages -> log-probs -> loss -> optimizer -> StepRecord
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any, Protocol

from hapo_lab.engines.choice import engine_for
from hapo_lab.engines.protocol import Engine, Sampling
from hapo_lab.gates import Gate, number, numbers_of, warn_of_size, with_numbers
from hapo_lab.methods import LESSON, Method, judge, teach
from hapo_lab.policy.agreement import engine_differs, engine_gap
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.policy import Policy
from hapo_lab.policy.threads import computing_with
from hapo_lab.reproducibility import parts
from hapo_lab.reproducibility.catalogue import PARTS, method_described
from hapo_lab.reproducibility.seeds import derive, gate_uniforms
from hapo_lab.runs import checkpoint
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.manifest import describe, differences, refuse_what_no_one_can_rebuild
from hapo_lab.runs.record import StepRecord, changed_entries, record_of
from hapo_lab.ssi import Group, Rollout
from hapo_lab.tasks.problem import Problem, Task
from hapo_lab.training.config import Config, learning_rate
from hapo_lab.training.evaluation import demonstrated, draw, evaluate
from hapo_lab.training.guards import TrainingError, interrupt_asks, looked_through, sampling, timed, writing
from hapo_lab.training.learner import Learner, NotFinite, with_lessons
from hapo_lab.training.order import others_for, problems_of


class Trainer:
    """Iterate over it to train: each item is one finished step.

    Ctrl-C, or the notebook's interrupt, lets the step finish, saves, and ends the iteration; iterate again to continue.
    A training cell can be run again at any time. Making or iterating a trainer first stops, and saves, every training in the
    background (`run_in_background`) with the same policy or folder.

    Parameters
    ----------
    policy, task, method, config
        The model, the problems, the method, and the numbers (default: `Config()`).
    folder : path, optional
        The run's folder; None keeps the run in memory. A folder that holds a run is refused, unless
    resume : bool
        True: continue from its last checkpoint. Later steps are dropped and repeated, with their changes of the gate.
        Everything must be the same, with two exceptions. New numbers of the gate act from here on. A larger `config.steps`
        extends the run, at its planned final learning rate.
    engine : "auto", "transformers", "vllm", or an Engine
        Draws the rollouts; "auto" takes vLLM if it is installed and pays (`engines.choice`). It does not identify a run;
        run.json records it with the versions.

    Raises
    ------
    ValueError
        The folder holds a run, or a different one from the one to resume; a prompt is too long; run.json could not restore
        the method (a gate or shaping from a notebook).

    Examples
    --------
    >>> config = Config(steps=2, prompts=1, eval_every=0)
    >>> trainer = Trainer(load_policy("tiny"), load_task("sums"), HAPO, config)
    >>> [(record.step, record.trials) for record in trainer]
    [(1, (8,)), (2, (8,))]
    """

    def __init__(self, policy: Policy, task: Task, method: Method, config: Config | None = None, *,
                 folder: str | Path | None = None, resume: bool = False, engine: Engine | str = "auto"):
        config = config or Config()
        self.policy, self.task, self.method, self.config = policy, task, method, config
        self.sampling = Sampling(task.max_new_tokens, config.temperature)
        folder = Path(folder) if folder else None
        tokens = config.prompts * config.group_size * task.max_new_tokens
        log = folder / "vllm.log" if folder else None
        self.engine = engine_for(engine, policy, config.steps, tokens, log) if isinstance(engine, str) else engine
        self.log = RunLog(describe(policy, task, method, asdict(config), self.engine.name), folder)
        begun = bool(folder and self.log.path("run.json").exists())
        if folder:
            refuse_what_no_one_can_rebuild(method, None if begun else policy)
        self._end_background()
        self._check_prompts()
        for stage in method.stages:
            self._warn(stage)
        self.gate_state: dict = {}
        """The gate's memory, as JSON; checkpoints hold it."""
        self.waiting: list[int] = []
        """Numbers, in `task.train`, of the problems whose demonstrations a method has set aside; checkpoints hold them too."""
        self._stop = threading.Event()
        self._compared = False  # the engine with the policy, in this process
        self._saved = -1  # the step of the last checkpoint
        self._begun = 0  # the step that has asked for the gate and is not finished, or 0
        self.learner = Learner(policy, method, config, self.sampling)
        if begun and resume:
            self._resume()
        elif folder:
            with writing(self.log.folder):
                self.log.create()
            self.save()
        with sampling():
            self.engine.sync()  # vLLM starts here, where it may say so, and not in the first step's time

    def __iter__(self) -> Iterator[StepRecord]:
        self._end_background()
        self._stop.clear()
        with interrupt_asks(self._stop):
            while len(self.log.steps) < self.log.planned:
                if self.learner.torn:
                    self._restore()
                yield self._whole_step(len(self.log.steps) + 1)
                if self._stop.is_set() and len(self.log.steps) < self.log.planned:
                    if self._saved != len(self.log.steps):  # there is no moment without that checkpoint
                        self.save()
                    self.note("stopped")
                    return

    def stop(self) -> None:
        """End the iteration after this step, saved, as Ctrl-C does. From any thread."""
        self._stop.set()

    @property
    def gate(self) -> Gate:
        """The gate from the next step on: the method's, with the last changes of its numbers."""
        given = method_described(self.method)["gate"]
        changed = {name: parts.rebuilt(value, PARTS) for name, value in self.log.gate(self._next).items()
                   if value != given.get(name)}  # its kind is what it was: another one is another run
        return with_numbers(self.method.gate, **changed) if changed else self.method.gate

    def change(self, *, alpha: float | None = None, beta: float | None = None, threshold: float | None = None) -> Gate:
        """Give the gate other numbers, from the next step on; the present step keeps its gate. From any thread.

        The change is an event of the run log, and on disk when this returns. A killed run repeats it after the same step when
        it resumes. Returns the changed gate; ValueError, without a change: a number is invalid, or the method's gate has none
        of that name.
        """
        asked = {"alpha": alpha, "beta": beta, "threshold": threshold}
        numbers = {name: number(name, value) for name, value in asked.items() if value is not None}
        with self.log.lock:
            before = self.gate
            if unknown := numbers.keys() - numbers_of(before):
                raise ValueError(f"the gate of {self.method.name} has no {' and no '.join(sorted(unknown))} to change.")
            gate = with_numbers(before, **numbers)
            if gate != before:
                changed = replace(self.method, gate=gate)
                self._warn(changed)
                self.note("changed", after_step=self._next - 1, gate=method_described(changed)["gate"])
        return gate

    def note(self, kind: str, **facts: Any) -> None:
        """Write an event into the run log."""
        with writing(self.log.folder):
            self.log.event(kind, **facts)

    def save(self) -> None:
        """Write a checkpoint, if the run has a folder. TrainingError: it can't be written; the previous one stays."""
        step = len(self.log.steps)
        if self.log.folder:
            with writing(self.log.folder):
                self.log.sync()
                checkpoint.save(self.log.folder / "checkpoints", step, self.gate_state, self.waiting, self.policy,
                                self.learner.optimizer, self.learner.scaler)
            self._saved = step

    def save_adapter(self) -> Path:
        """The adapter, as peft saves it, in the run's folder: for `PeftModel.from_pretrained`."""
        with writing(self.log.folder):
            self.policy.model.save_pretrained(str(self.log.path("adapter")))
        return self.log.path("adapter")

    # one step ------------------------------------------------------------------------------------------------------

    def _whole_step(self, step: int) -> StepRecord:
        """A step with all its files."""
        with self.log.lock:
            method, self._begun = self._method(step), step  # a change now acts on the step after this one
        try:
            with sampling(), computing_with(self.policy.threads):
                record, groups, gate_state, waiting = self._step(step, method)
            self.learner.torn = True  # until the log has all of it
            with writing(self.log.folder):
                self.log.add(record, groups)
        finally:
            self._begun = 0
        self.gate_state, self.waiting = gate_state, waiting
        self.learner.torn = False
        if step == self.log.planned or step % self.config.save_every == 0:
            self.save()
        return record

    def _method(self, step: int) -> Method:
        """The method of a step: the run's present stage, with the last changes of the gate's numbers."""
        stage = self.method.at((step - 1) / self.config.steps)
        return replace(stage, gate=self.gate) if stage.gate == self.method.gate else stage

    def _step(self, step: int, method: Method) -> tuple[StepRecord, list[Group], dict, list[int]]:
        seconds: dict[str, float] = {}
        with timed(seconds, "rollout"):
            self.engine.sync()
            sampled, thrown_away = self._sample(step, method)
            self.engine.sleep()
            if not self._compared:
                self._compare(sampled)
        with timed(seconds, "gate"):
            uniforms = gate_uniforms(self.config.seed_of("sampling"), step, len(sampled))
            judged, gate_state = judge(method.gate, sampled, self.gate_state, uniforms)
            limit = self.sampling.max_new_tokens
            shown = [demonstrated(self.policy, self.task, g.problem, limit, method.teachers) for g in sampled]
            groups = [teach(method, g, d[0] if d else None, limit, d[1:]) for g, d in zip(judged, shown, strict=True)]
            lessons, waiting = self._set_aside(method, groups)
        rate, heldout, kl = learning_rate(self.config, step), None, None
        evaluates = self.config.eval_every and (step % self.config.eval_every == 0 or step == self.log.planned)
        if evaluates:
            with timed(seconds, "evaluate"):
                kl = self.learner.kl_to_base(sampled)  # before the update: of the policy that sampled
        with timed(seconds, "update"):
            update = self._update(step, groups, rate, method)
            if lessons:
                update = with_lessons(update, self._update(step, lessons, rate, LESSON))
        if evaluates:
            with timed(seconds, "evaluate"):
                heldout = evaluate(self.policy, self.engine, self.task,
                                   samples=self.config.eval_samples, sampling=self.sampling,
                                   seed=derive(self.config.seed_of("sampling"), "estimate", step)).success
        record = record_of(
            step, [*sampled, *thrown_away], groups, learning_rate=rate, kl=kl, heldout=heldout, seconds=seconds, **update,
            teacher_samples=sum(int(g.teacher_mask.sum()) for g in (*groups, *lessons)), thrown_away=len(thrown_away),
            dead_before=sum(g.dead for g in sampled), without_demonstration=shown.count([]),
            gate_state=changed_entries(self.gate_state, gate_state))
        return record, groups, gate_state, waiting

    def _set_aside(self, method: Method, groups: list[Group]) -> tuple[list[Group], list[int]]:
        """Groups of waiting demonstrations for a separate update, if enough wait; and the problems that still wait."""
        if not method.aside:
            return [], self.waiting
        place = {id(p): i for i, p in enumerate(self.task.train)}
        waiting = [place[id(g.problem)] for g in groups if g.decision and self.demonstration(g.problem)] + self.waiting
        enough = ceil(method.aside * self.config.prompts)
        if len(waiting) < enough:
            return [], waiting
        due = [self.task.train[i] for i in waiting[:enough]]
        return [teach(LESSON, Group(p, ()), self.demonstration(p)) for p in due], waiting[enough:]

    def problems(self, step: int) -> list[Problem]:
        """The step's problems: the training split, in a new order in each epoch. A method that only imitates gets those with
        a demonstration, if there are any."""
        some = self.with_demonstration if self._method(step).mu == 1 else ()
        return problems_of(step, some or self.task.train, self.config)

    def _sample(self, step: int, method: Method) -> tuple[list[Group], list[Group]]:
        """The step's groups as sampled, and the groups that a method with `redraws` has discarded.

        If that many redraws do not fill the step, it continues with the mixed groups found; without any, with its first
        groups, which teach nothing.
        """
        seed = derive(self.config.seed_of("sampling"), "rollouts", step)
        drawn = self._draw(self.problems(step), method, seed)
        if not method.redraws:
            return drawn, []
        for again in range(1, method.redraws + 1):
            if sum(not g.dead for g in drawn) >= self.config.prompts:
                break
            drawn += self._draw(others_for(step, again, self.task.train, self.config), method, derive(seed, "redraw", again))
        kept = [g for g in drawn if not g.dead][:self.config.prompts] or drawn[:self.config.prompts]
        return kept, [g for g in drawn if not any(g is other for other in kept)]

    def _draw(self, problems: list[Problem], method: Method, seed: int) -> list[Group]:
        """Groups of rollouts, graded: one rollout less where a demonstration has a reserved seat."""
        seats = method.teacher_seats
        sizes = [self.config.group_size - (seats if seats and self.demonstration(p) else 0) for p in problems]
        groups: dict[int, Group] = {}
        for n in sorted(set(sizes)):
            places = [i for i, size in enumerate(sizes) if size == n]
            some = [problems[i] for i in places]
            drawn = draw(self.policy, self.engine, self.task, some, n, self.sampling,
                         seed if len(some) == len(problems) else derive(seed, "of", n))
            groups |= {i: Group(p, rollouts) for i, p, rollouts in zip(places, some, drawn, strict=True)}
        return [groups[i] for i in range(len(problems))]

    def _compare(self, sampled: list[Group]) -> None:
        """TrainingError: the engine samples from a policy other than the trained one."""
        prompts = [prompt_ids(self.policy, g.problem) for g in sampled]
        drawn = [[(r.ids, r.engine_logps) for r in g.rollouts] for g in sampled]
        if why := engine_differs(self.policy.model, engine_gap(self.policy.model, prompts, drawn, self.sampling.temperature)):
            raise TrainingError(f"{why}. Nothing was trained in this step: take another engine, or another model.")
        self._compared = True

    def _update(self, step: int, groups: list[Group], rate: float, method: Method) -> dict:
        try:
            return self.learner.update(groups, rate, method)
        except NotFinite as cause:
            with suppress(OSError):  # the refusal is the news
                self.log.event("refused", step=step, cause=str(cause))
            left = "goes back to the last checkpoint" if self.learner.torn else f"is as step {step - 1} left it"
            raise TrainingError(f"step {step} is refused, because {cause}. The policy {left}. "
                                "Lower the learning rate, or look for numbers that overflow in the shaping.") from None

    # setting up ----------------------------------------------------------------------------------------------------

    def demonstration(self, problem: Problem) -> Rollout | None:
        """The problem's demonstration as a rollout; None if it is missing or longer than the limit."""
        return next(iter(demonstrated(self.policy, self.task, problem, self.sampling.max_new_tokens)), None)

    def _check_prompts(self) -> None:
        new, most = self.sampling.max_new_tokens, max(stage.teachers for stage in self.method.stages)
        for problem in looked_through((*self.task.train, *self.task.heldout), "prompts"):
            if (length := len(prompt_ids(self.policy, problem))) > self.policy.context - new:
                raise ValueError(f"problem {problem.key!r} has a prompt of {length} tokens; with {new} new ones that is more "
                                 f"than {self.policy.name} reads ({self.policy.context}). Shorten it, or leave it out.")
        self.with_demonstration = tuple(p for p in looked_through(self.task.train, "demonstrations")
                                        if demonstrated(self.policy, self.task, p, new, most))  # that is not too long
        if most > 1 and not any(problem.more_demonstrations for problem in self.task.train):
            raise ValueError(f"{self.method.name} takes several demonstrations per problem; task {self.task.name!r} has one "
                             "at most: add more, or choose another method.")

    @property
    def _next(self) -> int:
        """The first step whose gate has not decided yet."""
        return max(len(self.log.steps), self._begun) + 1

    def _warn(self, method: Method) -> None:
        """Warn of a gate that can't close, here instead of in a thread whose warnings nobody sees."""
        warn_of_size(method.gate, self.config.group_size - method.teacher_seats, replaces=method.seat == "replace")

    def _end_background(self) -> None:
        """Stop other threads that train the same policy or in the same folder."""
        for other, run in list(in_background.items()):
            folders = [trainer.log.folder and trainer.log.folder.resolve() for trainer in (self, other)]
            shared = other.policy.model is self.policy.model or (folders[0] and folders[0] == folders[1])
            if shared and run.thread is not threading.current_thread():
                run.end()

    def _resume(self) -> None:
        log, here = RunLog.load(self.log.path()), self.log.manifest
        if different := differences(log.manifest, here, asdict(Config())):
            raise ValueError(f"{log.folder} holds another run: {'; '.join(different)}. Use the same, or choose another folder.")
        asked, planned = self.config.steps, log.manifest["config"]["steps"]
        if asked < planned:
            raise ValueError(f"{log.folder} holds a run of {planned} steps; it can be extended, not cut to {asked}.")
        self.log, self.config = log, replace(self.config, steps=planned)
        threads = log.manifest["versions"].get("threads", self.policy.threads)
        self.policy = replace(self.policy, threads=threads)  # as many as it began with: so it goes on bit for bit
        self._restore()
        if asked > log.planned:
            self.note("extended", steps=asked)
        if len(log.steps) < log.planned:  # the saved adapter and its figures are of a step that is trained on now
            log.path("evaluation.json").unlink(missing_ok=True)
            shutil.rmtree(log.path("adapter"), ignore_errors=True)
            gate, engine = here["method"]["gate"], here["versions"]["engine"]
            self.note("resumed", **({} if gate == log.given_gate() else {"gate": gate}),
                      **({} if engine == log.manifest["versions"].get("engine", engine) else {"engine": engine}))

    def _restore(self) -> None:
        """Back to the last whole checkpoint, in policy, optimizer and log."""
        folder, steps = self.log.folder, len(self.log.steps)
        if not folder:
            raise TrainingError(f"step {steps + 1} broke off in the middle, and this run has no folder to go back to: "
                                "start again with a new policy and trainer.")
        found = checkpoint.load(folder / "checkpoints", self.policy, self.learner.optimizer, self.learner.scaler, at_most=steps)
        if not found and steps:
            raise ValueError(f"{folder} holds {steps} steps and no checkpoint: choose another folder.")
        with writing(folder):
            step, self.gate_state, self.waiting = found or (0, {}, [])
            self.log.rewind(step)
        self._saved = step if found else -1
        if not found:
            self.save()
        self.learner.torn = False


class Driver(Protocol):
    """The owner of a thread that takes a trainer's steps (`background.Run`)."""

    thread: threading.Thread

    def end(self) -> None:
        """Stop, and wait until it has."""


in_background: dict[Trainer, Driver] = {}
"""Trainers whose steps are taken in another thread."""

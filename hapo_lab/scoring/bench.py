"""Models and runs sampled on the same questions, into a folder that survives kills and continues at the next sample.

    FOLDER/NAME/bench.json       what this model was asked, what it is, and what sampled it
    FOLDER/NAME/samples.jsonl    a line per sample, in an order that the questions alone decide

A batch is some samples of some problems, sampled together with its own seed. So each sample is a function of the bench alone,
not of earlier samples. A file cut short by a kill continues at its next line.
"""

from __future__ import annotations

import gc
import json
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

import hapo_lab
from hapo_lab.engines.choice import engine_for
from hapo_lab.engines.protocol import Engine, Sampling
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.policy import Policy
from hapo_lab.policy.threads import computing_with
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.seeds import derive
from hapo_lab.scoring.contestants import Contestant, contestant
from hapo_lab.scoring.questions import Questions, held_out
from hapo_lab.scoring.scores import Answers
from hapo_lab.tasks.rebuilding import task_of_run
from hapo_lab.training.evaluation import TOGETHER, draw

DESCRIPTION, SAMPLES = "bench.json", "samples.jsonl"


@dataclass(frozen=True)
class Batch:
    """Samples that are drawn together: `samples` of each of `problems`, both by number."""

    problems: range
    samples: range

    def __len__(self) -> int:
        return len(self.problems) * len(self.samples)


@dataclass(frozen=True)
class Plan:
    """The questions and the sampling of a bench."""

    questions: Questions
    samples: int
    """Of each problem."""
    sampling: Sampling
    seed: int

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; it must be at least 1.")

    @property
    def total(self) -> int:
        """Samples of a model."""
        return len(self.questions.problems) * self.samples

    def batches(self) -> Iterator[Batch]:
        """All samples, in the order of their lines."""
        together, block = max(TOGETHER // self.samples, 1), min(self.samples, TOGETHER)
        count = len(self.questions.problems)
        for start in range(0, count, together):
            for first in range(0, self.samples, block):
                yield Batch(range(start, min(start + together, count)), range(first, min(first + block, self.samples)))

    def seed_of(self, batch: Batch) -> int:
        """The batch's own."""
        return derive(self.seed, "bench", batch.problems.start, batch.samples.start)

    def described(self) -> dict:
        """The JSON that identifies this bench."""
        return self.questions.described() | {"samples": self.samples, "temperature": self.sampling.temperature,
                                             "seed": self.seed, "together": TOGETHER}


class Sheet:
    """One model's answers, in their own folder. ValueError: it holds another bench, or another model of the same name."""

    def __init__(self, plan: Plan, who: Contestant, folder: Path):
        self.plan, self.who, self.folder = plan, who, folder
        self.order = [(i, s) for batch in plan.batches() for i in batch.problems for s in batch.samples]
        """The problem and the sample, by number, of each line."""
        self.before = _description(folder)
        """What bench.json holds; {}: nothing was sampled yet."""
        if different := self.before and _differences(self.before["model"], who.identity):
            raise ValueError(f"{folder} holds the answers of another {who.name}: {different}. Give this one a name of its own "
                             "(NAME=...), or choose another folder.")
        self.correct, self.tokens, self.finished = (np.zeros((len(plan.questions.problems), plan.samples), dtype)
                                                    for dtype in (bool, int, bool))
        self.done = 0
        """Samples that are there."""
        self._read()

    @property
    def answers(self) -> Answers:
        """All of them, once they are there."""
        return Answers(self.who.name, self.plan.questions.sources, self.correct, self.tokens, self.finished)

    def fill(self, policy: Policy, engine: Engine) -> Iterator[int]:
        """Draw the missing samples, batch by batch. Yields the number of samples that each added.

        ValueError: another engine drew the existing samples, or a prompt is too long.
        """
        policy = self._begin(policy, engine)
        path, end = self.folder / SAMPLES, 0
        for batch in self.plan.batches():
            end += len(batch)
            if end <= self.done:
                continue
            rows = self._draw(policy, engine, batch)[self.done - end:]  # a batch that a kill cut in two is drawn again, whole
            with _writing(path):
                disk.append(path, disk.lines(rows))
                disk.sync(path)
            for row in rows:
                self._take(row)
            yield len(rows)

    def _begin(self, policy: Policy, engine: Engine) -> Policy:
        """Write down who samples. Returns the policy, to compute on as many threads as it began with."""
        sampler = {"engine": engine.name, "quantized": policy.quantized}
        if different := self.before and _differences(self.before["sampler"], sampler):
            raise ValueError(f"{self.folder} began with other settings: {different}. Use the same, or choose another folder.")
        for problem in self.plan.questions.problems:
            longest = len(prompt_ids(policy, problem)) + self.plan.sampling.max_new_tokens
            if longest > policy.context:
                raise ValueError(f"problem {problem.key!r} and its answer take up to {longest} tokens; the context of "
                                 f"{policy.name} is {policy.context}: shorten the answer (max_new_tokens).")
        versions = {"hapo_lab": hapo_lab.__version__, "torch": torch.__version__, "threads": policy.threads,
                    "device": policy.device.type, "dtype": str(policy.model.dtype).removeprefix("torch.")}
        if not self.before:
            self.before = {"asked": self.plan.described(), "model": self.who.identity, "sampler": sampler,
                           "versions": versions}
            with _writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                disk.replace(self.folder / DESCRIPTION, (json.dumps(self.before, indent=1) + "\n").encode())
        return replace(policy, threads=self.before["versions"]["threads"])

    def _draw(self, policy: Policy, engine: Engine, batch: Batch) -> list[dict]:
        plan, seed = self.plan, self.plan.seed_of(batch)
        problems = [plan.questions.problems[i] for i in batch.problems]
        with computing_with(policy.threads):
            drawn = draw(policy, engine, plan.questions, problems, len(batch.samples), plan.sampling, seed)
        return [self._place(i, s) | {"seed": seed, "tokens": len(r.ids), "finished": r.finished, "correct": r.reward == 1,
                                     "reason": r.reason, "text": r.text}
                for i, rollouts in zip(batch.problems, drawn, strict=True)
                for s, r in zip(batch.samples, rollouts, strict=True)]

    def _place(self, problem: int, sample: int) -> dict:
        """What a line begins with."""
        asked = self.plan.questions
        return {"model": self.who.name, "source": asked.sources[problem], "problem": asked.problems[problem].key,
                "sample": sample}

    def _read(self) -> None:
        """Take in the lines that are there, and cut off what a kill tore."""
        path, size = self.folder / SAMPLES, 0
        for end, row in disk.rows(path):
            try:
                self._take(row)
            except (LookupError, TypeError, ValueError):
                raise ValueError(f"{path}, line {self.done + 1}: not the sample that belongs there; remove that line and all "
                                 "after it, and the bench goes on.") from None
            size = end
        disk.cut(path, size)

    def _take(self, row: dict) -> None:
        """The next line. LookupError, TypeError or ValueError if it is another one."""
        at = self.order[self.done]
        if any(row[key] != value for key, value in self._place(*at).items()):
            raise LookupError
        self.correct[at], self.tokens[at], self.finished[at] = row["correct"], row["tokens"], row["finished"]
        self.done += 1


# all of them -------------------------------------------------------------------------------------------------------


def bench(models: Sequence[str | Contestant], folder: str | Path, questions: Questions | None = None, *, samples: int = 32,
          temperature: float = 0.6, seed: int = 0, engine: str | Callable[[Policy], Engine] = "auto") -> list[Answers]:
    """Draw the missing samples of each model, and read all answers.

    Parameters
    ----------
    models : sequence of str or Contestant
        Runs or models, each with an optional NAME=: see `contestant`.
    folder : path
        Created, or continued; more models may join it.
    questions : Questions, optional
        Default: the held-out problems of the runs among the models.
    samples : int
        Of each problem.
    temperature : float
        The paper evaluates at 0.6 [R].
    engine : str or function
        A name in `ENGINES`, or a function that makes an engine for a policy, such as a class.

    Returns
    -------
    list of Answers
        One per model, for `score`.

    Raises
    ------
    ValueError
        The folder holds another bench; a model is missing; two models have one name.

    Examples
    --------
    >>> with open("exam.jsonl", "w") as file:
    ...     print('{"prompt": "What is 27 + 58?", "answer": "85"}', file=file)
    >>> exam = read_questions(["exam.jsonl"], "last_number", max_new_tokens=28)
    >>> (answers,) = bench(["tiny"], "bench", exam, samples=4, engine=TransformersEngine)
    >>> answers.correct.shape
    (1, 4)
    """
    folder = Path(folder)
    asked = [contestant(who) if isinstance(who, str) else who for who in models]
    _refuse_twins(asked)
    questions = questions or run_questions(asked)
    plan = Plan(questions, samples, Sampling(questions.max_new_tokens, temperature), seed)
    _refuse_another(plan, folder)
    sheets = [Sheet(plan, who, folder / who.folder) for who in asked]
    missing = [sheet for sheet in sheets if sheet.done < plan.total]
    with tqdm(total=len(sheets) * plan.total, initial=sum(sheet.done for sheet in sheets), unit="sample", smoothing=0,
              disable=not missing) as bar:
        for sheet in missing:
            bar.set_description(sheet.who.name)
            for added in _filled(sheet, engine):
                bar.update(added)
            gc.collect()  # the model is a circle of references, and the next one wants its memory
            torch.cuda.empty_cache()
    return [sheet.answers for sheet in sheets]


def run_questions(asked: Sequence[Contestant]) -> Questions:
    """The held-out problems of the runs among the contestants. ValueError: there is no run, or they hold out different
    problems."""
    tasks = {who.name: task_of_run(who.manifest) for who in asked if who.manifest}
    if not tasks:
        raise ValueError("no run gives held-out problems: name task files (--data FILE.jsonl).")
    return held_out(tasks)


def _filled(sheet: Sheet, engine: str | Callable[[Policy], Engine]) -> Iterator[int]:
    policy, tokens = sheet.who.load(), sheet.plan.total * sheet.plan.sampling.max_new_tokens
    sampler = (engine_for(engine, policy, 1, tokens, sheet.folder / "vllm.log") if isinstance(engine, str) else engine(policy))
    sampler.sync()
    yield from sheet.fill(policy, sampler)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} can't be written: {disk.why(error)}; mend that, then repeat the command.") from None


def _refuse_twins(asked: Sequence[Contestant]) -> None:
    seen: dict[str, Contestant] = {}
    for who in asked:
        if seen.setdefault(who.folder, who) is not who:
            raise ValueError(f"two models are called {who.name}: give one a name of its own (NAME=...).")


def _refuse_another(plan: Plan, folder: Path) -> None:
    """ValueError if the folder holds answers to anything else."""
    for path in sorted(folder.glob(f"*/{DESCRIPTION}")):
        if different := _differences(_description(path.parent)["asked"], plan.described()):
            raise ValueError(f"{folder} holds another bench: {different}. Ask the same, or choose another folder (--out).")


def _description(folder: Path) -> dict:
    """Of a model's folder; {} where nothing was sampled yet. ValueError for one that can't be read."""
    path = folder / DESCRIPTION
    if not path.exists() and not (folder / SAMPLES).exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {part: found[part] for part in ("asked", "model", "sampler", "versions")}
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{path} does not say what was asked there: choose another folder, or remove {folder}.") from None


def _differences(there: dict, here: dict) -> str:
    """In words."""
    return "; ".join(f"{key} is {reprlib.repr(there.get(key))} there and {reprlib.repr(here.get(key))} here"
                     for key in dict.fromkeys([*there, *here]) if there.get(key) != here.get(key))

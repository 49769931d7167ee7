"""The gates in training: every decision, and its predicted chance from rollouts that took no part in it.

Before some of the steps, M more rollouts of each of the step's prompts were drawn, from the policy that then drew the step's
groups. Of M with T right, N drawn without replacement hold s right with the chance

    C(T, s) C(M - T, N - s) / C(M, N),

an unbiased estimate of Binomial(s; N, mu) as long as M >= N: no estimate of mu is put into a formula that bends. Each gate's
P(inject | s) is exact, so the sum over s is an unbiased prediction of the decision. `benchmarks/purity_runs.py` makes the runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from hapo_lab.gates import Gate
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.catalogue import method_from
from hapo_lab.reproducibility.kit import DATA
from hapo_lab.reproducibility.seeds import gate_uniforms
from hapo_lab.runs.log import RunLog
from hapo_lab.training.config import Config

SHIPPED = DATA / "runs" / "purity"
LAST = 20
"""Steps at the end of a run over which its last rates are taken."""


@dataclass(frozen=True)
class PurityRun:
    """A run in short. Lists have one entry per step, and within it one per group."""

    setting: str
    manifest: dict
    """As in the run's run.json, without the held-out problems' names."""
    problems: list[list[str]]
    successes: list[list[int]]
    """S, of `config.group_size` rollouts."""
    decisions: list[list[int]]
    teacher_share: list[float | None]
    """Of the gradient's norm, see `StepRecord`; None: the step took none."""
    spare: dict[str, list[int]]
    """Measured step (from 1) -> T, the successes of the rollouts that took no part, one number per group."""
    spare_trials: int
    """M."""
    heldout: float
    """Success on held-out problems, of the saved adapter, loaded anew."""

    @classmethod
    def of(cls, setting: str, log: RunLog, spare: dict[str, list[int]], spare_trials: int, heldout: float) -> PurityRun:
        """What a run's log says of it, and the spare rollouts' counts."""
        manifest = {key: value for key, value in log.manifest.items() if key != "heldout"}
        share = [r.teacher_share if r.updated else None for r in log.steps]
        return cls(setting, manifest, [list(r.problems) for r in log.steps], [list(r.successes) for r in log.steps],
                   [[int(d) for d in r.decisions] for r in log.steps], [x if x is None else round(x, 4) for x in share],
                   spare, spare_trials, heldout)

    @property
    def seed(self) -> int:
        """The run's."""
        return self.manifest["config"]["seed"]

    @property
    def trials(self) -> int:
        """N."""
        return self.manifest["config"]["group_size"]

    @cached_property
    def gate(self) -> Gate:
        """The run's, rebuilt."""
        return method_from(self.manifest["method"]).gate

    @cached_property
    def success(self) -> np.ndarray:
        """(steps,) the students' success at the training temperature."""
        return np.array(self.successes).mean(1) / self.trials

    @cached_property
    def injection(self) -> np.ndarray:
        """(steps,) share of groups that the gate gave the teacher to."""
        return np.array(self.decisions).mean(1)

    @cached_property
    def share(self) -> np.ndarray:
        """(steps,) the teacher's part in the gradient's norm; a step without gradient has none of either: 0."""
        return np.array([x or 0.0 for x in self.teacher_share])

    def replayed(self) -> Iterator[tuple[int, dict, list[int]]]:
        """(step, the gate's state before it, the decisions that follow from it and the step's counts)."""
        state: dict = {}
        for step, (keys, successes) in enumerate(zip(self.problems, self.successes, strict=True), 1):
            uniforms = gate_uniforms(Config(**self.manifest["config"]).seed_of("sampling"), step, len(keys))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a gate can't close was said when it trained
                decisions, _, after = self.gate.decide(state, keys, successes, [self.trials] * len(keys), uniforms)
            yield step, state, decisions.long().tolist()
            state = after

    @cached_property
    def predicted(self) -> dict[int, np.ndarray]:
        """Measured step -> (groups,) chance of each decision."""
        return {step: prediction(step_chances(self.gate, state, self.problems[step - 1], self.successes[step - 1], self.trials),
                                 self.spare[str(step)], self.spare_trials)
                for step, state, _ in self.replayed() if str(step) in self.spare}


def prediction(chances: np.ndarray, right: Sequence[int], drawn: int) -> np.ndarray:
    """(groups,) P(inject), unbiased: (groups, N + 1) chances at S = 0..N, and `right` of `drawn` other rollouts a group."""
    trials = chances.shape[1] - 1
    if drawn < trials:
        raise ValueError(f"purity: {drawn} rollouts can't say what groups of {trials} do: draw at least {trials}.")
    from scipy import stats  # half a second, which a lesson's first picture does not wait for
    held = stats.hypergeom(drawn, np.asarray(right)[:, None], trials).pmf(np.arange(trials + 1))
    return (held * chances).sum(1)


def step_chances(gate: Gate, state: dict, keys: Sequence[str], successes: Sequence[int], trials: int) -> np.ndarray:
    """(groups, N + 1): P(inject | S = 0..N) of each of a step's groups, given the gate's state and the other groups' counts."""
    groups = [(s, trials) for s in successes]
    return np.array([gate.chances(state, key, trials, [*groups[:i], *groups[i + 1:]]).numpy() for i, key in enumerate(keys)])


def write(runs: Sequence[PurityRun], path: Path) -> None:
    """One line per run, compressed; the same runs make the same bytes."""
    disk.pack(path, [{f.name: getattr(run, f.name) for f in fields(run)} for run in runs])


def read(path: Path) -> list[PurityRun]:
    """The runs of a file, one per line."""
    return [PurityRun(**row) for row in disk.unpack(path)]


def shipped() -> dict[str, list[PurityRun]]:
    """The runs that come with the kit, by setting."""
    return {path.name.removesuffix(".jsonl.gz"): read(path) for path in sorted(SHIPPED.glob("*.jsonl.gz"))}


@dataclass(frozen=True)
class Outcome:
    """A setting's runs, put together: means over the seeds, rates over the last `LAST` steps of each."""

    seeds: int
    success: float
    """Of the students, in training."""
    injection: float
    predicted: float
    """P(inject), over the measured steps of those."""
    z: float
    """Decisions less predictions over all measured steps, in standard errors: within 2 or so if the prediction is right."""
    share: float
    """Of the teacher, in the gradient's norm."""
    heldout: float
    lowest: float
    highest: float
    """Held-out success of the worst and of the best seed."""


def outcome(runs: Sequence[PurityRun]) -> Outcome:
    """The runs of one setting, summed up."""
    steps = len(runs[0].successes)
    residuals = np.concatenate([np.array(run.decisions[step - 1]) - p for run in runs for step, p in run.predicted.items()])
    error = residuals.std(ddof=1) / len(residuals) ** 0.5
    late = [p for run in runs for step, p in run.predicted.items() if step > steps - LAST]
    exams = [run.heldout for run in runs]
    at_the_end = {name: float(np.mean([getattr(run, name)[-LAST:] for run in runs]))
                  for name in ("success", "injection", "share")}
    return Outcome(len(runs), **at_the_end, predicted=float(np.mean(late)),
                   z=float(residuals.mean() / error) if error > 1e-9 else 0.0,  # less: the arithmetic's rounding
                   heldout=float(np.mean(exams)), lowest=min(exams), highest=max(exams))

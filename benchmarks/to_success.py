"""Steps, tokens and seconds until held-out success passes 50% and 80% on the main job: HAPO, LUFFY and GRPO, three seeds each.

    python benchmarks/to_success.py [FOLDER]     # half an hour on two cores

Held-out success is estimated after every second step (40 problems, 2 completions each); the first estimate at or above a
level counts. A run ends at the upper level, or after 40 steps, and what it has not reached by then is censored: "> 40". Tokens
are those that the policy sampled to train on; seconds are those of training, evaluations left out. Logs are kept in
data/runs/to_success/, and what lies there is not trained again. Ctrl-C ends it after the step, saved, and the same command goes
on. Runs go to FOLDER (default: $HAPO_LAB_RUNS/to_success, or runs/to_success).
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from hapo_lab.baselines import METHODS
from hapo_lab.pictures.style import Figure, grid, headline, panel_title, plot_line, step_axis, style, to_png
from hapo_lab.policy.models import load_policy
from hapo_lab.reproducibility.kit import DATA
from hapo_lab.runs.log import RunLog, runs_folder
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.trainer import Trainer

SHIPPED = DATA / "runs" / "to_success"
COMPARED, SEEDS, LEVELS = ("hapo", "luffy", "grpo"), range(3), (0.5, 0.8)
CONFIG = Config(steps=40, eval_every=2)


@dataclass(frozen=True)
class Reached:
    """What it took a run to pass a level; if it didn't, what it had taken when it was stopped."""

    passed: bool
    steps: int
    tokens: int
    seconds: float


def reached(log: RunLog, level: float) -> Reached:
    first = next((r.step for r in log.steps if r.heldout is not None and r.heldout >= level), None)
    taken = log.steps[:first]
    return Reached(first is not None, len(taken), sum(r.tokens_sampled for r in taken),
                   sum(r.training_seconds for r in taken))


def finished(log: RunLog) -> bool:
    return reached(log, max(LEVELS)).passed or len(log.steps) == CONFIG.steps


def train(method: str, seed: int, folder: Path, bar: tqdm) -> bool:
    """A whole run, or what is left of it; False if it was stopped. The bar counts the steps that are taken now."""
    trainer = Trainer(load_policy("smollm2-135m", seed=seed), load_task("json_record", seed), METHODS[method],
                      replace(CONFIG, seed=seed), folder=folder, resume=True)
    bar.total -= len(trainer.log.steps)
    if not finished(trainer.log):
        for record in trainer:
            bar.update()
            bar.set_postfix_str(f"{folder.name}: held-out {record.heldout:.0%}" if record.heldout is not None else folder.name)
            if finished(trainer.log):
                bar.total -= CONFIG.steps - record.step
                break
    return finished(trainer.log)


def main(folder: Path) -> None:
    with tqdm(total=CONFIG.steps * len(COMPARED) * len(SEEDS), unit="step") as bar:
        for seed in SEEDS:  # seeds outside: whatever is done covers all methods
            for method in COMPARED:
                name = f"{method}-{seed}"
                if (SHIPPED / name).exists():
                    bar.total -= CONFIG.steps
                    continue
                if not train(method, seed, folder / name, bar):
                    sys.exit("stopped, and saved: the same command goes on.")
                (SHIPPED / name).mkdir(parents=True)
                for file in ("run.json", "steps.jsonl"):
                    shutil.copy(folder / name / file, SHIPPED / name)
    print("median (each seed); > : not reached by then")
    print(*table(), sep="\n")
    (SHIPPED / "curves.png").write_bytes(to_png(picture()))


def runs(method: str) -> list[RunLog]:
    """Those that are shipped, by seed."""
    return [RunLog.load(SHIPPED / f"{method}-{seed}") for seed in SEEDS]


def table() -> list[str]:
    """As it stands in docs/results.md."""
    rows = ["| method | held-out success | steps | tokens | seconds |", "|---|---|---|---|---|"]
    for method in COMPARED:
        logs = runs(method)
        for level in LEVELS:
            found = [reached(log, level) for log in logs]
            cells = " | ".join(shown(found, what) for what in ("steps", "tokens", "seconds"))
            rows.append(f"| {logs[0].name} | {level:.0%} | {cells} |")
    return rows


def picture() -> Figure:
    """Held-out success over the steps: a panel a method, a line a seed."""
    figure = Figure()
    for ax, method in zip(grid(figure, 1, len(COMPARED)), COMPARED, strict=True):
        logs = runs(method)
        step_axis(ax, CONFIG.steps, "held-out success", top=1.04)
        for level in LEVELS:
            ax.axhline(level, color=style.threshold, lw=1, ls=":")
        for log in logs:
            tested = [r for r in log.steps if r.heldout is not None]
            plot_line(ax, tested, [r.heldout for r in tested], style.held_out)
        passed = [reached(log, max(LEVELS)) for log in logs]
        last = max((str(r.steps) for r in passed if r.passed), key=int, default="")
        panel_title(ax, f"{logs[0].name}: {sum(r.passed for r in passed)} of {len(logs)} pass {max(LEVELS):.0%}"
                    + (f", the last in step {last}" if last else ""))
    headline(figure, "The main job: a line is a seed, and ends where it passes "
             f"{max(LEVELS):.0%}, or at step {CONFIG.steps}")
    return figure


def shown(found: list[Reached], what: str) -> str:
    """Median, then one number a seed. A censored one is larger than all that passed, however late they did."""
    ordered = sorted(found, key=lambda r: (not r.passed, getattr(r, what)))
    word = lambda r: f"{'' if r.passed else '> '}{getattr(r, what):,.0f}"  # noqa: E731
    return f"{word(ordered[len(ordered) // 2])} ({', '.join(map(word, found))})"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else runs_folder() / "to_success")

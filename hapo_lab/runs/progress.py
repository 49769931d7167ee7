"""A run's progress in one line: its step, its success, and the time left."""

from __future__ import annotations

from collections.abc import Sequence

from hapo_lab.runs.log import RunLog


def progress_line(log: RunLog) -> str:
    """Step, student's success, teacher samples, and the time left or, at the end, taken."""
    parts = [f"step {len(log.steps)} of {log.planned}"]
    if log.steps:
        last, seconds = log.steps[-1], sum(sum(r.seconds.values()) for r in log.steps)
        parts += [f"student {last.reward:.2f}"] + ([] if last.heldout is None else [f"held-out {last.heldout:.2f}"])
        parts += [f"teacher in {last.teacher_samples} of {len(last.problems)} groups"]
        if skipped := sum(r.skipped for r in log.steps):
            parts += [f"float16 overflowed {skipped} times"]
        parts += [_duration(seconds_left(log)) + " left" if len(log.steps) < log.planned else _duration(seconds) + " in all"]
    return "   ".join(parts)


def seconds_left(log: RunLog) -> float:
    """Steps to go at the pace of the last five, and evaluations to go at the mean of those made."""
    ahead, every = range(len(log.steps) + 1, log.planned + 1), log.manifest["config"].get("eval_every", 0)
    evaluations = sum(step % every == 0 or step == log.planned for step in ahead) if every else 0
    made = [r.seconds["evaluate"] for r in log.steps if "evaluate" in r.seconds]
    return len(ahead) * mean_of([r.training_seconds for r in log.steps[-5:]]) + evaluations * mean_of(made)


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {s} s" if minutes else f"{s} s"


def mean_of(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


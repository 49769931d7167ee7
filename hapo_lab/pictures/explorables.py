"""The explorables: pure functions from parameters to (figure, numbers). `widgets.py` puts controls under them.

An invalid combination of parameters raises a ValueError, whose text is one sentence for the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from scipy import special

from hapo_lab.gate import BetaGate, BetaPosterior
from hapo_lab.gates import Gate, ThompsonGate, ladder
from hapo_lab.loss import SHAPINGS, clipped_surrogate, group_advantages, ratio, shaped_surrogate
from hapo_lab.pictures.figures import advantages_in_words, seats_axis, seats_panel
from hapo_lab.pictures.style import (
    FIFTHS,
    LOW,
    TITLE,
    Figure,
    blank,
    cell_figure,
    frame,
    headline,
    inches,
    panel_title,
    peak_labels,
    style,
    write,
)
from hapo_lab.ssi import Group, Rollout, synthetic_success_injection
from hapo_lab.tasks.problem import Problem
from hapo_lab.theory.injection import injection_probability

Rate = TypeVar("Rate", float, np.ndarray)

_SAYS = "7 times 8 is 56.\nAnswer: 56"
PROBLEM = Problem(key="7 times 8", messages=({"role": "user", "content": "What is 7 times 8?"},), answer="56",
                  demonstration=_SAYS)
DEMONSTRATION = Rollout(ids=(1,), text=_SAYS, reward=1.0, reason="it says 56", teacher=True)


def example_group(successes: int, trials: int = 8) -> Group:
    """A group with its first `successes` rollouts right, to take apart by hand."""
    if not 0 <= successes <= trials or trials < 2:
        raise ValueError(f"{successes} right of {trials} rollouts is not a group: S goes from 0 to N, and N is at least 2.")
    return Group(PROBLEM, tuple(Rollout((1,), f"rollout {i}", float(i < successes)) for i in range(trials)))


def dead_probability(success_rate: Rate, trials: int) -> Rate:
    """P(all rewards equal) = (1 - mu)^N + mu^N, elementwise."""
    return (1 - success_rate) ** trials + success_rate**trials


# the decision ladder -----------------------------------------------------------------------------------------------


def ladder_words(rungs: Sequence[str]) -> str:
    """What a gate does at S = 0..N, in a sentence."""
    closed = [rung == "leave" for rung in rungs]
    trials, k = len(rungs) - 1, closed.count(False) - 1
    if closed != sorted(closed) or any(rung.endswith("%") for rung in rungs):
        return "How often S injects."
    if k < 0:
        return f"Never injects: not even at S = 0 of {trials}."
    if k == trials:
        return f"Always injects: even at S = {trials} of {trials}, so the teacher can never leave."
    erased = f" At S = {k} it takes the group's only failure: the signal is erased." if k == trials - 1 else ""
    return f"Injects up to S = {k} of {trials}." + erased


def ladder_html(gate: Gate, trials: int, at: int | None = None, state: dict | None = None) -> str:
    """The gate's lamps for S = 0..N, with a sentence; `at` is pointed at. `state`: what it remembers."""
    rungs = ladder(gate, trials, state)
    return lamps_html(rungs, ladder_words(rungs), at)


def lamps_html(rungs: Sequence[str], words: str, at: int | None = None) -> str:
    """A lamp for each S: inject, leave, erases, or how often it injects, such as "40%"."""
    faces = {"inject": (style.teacher, style.teacher), "leave": ("white", style.student), "erases": (style.dead, style.teacher)}
    faces |= {rung: (f"linear-gradient(to top,{style.teacher} {rung},white {rung})", style.teacher)
              for rung in rungs if rung.endswith("%")}
    cell = "<td style='text-align:center;padding:1px 7px;border:0;background:white;color:{1}'>{0}</td>"
    lamp = ("<span style='display:inline-block;width:1.3em;height:1.3em;border-radius:50%;"
            "background:{};border:3px solid {}'></span>")
    rows = [[lamp.format(*faces[rung]) for rung in rungs],
            [f"<b>{s} ▲</b>" if s == at else str(s) for s in range(len(rungs))], rungs]
    words_inks = [style.student if rung == "leave" else style.teacher_words for rung in rungs]
    inks = [[style.ink] * len(rungs), [style.ink] * len(rungs), words_inks]
    body = "".join(f"<tr style='background:white'>{cell.format(f'<b>{name}</b>', style.ink)}"
                   + "".join(cell.format(*pair) for pair in zip(row, colours, strict=True)) + "</tr>"
                   for name, row, colours in zip(("gate", "S", ""), rows, inks, strict=True))
    return (f"<div style='background:white;color:{style.ink};padding:4px;font-size:{style.size + 3:g}px'>"
            f"<table style='margin:0;border:0;font-size:inherit'>{body}</table><b>{words}</b></div>")


# the pictures ------------------------------------------------------------------------------------------------------


def sentence_figure(text: str) -> Figure:
    """Where a combination of settings means nothing: one sentence in the picture's place."""
    figure = blank(1.2)
    headline(figure, text)
    return figure


def collapse(rewards: Sequence[float], scale: str = "none") -> tuple[Figure, dict]:
    """A group's rewards and advantages."""
    r = torch.tensor(rewards, dtype=torch.float64)
    advantages, mean, std = group_advantages(r, scale), r.mean().item(), r.std().item()
    figure, (left, right) = cell_figure(1, 2)
    _rewards(left, r)
    _advantages(right, r, advantages, scale)
    formula = f"A = r \N{MINUS SIGN} {mean:.3f}" if scale == "none" else f"A = (r \N{MINUS SIGN} {mean:.3f}) / {std:.3f}"
    headline(figure, f"{int(r.sum())} of {len(r)} right: {formula}")
    return figure, {"successes": int(r.sum()), "mean": mean, "std": std, "advantages": advantages.tolist(),
                    "dead": not advantages.any()}


def dead_groups(success_rate: float = 0.05, trials: int = 8) -> tuple[Figure, dict]:
    """The probability that all rewards of a group are equal."""
    mu, dead = np.linspace(0, 1, 201), dead_probability(success_rate, trials)
    figure, (ax,) = cell_figure(1, 1)
    frame(ax, "the policy's success rate on this prompt", "share of dead groups")
    ax.set(xlim=(0, 1), ylim=(0, 1.04))
    wrong = (1 - mu) ** trials
    ax.fill_between(mu, wrong, color=style.wrong, lw=0)
    ax.fill_between(mu, wrong, wrong + mu**trials, color=style.right, lw=0)
    write(ax, 0.01, 0.06, "all wrong", style.ink)
    write(ax, 0.99, 0.06, "all right", style.ink, ha="right")
    ax.plot([success_rate], [dead], "o", color=style.student, ms=11, clip_on=False, zorder=3)
    panel_title(ax, f"(1 \N{MINUS SIGN} {success_rate:g})^{trials} + {success_rate:g}^{trials} = {dead:.3f}")
    headline(figure, f"At success rate {success_rate:g}, {dead:.0%} of groups of {trials} teach nothing")
    return figure, {"dead": dead, "all_wrong": (1 - success_rate) ** trials, "all_right": success_rate**trials}


def injection(successes: int = 0, trials: int = 8, step: int = 4, alpha: float = 1.0, beta: float = 1.0,
              threshold: float = 0.8, scale: str = "std") -> tuple[Figure, dict]:
    """One group through gate, SSI and advantages; `step` 1 to 4 says how far: sampled, judged, injected, compared."""
    gate, before = BetaGate(alpha, beta, threshold), example_group(successes, trials)
    injects = ladder(gate, trials)[successes] != "leave"
    after = synthetic_success_injection(before, DEMONSTRATION) if injects else before
    was, now = (group_advantages(group.rewards, scale) for group in (before, after))
    figure, panels = cell_figure(2, 2, 3.7, TITLE)
    for i, (group, advantages) in enumerate(((before, was), (after, now))):
        _rewards(panels[i], group.rewards if step > 2 or not i else None, group, trials, numbered=False)
        _advantages(panels[i + 2], group.rewards, advantages if step > 3 or not i else None, scale, group)
    panel_title(panels[0], f"As sampled: {successes} of {trials} right")
    if step > 2:
        panel_title(panels[1], "As updated on: " + (f"the teacher takes seat {after.replaced}" if injects else "left alone"))
    headline(figure, (f"1 Sample: {successes} of {trials} right" + (", a dead group" if before.dead else ""),
                      f"2 Gate: {_fraction(gate, successes, trials)} = {_verdict(gate, successes, trials)}",
                      "3 Inject: the worst rollout's seat goes to the teacher" if injects else
                      "3 Inject: no, the gate is closed", "4 Compare: " + _became(before, after, injects))[step - 1])
    return figure, {"mean": gate.posterior(successes, trials).mean.item(), "injects": injects,
                    "seat": after.replaced, "before": was.tolist(), "after": now.tolist(),
                    "dead_before": before.dead, "dead_after": after.dead}


def prior_pull(alpha: float = 1.0, beta: float = 1.0, threshold: float = 0.8, successes: int = 6, trials: int = 8,
               ) -> tuple[Figure, dict]:
    """The posterior mean between the prior's mean and the group's, by their weights."""
    example_group(successes, trials)
    gate = BetaGate(alpha, beta, threshold)
    c = gate.posterior(successes, trials).mean.item()
    rungs = ladder(gate, trials)
    colour = _ink(rungs[successes])
    figure, (left, right) = cell_figure(1, 2, LOW)
    _density(left, gate, successes, trials)
    top = left.get_ylim()[1]
    left.set_ylim(-0.55 * top, top)
    pulls = ((alpha / (alpha + beta), alpha + beta, style.faint, "prior"), (successes / trials, trials, style.student, "group"))
    left.plot([at for at, *_ in pulls], [-0.14 * top] * 2, color=style.faint, lw=3, solid_capstyle="round")
    for (at, weight, ink, who), level in zip(pulls, (-0.31, -0.46), strict=True):
        left.scatter([at], [-0.14 * top], 24 * weight, ink, zorder=3, clip_on=False)
        text = f"{who}: {at:.2f}, weight {weight:g}"
        half = 0.31 * len(text) * style.size / 72 / inches(left)[0]
        write(left, np.clip(at, half, 1 - half), level * top, text, ink, ha="center", va="center",
              bbox={"fc": "white", "ec": "none", "pad": 0.2})
    left.plot([c], [-0.14 * top], "|", color=colour, ms=26, mew=4, zorder=4)
    frame(right, f"S, successes of {trials}", "posterior mean c")
    s = np.arange(trials + 1)
    right.set(xlim=(-0.5, trials + 0.5), ylim=(0, 1.05), xticks=s[::1 + trials // 11], yticks=FIFTHS)
    right.plot(s, s / trials, color=style.student, lw=1, ls=":")
    right.axhline(threshold, color=style.threshold, ls="--", lw=1.5)
    right.scatter(s, (alpha + s) / (alpha + beta + trials), 70, [_ink(rung) for rung in rungs], zorder=3)
    right.plot([successes], [c], "o", ms=15, mfc="none", mec=style.ink, mew=1.5)
    write(right, trials, 0.02, "dotted: S / N", style.student, ha="right")
    panel_title(left, f"{_fraction(gate, successes, trials)} = {c:.3f}")
    panel_title(right, ladder_words(rungs).split(":")[0].split(".")[0])
    headline(figure, _verdict(gate, successes, trials))
    return figure, {"mean": c, "injects": rungs[successes] != "leave", "cutoff": gate.cutoff(trials), "ladder": rungs}


def hidden_rate(secret: int) -> float:
    """The success rate behind a secret's number."""
    return round(float(np.random.default_rng(secret).uniform(0.02, 0.99)), 2)


def gate_lab(success_rate: float, groups: int = 20, trials: int = 8, alpha: float = 1.0, beta: float = 1.0,
             threshold: float = 0.8, reveal: bool = False, seed: int = 0) -> tuple[Figure, dict]:
    """Groups of one prompt whose success rate is hidden, each judged by the posterior's mean and by a draw from it."""
    gate, rng = BetaGate(alpha, beta, threshold), np.random.default_rng(seed)
    successes, uniform = rng.binomial(trials, success_rate, MOST_GROUPS)[:groups], rng.random(MOST_GROUPS)[:groups]
    posterior = gate.posterior(torch.as_tensor(successes), trials)
    means = posterior.mean.numpy()
    draws = special.betaincinv(posterior.alpha.numpy(), posterior.beta.numpy(), uniform)
    by_mean, by_draw = successes <= gate.cutoff(trials), draws < threshold
    long_run = [float(injection_probability(success_rate, trials, which))
                for which in (gate, ThompsonGate(alpha, beta, threshold))]
    figure, (left, right) = cell_figure(1, 2, LOW)
    _density(left, gate, int(successes[-1]), trials)
    panel_title(left, f"Group {groups}: {successes[-1]} of {trials} right, c = {means[-1]:.2f}")
    frame(right, "group", "success probability")
    right.set(xlim=(0, groups + 1), ylim=(0, 1.05), yticks=FIFTHS)
    ticks: Any = right.xaxis.get_major_locator()
    ticks.set_params(integer=True)
    right.axhline(threshold, color=style.threshold, ls="--", lw=1.5)
    size = float(np.clip(1500 / groups, 18, 90))
    for values, injects, marker in ((means, by_mean, "o"), (draws, by_draw, "x")):
        right.scatter(np.arange(groups) + 1, values, size, np.where(injects, style.teacher, style.student), marker=marker,
                      clip_on=False, lw=1.5)
    if reveal:
        right.axhline(success_rate, color=style.held_out, lw=2, zorder=0)
        write(left, 0.02, 0.93, f"hidden rate {success_rate:g}", style.held_out, transform=left.transAxes)
    panel_title(right, f"Teacher by mean (●): {by_mean.sum()}, by draw (×): {by_draw.sum()}")
    headline(figure, f"Hidden rate {success_rate:g}: in the long run the mean injects in {long_run[0]:.1%} of groups, "
             f"a draw in {long_run[1]:.1%}" if reveal else f"{groups} groups of one prompt. What is its success rate?")
    return figure, {"successes": successes.tolist(), "means": means.tolist(), "draws": draws.tolist(),
                    "mean_injects": int(by_mean.sum()), "draw_injects": int(by_draw.sum()),
                    "long_run_mean": long_run[0], "long_run_draw": long_run[1]}


MOST_GROUPS = 100


def clip_and_shape(p: float = 1e-4, old_p: float = 1e-4, advantage: float = 1.0, shaping: str = "ratio", lam: float = 0.1,
                   ) -> tuple[Figure, dict]:
    """A student's clipped token and a teacher's shaped one under one cursor: objectives, and their gradients in log p."""
    if shaping not in SHAPINGS:
        raise ValueError(f"there is no shaping {shaping!r}; choose one of {', '.join(SHAPINGS)}.")
    shape = ratio(lam) if shaping == "ratio" else SHAPINGS[shaping]
    old_logp, one = torch.tensor(np.log(old_p)), torch.tensor(1.0)
    objectives = {"student": lambda logp: clipped_surrogate(logp, old_logp.expand_as(logp), torch.tensor(advantage)),
                  "teacher": lambda logp: shaped_surrogate(logp, one, shape)}
    x, numbers = np.geomspace(1e-6, 1, 700), dict[str, float]()
    figure, panels = cell_figure(1, 2)
    for ax, unit in zip(panels, ("objective of a token", "gradient in log p"), strict=True):
        frame(ax, "p, the token's probability now", unit)
        ax.set(xscale="log", xlim=(1e-6, 1), ylim=(-0.1, 1.7) if advantage > 0 else (-2.2, 1.7))
        ax.set_yticks([0, 0.5, 1, 1.5] if advantage > 0 else [-2, -1, 0, 1])
        ax.set_xticks([1e-6, 1e-4, 0.01, 1], ["1e-6", "1e-4", "0.01", "1"])  # powers in TeX take longer than all else
        ax.xaxis.set_minor_locator(NullLocator())
        ax.axhline(0, color=style.faint, lw=0.8)
        ax.axvline(p, color=style.ink, lw=1.2, ls=":")
    for who, objective in objectives.items():
        curves, here = value_and_gradient(objective, x), value_and_gradient(objective, np.array([p]))
        numbers |= {who: here[0].item(), f"{who}_gradient": here[1].item()}
        for ax, curve, value in zip(panels, curves, here, strict=True):
            ax.plot(x, curve, color=getattr(style, who), lw=2.2)
            ax.plot([p], value, "o", color=getattr(style, who), ms=9)
    for ax, what, suffix in zip(panels, ("Objective", "Gradient"), ("", "_gradient"), strict=True):
        panel_title(ax, f"{what}: student {_short(numbers['student' + suffix])}, teacher {_short(numbers['teacher' + suffix])}")
        line = 1.4 * style.size / 72 / inches(ax)[1]
        for i, (who, how) in enumerate((("student", "clip"), ("teacher", _NAMES[shaping].format(lam)))):
            write(ax, 0.03, 1 - (i + 0.6) * line, f"{who}: {how}", getattr(style, who), transform=ax.transAxes, va="center",
                  bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5})
    if shaping == "log_probability":
        panels[0].set(ylim=(-14.5, 6), yticks=[-10, -5, 0])
    numbers |= {"ratio": p / old_p, "loudest": float(np.abs(value_and_gradient(objectives["teacher"], x)[1]).max())}
    headline(figure, f"At p = {p:.2g} (ratio {p / old_p:.3g}) the student's token pulls with "
             f"{_short(numbers['student_gradient'])}, the teacher's with {_short(numbers['teacher_gradient'])}")
    return figure, numbers


_NAMES = {"ratio": "p / (p + {:.2g})", "probability": "p", "sqrt": "sqrt p", "log_probability": "log p",
          "uncertain": "p - p² / 2"}


def value_and_gradient(objective: Callable[[torch.Tensor], torch.Tensor], p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An objective of log p at the probabilities p, and its gradient in log p, by automatic differentiation."""
    logp = torch.tensor(np.log(p), requires_grad=True)
    value = objective(logp)
    gradient, = torch.autograd.grad(value.sum(), logp)
    return value.detach().numpy(), gradient.numpy()


def hearing(tokens: Sequence[str], p: np.ndarray, lam: float = 0.1) -> tuple[Figure, dict]:
    """A demonstration under the student: each token's probability, and the gradient in log p of its objective under F = p /
    (p + lam)."""
    _, loudness = value_and_gradient(ratio(lam), p)
    figure, panels = cell_figure(2, 1, 5.4, TITLE)
    names = ["\N{OPEN BOX}" if token == " " else token for token in tokens]
    quietest = int(np.argmin(loudness))
    for ax, values, unit, colour in zip(panels, (p, loudness), ("probability", "gradient in log p"),
                                        (style.student, style.teacher), strict=True):
        frame(ax, "token of the demonstration" if ax is panels[1] else "", unit)
        ax.bar(range(len(values)), values, 0.7, color=colour)
        ax.set(xlim=(-0.7, len(values) - 0.3))
    panels[1].set_xticks(range(len(names)), names)
    panels[1].get_xticklabels()[quietest].set(color=style.teacher, weight="bold")
    panels[0].set(xticks=(), yscale="log", ylim=(min(1e-3, p.min() / 10), 3))
    panels[0].set_yticks([1, 1e-3, 1e-6], ["1", "1e-3", "1e-6"])
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[1].set(ylim=(0, 1.15), yticks=[0, 0.5, 1])
    panels[1].axhline(1, color=style.threshold, ls="--", lw=1.5)
    write(panels[1], 0, 0.96, "log p: 1 everywhere", style.threshold, va="top")
    panel_title(panels[0], f"{names[quietest]!r} has p = {_short(p[quietest])}, every other token at least "
                f"{_short(np.delete(p, quietest).min())}")
    panel_title(panels[1], f"p / (p + {lam:g}): {names[quietest]!r} pulls with {_short(loudness[quietest])}, "
                f"the others with {_short(np.delete(loudness, quietest).min())} to {_short(loudness.max())}")
    headline(figure, f"The teacher is hardly heard at {names[quietest]!r}")
    return figure, {"quietest": quietest, "loudness": loudness.tolist()}


# their parts -------------------------------------------------------------------------------------------------------


def _rewards(ax: Axes, rewards: torch.Tensor | None, group: Group | None = None, trials: int = 8,
             numbered: bool = True) -> None:
    """None: not known yet."""
    if rewards is None:
        seats_axis(ax, trials, "reward", (0, 1.25), numbered)
        ax.set_yticks([0, 1])
        return panel_title(ax, "?")
    teacher = group.teacher_mask if group else torch.zeros(len(rewards), dtype=torch.bool)
    seats_panel(ax, rewards, teacher, group.replaced if group else -1, "reward", (0, 1.25), numbered)
    ax.set_yticks([0, 1])
    panel_title(ax, f"{int(rewards.sum())} of {len(rewards)} right")


def _advantages(ax: Axes, rewards: torch.Tensor, advantages: torch.Tensor | None, scale: str,
                group: Group | None = None) -> None:
    """Axes as wide as any group of this size needs: bars of different groups compare. None: not known yet."""
    n = len(rewards)
    reach = 1.5 * ((n - 1) / n**0.5 if scale == "std" else 1)
    ticks = [-2, 0, 2] if scale == "std" else [-1, 0, 1]
    if advantages is None:
        seats_axis(ax, n, "advantage", (-reach, reach))
        ax.set_yticks(ticks)
        return panel_title(ax, "?")
    teacher = group.teacher_mask if group else torch.zeros(n, dtype=torch.bool)
    seats_panel(ax, advantages, teacher, group.replaced if group else -1, "advantage", (-reach, reach))
    ax.set_yticks(ticks)
    panel_title(ax, advantages_in_words(rewards, advantages, teacher))


def _density(ax: Axes, gate: BetaGate, successes: int, trials: int) -> None:
    """Prior and posterior of a group, and the threshold."""
    x, decision = np.linspace(0.004, 0.996, 249), ladder(gate, trials)[successes]
    at = torch.from_numpy(x)
    state = "student" if decision == "leave" else "teacher"
    posterior = gate.posterior(successes, trials).pdf(at).numpy()
    top = 1.4 * posterior.max()
    prior = np.minimum(BetaPosterior(*torch.tensor([gate.alpha, gate.beta], dtype=torch.float64)).pdf(at).numpy(), 0.7 * top)
    frame(ax, "success probability", "density")
    ax.set(xlim=(0, 1), ylim=(0, top), yticks=[])
    ax.axvline(gate.threshold, color=style.threshold, ls="--", lw=1.5)
    ax.plot(x, prior, color=style.faint, lw=1.5, ls="--")
    ax.plot(x, posterior, color=getattr(style, state), lw=2.2)
    ax.fill_between(x, posterior, color=getattr(style, state), alpha=0.12, lw=0)
    peak_labels(ax, [(x, prior, "prior", "prior"), (x, posterior, "posterior", state)])


def _ink(decision: str) -> str:
    return {"inject": style.teacher, "leave": style.student, "erases": style.dead}[decision]


def _fraction(gate: BetaGate, successes: int, trials: int) -> str:
    return f"c = ({gate.alpha:g} + {successes}) / ({gate.alpha:g} + {gate.beta:g} + {trials})"


def _verdict(gate: BetaGate, successes: int, trials: int) -> str:
    c, decision = gate.posterior(successes, trials).mean.item(), ladder(gate, trials)[successes]
    what = {"inject": "call the teacher", "leave": "leave it alone",
            "erases": "call the teacher, who erases the signal"}[decision]
    return f"{c:.3f} is {'not ' if decision == 'leave' else ''}below {gate.threshold:g}: {what}"


def _became(before: Group, after: Group, injects: bool) -> str:
    if not injects:
        return "still dead: all are right" if before.dead else "it teaches as it is"
    if before.dead:
        return "still dead: all were right already" if after.dead else "the dead group teaches again"
    return "the only failure is gone, and with it the signal" if after.dead else "it teaches, with one more success"


def _short(value: float) -> str:
    text = f"{value:.2f}" if 0.1 <= abs(value) < 1000 or value == 0 else f"{value:.2g}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text

"""The pictures of lesson 07: when does the teacher really leave? Pure functions from parameters to (figure, numbers).

Wherever a policy is needed it is `student(mu)`: three actions, two of them right, in the shares 0.3 to 0.7, and one wrong; the
teacher plays the rarer right one. With only one right action the teacher could not pull anywhere else than the gradient does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from hapo_lab.gate import BetaGate
from hapo_lab.gates import Gate, NeverGate, ladder, rungs, with_numbers
from hapo_lab.loss import log_probability
from hapo_lab.methods import HAPO, Method
from hapo_lab.pictures.explorables import ladder_words, lamps_html
from hapo_lab.pictures.style import LOW, Figure, blank, cell_figure, dashes, frame, grid, headline, panel_title, style, write
from hapo_lab.reproducibility.catalogue import get_gate
from hapo_lab.theory.exact_gradient import ExpectedGradient, LearningCurve, expected_gradients
from hapo_lab.theory.injection import (
    binomial_cdf,
    binomial_pmf,
    chernoff_bound,
    count_cutoff,
    hoeffding_bound,
    injection_chances,
    purity_horizon,
)
from hapo_lab.theory.purity_runs import LAST, PurityRun, outcome

MU = 1 / (1 + np.exp(-np.linspace(-6.5, 6.5, 53)))
"""Success rates of the curves, evenly spaced in log odds, because the region near 1 matters."""
TARGET = 0.01
"""Of the injection probability: the success rate from which on it stays below is the purity horizon."""


def gate_of(kind: str, alpha: float = 1.0, beta: float = 1.0, threshold: float = 0.8) -> Gate:
    """One of `gates.GATES`, with these numbers if it has a prior and a threshold."""
    numbers, gate = {"alpha": alpha, "beta": beta, "threshold": threshold}, get_gate(kind)
    return with_numbers(gate, **{name: value for name, value in numbers.items() if hasattr(gate, name)})


def student(mu: float, trials: int, gate: Gate, visit: int = 1, method: Method = HAPO) -> ExpectedGradient:
    """The expected update of a policy of success mu; see the top of this file."""
    return students([mu], trials, gate, visit, method)[0]


def students(rates: Iterable[float], trials: int, gate: Gate, visit: int = 1, method: Method = HAPO) -> list[ExpectedGradient]:
    """`student`, for each of some success rates."""
    return expected_gradients([_logits(mu) for mu in rates], [1, 1, 0], trials, replace(method, gate=gate), 0, visit)


def _logits(mu: float) -> np.ndarray:
    if not 0 < mu < 1:
        raise ValueError(f"at a success rate of {mu:g} there is no gradient to compare a bias with: "
                         "choose one between 0 and 1.")
    return np.log([0.3 * mu, 0.7 * mu, 1 - mu])


# the purity meter --------------------------------------------------------------------------------------------------


def meter_line(success_rate: float = 0.9, trials: int = 8, kind: str = "beta", alpha: float = 1.0, beta: float = 1.0,
               threshold: float = 0.8, visit: int = 1) -> str:
    """The decision ladder, for every gate: a lamp that is not sure is filled as far as it injects."""
    gate = gate_of(kind, alpha, beta, threshold)
    chances = injection_chances(success_rate, trials, gate, visit)
    words = {"by-step": f"How often S injects at step {visit} of {getattr(gate, 'steps', 0)}.",
             "by-success": f"How often S injects after {visit} groups.",
             "running": f"How often S injects at visit {visit}, over the visits before it."}
    return lamps_html(rungs(chances.tolist()), words.get(kind) or ladder_words(rungs(chances.tolist())))


def meter(success_rate: float = 0.9, trials: int = 8, kind: str = "beta", alpha: float = 1.0, beta: float = 1.0,
          threshold: float = 0.8, visit: int = 1) -> tuple[Figure, dict]:
    """The update's purity: injection probability, exact and by two bounds; relative bias and variance.

    `visit`, from 1, is how often a running posterior has met the prompt, or the step of a threshold that falls.
    """
    gate = gate_of(kind, alpha, beta, threshold)
    here = student(success_rate, trials, gate, visit)
    plain = student(success_rate, trials, NeverGate())
    curves, plains = students(MU, trials, gate, visit), closed(trials)
    numbers = {"injection": here.injection, "relative_bias": here.relative_bias, "variance": here.variance / plain.variance,
               "horizon": purity_horizon(TARGET, trials, gate, visit=visit)}
    figure, (left, right) = cell_figure(1, 2, LOW)
    for ax, unit in ((left, "probability"), (right, "ratio to closed gate")):
        rate_axis(ax, unit)
        ax.axvline(success_rate, color=style.ink, lw=1.2, ls=":")
    left.set(ylim=(0, 1.04), yticks=[0, 0.5, 1])
    for name, bound, pattern in (("hoeffding", hoeffding_bound, "--"), ("chernoff", chernoff_bound, "-.")):
        if count_cutoff(gate, trials, visit):
            left.plot(MU, bound(MU, trials, gate, visit), color=style.faint, lw=1.5, ls=pattern)
            numbers[name] = float(bound(success_rate, trials, gate, visit))
    left.plot(MU, [e.injection for e in curves], color=style.teacher, lw=2.4)
    left.plot([success_rate], [here.injection], "o", color=style.teacher, ms=10, clip_on=False, zorder=3)
    words = ["exact", *(["-.- Chernoff", "- - Hoeffding"] if count_cutoff(gate, trials, visit) else [])]
    for i, (word, colour) in enumerate(zip(words, (style.teacher, style.faint, style.faint), strict=False)):
        write(left, 0.03, 0.6 - 0.13 * i, word, colour, transform=left.transAxes)
    variances = [e.variance / p.variance for e, p in zip(curves, plains, strict=True)]
    biases = [e.relative_bias for e in curves]
    right.set(ylim=(0, min(1.35 * max(*variances, *biases, 1), 4)))  # with room for the key
    right.yaxis.set_major_locator(MaxNLocator(4))
    for values, value, colour, dash in ((biases, here.relative_bias, style.teacher, "-"),
                                        (variances, numbers["variance"], style.student, "--")):
        right.plot(MU, values, color=colour, lw=2.2, ls=dash)
        right.plot([success_rate], [min(value, right.get_ylim()[1])], "o", color=colour, ms=9, clip_on=False, zorder=3)
    for height, name, colour in ((0.93, "- - variance of an update", style.student),
                                  (0.8, "\N{EM DASH} bias of the expected update", style.teacher)):
        write(right, 0.03, height, name, colour, transform=right.transAxes, va="center",
              bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5})
    panel_title(left, f"P(inject) at \N{GREEK SMALL LETTER MU} = {success_rate:g}: {percent(here.injection)}" + (
        f", Chernoff \N{LESS-THAN OR EQUAL TO} {percent(numbers['chernoff'])}" if count_cutoff(gate, trials, visit) else ""))
    panel_title(right, f"Relative bias {here.relative_bias:.3g}, variance \N{MULTIPLICATION SIGN} {numbers['variance']:.3g}")
    horizon = (f"below {TARGET:.0%} from \N{GREEK SMALL LETTER MU} = {numbers['horizon']:.4f} on" if numbers["horizon"] > 0
               else f"below {TARGET:.0%} everywhere" if numbers["horizon"] == 0 else f"never below {TARGET:.0%}")
    headline(figure, f"The teacher comes to {percent(here.injection)} of the groups: {horizon}")
    return figure, numbers


@lru_cache(maxsize=64)
def closed(trials: int) -> list[ExpectedGradient]:
    """The update with the gate closed, at each of `MU`: the same for all gates, so a moved slider need not recompute it."""
    return students(MU, trials, NeverGate())


# what a larger group does, what injection buys and costs -----------------------------------------------------------


SIZES = np.arange(2, 129)
"""Group sizes of the sawtooth."""


def bar_line(success_rate: float = 0.9, trials: int = 8, alpha: float = 1.0, beta: float = 1.0, threshold: float = 0.8) -> str:
    """The bar that S must reach for the gate to leave a group alone, and the whole number that does."""
    gate = BetaGate(alpha, beta, threshold)
    bar, needed = gate.bound(trials), gate.cutoff(trials) + 1
    words = ("no group of this size can: the teacher always comes" if needed > trials else
             "every group does: the teacher never comes" if needed <= 0 else
             f"{needed} meets it exactly" if bar == needed else f"it takes {needed}, {needed / trials:.1%}")
    return f"<b>N = {trials}: the bar is {float(bar):g} of {trials} right, {float(bar) / trials:.1%}; {words}.</b>"


def group_sizes(success_rate: float = 0.9, trials: int = 8, alpha: float = 1.0, beta: float = 1.0, threshold: float = 0.8,
                ) -> tuple[Figure, dict]:
    """P(inject) at one success rate for every N from 2 to 128, and the share of right rollouts that N needs to be left alone.

    S of N is left alone from the bar gamma (a0 + b0 + N) - a0 on. Its share of N runs smoothly; the least whole S jumps.
    """
    gate = BetaGate(alpha, beta, threshold)
    cutoffs = np.array([gate.cutoff(n) for n in SIZES.tolist()])
    bars = np.array([float(gate.bound(n)) for n in SIZES.tolist()]) / SIZES
    needed, ties = (cutoffs + 1) / SIZES, [n for n in SIZES.tolist() if gate.bound(n) == gate.cutoff(n) + 1 <= n]
    chances = binomial_cdf(cutoffs, SIZES, success_rate)
    figure, (left, right) = cell_figure(1, 2, LOW)
    for ax, values, unit in ((left, chances, "P(inject)"), (right, needed, "share of S / N")):
        frame(ax, "N, rollouts in a group", unit)
        ax.set(xscale="log", xlim=(1.9, 135))
        ax.set_xticks(powers := [2, 4, 8, 16, 32, 64, 128], [str(n) for n in powers])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.plot(SIZES, values, ".-", color=style.teacher, lw=1.2, ms=4)
        ax.plot(ties, values[np.isin(SIZES, ties)], "o", color=style.teacher, ms=5)
        ax.axvline(trials, color=style.ink, lw=1.2, ls=":")
        ax.plot([trials], values[SIZES == trials], "o", ms=13, mfc="none", mec=style.ink, mew=1.5, clip_on=False)
    left.set(ylim=(0, 1.04))
    right.plot(SIZES, bars, color=style.threshold, ls="--", lw=1.5)
    right.set(ylim=(max(0, bars.min() - 0.04), 1.04))
    write(right, 0.4, 0.92, "least whole S, over N", style.teacher, transform=right.transAxes)
    write(right, 0.4, 0.79, "the bar itself, over N", style.threshold, transform=right.transAxes)
    chance = chances[trials - SIZES[0]]
    panel_title(left, f"N = {trials}: P(inject) = {percent(chance)}")
    panel_title(right, "Large dots: S meets the bar exactly")
    headline(figure, f"\N{GREEK SMALL LETTER MU} = {success_rate:g}: a larger group may call the teacher more often")
    return figure, {"chances": dict(zip(SIZES.tolist(), chances.tolist(), strict=True)), "needed": needed, "bars": bars,
                    "ties": ties}


def buys_and_costs(trials: int = 8, gate: Gate = BetaGate()) -> tuple[Figure, dict]:
    """Over mu: how many groups teach at all, and how long the expected update is, with its bias (dashed); for the shaping
    p / (p + 0.1) and for log p."""
    shaped = {"p/(p+0.1)": HAPO, "log p": replace(HAPO, shaping=log_probability)}
    found = {name: students(MU, trials, gate, method=method) for name, method in shaped.items()}
    never = np.array([np.linalg.norm(e.never) for e in found["log p"]])
    pmf = binomial_pmf(trials, MU)
    lamps = ladder(gate, trials)
    lost = np.array([lamps[0] == "leave", *(lamp == "erases" for lamp in lamps[1:-1]), True])
    live = {"GRPO": 1 - pmf[:, 0] - pmf[:, -1], "with the gate": 1 - pmf @ lost}
    figure, (left, right) = cell_figure(1, 2)
    rate_axis(left, "share of groups that teach")
    left.set(ylim=(0, 1.04))
    left.fill_between(MU, live["GRPO"], live["with the gate"], color=style.teacher, alpha=0.15, lw=0)
    for values, (name, colour) in zip(live.values(), (("GRPO", style.student), ("with the gate", style.teacher)), strict=True):
        left.plot(MU, values, color=colour, lw=2.2)
        write(left, 0.3, 0.25 if name == "GRPO" else 0.14, name, colour, transform=left.transAxes)
    rate_axis(right, "length of the expected update")
    right.set(yscale="log", ylim=(1e-6, 3))
    right.set_yticks([1e-6, 1e-4, 0.01, 1], ["1e-6", "1e-4", "0.01", "1"])
    right.yaxis.set_minor_locator(NullLocator())
    right.plot(MU, never, color=style.student, lw=8, alpha=0.35, solid_capstyle="butt")  # wide: the next curve lies on it
    write(right, 0.3, 0.25, "GRPO, the wide line", style.student, transform=right.transAxes)
    numbers = {"never": never, **live}
    for i, ((name, expected), colour) in enumerate(zip(found.items(), (style.teacher, style.ink), strict=True)):
        numbers[name] = np.array([np.linalg.norm(e.update) for e in expected])
        numbers[f"bias, {name}"] = np.array([np.linalg.norm(e.bias) for e in expected])
        right.plot(MU, numbers[name], color=colour, lw=2.2)
        right.plot(MU, numbers[f"bias, {name}"], color=colour, lw=1.4, ls="--")
        write(right, 0.3, 0.14 - 0.11 * i, f"gate, {name}", colour, transform=right.transAxes)
    few = np.searchsorted(MU, 0.005)
    panel_title(left, f"At \N{GREEK SMALL LETTER MU} = {MU[few]:.1g}: GRPO {live['GRPO'][few]:.0%}, with the gate "
                      f"{live['with the gate'][few]:.0%}")
    panel_title(right, "Dashed: the length of its bias")
    headline(figure, "What the teacher buys: groups that teach; what it costs: bias")
    return figure, numbers


def rate_axis(ax: Axes, unit: str) -> None:
    """Success rates in log odds."""
    frame(ax, "\N{GREEK SMALL LETTER MU}, success rate", unit)
    ax.set(xscale="logit", xlim=(MU[0], MU[-1]))
    ax.set_xticks([0.01, 0.1, 0.5, 0.9, 0.99], ["0.01", "0.1", "0.5", "0.9", "0.99"])
    ax.xaxis.set_minor_locator(NullLocator())


def percent(p: float) -> str:
    """A share in words: small ones with two digits."""
    return f"{p:.1%}" if p >= 0.0995 or p == 0 else f"{100 * p:.2g}%"


# learning curves ---------------------------------------------------------------------------------------------------


def ceiling_figure(curves: dict[str, LearningCurve], step_size: float = 1.0) -> Figure:
    """Success over time, which is steps times their size; a name hangs where its curve leaves the teacher's action."""
    figure, (ax,) = cell_figure(1, 1)
    frame(ax, "step \N{MULTIPLICATION SIGN} step size", "success")
    end = step_size * (max(len(curve.success) for curve in curves.values()) - 1)
    ax.set(xlim=(0, 1.12 * end), ylim=(0, 1.0), yticks=[0, 0.2, 0.4, 0.6, 0.8, 0.9])
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.axhline(0.8, color=style.threshold, ls="--", lw=1.2)
    leaves = {name: step_size * int(np.argmax(curve.success > 0.85)) if curve.success[-1] > 0.85 else end
              for name, curve in curves.items()}
    for row, (name, leave) in enumerate(sorted(leaves.items(), key=lambda item: item[1])):
        colour, success = style.runs[list(curves).index(name)], curves[name].success
        ax.plot(step_size * np.arange(len(success)), success, color=colour, lw=2.2, ls=dashes(colour))
        foot = 0.1 + 0.6 * (row + 1) / len(curves)
        ax.plot([leave, leave], [foot, 0.8], color=colour, lw=1.2, ls=":")
        write(ax, leave, foot, f" {name} {leave:,.0f}" if curves[name].success[-1] > 0.85 else f" {name}: not in this time",
              colour, va="center", ha="left" if leave < 0.8 * end else "right")
    headline(figure, "The teacher's 0.8 is a long rest, not the end")
    return figure


def norms_figure(curves: dict[str, LearningCurve]) -> Figure:
    """The lengths of the expected update and of the true gradient, both axes logarithmic; a panel a curve."""
    figure, panels = cell_figure(1, len(curves))
    lowest = min(int(np.log10(curve.update_norm.min())) for curve in curves.values()) - 1
    for ax, (name, curve) in zip(panels, curves.items(), strict=True):
        steps = np.arange(1, len(curve.success) + 1)
        frame(ax, "step", "length")
        ax.plot(steps, curve.objective_norm, color=style.student, lw=2.2)
        ax.plot(steps, curve.update_norm, color=style.teacher, lw=2.2)
        ax.set(xscale="log", yscale="log", xlim=(1, steps[-1]), ylim=(10.0**lowest, 1))
        ax.set_xticks(powers := [10**n for n in range(len(str(steps[-1])))], [f"{power:,}" for power in powers])
        ax.set_yticks([10.0**n for n in range(0, lowest, -2)], [f"1e{n}" if n else "1" for n in range(0, lowest, -2)])
        ax.minorticks_off()
        ax.yaxis.labelpad = 1
        panel_title(ax, f"{name}: success {curve.success[-1]:.4f}")
    write(panels[0], 0.4, 0.62, "true gradient of the success", style.student, transform=panels[0].transAxes)
    write(panels[0], 0.4, 0.52, "expected update", style.teacher, transform=panels[0].transAxes)
    headline(figure, "The update comes to rest, the gradient does not vanish")
    return figure


# training ----------------------------------------------------------------------------------------------------------


def runs_figure(settings: dict[str, Sequence[PurityRun]]) -> Figure:
    """What became of the teacher in training: a row per setting, the most faithful teacher on top; means over the seeds."""
    found = {name: outcome(runs) for name, runs in sorted(settings.items(), key=lambda item: outcome(item[1]).injection)}
    figure = blank(0.4 * len(found) + 2)
    left, right = grid(figure, 1, 2)
    frame(left, f"share of groups injected, last {LAST} steps", "")
    frame(right, "held-out success", "")
    left.set(xlim=(0, 1.1), xticks=[0, 0.25, 0.5, 0.75, 1])
    right.set(xlim=(-0.02, 1.04), xticks=[0, 0.25, 0.5, 0.75, 1])
    for ax in (left, right):
        ax.set(ylim=(-0.6, len(found) - 0.4), yticks=[])
        ax.spines["left"].set_visible(False)
    for row, (name, o) in enumerate(found.items()):
        left.barh(row, o.injection, 0.62, color=style.teacher)
        left.plot([o.predicted] * 2, [row - 0.42, row + 0.42], color=style.ink, lw=2.5, solid_capstyle="butt", clip_on=False)
        write(left, -0.03, row, name, style.ink, ha="right", va="center")
        write(left, max(o.injection, o.predicted) + 0.02, row, percent(round(o.injection, 3)), style.teacher, va="center")
        right.plot([run.heldout for run in settings[name]], [row] * o.seeds, "o", color=style.held_out, ms=7, alpha=0.7,
                   clip_on=False)
    box = left.get_position()
    names = (0.62 * max(map(len, found)) + 2) * style.size / 72 / figure.get_size_inches()[0]
    left.set_position((names, box.y0, box.x1 - names, box.height))
    panel_title(left, "Bar: measured, tick: predicted")
    panel_title(right, f"A dot per seed, {len(next(iter(settings.values())))} each")
    rates = [o.injection for o in found.values()]
    headline(figure, f"{len(found)} settings: at the end the teacher comes to {min(rates):.0%} to {max(rates):.0%} of groups"
             f"; |z| up to {max(abs(o.z) for o in found.values()):.1f}")
    return figure

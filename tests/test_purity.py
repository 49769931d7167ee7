"""How often each gate calls the teacher: against mpmath, against all histories through the real gates, and when it ends."""

import doctest
import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

import hapo_lab.theory.injection
from hapo_lab.gate import BetaGate
from hapo_lab.gates import (
    AlwaysGate,
    HardGate,
    NeverGate,
    RunningGate,
    StepAnnealedGate,
    SuccessAnnealedGate,
    ThompsonGate,
    can_close,
)
from hapo_lab.theory.injection import (
    binomial_cdf,
    binomial_pmf,
    chernoff_bound,
    hoeffding_bound,
    injection_bracket,
    injection_chances,
    injection_probability,
    purity_horizon,
)

pytestmark = pytest.mark.filterwarnings("ignore:BetaGate")
MEMORYLESS = [BetaGate(), NeverGate(), AlwaysGate(), HardGate(), ThompsonGate()]
WITH_MEMORY = [RunningGate(), RunningGate(discount=.9), RunningGate(discount=.5), StepAnnealedGate(steps=4),
               SuccessAnnealedGate(window=2), SuccessAnnealedGate(end=.3, window=3)]


def binomial(n, mu):
    """P(S = 0..n) in 60 digits, of the very float mu."""
    mu = mpmath.mpf(float(mu))
    return [mpmath.binomial(n, s) * mu**s * (1 - mu) ** (n - s) for s in range(n + 1)]


def relative_error(value, exact):
    return float(abs(mpmath.mpf(float(value)) / exact - 1))


@pytest.fixture(autouse=True)
def sixty_digits():
    with mpmath.workdps(60):
        yield


# the exact number

@pytest.mark.parametrize(("mu", "n", "expected", "digits"), [
    (.5, 8, .9648, 4), (.8, 8, .4967, 4), (.9, 8, .1869, 4), (.95, 8, .0572, 4), (.99, 8, .0027, 4), (1, 8, 0, 16),
    (.9, 16, .2108, 4), (.9, 32, .0944, 4), (.9, 64, .0099, 4), (.9, 128, 3.6e-4, 5), (.999, 4, .0040, 4)])
def test_the_papers_gate_has_the_known_values(mu, n, expected, digits):
    assert round(float(injection_probability(mu, n, BetaGate())), digits) == expected


def test_deciding_ties_the_other_way_or_drawing_changes_the_known_values():
    assert round(float(injection_probability(.9, 8, BetaGate(threshold=.800001))), 3) == .570
    assert round(float(injection_probability(1, 8, ThompsonGate())), 3) == .134


@pytest.mark.parametrize("n", [3, 8, 100, 1024])
def test_twelve_digits_against_mpmath(n):
    draw = list(itertools.accumulate(binomial(n + 1, .8)[::-1]))  # P(Beta(1+S, 1+N-S) < .8) = P(Binomial(N+1, .8) >= 1+S)
    chances = {BetaGate(): [5 * (1 + s) < 4 * (2 + n) for s in range(n + 1)], HardGate(): [s == 0 for s in range(n + 1)],
               BetaGate(2, 5, .3): [10 * (2 + s) < 3 * (7 + n) for s in range(n + 1)], AlwaysGate(): [1] * (n + 1),
               ThompsonGate(): [draw[n - s] for s in range(n + 1)]}
    checked = 0
    for mu in (1e-3, .1, .3, .5, .77, .8, .9, .99, .999999):
        pmf = binomial(n, mu)
        for gate, chance in chances.items():
            exact = mpmath.fsum(p * h for p, h in zip(pmf, chance, strict=True))
            if exact > 1e-290:
                assert relative_error(injection_probability(mu, n, gate), exact) < 1e-12, (gate, mu)
                checked += 1
    assert checked > 25


@pytest.mark.parametrize(("n", "visit"), [(8, 2), (8, 128), (100, 10)])
def test_twelve_digits_of_the_running_posterior(n, visit):
    for mu in (.5, .79, .9, .99):
        pmf, total = binomial(n * visit, mu), n * visit
        exact = mpmath.fsum(p for s, p in enumerate(pmf) if 5 * (1 + s) < 4 * (2 + total))
        if exact > 1e-290:
            assert relative_error(injection_probability(mu, n, RunningGate(), visit), exact) < 1e-12


@pytest.mark.parametrize("n", [1, 8, 333, 1024])
def test_the_binomial_is_exact_where_a_naive_product_underflows(n):
    for mu in (.1, .5, .9, 1 - 1e-9):
        worst = max(relative_error(p, e) for p, e in zip(binomial_pmf(n, mu), binomial(n, mu), strict=True) if e > 1e-290)
        assert worst < 1e-13
    fail = 1e-20  # lost in 1 - mu
    assert binomial_pmf(8, 1.0, fail)[7] == pytest.approx(8e-20, rel=1e-14)


def test_the_binomial_cdf_broadcasts_and_knows_its_ends():
    found = binomial_cdf(np.array([-1, 0, 3, 4, 9]), 4, np.array([[0.], [.5], [1.]]))
    assert found.tolist() == [[0, 1, 1, 1, 1], [0, 1 / 16, 15 / 16, 1, 1], [0, 0, 0, 1, 1]]
    assert binomial_cdf([-1, 0, 1], 0, .5).tolist() == [0, 1, 1]


@pytest.mark.parametrize("gate", MEMORYLESS, ids=str)
def test_rates_keep_their_shape_and_the_gates_own_forecast_agrees(gate):
    rates = np.linspace(0, 1, 12).reshape(3, 4)
    found = injection_probability(rates, 8, gate)
    assert found.shape == (3, 4)
    for mu, p in zip(rates.flat, found.flat, strict=True):
        assert float(injection_probability(mu, 8, gate)) == pytest.approx(p, rel=1e-14)
    if hasattr(gate, "injection_probability"):
        assert gate.injection_probability(rates, 8).numpy() == pytest.approx(found, rel=1e-12, abs=1e-300)


# all histories, through the real gates

def by_histories(gate, mu, n, visit):
    """P(inject at the visit), summing over every history S_1, ..., S_visit, each played through `decide`."""
    pmf, total = binomial_pmf(n, mu), 0.0
    for history in itertools.product(range(n + 1), repeat=visit):
        state = {}
        for s in history:
            decision, _, state = gate.decide(state, ["q"], [s], [n], [.5])
        total += math.prod(pmf[s] for s in history) * decision.item()
    return total


@pytest.mark.parametrize("gate", WITH_MEMORY, ids=str)
@pytest.mark.parametrize(("n", "visit"), [(5, 1), (3, 2), (3, 4)])
def test_gates_with_memory_agree_with_all_their_histories(gate, n, visit):
    for mu in (.35, .8):
        exact, (lower, upper) = by_histories(gate, mu, n, visit), injection_bracket(mu, n, gate, visit)
        assert lower * (1 - 1e-12) <= exact <= upper * (1 + 1e-12)
        if getattr(gate, "discount", 1) == 1:
            assert lower == upper == injection_probability(mu, n, gate, visit)
            assert lower == pytest.approx(exact, rel=1e-12)


def test_a_bracket_closes_as_its_cells_shrink_and_is_exact_where_the_grid_is():
    gate, mu = RunningGate(discount=.9), [.7, .8, .9]
    widths = []
    for cells in (16, 64, 256, 1024):
        lower, upper = injection_bracket(mu, 8, gate, 25, cells)
        assert (lower <= upper).all()
        widths.append(upper - lower)
    assert (widths[3] < 2e-3).all() and (widths[3] < widths[0] / 30).all()
    lower, upper = injection_bracket(.8, 3, RunningGate(discount=.5), 4, cells=8)  # eighths hold every sum of four visits
    assert lower == upper == pytest.approx(by_histories(RunningGate(discount=.5), .8, 3, 4), rel=1e-12)


@pytest.mark.parametrize("gate", MEMORYLESS + WITH_MEMORY, ids=str)
def test_the_present_ladder_is_what_the_gate_would_decide(gate):
    state = {}
    for s in (3, 7):
        _, _, state = gate.decide(state, ["q"], [s], [8], [.5])
    lamps = gate.chances(state, "q", 8)
    for s in range(9):
        for u in (.001, .2, .7, .999):
            assert gate.decide(state, ["q"], [s], [8], [u])[0].item() == (u < lamps[s])


# bounds

CUT = [BetaGate(), HardGate(), AlwaysGate(), NeverGate(), BetaGate(2, 1, .6), StepAnnealedGate(), RunningGate()]


@pytest.mark.parametrize("gate", CUT, ids=str)
@pytest.mark.parametrize("visit", [1, 7])
def test_exact_is_below_chernoff_is_below_hoeffding(gate, visit):
    mu = np.linspace(0, 1, 101)
    for n in (3, 8, 64):
        exact, chernoff, hoeffding = (f(mu, n, gate, visit) for f in (injection_probability, chernoff_bound, hoeffding_bound))
        assert (exact <= chernoff * (1 + 1e-12)).all() and (chernoff <= hoeffding * (1 + 1e-12)).all()
        assert (hoeffding <= 1).all()


def test_the_bounds_are_the_formulas():
    assert float(hoeffding_bound(.9, 64, BetaGate())) == pytest.approx(math.exp(-128 * (.9 - 51 / 64) ** 2))
    kl = .75 * math.log(.75 / .9) + .25 * math.log(.25 / .1)
    assert float(chernoff_bound(.9, 8, BetaGate())) == pytest.approx(math.exp(-8 * kl))
    assert float(chernoff_bound(1, 8, BetaGate())) == 0 < float(hoeffding_bound(1, 8, BetaGate()))
    assert float(hoeffding_bound(.7, 8, BetaGate())) == float(chernoff_bound(.7, 8, BetaGate())) == 1


@pytest.mark.parametrize("how", ["exact", "chernoff", "hoeffding"])
@pytest.mark.parametrize("n", [8, 64])
def test_the_horizon_is_where_the_curve_meets_the_target(how, n):
    curve = {"exact": injection_probability, "chernoff": chernoff_bound, "hoeffding": hoeffding_bound}[how]
    for target in (.5, .01, 1e-6):
        horizon = purity_horizon(target, n, BetaGate(), how)
        if math.isnan(horizon):
            assert curve(1, n, BetaGate()) > target
        else:
            assert float(curve(horizon, n, BetaGate())) == pytest.approx(target, rel=1e-6)


def test_horizons_of_other_gates():
    assert purity_horizon(.01, 8, NeverGate()) == 0 == purity_horizon(.01, 8, StepAnnealedGate(steps=5), visit=6)
    assert math.isnan(purity_horizon(.01, 8, AlwaysGate())) and math.isnan(purity_horizon(.01, 8, ThompsonGate()))
    assert purity_horizon(.01, 8, HardGate()) == pytest.approx(1 - .01**(1 / 8))
    paper, running, forgetting = (purity_horizon(.01, 8, gate, visit=25)
                                  for gate in (BetaGate(), RunningGate(), RunningGate(discount=.9)))
    assert .8 < running < forgetting < paper < 1


# when does the teacher leave? Each statement of the notebook, with its number

def test_the_papers_gate_keeps_the_teacher_for_ever_at_a_success_rate_below_one():
    """N = 8 fixed, mu* = .9 > gamma = .8: the injection probability does not go to 0, whatever the visit."""
    assert {round(float(injection_probability(.9, 8, BetaGate(), visit)), 4) for visit in (1, 10, 10_000)} == {.1869}


def test_a_larger_group_is_worse_before_it_is_better():
    p = [float(injection_probability(.9, n, BetaGate())) for n in (8, 16, 32, 64, 128)]
    assert p[1] > p[0] > p[2] > p[3] > p[4]


@pytest.mark.parametrize("n", range(1, 33))
def test_the_probability_vanishes_as_mu_goes_to_one_just_where_the_gate_can_close(n):
    closes = not math.isnan(purity_horizon(1e-9, n, BetaGate()))
    assert closes == can_close(BetaGate(), n) == (n >= 3)


def test_a_thompson_draw_and_an_always_open_gate_stay_open_at_mu_one():
    assert float(injection_probability(1, 8, ThompsonGate())) == pytest.approx(.8**9, rel=1e-12)
    assert float(injection_probability(1, 8, AlwaysGate())) == 1


def test_a_posterior_that_forgets_nothing_lets_go_above_the_threshold_only():
    gate, visits = RunningGate(), (1, 10, 100, 1000)
    above, at, below = ([float(injection_probability(mu, 8, gate, v)) for v in visits] for mu in (.9, .8, .7))
    assert above[2] < 1e-16 and above[3] < 1e-100
    assert at[3] == pytest.approx(.5, abs=.01)
    assert 1 - below[3] < 1e-10
    assert all(p <= math.exp(-2 * 8 * v * (.9 - .8) ** 2 + 1) for p, v in zip(above, visits, strict=True))  # summable


def test_a_posterior_that_forgets_never_quite_lets_go():
    """Its effective N is N / (1 - discount) = 80: the bracket's lower end stays where it is, above 0."""
    lower, upper = zip(*(injection_bracket(.85, 8, RunningGate(discount=.9), v, 512) for v in (60, 120)), strict=True)
    assert lower[0] > .05 and abs(lower[1] - lower[0]) < upper[0] - lower[0]


def test_a_threshold_that_falls_with_time_to_the_priors_share_is_shut_for_every_rate():
    gate = StepAnnealedGate(end=.1, steps=10)  # a0 / (a0 + b0 + N) = .1: not even S = 0 is below
    assert injection_probability([0, .5, 1], 8, gate, visit=11).tolist() == [0, 0, 0]
    assert float(injection_probability(.5, 8, gate, visit=10)) > 0


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("beta", [1, 5, 10, 40])
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_near_one_a_threshold_that_falls_with_success_erases_just_where_lesson_07_says(n, beta, window):
    chances = injection_chances(1 - 1e-9, n, SuccessAnnealedGate(1, beta, window=window), visit=window)
    erases = float(4 * (1 + beta + n) > 5 * window * n * n)
    assert chances[n - 1:] == pytest.approx([erases, 0.0], abs=1e-6)


def test_a_threshold_that_falls_with_success_stays_open_while_the_success_is_poor():
    """It is shut where gamma (1 - rate) <= a0 / (a0 + b0 + N), that is from a rate of .875 on."""
    gate = SuccessAnnealedGate()
    assert gate.cutoff_at(Fraction(7, 8), 8) == -1 and gate.cutoff_at(Fraction(6, 8), 8) == 0
    assert float(injection_probability(.5, 8, gate, visit=50)) == pytest.approx(.2656, abs=1e-4)
    assert float(injection_probability(.95, 8, gate, visit=50)) < 1e-10


# wrong input

@pytest.mark.parametrize(("call", "sentence"), [
    (lambda: injection_probability(1.1, 8, BetaGate()), r"a success rate lies outside \[0, 1\]"),
    (lambda: injection_probability([.5, math.nan], 8, BetaGate()), r"a success rate lies outside \[0, 1\]"),
    (lambda: hoeffding_bound(-.1, 8, BetaGate()), r"a success rate lies outside \[0, 1\]"),
    (lambda: injection_probability(.5, 8.5, BetaGate()), "a group of 8.5 rollouts; it must be a whole number from 1 to 1024"),
    (lambda: injection_probability(.5, 0, BetaGate()), "a group of 0 rollouts"),
    (lambda: injection_probability(.5, 1025, BetaGate()), "a group of 1025 rollouts; .* to 1024 .the cost of exactness"),
    (lambda: chernoff_bound(.5, -3, BetaGate()), "a group of -3 rollouts"),
    (lambda: injection_probability(.5, 8, RunningGate(), visit=0), "visit 0; visits are counted from 1"),
    (lambda: injection_probability(.5, 8, RunningGate(), visit=1.5), "visit 1.5; visits are counted from 1"),
    (lambda: injection_probability(.5, 8, RunningGate(discount=.9), 2), "discount of 0.9 only bounds are known: use inj"),
    (lambda: injection_bracket(.5, 8, RunningGate(discount=.9), 2, cells=0), "cut into 0 cells; it must be a whole number"),
    (lambda: injection_bracket(.5, 8, RunningGate(discount=.999), 5000), "would visit 9e.10 grid cells"),
    (lambda: hoeffding_bound(.5, 8, ThompsonGate()), "ThompsonGate.* does not compare one binomial count with a cutoff"),
    (lambda: chernoff_bound(.5, 8, RunningGate(discount=.9), visit=2), "RunningGate.*use injection_bracket"),
    (lambda: purity_horizon(0, 8, BetaGate()), "target is 0; it must lie between 0 and 1, such as 0.01"),
    (lambda: purity_horizon(.1, 8, BetaGate(), "markov"), "'markov' is not known; choose one of exact, hoeffding, chernoff")])
def test_wrong_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_examples_in_the_documentation_are_true():
    assert doctest.testmod(hapo_lab.theory.injection).failed == 0
    assert injection_chances(.5, 8, BetaGate()).tolist() == [1] * 7 + [0] * 2

"""The Beta gate: the paper's numbers, exact ties, and the posterior against scipy. The other gates, and what they remember."""

import json
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hapo_lab.gate import BetaGate, BetaPosterior
from hapo_lab.gates import (
    AlwaysGate,
    HardGate,
    NeverGate,
    RunningGate,
    StepAnnealedGate,
    SuccessAnnealedGate,
    ThompsonGate,
    can_close,
    ladder,
    warn_of_size,
)
from hapo_lab.theory.injection import injection_probability

pytestmark = pytest.mark.filterwarnings("ignore:BetaGate")  # small groups warn; the warnings have their own tests

THRESHOLDS = {0.8: (4, 5), 0.7: (7, 10), 0.6: (3, 5), 1 / 3: (1, 3), 0.1: (1, 10)}
DTYPES = [torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
S, N = torch.tensor([(s, n) for n in range(1, 513) for s in range(n + 1)]).T.contiguous()

hundredths = st.integers(1, 600)
counts = st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def below(s, n, threshold):
    """(1 + S) / (2 + N) < gamma, in integers: the oracle."""
    p, q = THRESHOLDS[threshold]
    return q * (1 + s) < p * (2 + n)


def decisions(n, *prior, threshold=0.8):
    return BetaGate(*prior, threshold=threshold).injects(torch.arange(n + 1), n).tolist()


def up_to(k, n=8):
    return [s <= k for s in range(n + 1)]


# the paper's numbers

def test_the_papers_setting_injects_up_to_six_of_eight():
    assert decisions(8) == up_to(6)


@pytest.mark.parametrize(("mu", "n", "expected", "digits"), [
    (.5, 8, .9648, 4), (.8, 8, .4967, 4), (.9, 8, .1869, 4), (.95, 8, .0572, 4), (.99, 8, .0027, 4), (1., 8, 0., 16),
    (.9, 16, .2108, 4), (.9, 32, .0944, 4), (.9, 64, .0099, 4), (.9, 128, 3.6e-4, 5),
    (.999, 4, .0040, 4), (.999, 8, 2.8e-5, 6)])
def test_injection_probability_has_the_papers_values(mu, n, expected, digits):
    assert round(injection_probability(mu, n, BetaGate()).item(), digits) == expected


def test_deciding_the_tie_the_other_way_would_raise_the_injection_probability_to_57_percent():
    assert round(injection_probability(.9, 8, BetaGate(threshold=0.800001)).item(), 3) == .570


@pytest.mark.parametrize(("prior", "cutoff"), [
    ((1, 1), 6), ((.5, .5), 6), ((1e-6, 1e-6), 6), ((3.3, 1), 6), ((5.9, 1), 6), ((6, 1), 5),
    ((1, 1.000001), 7), ((1, 1.1), 7), ((2, 2), 7), ((1, 2.25), 7), ((1, 2.26), 8), ((3, 3), 8), ((1, 50), 8)])
def test_a_prior_moves_the_cutoff(prior, cutoff):
    assert decisions(8, *prior) == up_to(cutoff)
    assert can_close(BetaGate(*prior), 8) == (cutoff < 8)


@pytest.mark.parametrize("n", [1, 2])
def test_groups_of_fewer_than_three_always_inject(n):
    assert decisions(n) == [True] * (n + 1)
    assert not can_close(BetaGate(), n)


@pytest.mark.parametrize("n", range(3, 65))
def test_groups_of_three_or_more_can_close(n):
    assert can_close(BetaGate(), n) and not decisions(n)[n]


def test_groups_of_six_erase_their_signal_at_five_right():
    assert ladder(BetaGate(), 6) == ["inject"] * 5 + ["erases", "leave"]


def test_the_papers_ladder_never_erases():
    assert ladder(BetaGate(), 8) == ["inject"] * 7 + ["leave"] * 2


# ties

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_every_decision_up_to_512_is_exact_whatever_the_dtype(threshold, dtype):
    representable = (S.to(dtype).long() == S) & (N.to(dtype).long() == N)
    s, n = S[representable], N[representable]
    assert len(s) > 8000
    decided = BetaGate(threshold=threshold).injects(s.to(dtype), n.to(dtype))
    assert torch.equal(decided, below(s, n, threshold))


def test_the_binary_double_of_the_threshold_goes_wrong_at_102_ties():
    p, q = Fraction(0.8).as_integer_ratio()
    pairs = list(zip(S.tolist(), N.tolist(), strict=True))
    wrong = [(s, n) for s, n in pairs if (q * (1 + s) < p * (2 + n)) != below(s, n, 0.8)]
    assert len(wrong) == 102
    s, n = torch.tensor(wrong).T
    assert not BetaGate().injects(s, n).any()


@pytest.mark.parametrize(("s_dtype", "n_dtype"), [
    (torch.int8, torch.int64), (torch.int64, torch.float16), (torch.bfloat16, torch.int32), (torch.float32, torch.uint8)])
def test_successes_and_trials_may_differ_in_dtype(s_dtype, n_dtype):
    s, n = S[N <= 120], N[N <= 120]
    assert torch.equal(BetaGate().injects(s.to(s_dtype), n.to(n_dtype)), below(s, n, 0.8))


def test_counts_broadcast_and_keep_their_shape():
    s, n = torch.tensor([[[0], [6], [7]]]), torch.tensor([7, 8, 13, 200])
    assert torch.equal(BetaGate().injects(s, n), below(s, n, 0.8))
    assert BetaGate().posterior(s, n).mean.shape == (1, 3, 4)
    assert BetaGate().injects(7, 8).shape == ()
    assert BetaGate().injects(torch.zeros(0, 3), 8).shape == (0, 3)


@given(a=hundredths, b=hundredths, gamma=st.integers(1, 100), sn=counts)
def test_priors_and_thresholds_mean_the_decimals_that_were_written(a, b, gamma, sn):
    s, n = sn
    expected = Fraction(a + 100 * s, a + b + 100 * n) < Fraction(gamma, 100)
    gate = BetaGate(a / 100, b / 100, gamma / 100)
    assert gate.injects(s, n).item() == expected
    assert (s <= gate.cutoff(n)) == expected


def test_ties_of_fractional_priors_are_left_alone():
    ties = [(a, b, g, s) for a in range(1, 60) for b in range(1, 60) for g in (10, 30, 60, 70, 80) for s in range(6)
            if 100 * (a + 10 * s) == g * (a + b + 50)]  # (a/10 + S) / (a/10 + b/10 + 5) = g/100
    assert len(ties) > 100
    assert [tie for tie in ties if BetaGate(tie[0] / 10, tie[1] / 10, tie[2] / 100).injects(tie[3], 5)] == []


# the gate's forecasts agree with its decisions

@given(a=hundredths, b=hundredths, gamma=st.integers(1, 100), n=st.integers(1, 24), mu=st.floats(0, 1))
def test_injection_probability_is_the_enumeration_of_the_groups(a, b, gamma, n, mu):
    gate = BetaGate(a / 100, b / 100, gamma / 100)
    expected = math.fsum(math.comb(n, s) * mu**s * (1 - mu)**(n - s)
                         for s in range(n + 1) if gate.injects(s, n))
    assert injection_probability(mu, n, gate).item() == pytest.approx(expected, rel=1e-9, abs=1e-13)


def test_injection_probability_keeps_the_shape_of_the_rates():
    found = injection_probability(torch.tensor([[0., .5, 1.]], dtype=torch.float32), 8, BetaGate())
    assert found.shape == (1, 3) and found.dtype == np.float64


@given(a=hundredths, b=hundredths, gamma=st.integers(1, 100), n=st.integers(1, 24))
def test_the_ladder_says_what_the_gate_does(a, b, gamma, n):
    gate = BetaGate(a / 100, b / 100, gamma / 100)
    rungs = ladder(gate, n)
    assert [step != "leave" for step in rungs] == gate.injects(torch.arange(n + 1), n).tolist()
    assert [s for s, step in enumerate(rungs) if step == "erases"] == ([n - 1] if gate.injects(n - 1, n) else [])


# the posterior

def test_the_posterior_adds_the_counts_to_the_prior():
    p = BetaGate(2.5, .5).posterior(torch.tensor([0, 3, 8]), 8)
    assert p.alpha.tolist() == [2.5, 5.5, 10.5] and p.beta.tolist() == [8.5, 5.5, .5]
    assert p.alpha.dtype == torch.float64


@given(a=st.floats(.05, 60), b=st.floats(.05, 60), x=st.floats(1e-9, 1), mass=st.floats(.01, .99))
def test_the_posterior_agrees_with_scipy(a, b, x, mass):
    p, reference = BetaPosterior(*torch.tensor([a, b], dtype=torch.float64)), stats.beta(a, b)
    low, high = p.interval(mass)
    assert p.mean.item() == pytest.approx(reference.mean(), rel=1e-12)
    assert p.variance.item() == pytest.approx(reference.var(), rel=1e-9)
    assert p.pdf(x).item() == pytest.approx(reference.pdf(x), rel=1e-8)
    assert p.cdf(x).item() == pytest.approx(reference.cdf(x), rel=1e-9, abs=1e-300)
    assert (low.item(), high.item()) == pytest.approx(reference.interval(mass), rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [
    (1, 2), (2, 1), (.3, 4), (4, .3), (3, 7), (1.5, 1.2), (.1, 1.1), (1.1, .1), (.5, 1), (1, .5)])
def test_the_mode_is_where_the_density_peaks(a, b):
    mode = BetaPosterior(*torch.tensor([a, b], dtype=torch.float64)).mode.item()
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    peak = grid[stats.beta(a, b).pdf(grid).argmax()].item()
    assert mode == pytest.approx(peak, abs=1e-3)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (.5, .5), (.2, .9)])
def test_a_density_without_a_single_peak_has_no_mode(a, b):
    assert BetaPosterior(*torch.tensor([a, b], dtype=torch.float64)).mode.isnan()


def test_under_a_uniform_prior_the_mode_is_the_observed_rate():
    assert BetaGate().posterior(torch.arange(9), 8).mode.tolist() == pytest.approx([s / 8 for s in range(9)])


def test_samples_follow_the_posterior():
    p = BetaPosterior(torch.full((4000,), 2., dtype=torch.float64), torch.full((4000,), 5., dtype=torch.float64))
    draws = p.sample(torch.Generator().manual_seed(0))
    assert draws.shape == (4000,)
    assert stats.kstest(draws, stats.beta(2, 5).cdf).pvalue > .01
    assert stats.kstest(draws, stats.beta(5, 2).cdf).pvalue < 1e-6


def test_samples_are_reproduced_by_the_generator():
    p = BetaGate().posterior(torch.arange(9), 8)
    a, b, c = (p.sample(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_pdf_broadcasts_with_its_argument():
    p = BetaGate().posterior(torch.tensor([0, 4, 8]), 8)
    assert p.pdf(torch.linspace(0, 1, 5)[:, None]).shape == (5, 3)


# never

def test_the_never_gate_never_injects_and_shows_the_uniform_posterior():
    assert not NeverGate().chances({}, "a", 8).any()
    assert NeverGate().posterior(2, 8).alpha == 3


# the other gates: one protocol

GATES = [BetaGate(), NeverGate(), AlwaysGate(), HardGate(), ThompsonGate(), StepAnnealedGate(steps=4),
         SuccessAnnealedGate(window=2), RunningGate(), RunningGate(discount=.9)]


def run(gate, steps, state=None):
    """`steps`: a list of {key: S}, N = 8; the decisions of each step, and the last state, through JSON and back."""
    state, decided = state or {}, []
    for step in steps:
        decisions, _, state = gate.decide(state, list(step), list(step.values()), [8] * len(step), [.5] * len(step))
        state = json.loads(json.dumps(state))
        decided.append(decisions.tolist())
    return decided, state


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_a_gate_goes_on_from_its_state_and_changes_nothing_that_it_was_given(gate):
    steps = [{"a": 7, "b": 0}, {"a": 3}, {"b": 8, "c": 6}, {"a": 8, "c": 8}]
    whole, last = run(gate, steps)
    first, middle = run(gate, steps[:2])
    kept = json.dumps(middle)
    second, end = run(gate, steps[2:], middle)
    assert first + second == whole and end == last and json.dumps(middle) == kept


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_every_gate_says_what_it_believed(gate):
    decisions, posterior, _ = gate.decide({}, ["a", "b"], [2, 8], [8, 8], [.5, .5])
    assert decisions.dtype == torch.bool and decisions.shape == posterior.mean.shape == (2,)
    assert posterior.alpha.tolist() == [3, 9] and posterior.beta.tolist() == [7, 1]


@pytest.mark.parametrize(("gate", "expected"), [
    (NeverGate(), ["leave"] * 5), (HardGate(), ["inject"] + ["leave"] * 4),
    (AlwaysGate(), ["inject"] * 3 + ["erases", "inject"])])
def test_simple_gates_have_the_beta_gates_protocol(gate, expected):
    assert ladder(gate, 4) == expected
    assert gate.chances({}, "a", 4).tolist() == [float(step != "leave") for step in expected]
    assert gate.decide({}, "abcde", range(5), [4] * 5, [.9] * 5)[0].tolist() == [step != "leave" for step in expected]
    assert can_close(gate, 4) is (expected[4] == "leave")
    assert injection_probability(.5, 4, gate).item() == sum(math.comb(4, s) for s in range(5) if expected[s] != "leave") / 16


def test_a_thompson_draw_below_the_threshold_injects():
    gate = ThompsonGate()
    chance = gate.chances({}, "a", 8)
    assert chance[8].item() == pytest.approx(.8**9, rel=1e-12)  # PAPER: gamma^(a0 + N) = .134, and so it never closes
    assert round(chance[8].item(), 3) == .134
    posterior = gate.posterior(torch.arange(9), 8)
    for u in (.001, .1, .5, .9, .999):
        draw = stats.beta(posterior.alpha, posterior.beta).ppf(u)
        assert gate.decide({}, "abcdefghi", range(9), [8] * 9, [u] * 9)[0].tolist() == (draw < .8).tolist()


def test_a_threshold_that_falls_with_time_ends_with_the_teacher_gone():
    decided, state = run(StepAnnealedGate(steps=4), [dict.fromkeys("abc", s) for s in (6, 5, 2, 1, 0, 0)])
    assert decided == [[True] * 3, [False] * 3, [True] * 3, [False] * 3, [False] * 3, [False] * 3]  # gamma .8 .6 .4 .2 0 0
    assert state == {"step": 6}


def test_a_falling_threshold_decides_its_ties_exactly():
    gate = StepAnnealedGate(threshold=.8, end=.2, steps=6)  # .8 .7 .6 ... .2: at every step (1 + S) / 10 meets it
    for step in range(1, 8):
        s = 8 - step
        assert gate.cutoff_at(gate.progress(step - 1), 8) == s - 1
    assert gate.cutoff_at(gate.progress(99), 8) == 0


def test_a_threshold_that_falls_with_success_forgets_what_left_its_window():
    gate = SuccessAnnealedGate(window=2)
    decided, state = run(gate, [{"a": 0, "b": 8}, {"a": 8, "b": 8}, {"a": 0, "b": 8}, {"a": 0, "b": 0}])
    assert decided == [[True, False], [False, False], [True, False], [True, True]]  # rates 1/2 3/4 3/4 1/4: gamma .4 .2 .2 .6
    assert state == {"recent": [[8, 16], [0, 16]]}


def test_a_running_posterior_of_no_forgetting_is_one_large_group():
    gate, seen = RunningGate(), [8, 7, 0, 6, 8, 8, 8]
    for visit in range(1, 8):
        decisions, posterior, _ = gate.decide({"visits": {"a": [[s, 8] for s in seen[:visit - 1]]}}, ["a"],
                                              seen[visit - 1:visit], [8], [0.])
        total = sum(seen[:visit])
        assert decisions.item() == BetaGate().injects(total, 8 * visit).item()
        assert (posterior.alpha.item(), posterior.beta.item()) == (1 + total, 1 + 8 * visit - total)


def test_a_discount_forgets_and_prompts_are_told_apart():
    decided, state = run(RunningGate(discount=.5), [{"a": 0, "b": 8}, {"a": 8}, {"a": 8, "b": 8}])
    # of a: s = 0, 8, 12 of n = 8, 12, 14: c = .1, 9/14, 13/16
    assert decided == [[True, False], [True], [False, False]]
    assert state == {"visits": {"a": [[0, 8], [8, 8], [8, 8]], "b": [[8, 8], [8, 8]]}}


def test_a_prompt_that_comes_twice_in_a_step_is_visited_twice():
    gate = RunningGate()
    decisions, posterior, state = gate.decide({}, ["a", "a"], [0, 8], [8, 8], [0., 0.])
    assert decisions.tolist() == [True, True] and posterior.alpha.tolist() == [1, 9]
    assert state == {"visits": {"a": [[0, 8], [8, 8]]}}


@pytest.mark.parametrize("discount", [.9, .7, .3, 1.])
def test_a_running_mean_on_the_threshold_is_a_tie_however_many_visits(discount):
    decided, _ = run(RunningGate(threshold=.5, discount=discount), [{"a": 4}] * 30)
    assert decided == [[False]] * 30
    decided, _ = run(RunningGate(threshold=.500001, discount=discount), [{"a": 4}] * 30)
    assert decided == [[True]] * 30


@pytest.mark.parametrize(("wrong", "sentence"), [
    (lambda: ThompsonGate(threshold=0), r"threshold is 0; it must lie in \(0, 1\]"),
    (lambda: RunningGate(alpha=-1), "prior's alpha is -1"),
    (lambda: RunningGate(discount=0), r"discount is 0; it must lie in \(0, 1\]"),
    (lambda: RunningGate(discount=math.nan), "discount is nan"),
    (lambda: StepAnnealedGate(end=.9), "threshold ends at 0.9; it must lie between 0 and its start, 0.8"),
    (lambda: StepAnnealedGate(steps=0), "falls over 0 steps; it must be a whole number, at least 1"),
    (lambda: SuccessAnnealedGate(window=.5), "a window of 0.5 steps; it must be a whole number, at least 1")])
def test_wrong_parameters_of_the_other_gates_are_refused_by_name(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        wrong()


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_every_gate_refuses_impossible_counts(gate):
    with pytest.raises(ValueError, match="whole numbers with 0 <= S <= N and N >= 1"):
        gate.decide({}, ["a"], [9], [8], [.5])


# warnings: priors used nowhere else, since a warning is given once in a process

@pytest.mark.parametrize(("gate", "n", "words"), [
    (BetaGate(1.00001, 1.), 2, "with groups of 2 can never close: it injects even when every rollout is right"),
    (BetaGate(1.00002, 1.), 6, "with groups of 6 injects at S = 5, where it replaces the group's only failure")])
def test_a_gate_that_cannot_close_or_erases_warns_once_in_words(gate, n, words):
    with pytest.warns(UserWarning, match=words) as caught:
        warn_of_size(gate, n)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_size(BetaGate(gate.alpha, gate.beta), n)


def test_each_group_size_has_its_own_warning():
    with pytest.warns(UserWarning) as caught:
        for n in (1, 6, 1, 8):
            warn_of_size(BetaGate(1.00003, 1.), n)
    assert len(caught) == 2


def test_a_sound_gate_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_size(BetaGate(1.00004, 1.), 8)


# wrong input

@pytest.mark.parametrize(("wrong", "sentence"), [
    ({"alpha": 0}, "prior's alpha is 0; it must be a positive"), ({"beta": -1.}, "prior's beta is -1.0"),
    ({"alpha": math.nan}, "prior's alpha is nan"), ({"beta": math.inf}, "prior's beta is inf"),
    ({"alpha": 1e-9}, "at least 0.000001"),
    ({"threshold": 0}, r"threshold is 0; it must lie in \(0, 1\]"), ({"threshold": 1.01}, "threshold is 1.01"),
    ({"threshold": -.2}, "threshold is -0.2"), ({"threshold": math.nan}, "threshold is nan")])
def test_a_wrong_prior_or_threshold_is_refused_by_name(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        BetaGate(**wrong)


def test_a_threshold_of_one_is_allowed_and_always_injects():
    assert decisions(8, threshold=1) == [True] * 9


@pytest.mark.parametrize(("s", "n"), [
    (9, 8), (-1, 8), (0, 0), (2.5, 8), (2, 8.5), (math.nan, 8), (1, math.inf), (torch.tensor([1, 9]), 8),
    (torch.tensor(260, dtype=torch.bfloat16), 259), (257, torch.tensor(256, dtype=torch.bfloat16))])
@pytest.mark.parametrize("method", [BetaGate().injects, BetaGate().posterior, NeverGate().posterior])
def test_impossible_counts_are_refused(method, s, n):
    with pytest.raises(ValueError, match="whole numbers with 0 <= S <= N and N >= 1"):
        method(s, n)


@pytest.mark.parametrize("mu", [-.1, 1.1, math.nan, torch.tensor([.5, 2.])])
def test_a_rate_outside_zero_to_one_is_refused(mu):
    with pytest.raises(ValueError, match=r"success rate lies outside \[0, 1\]"):
        injection_probability(mu, 8, BetaGate())


def test_a_seat_beside_the_students_erases_nothing_and_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_size(BetaGate(1, 1, 0.77), 4, replaces=False)
    with pytest.warns(UserWarning, match="replaces the group's only failure"):
        warn_of_size(BetaGate(1, 1, 0.77), 4)

"""The exact update against autograd over every outcome, against groups drawn and taught by the library, and what follows."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PROBLEM, teach_alone

from hapo_lab.baselines import AMPO, CHORD, CHORD_PHI, DAPO, HPT, RELIFT, RLOO, SFT_THEN_GRPO
from hapo_lab.gate import BetaGate
from hapo_lab.gates import AlwaysGate, HardGate, NeverGate, RunningGate, StepAnnealedGate, SuccessAnnealedGate, ThompsonGate
from hapo_lab.loss import hapo_loss, log_probability, probability, ratio, slope, sqrt
from hapo_lab.methods import GRPO, HAPO, LUFFY, SFT
from hapo_lab.ssi import Group, Rollout
from hapo_lab.theory.exact_gradient import _one_teacher, expected_gradient, expected_gradients, learning_curve, teacher_margin

pytestmark = pytest.mark.filterwarnings("ignore:BetaGate")

PLAIN = {"scale": "none", "aggregation": "dapo", "entropy_bonus": 0.0}
"""One set of conventions, so that nothing but the teacher differs."""
METHODS = [GRPO, HAPO, LUFFY, SFT, replace(HAPO, gate=HardGate(), scale="none"), replace(HAPO, gate=AlwaysGate()),
           replace(HAPO, gate=BetaGate(threshold=.5), shaping=log_probability, aggregation="grpo"),
           replace(LUFFY, scale="std", shaping=sqrt, aggregation="dr_grpo", entropy_bonus=.3),
           replace(HAPO, name="extra", seat="extra"), replace(HAPO, name="own", seat="extra", compared="students"),
           RLOO, replace(HPT, entropy_bonus=0.0), CHORD_PHI]
LOGITS, SUCCESS = [.3, -1.2, .8], [.9, .4, 0.]


def update_of(method, logits, actions, rewards, teacher):
    """One group through the library's gate, SSI, advantages and loss; the update by autograd: (K,), and the group."""
    group = Group(PROBLEM, tuple(Rollout((a,), "", float(r)) for a, r in zip(actions, rewards, strict=True)))
    after = teach_alone(method, group, Rollout((teacher,), "", 1.0))
    z = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    table, mask = z.log_softmax(0), torch.ones(len(after.rollouts), 1, dtype=torch.bool)
    logp = table[[r.ids[0] for r in after.rollouts]][:, None]
    loss, _ = hapo_loss(logp, logp.detach(), after.advantages, after.teacher_mask, mask, shaping=method.shaping,
                        eps_low=method.eps_low, eps_high=method.eps_high, weights=method.weights(mask, after.teacher_mask, 1))
    entropy = -(table.exp() * table).sum()  # every token's, and so their mean
    return torch.autograd.grad(method.entropy_bonus * entropy - loss, z)[0].numpy(), after


def every_outcome(logits, success, n):
    """(probability, actions, rewards) of all (2 K)^n ordered outcomes."""
    pi = np.exp(logits) / np.exp(logits).sum()
    kinds = [(a, r, pi[a] * (q if r else 1 - q)) for a, q in enumerate(success) for r in (0, 1)]
    for seats in itertools.product([k for k in kinds if k[2] > 0], repeat=n):
        actions, rewards, chances = zip(*seats, strict=True)
        yield math.prod(chances), actions, rewards


def moments(pairs):
    """Mean and trace of the covariance of (probability, vector) pairs."""
    p, x = (np.array(column) for column in zip(*pairs, strict=True))
    mean = p @ x
    return mean, p @ ((x - mean) ** 2).sum(1)


# against autograd, over all outcomes

@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name} {m.gate} {m.scale} {m.aggregation}")
def test_mean_and_variance_are_those_of_all_outcomes_through_the_real_functions(method):
    n, teacher = 3, [.7, .3, 0]
    mean, variance = moments([(p * t, update_of(method, LOGITS, actions, rewards, a)[0])
                              for p, actions, rewards in every_outcome(LOGITS, SUCCESS, n - method.teacher_seats)
                              for a, t in enumerate(teacher) if t])
    exact = expected_gradient(LOGITS, SUCCESS, n, method, teacher)
    assert exact.update == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert exact.variance == pytest.approx(variance, rel=1e-9, abs=1e-12)


def test_the_same_with_a_larger_group_and_one_demonstration():
    found = [(p, *update_of(HAPO, [.2, -.4], actions, rewards, 1))
             for p, actions, rewards in every_outcome([.2, -.4], [.6, 1], 5)]
    mean, variance = moments([(p, x) for p, x, _ in found])
    exact = expected_gradient([.2, -.4], [.6, 1], 5, HAPO, 1)
    assert exact.update == pytest.approx(mean, rel=1e-9) and exact.variance == pytest.approx(variance, rel=1e-9)
    assert exact.injection == pytest.approx(sum(p for p, _, g in found if g.replaced >= 0), rel=1e-12)


def test_a_gate_that_draws_is_averaged_over_its_draw():
    method, pairs = replace(HAPO, gate=ThompsonGate()), []
    for p, actions, rewards in every_outcome(LOGITS, SUCCESS, 3):
        chance = method.gate.chances({}, "", 3)[sum(rewards)].item()
        for gate, share in ((AlwaysGate(), chance), (NeverGate(), 1 - chance)):
            pairs.append((p * share, update_of(replace(HAPO, gate=gate), LOGITS, actions, rewards, 0)[0]))
    mean, variance = moments(pairs)
    exact = expected_gradient(LOGITS, SUCCESS, 3, method, 0)
    assert exact.update == pytest.approx(mean, rel=1e-9) and exact.variance == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("method", [LUFFY, replace(HAPO, gate=RunningGate())], ids=lambda method: method.name)
def test_several_policies_get_the_updates_that_each_gets_alone(method):
    policies = [(-2.0, 0.5, 1.0), (3.0, 1.0, 0.0)]
    for logits, together in zip(policies, expected_gradients(policies, (1, 1, 0), 6, method, 0, visit=3), strict=True):
        alone = expected_gradient(logits, (1, 1, 0), 6, method, 0, visit=3)
        assert (alone.injection, alone.variance) == pytest.approx((together.injection, together.variance), rel=1e-12)
        np.testing.assert_allclose(alone.update, together.update, rtol=1e-12)


def test_the_objective_is_the_gradient_of_the_success_probability():
    z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    mu = z.softmax(0) @ torch.tensor(SUCCESS, dtype=torch.float64)
    exact = expected_gradient(LOGITS, SUCCESS, 8, GRPO, 0)
    assert exact.success == pytest.approx(mu.item(), rel=1e-14)
    assert exact.objective == pytest.approx(torch.autograd.grad(mu, z)[0].numpy(), rel=1e-12)


@pytest.mark.parametrize("shaping", [probability, ratio(.1), ratio(.5), log_probability, sqrt])
def test_the_slope_of_a_shaping_is_its_derivative(shaping):
    x, h = torch.tensor([-6., -2., -.1], dtype=torch.float64), 1e-5
    assert slope(shaping, x.tolist()) == pytest.approx(((shaping(x + h) - shaping(x - h)) / (2 * h)).numpy(), rel=1e-6)
    assert slope(ratio(.1), [-.1, -2, -6]) == pytest.approx([.0896146378, .2443638431, .0236029046], rel=1e-8)  # PAPER


@pytest.mark.parametrize(("method", "part"), [(AMPO, "teachers"), (RELIFT, "aside"), (replace(HAPO, kl=0.1), "kl")])
def test_a_method_that_the_theory_does_not_hold_is_refused(method, part):
    with pytest.raises(ValueError, match=f"has {part}, which the exact theory does not hold"):
        expected_gradient(LOGITS, SUCCESS, 3, method, 0)


# the parts of the bias

@pytest.mark.parametrize("method", [HAPO, replace(HAPO, gate=AlwaysGate(), scale="none"), LUFFY, replace(LUFFY, **PLAIN)],
                         ids=lambda m: f"{m.name} {m.gate} {m.scale}")
def test_the_parts_of_the_bias_are_what_they_say(method):
    """Each group beside its twin that never saw the teacher: the last rollout of the twin is the one a reserved seat took."""
    n, pi = 3, np.exp(LOGITS) / np.exp(LOGITS).sum()
    put_in, taken_out, never = np.zeros((3, 3))
    for p, actions, rewards in every_outcome(LOGITS, SUCCESS, n):
        twin = replace(method, gate=NeverGate(), teacher_seats=0)
        update, plain = update_of(twin, LOGITS, actions, rewards, 0)
        never += p * update
        sampled = n - method.teacher_seats
        _, taught = update_of(method, LOGITS, actions[:sampled], rewards[:sampled], 0)
        seat = taught.replaced if method.teacher_seats == 0 else n - 1
        if seat >= 0:
            weight = 1 if method.aggregation == "luffy" else 1 / n
            taken_out -= p * weight * plain.advantages[seat].item() * (np.eye(3)[actions[seat]] - pi)
            pull = slope(method.shaping, [np.log(pi[0])])[0] * (np.eye(3)[0] - pi)
            put_in += p * weight * taught.advantages[seat].item() * pull
    exact = expected_gradient(LOGITS, SUCCESS, n, method, 0)
    assert exact.never == pytest.approx(never, rel=1e-9)
    assert exact.put_in == pytest.approx(put_in, rel=1e-9) and exact.taken_out == pytest.approx(taken_out, rel=1e-9)
    assert exact.update == pytest.approx(exact.never + exact.put_in + exact.taken_out + exact.recomputed, rel=1e-12)


def test_grpo_is_unbiased_but_for_its_scale():
    for n in (2, 8, 64):
        plain, std = (expected_gradient(LOGITS, SUCCESS, n, replace(GRPO, scale=scale), 0) for scale in ("none", "std"))
        assert plain.scale == pytest.approx((n - 1) / n, rel=1e-12)
        assert plain.cosine == pytest.approx(1, abs=1e-12) == std.cosine
        assert plain.relative_bias == std.relative_bias == 0


@pytest.mark.parametrize("method", [HAPO, replace(HAPO, scale="none"), LUFFY], ids=["HAPO", "no std", "LUFFY"])
def test_only_the_teachers_term_turns_the_update_away(method):
    e = expected_gradient(LOGITS, SUCCESS, 8, method, 1)
    for part in (e.taken_out, e.recomputed):
        assert abs(part @ e.objective) == pytest.approx(np.linalg.norm(part) * np.linalg.norm(e.objective), rel=1e-12)
    assert e.cosine < .999


# against groups that the library draws and teaches

@pytest.mark.parametrize("method", [HAPO, LUFFY], ids=["HAPO", "LUFFY"])
def test_groups_through_the_real_functions_agree_within_their_standard_error(method):
    rng, groups, n, k = np.random.default_rng(5), 3000, 8, 4
    logits, success = np.array([.5, -.5, 1, 0]), np.array([.8, .9, .3, 0])
    pi = np.exp(logits) / np.exp(logits).sum()
    drawn = []
    for _ in range(groups):
        actions = rng.choice(k, n - method.teacher_seats, p=pi)
        rewards = rng.random(len(actions)) < success[actions]
        rollouts = tuple(Rollout((int(a),), "", float(r)) for a, r in zip(actions, rewards, strict=True))
        drawn.append(teach_alone(method, Group(PROBLEM, rollouts), Rollout((0,), "", 1.0)))
    z = torch.tensor(logits).expand(groups, k).clone().requires_grad_()
    ids = torch.tensor([[r.ids[0] for r in g.rollouts] for g in drawn])
    logp, mask = z.log_softmax(1).gather(1, ids).reshape(-1, 1), torch.ones(groups * n, 1, dtype=torch.bool)
    advantages, teacher = (torch.cat([getattr(g, name) for g in drawn]) for name in ("advantages", "teacher_mask"))
    loss, _ = hapo_loss(logp, logp.detach(), advantages, teacher, mask, shaping=method.shaping,
                        weights=method.weights(mask[:n], teacher[:n], 1).repeat(groups, 1))
    updates = -torch.autograd.grad(loss, z)[0].numpy()

    exact = expected_gradient(logits, success, n, replace(method, entropy_bonus=0.0), 0)
    error = updates.std(0, ddof=1) / groups**.5
    assert (abs(updates.mean(0) - exact.update) < 3.5 * error).all() and (error < abs(exact.update).max() / 10).all()
    assert updates.var(0, ddof=1).sum() == pytest.approx(exact.variance, rel=.06)
    injected = np.mean([g.replaced >= 0 for g in drawn])
    assert abs(injected - exact.injection) <= 3.5 * (exact.injection * (1 - exact.injection) / groups) ** .5


# purity is relative

def near_one(mu, n, gate, scale="none", visit=1):
    """Two right actions, the teacher plays the rarer one."""
    return expected_gradient(np.log([.3 * mu, .7 * mu, 1 - mu]), [1, 1, 0], n, replace(HAPO, gate=gate, scale=scale), 0, visit)


def test_the_known_values_near_one():
    four, eight = near_one(.999, 4, BetaGate()), near_one(.999, 8, BetaGate())
    assert round(four.injection, 4) == .0040 and round(four.relative_bias, 4) == .9985
    assert round(eight.injection, 6) == 2.8e-5 and round(eight.relative_bias, 4) == .0025


@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("n", range(2, 13))
def test_the_relative_bias_vanishes_just_where_the_gate_does_not_erase(n, scale):
    """Injecting at S = N - 1 erases the groups that hold the whole signal as mu goes to 1: the relative bias goes to 1,
    though for N = 3..7 the injection probability goes to 0."""
    e = near_one(1 - 1e-7, n, BetaGate(), scale)
    assert (e.injection < 1e-5) == (n >= 3)
    assert e.relative_bias == pytest.approx(0 if n >= 8 else 1, abs=1e-5)


@pytest.mark.parametrize(("gate", "n", "limit"), [
    (HardGate(), 8, 0), (HardGate(), 2, 0), (AlwaysGate(), 8, 1), (NeverGate(), 8, 0), (SuccessAnnealedGate(), 4, 0),
    (StepAnnealedGate(steps=1), 4, 0), (RunningGate(), 4, 0), (ThompsonGate(), 8, .8**9 + 9 * .2 * .8**8)])
def test_limits_of_the_relative_bias_of_the_other_gates(gate, n, limit):
    """A Thompson draw erases its share P(Beta(a0 + N - 1, b0 + 1) < gamma) = .436 of those groups, for ever."""
    assert near_one(1 - 1e-7, n, gate, visit=2).relative_bias == pytest.approx(limit, abs=1e-5)


def test_the_second_visit_cures_small_groups_of_a_running_posterior():
    assert near_one(1 - 1e-7, 4, RunningGate(), visit=1).relative_bias > .99999


def test_luffys_bias_never_goes_away_and_the_reserved_seat_is_an_eighth_of_it():
    alone = expected_gradient(np.log([1 - 1e-7, 1e-7]), [1, 0], 8, replace(LUFFY, **PLAIN), 0)
    assert alone.cosine == pytest.approx(1) and alone.relative_bias == pytest.approx(1 / 8, abs=1e-6)
    shared = expected_gradient(np.log([.3, .7 - 1e-7, 1e-7]), [1, 1, 0], 8, replace(LUFFY, **PLAIN), 0)
    assert shared.relative_bias > .13 and shared.cosine < .9998


def test_below_one_only_what_grows_or_retracts_becomes_pure():
    """mu* = .9 by success probabilities; all actions alike but for a wrong one, so that g does not vanish."""
    def bias(gate, visit):
        return expected_gradient(np.log([.5, .45, .05]), [.95, .9, .4], 8, replace(HAPO, gate=gate), 0, visit).relative_bias
    assert bias(BetaGate(), 1000) == bias(BetaGate(), 1) > .07
    assert bias(ThompsonGate(), 1000) > .1 and bias(AlwaysGate(), 1000) > .5
    assert bias(RunningGate(), 1000) < 1e-60 and bias(StepAnnealedGate(), 1000) == 0


# the mean-field curve

def test_a_curve_follows_the_expected_update():
    z = np.array(LOGITS)
    curve = learning_curve(LOGITS, SUCCESS, 8, HAPO, 1, steps=3, step_size=2.0, decay=True)
    for t in (1, 2, 3):
        e = expected_gradient(z, SUCCESS, 8, HAPO, 1)
        assert (curve.success[t - 1], curve.injection[t - 1]) == pytest.approx((e.success, e.injection), rel=1e-12)
        assert (curve.update_norm[t - 1], curve.objective_norm[t - 1]) == pytest.approx(
            (np.linalg.norm(e.update), np.linalg.norm(e.objective)), rel=1e-12)
        z = z + 2 / t**.5 * e.update
    assert curve.logits == pytest.approx(z, rel=1e-12)
    assert curve.success[3] == pytest.approx(expected_gradient(z, SUCCESS, 8, HAPO, 1).success)


def test_a_retracted_gate_leaves_grpo():
    curve = learning_curve(LOGITS, SUCCESS, 8, replace(HAPO, gate=StepAnnealedGate(steps=5)), 0, steps=8)
    assert curve.injection[4] > 0 and curve.injection[5:].tolist() == [0, 0, 0, 0]
    assert curve.logits != pytest.approx(learning_curve(LOGITS, SUCCESS, 8, GRPO, 0, steps=8).logits)


@pytest.mark.parametrize(("method", "final"), [
    (replace(GRPO, **PLAIN), .900), (replace(HAPO, **PLAIN, gate=HardGate()), .892), (replace(HAPO, **PLAIN), .800),
    (replace(LUFFY, **PLAIN), .800)], ids=["GRPO", "hard", "HAPO", "LUFFY"])
def test_the_teacher_as_a_ceiling_after_20_000_steps(method, final):
    """PAPER's example. For HAPO and LUFFY it is a delay: see the next test."""
    curve = learning_curve([-4, -5, 2], [.8, .9, 0], 8, method, 0)
    assert round(curve.success[-1], 3) == final


def test_the_ceiling_of_papers_example_is_a_delay():
    curve = learning_curve([-4, -5, 2], [.8, .9, 0], 8, replace(HAPO, **PLAIN), 0, steps=29_700)
    assert round(curve.success[20_000], 3) == .800 and int(np.argmax(curve.success > .85)) == 29_613


def test_the_teacher_is_a_ceiling_only_for_actions_that_are_hardly_better():
    """HAPO settled on the teacher's action, .8, learns one of .9 after all; with F = p none of less than .8179."""
    hapo, start = replace(HAPO, **PLAIN), [0., -6, -9]
    assert learning_curve(start, [.8, .9, 0], 8, hapo, 0, steps=5000).success[-1] > .89
    strong = replace(hapo, shaping=probability)
    assert [round(teacher_margin(.8, 8, m), 4) for m in (hapo, strong)] == [.0015, .0179]
    assert learning_curve([2, 0, -3], [.8, .815, 0], 8, strong, 0, steps=5000, step_size=10.).success[-1] < .8001
    assert learning_curve([2, 0, -3], [.8, .82, 0], 8, strong, 0, steps=5000, step_size=10.).success[-1] > .801


def test_where_the_expected_update_stands_still_the_true_gradient_need_not():
    """HAPO with N fixed converges, but not to a stationary point of the success probability: a third of its actions stay the
    teacher's, for ever."""
    curve = learning_curve([2, 0, 0], [.8, .81, 0], 8, replace(HAPO, **PLAIN), 0, steps=6000, step_size=100.)
    assert curve.update_norm[-1] < 1e-5 and curve.objective_norm[-1] > .003
    assert curve.success[-1] == pytest.approx(.8069, abs=1e-4)


# sizes, and wrong input

def test_large_sizes_take_seconds():
    assert expected_gradient([0, 1, 2], [1, 0, .5], 1024, GRPO, 0).scale > 0
    actions = np.arange(100_000)
    assert expected_gradient(np.zeros(100_000), actions % 2, 8, HAPO, 1).success == pytest.approx(.5)


def test_a_policy_that_always_or_never_succeeds_gets_a_finite_update():
    for success in ([1, 1], [0, 0]):
        for method in (GRPO, HAPO, LUFFY):
            e = expected_gradient([.3, -.2], success, 8, method, 0)
            assert np.isfinite(e.update).all() and np.isfinite(e.variance)
    dead = expected_gradient([.3, -.2], [0, 0], 8, HAPO, 0)
    assert math.isnan(dead.relative_bias) and math.isnan(dead.cosine) and np.linalg.norm(dead.put_in) > 0


@pytest.mark.parametrize(("call", "sentence"), [
    (lambda: expected_gradient([0, 1], [1], 8, HAPO, 0), r"logits \(2,\) and success_probs \(1,\) must be two lists"),
    (lambda: expected_gradient([0, np.inf], [1, 0], 8, HAPO, 0), "two lists of K finite numbers"),
    (lambda: expected_gradient([0, 1], [1, 1.2], 8, HAPO, 0), r"a success probability lies outside \[0, 1\]"),
    (lambda: expected_gradient([0, 1], [1, 0], 8, HAPO, 2), "the teacher plays action 2; the actions are 0 to 1"),
    (lambda: expected_gradient([0, 1], [1, 0], 8, HAPO, math.nan), "the teacher plays action nan"),
    (lambda: expected_gradient([0, 1], [1, 0], 8, HAPO, [.5, .4]), "must hold 2 probabilities that sum to 1"),
    (lambda: expected_gradient([0, 1], [1, 0], 1, HAPO, 0), "a group of 1 rollouts; it must be a whole number from 2 to 1024"),
    (lambda: expected_gradient([0, 1], [1, 0], 2.5, HAPO, 0), "a group of 2.5 rollouts"),
    (lambda: expected_gradient([0, 1], [1, 0], 2000, HAPO, 0), "a group of 2000 rollouts.*the cost of exactness"),
    (lambda: expected_gradient(np.zeros(1_000_001), np.zeros(1_000_001), 8, HAPO, 0), "over 1,000,001 actions"),
    (lambda: expected_gradient([0, 1], [1, 0], 8, replace(LUFFY, gate=BetaGate()), 0), "LUFFY reserves a seat"),
    (lambda: expected_gradient([0, 1], [1, 0], 8, replace(HAPO, gate=RunningGate(discount=.9)), 0, 2), "discount of 0.9"),
    (lambda: learning_curve([0, 1], [1, 0], 8, replace(HAPO, gate=RunningGate()), 0), "RunningGate.* remembers groups"),
    (lambda: learning_curve([0, 1], [1, 0], 8, HAPO, 0, steps=0), "0 steps; it must be a whole number, at least 1"),
    (lambda: learning_curve(np.zeros(10**6), np.zeros(10**6), 8, HAPO, 0), "20,000 steps over 1,000,000 actions would"),
    (lambda: learning_curve([0, 1], [1, 0], 8, HAPO, 0, step_size=0), "the step size is 0; it must be a positive number"),
    (lambda: teacher_margin(1.2, 8, HAPO), r"a success rate lies outside \[0, 1\]")])
def test_wrong_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("method", "part"), [(DAPO, "redraws"), (SFT_THEN_GRPO, "then"), (CHORD, "a decay")])
def test_what_the_theory_does_not_hold_is_refused(method, part):
    with pytest.raises(ValueError, match=f"has .*{part}.*, which the exact theory does not hold"):
        _one_teacher(method, np.zeros(9))

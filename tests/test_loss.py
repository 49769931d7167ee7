"""Advantages, surrogates and the loss, against published values, closed forms, finite differences and plain loops."""

import math
from math import exp, inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck

from hapo_lab.loss import (
    AGGREGATIONS,
    SHAPINGS,
    aggregation_weights,
    clipped_surrogate,
    group_advantages,
    hapo_loss,
    log_probability,
    probability,
    ratio,
    shaped_surrogate,
    sqrt,
)

f64 = torch.float64
every_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, f64], ids=str)
every_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS)
seeds = st.integers(0, 10**6)


def value_and_grad(function, x):
    x = torch.tensor(x, dtype=f64, requires_grad=True)
    y = function(x)
    return y.item(), grad(y, x)[0].item()


# advantages

def test_advantages_have_trls_values():
    assert group_advantages(torch.tensor([1., 0, 0, 0])).tolist() == pytest.approx([1.4997, -.4999, -.4999, -.4999], abs=5e-5)


@pytest.mark.parametrize("s", range(8))
def test_without_std_the_teachers_advantage_is_the_failures_left_over_n(s):
    rewards = torch.tensor([1.] * (s + 1) + [0.] * (7 - s), dtype=f64)  # after SSI: S right ones and the teacher
    assert group_advantages(rewards, scale="none")[0].item() == pytest.approx((7 - s) / 8, abs=1e-15)


@pytest.mark.parametrize(("s", "eps", "expected"), [(0, 0., 2.4749), (6, 0., .3536), (0, 1e-4, 2.4742)])
def test_with_std_the_teachers_advantage_has_the_papers_values(s, eps, expected):
    rewards = torch.tensor([1.] * (s + 1) + [0.] * (7 - s), dtype=f64)
    assert round(group_advantages(rewards, eps=eps)[0].item(), 4) == expected


@every_dtype
@pytest.mark.parametrize("scale", ["std", "none"])
def test_equal_rewards_give_exact_zeros(scale, dtype):
    for n in (2, 3, 7, 8, 33):
        rewards = torch.tensor([0., 1., .1, 1 / 3, -7.3, 1e-3, 12345.678], dtype=dtype)[:, None].expand(7, n)
        advantages = group_advantages(rewards, scale)
        assert advantages.dtype == dtype and torch.equal(advantages, torch.zeros(7, n, dtype=dtype))


def test_equal_rewards_give_exact_zeros_without_an_eps_too():
    assert group_advantages(torch.ones(2, 4), eps=0.).tolist() == [[0.] * 4] * 2


groups = st.integers(2, 12).flatmap(lambda n: st.lists(st.sampled_from([0., .25, .5, 1.]), min_size=n, max_size=n))


@given(rewards=groups, scale=st.sampled_from(["std", "none"]), ddof=st.sampled_from([0, 1]), eps=st.sampled_from([1e-4, 1e-2]))
def test_advantages_are_the_formula(rewards, scale, ddof, eps):
    n, mean = len(rewards), sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean)**2 for r in rewards) / (n - ddof))
    expected = [(r - mean) / (1 if scale == "none" else std + eps) for r in rewards]
    assert group_advantages(torch.tensor(rewards, dtype=f64), scale, ddof, eps).tolist() == pytest.approx(expected, abs=1e-11)


@given(seed=seeds)
def test_a_batch_of_groups_is_each_group_alone(seed):
    rewards = torch.randint(2, (4, 5), generator=torch.Generator().manual_seed(seed)).double()
    assert torch.allclose(group_advantages(rewards), torch.stack([group_advantages(row) for row in rewards]), atol=1e-14)


@pytest.mark.parametrize(("n", "options", "words"), [
    (4, {"scale": "var"}, "scale is 'var'; choose 'std', 'none' or 'leave_one_out'"),
    (1, {}, "a group of 1 has nothing to compare"),
    (1, {"scale": "none"}, "a group of 1"), (2, {"ddof": 2}, "a group of 2")])
def test_wrong_advantages_are_refused(n, options, words):
    with pytest.raises(ValueError, match=words):
        group_advantages(torch.ones(n), **options)


# shapings

@pytest.mark.parametrize(("logp", "value", "slope"), [
    (-.1, .9004814130, .0896146378), (-2., .5750743423, .2443638431), (-6., .0241879621, .0236029046)])
def test_luffys_shaping_has_its_reference_values(logp, value, slope):
    assert value_and_grad(ratio(0.1), logp) == pytest.approx((value, slope), abs=5e-11)


CLOSED_FORMS = {
    "probability": (lambda p: p, lambda p: p), "ratio": (lambda p: p / (p + .1), lambda p: .1 * p / (p + .1)**2),
    "log_probability": (math.log, lambda p: 1.), "sqrt": (math.sqrt, lambda p: math.sqrt(p) / 2),
    "uncertain": (lambda p: p - p * p / 2, lambda p: p * (1 - p))}


@given(logp=st.floats(-30, 0))
@pytest.mark.parametrize("name", SHAPINGS)
def test_every_shaping_has_its_closed_form_and_gradient(name, logp):
    value, slope = CLOSED_FORMS[name]
    p = exp(logp)
    assert value_and_grad(SHAPINGS[name], logp) == pytest.approx((value(p), slope(p)), rel=1e-9, abs=1e-14)


@given(lam=st.floats(1e-3, 10), logp=st.floats(-30, 0))
def test_the_ratio_keeps_to_its_lambda_and_its_gradient_to_a_quarter(lam, logp):
    p = exp(logp)
    value, slope = value_and_grad(ratio(lam), logp)
    assert (value, slope) == pytest.approx((p / (p + lam), lam * p / (p + lam)**2), rel=1e-9)
    assert slope <= .25
    assert value_and_grad(ratio(lam), math.log(lam))[1] == pytest.approx(.25)


@pytest.mark.parametrize("shaping", [probability, sqrt, log_probability, ratio(.1), ratio(.5)])
def test_shapings_pass_gradcheck(shaping):
    logp = torch.linspace(-9, -.01, 13, dtype=f64, requires_grad=True)
    assert gradcheck(lambda x: shaped_surrogate(x, torch.tensor(-1.7, dtype=f64), shaping), logp)


@every_dtype
@pytest.mark.parametrize(("shaping", "limit", "slope"), [
    (probability, 0, 0), (ratio(.1), 0, 0), (ratio(1e-4), 0, 0), (sqrt, 0, 0), (log_probability, -800, 1)])
def test_shapings_are_stable_at_log_p_of_minus_800(shaping, limit, slope, dtype):
    logp = torch.tensor(-800., dtype=dtype, requires_grad=True)
    value = shaping(logp)
    assert value.dtype == dtype
    assert value.item() == pytest.approx(limit, abs=1e-100)
    assert grad(value, logp)[0].item() == pytest.approx(slope, abs=1e-100)


def test_the_teachers_objective_is_the_shaping_times_the_advantage():
    logp, a = torch.tensor([[-.1, -2.], [-6., -6.]], dtype=f64), torch.tensor([[2.], [-3.]], dtype=f64)
    expected = [[2 * .9004814130, 2 * .5750743423], [-3 * .0241879621] * 2]
    assert shaped_surrogate(logp, a).tolist() == [pytest.approx(row, abs=1e-9) for row in expected]


@pytest.mark.parametrize("lam", [0., -1., nan, inf])
def test_a_lambda_that_is_not_positive_is_refused(lam):
    with pytest.raises(ValueError, match=f"lambda is {lam}; it must be a positive number"):
        ratio(lam)


# the clip

@pytest.mark.parametrize(("rho", "a", "eps", "value", "slope"), [
    (1., 2., (.2, .2), 2., 2.), (1., -2., (.2, .2), -2., -2.),
    (1.5, 1., (.2, .2), 1.2, 0.), (1.5, -1., (.2, .2), -1.5, -1.5),  # above: only a reward is capped
    (.5, 1., (.2, .2), .5, .5), (.5, -1., (.2, .2), -.8, 0.),        # below: only a punishment is
    (1.25, 1., (.2, .28), 1.25, 1.25), (1.3, 1., (.2, .28), 1.28, 0.), (.75, -1., (.2, .28), -.8, 0.),
    (.75, -1., (.3, .2), -.75, -.75),
    (50., 1., (inf, inf), 50., 50.), (.02, -1., (inf, inf), -.02, -.02), (50., 1., (.2, inf), 50., 50.),
    (1.5, 0., (.2, .2), 0., 0.)])
def test_the_clip_caps_what_would_move_the_policy_on(rho, a, eps, value, slope):
    old = torch.tensor(-1.3, dtype=f64)
    result = value_and_grad(lambda x: clipped_surrogate(x, old, torch.tensor(a, dtype=f64), *eps), -1.3 + math.log(rho))
    assert result == pytest.approx((value, slope))


@given(shift=st.floats(-2, 2), a=st.floats(-3, 3), low=st.floats(.05, .9), high=st.floats(.05, 2))
def test_the_clipped_surrogate_is_the_pessimistic_one_and_its_gradient_rho_a_or_none(shift, a, low, high):
    rho = exp(shift)
    value, slope = value_and_grad(lambda x: clipped_surrogate(x, torch.zeros((), dtype=f64), a, low, high), shift)
    capped = min(max(rho, 1 - low), 1 + high) * a
    assert value == pytest.approx(min(rho * a, capped), abs=1e-12)
    if abs(rho - (1 - low)) > 1e-9 and abs(rho - (1 + high)) > 1e-9:
        assert slope == pytest.approx(rho * a if rho * a <= capped + 1e-15 else 0, abs=1e-12)


def test_the_clipped_surrogate_passes_gradcheck():
    logp = torch.linspace(-1.5, -.5, 16, dtype=f64, requires_grad=True)
    a = torch.tensor([1., -1.], dtype=f64)[:, None]
    assert gradcheck(lambda x: clipped_surrogate(x, torch.tensor(-1., dtype=f64), a, .2, .28), logp)


def test_the_clipped_surrogate_is_finite_where_the_student_lost_the_token():
    value, slope = value_and_grad(lambda x: clipped_surrogate(x, torch.tensor(-1.), torch.tensor(-1.)), -800.)
    assert (value, slope) == (pytest.approx(-.8), 0)


@pytest.mark.parametrize("a", [1., 0.])
def test_the_clipped_surrogate_is_finite_where_the_student_found_a_token_again(a):
    value, slope = value_and_grad(lambda x: clipped_surrogate(x, torch.tensor(-800.), torch.tensor(a)), 0.)
    assert (value, slope) == (pytest.approx(1.2 * a), 0)


# the whole loss

def batch(seed, b=6, t=5):
    """Random sequences of 1..t tokens, in three groups, some by the teacher; log-ratios large enough to be clipped."""
    g = torch.Generator().manual_seed(seed)
    logp = -3 * torch.rand(b, t, generator=g, dtype=f64)
    lengths = torch.randint(1, t + 1, (b, 1), generator=g)
    return {"logp": logp, "old_logp": logp + .4 * torch.randn(b, t, generator=g, dtype=f64),
            "advantages": torch.randn(b, generator=g, dtype=f64), "teacher_mask": torch.rand(b, generator=g) < .35,
            "token_mask": torch.arange(t) < lengths, "group_index": torch.arange(b) % 3,
            "importance": 2 * torch.rand(b, t, generator=g, dtype=f64)}


def loss_and_grad(data, **options):
    logp = data["logp"].clone().requires_grad_()
    loss, metrics = hapo_loss(**data | {"logp": logp}, **options)
    return loss.detach(), grad(loss, logp)[0], metrics


def token_objective(data, i, t):
    logp, a = data["logp"][i, t].item(), data["advantages"][i].item()
    if data["teacher_mask"][i]:
        return a * exp(logp) / (exp(logp) + .1)
    rho = exp(logp - data["old_logp"][i, t].item())
    return data["importance"][i, t].item() * min(rho * a, min(max(rho, .8), 1.28) * a)


def in_plain_loops(rows, aggregation, group_index, max_length):
    """rows: the objectives of each sequence's own tokens."""
    group_ids = sorted(set(group_index))
    if aggregation == "grpo":
        return sum(sum(row) / len(row) for row in rows if row) / len(rows)
    if aggregation == "dapo":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if aggregation == "dr_grpo":
        return sum(map(sum, rows)) / (len(rows) * max_length)
    per_group = [[x for row, g in zip(rows, group_index, strict=True) if g == i for x in row] for i in group_ids]
    if aggregation == "bnpo":
        return sum(sum(tokens) / len(tokens) for tokens in per_group) / len(group_ids)
    return sum(sum(tokens) for tokens in per_group) / max_length  # luffy


@every_aggregation
@given(seed=seeds)
def test_the_loss_is_what_plain_loops_give(aggregation, seed):
    data = batch(seed)
    rows = [[token_objective(data, i, t) for t in range(5) if data["token_mask"][i, t]] for i in range(6)]
    loss, _ = hapo_loss(**data, eps_high=.28, aggregation=aggregation, max_length=9)
    assert loss.item() == pytest.approx(-in_plain_loops(rows, aggregation, data["group_index"].tolist(), 9), abs=1e-12)


@every_aggregation
def test_a_sequence_without_tokens_counts_in_the_number_of_sequences_only(aggregation):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    objective = torch.tensor([[2., 3, 9], [9, 9, 9], [5, 9, 9]], dtype=f64)
    weights = aggregation_weights(mask, aggregation, 4, torch.tensor([7, 7, 2]))
    expected = in_plain_loops([[2., 3.], [], [5.]], aggregation, [7, 7, 2], 4)
    assert (weights * objective).sum().item() == pytest.approx(expected)


@every_aggregation
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_passes_gradcheck(aggregation, seed):
    data = batch(seed)
    assert gradcheck(lambda x: hapo_loss(**data | {"logp": x}, aggregation=aggregation, max_length=9)[0],
                     data["logp"].requires_grad_())


@given(seed=seeds)
def test_teacher_tokens_read_neither_old_logp_nor_importance(seed):
    data = batch(seed)
    teacher = data["teacher_mask"][:, None]
    poisoned = data | {key: data[key].masked_fill(teacher, nan) for key in ("old_logp", "importance")}
    (loss, g, metrics), (loss2, g2, metrics2) = loss_and_grad(data), loss_and_grad(poisoned)
    assert loss == loss2 and torch.equal(g, g2) and metrics2 == pytest.approx(metrics, nan_ok=True)


def test_teacher_gradients_are_the_shapings_own():
    data = batch(1) | {"teacher_mask": torch.ones(6).bool()}
    _, g, _ = loss_and_grad(data)
    p = data["logp"].exp()
    expected = -data["advantages"][:, None] * .1 * p / (p + .1)**2 * data["token_mask"] / data["token_mask"].sum()
    assert torch.allclose(g, expected, atol=1e-12)


@given(seed=seeds)
def test_importance_weighs_the_students_tokens(seed):
    data = batch(seed) | {"importance": None}
    _, plain, _ = loss_and_grad(data)
    _, weighed, _ = loss_and_grad(data | {"importance": torch.full((6, 5), .5, dtype=f64)})
    factor = torch.where(data["teacher_mask"], 1., .5)[:, None]
    assert torch.allclose(weighed, plain * factor, atol=1e-14)


@every_aggregation
@pytest.mark.parametrize("rubbish", [nan, inf, -inf, 1e300])
def test_what_stands_in_the_padding_changes_nothing(aggregation, rubbish):
    data = batch(2)
    dirty = data | {key: data[key].masked_fill(~data["token_mask"], rubbish) for key in ("logp", "old_logp", "importance")}
    options = {"aggregation": aggregation, "max_length": 9}
    (loss, g, metrics), (loss2, g2, metrics2) = loss_and_grad(data, **options), loss_and_grad(dirty, **options)
    assert loss == loss2 and torch.equal(g, g2) and metrics == metrics2
    assert not g2[~data["token_mask"]].any()


@every_aggregation
@given(seed=seeds, more=st.integers(1, 4))
def test_the_amount_of_padding_changes_nothing(aggregation, seed, more):
    data = batch(seed)
    wider = data | {key: torch.cat([data[key], torch.full((6, more), nan)], 1) for key in ("logp", "old_logp", "importance")}
    wider["token_mask"] = torch.cat([data["token_mask"], torch.zeros(6, more).bool()], 1)
    (loss, g, _), (loss2, g2, _) = (loss_and_grad(d, aggregation=aggregation, max_length=9) for d in (data, wider))
    assert loss2.item() == pytest.approx(loss.item(), abs=1e-14)
    assert torch.allclose(g2[:, :5], g, atol=1e-14)


@every_aggregation
@given(seed=seeds, order=st.permutations(range(6)))
def test_the_order_of_sequences_and_groups_changes_nothing(aggregation, seed, order):
    data = batch(seed)
    shuffled = {key: value[list(order)] for key, value in data.items()}
    options = {"aggregation": aggregation, "max_length": 9}
    (loss, g, metrics), (loss2, g2, metrics2) = loss_and_grad(data, **options), loss_and_grad(shuffled, **options)
    assert loss2.item() == pytest.approx(loss.item(), abs=1e-13)
    assert torch.allclose(g2, g[list(order)], atol=1e-14)
    assert metrics2 == pytest.approx(metrics, nan_ok=True)


@every_aggregation
@given(seed=seeds, cut=st.integers(1, 5))
def test_micro_batches_with_the_whole_batchs_weights_add_up(aggregation, seed, cut):
    data = batch(seed)
    weights = aggregation_weights(data["token_mask"], aggregation, 9, data["group_index"])
    loss, g, _ = loss_and_grad(data, aggregation=aggregation, max_length=9)
    pieces = [loss_and_grad({key: value[rows] for key, value in (data | {"weights": weights}).items()})
              for rows in (slice(0, cut), slice(cut, 6))]
    assert sum(piece[0] for piece in pieces).item() == pytest.approx(loss.item(), abs=1e-13)
    assert torch.allclose(torch.cat([piece[1] for piece in pieces]), g, atol=1e-14)


def test_metrics_tell_clip_ratio_and_teacher_apart():
    rho = torch.tensor([[1.5, 1.], [1.5, .5], [.5, 9.], [9., 9.], [1.5, .5]], dtype=f64)
    old = torch.full((5, 2), -2., dtype=f64)
    loss, metrics = hapo_loss(
        logp=old + rho.log(), old_logp=old, advantages=torch.tensor([1., -1., -1., 1., 0.], dtype=f64),
        teacher_mask=torch.tensor([False, False, False, True, False]),
        token_mask=torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1], [1, 1]]).bool())
    assert metrics == pytest.approx({
        "loss": loss.item(), "clip_fraction": 3 / 7,  # cut: 1.5 with A > 0, .5 with A < 0, twice
        "ratio": (1.5 + 1 + 1.5 + .5 + .5 + 1.5 + .5) / 7, "teacher_logp": math.log(9) - 2})


@pytest.mark.parametrize(("teacher", "missing"), [(True, {"clip_fraction", "ratio"}), (False, {"teacher_logp"})])
def test_a_metric_without_tokens_is_nan(teacher, missing):
    _, metrics = hapo_loss(**batch(0) | {"teacher_mask": torch.full((6,), teacher)})
    assert {name for name, value in metrics.items() if math.isnan(value)} == missing


@every_dtype
def test_the_loss_has_the_log_probabilities_dtype(dtype):
    data = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch(3).items()}
    loss, g, _ = loss_and_grad(data)
    assert loss.dtype == g.dtype == dtype
    assert loss.item() == pytest.approx(hapo_loss(**batch(3))[0].item(), abs=3e-2)


@pytest.mark.parametrize(("key", "shape"), [
    ("logp", (6, 4)), ("logp", (5, 5)), ("token_mask", (6, 4)),
    ("advantages", (5,)), ("advantages", (6, 1)), ("advantages", (6, 5)),
    ("teacher_mask", (6, 5)), ("teacher_mask", (1,)), ("teacher_mask", (5,)), ("old_logp", (6, 1)), ("old_logp", (6, 4)),
    ("importance", (6, 1)), ("importance", (6, 4)), ("weights", (6, 1)), ("weights", (5,)), ("group_index", (5,))])
def test_shapes_that_do_not_fit_are_refused(key, shape):
    with pytest.raises(ValueError, match="fit"):
        hapo_loss(**batch(0) | {key: torch.ones(shape, dtype=torch.long if key == "group_index" else f64)}, aggregation="bnpo")


@pytest.mark.parametrize(("aggregation", "words"), [
    ("mean", "aggregation is 'mean'; choose one of grpo, bnpo, dapo, dr_grpo, luffy"),
    ("dr_grpo", "'dr_grpo' divides by the completion limit: pass max_length"), ("luffy", "pass max_length")])
def test_a_wrong_aggregation_is_refused(aggregation, words):
    with pytest.raises(ValueError, match=words):
        hapo_loss(**batch(0), aggregation=aggregation)

"""The update: loss scale, divisors, entropy bonus, KL and missing log-probs, all on the real tiny model."""

from dataclasses import replace

import pytest
import torch
from conftest import as_new
from test_durable import SMALL, contents

from hapo_lab.engines.protocol import EngineError, Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.loss import AGGREGATIONS
from hapo_lab.methods import GRPO, HAPO, LUFFY, SFT, judge, teach
from hapo_lab.policy.models import load_policy
from hapo_lab.ssi import Group, Rollout
from hapo_lab.training.batch import Batch
from hapo_lab.training.config import Config
from hapo_lab.training.evaluation import Evaluation, grade, prompt_ids
from hapo_lab.training.learner import Learner, NotFinite, with_lessons
from hapo_lab.training.trainer import Trainer

TEACHER = Rollout((10, 11, 12, 2), "", 1.0, teacher=True)
CONFIG = Config(group_size=4, max_grad_norm=1e9)


def loaded_in(dtype):
    return load_policy("tiny", seed=0, dtype=str(dtype).removeprefix("torch."))


@pytest.fixture(scope="module")
def loaded_in_half():
    return loaded_in(torch.float16)


@pytest.fixture
def half(loaded_in_half):
    """The tiny model in float16, its adapter as new."""
    yield from as_new(loaded_in_half)


def moved(policy):
    """The policy, its adapter no longer the base's: all matrices have gradients."""
    for i, parameter in enumerate(policy.trainable()):
        if i % 2:
            parameter.data.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(i)))
    return policy


def sampled(policy, task, problems=4, n=4):
    """Groups as the policy's engine draws them; the first rollout of each is called right, so that none is dead."""
    some = task.train[:problems]
    drawn = TransformersEngine(policy).generate([prompt_ids(policy, p) for p in some], n, Sampling(task.max_new_tokens), 0)
    return [Group(p, tuple(replace(grade(task, p, c), reward=float(i == 0)) for i, c in enumerate(completions)))
            for p, completions in zip(some, drawn, strict=True)]


def taught(method, groups, demonstration=TEACHER):
    return [teach(method, g, demonstration) for g in judge(method.gate, groups, {}, [0.5] * len(groups))[0]]


def gradients_of(learner, groups):
    """What the update says, and the gradients that its optimizer steps saw."""
    seen = []
    hook = learner.optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad.clone() for p in learner.parameters]))
    figures = learner.update(groups, 0.0)
    hook.remove()
    return figures, seen


# float16 -----------------------------------------------------------------------------------------------------------

def test_gradients_in_float16_are_float32s_at_a_large_batch(fresh, half, sums):
    """"dr_grpo" divides by rollouts x limit: 32,768 tokens here."""
    method, sampling = replace(HAPO, aggregation="dr_grpo"), Sampling(32_768 // 16)
    groups = taught(method, sampled(moved(fresh), sums))
    (_, (exact,)), (figures, (found,)) = (
        gradients_of(Learner(p, method, CONFIG, sampling), groups) for p in (fresh, moved(half)))
    for a, b in zip(exact, found, strict=True):
        assert torch.cosine_similarity(a.flatten().double(), b.flatten().double(), 0) > 0.999
    errors = [a - b for a, b in zip(exact, found, strict=True)]
    whole, error = (torch.cat([x.flatten() for x in gradient]) for gradient in (exact, errors))
    assert error.norm() < 0.02 * whole.norm()
    assert figures["skipped"] == 0 and figures["grad_norm"] == pytest.approx(whole.norm().item(), rel=0.02)


def test_an_overflow_of_the_scale_is_tried_again_and_leaves_no_other_trace(half, sums):
    groups, config = taught(HAPO, sampled(moved(half), sums, problems=2)), replace(CONFIG, inner_epochs=2)
    calm, wild = (Learner(half, HAPO, config, Sampling()) for _ in range(2))
    wild.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    expected, steps = gradients_of(calm, groups)
    figures, again = gradients_of(wild, groups)
    assert len(steps) == len(again) == 2
    assert figures["skipped"] > 0 and wild.scaler.get_scale() == 2.0**24 / 2 ** figures["skipped"]
    for name in ("loss", "grad_norm", "teacher_share", "entropy", "tokens_trained"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-2), name


def test_a_gradient_that_no_scale_saves_is_refused_and_policy_and_scale_kept(half, sums):
    steep = replace(HAPO, shaping=lambda logp: 1e30 * logp)
    learner, before = Learner(half, steep, CONFIG, Sampling()), [p.detach().clone() for p in half.trainable()]
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.raises(NotFinite, match="in float16 even with a loss scale of 1: this policy may need bfloat16 or float32"):
        learner.update(taught(steep, sampled(half, sums, problems=1)), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, half.trainable(), strict=True))
    assert learner.scaler.get_scale() == 4 and not learner.torn
    with pytest.raises(NotFinite, match="in float16 even with a loss scale of 1"):  # and not a word of the scaler's own
        learner.update(taught(steep, sampled(half, sums, problems=1)), 1e-3)


def test_a_minibatch_of_the_teachers_alone_leaves_the_clip_fraction_known(fresh, sums):
    groups = taught(HAPO, sampled(fresh, sums, problems=2))
    alone = teach(SFT, Group(groups[0].problem, ()), TEACHER)
    figures = Learner(fresh, HAPO, replace(CONFIG, minibatches=2), Sampling()).update([alone, groups[1]], 1e-4)
    assert 0 <= figures["clip_fraction"] <= 1


def test_gradients_keep_their_memory_and_are_zero_between_updates(fresh, sums):
    learner = Learner(fresh, HAPO, CONFIG, Sampling(16))
    places = [p.grad.data_ptr() for p in learner.parameters]
    _, (seen,) = gradients_of(learner, taught(HAPO, sampled(moved(fresh), sums)))
    assert any(gradient.any() for gradient in seen) and not any(p.grad.any() for p in learner.parameters)
    assert [p.grad.data_ptr() for p in learner.parameters] == places


def test_demonstrations_updated_on_apart_are_the_teachers_share():
    update = {"updated": True, "grad_norm": 3.0, "tokens_trained": 5, "teacher_logp": None, "teacher_share": 0.0, "loss": 1.0}
    both = with_lessons(update | {"skipped": 1}, update | {"grad_norm": 1.0, "teacher_logp": -0.5, "teacher_share": 1.0})
    assert both == update | {"tokens_trained": 10, "skipped": 1, "teacher_logp": -0.5, "teacher_share": 0.25}
    idle = dict.fromkeys(update) | {"updated": False, "tokens_trained": 0}
    assert with_lessons(idle, update)["teacher_share"] == 1 and with_lessons(idle, update)["updated"]


def test_a_float16_run_resumes_bit_for_bit(loaded_in_half, sums, tmp_path):
    def trainer(policy, name, **more):
        made = Trainer(policy, sums, HAPO, SMALL, folder=tmp_path / name, **more)
        if not more:
            made.learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**28)
            made.save()
        return made
    for policy in as_new(loaded_in_half):
        list(trainer(policy, "whole"))
    for policy in as_new(loaded_in_half):
        steps = iter(trainer(policy, "parts"))
        assert next(steps).skipped > 0 and [next(steps).step, next(steps).step] == [2, 3]
        steps.close()
    for policy in as_new(loaded_in_half):
        assert [r.step for r in trainer(policy, "parts", resume=True)] == [3, 4, 5, 6]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert b'"scale": ' in contents(tmp_path / "parts")[-1][-1]


# KL ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kl_of_a_fresh_policy_is_zero_in_every_dtype(dtype, sums):
    policy = loaded_in(dtype)
    assert Learner(policy, HAPO, CONFIG, Sampling()).kl_to_base(sampled(policy, sums, problems=8)) == 0


def test_the_kl_is_of_the_policy_that_sampled(fresh, sums):
    first, second = Trainer(fresh, sums, HAPO, replace(SMALL, steps=2, eval_every=1, eval_samples=1, learning_rate=0.05))
    assert first.kl == 0 and first.updated and second.kl > 1e-4


def test_the_kl_is_k3_of_plain_log_probabilities(fresh, sums):
    groups, d = sampled(moved(fresh), sums), []
    for g in groups:
        for r in g.sampled:
            logp = log_softmax_of(fresh, g, r)
            with fresh.model.disable_adapter():
                d.append((log_softmax_of(fresh, g, r) - logp).gather(1, torch.tensor(r.ids)[:, None]).detach())
    expected = torch.cat(d).expm1().sub(torch.cat(d)).mean().item()
    assert Learner(fresh, HAPO, CONFIG, Sampling()).kl_to_base(groups) == pytest.approx(expected, rel=1e-3)


def test_no_pass_exceeds_the_token_budget_unless_one_completion_does(fresh, sums):
    groups, passes, results = taught(HAPO, sampled(fresh, sums)), [], []
    hook = fresh.model.get_base_model().base_model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    longest = max(len(prompt_ids(fresh, g.problem)) + len(r.ids) for g in groups for r in (*g.sampled, *g.rollouts))
    for budget in (1, longest + 30, 10_000):
        learner = Learner(moved(fresh), HAPO, replace(CONFIG, token_budget=budget), Sampling())
        passes.clear()
        results.append((learner.kl_to_base(groups), learner.update(groups, 0.0)["loss"]))
        assert max(passes) <= max(budget, longest)
    hook.remove()
    assert results[0] == pytest.approx(results[2], rel=1e-3) and results[1] == pytest.approx(results[2], rel=1e-3)
    assert len(passes) == 4  # two of the KL, one of the teacher's rollouts, one of the student's


# minibatches --------------------------------------------------------------------------------------------------------


def test_each_minibatch_is_an_optimizer_step_on_its_own_prompts(fresh, sums):
    groups, config = taught(HAPO, sampled(moved(fresh), sums, problems=5)), replace(CONFIG, minibatches=2)
    figures, (first, second) = gradients_of(Learner(fresh, HAPO, config, Sampling()), groups)
    for part, seen in ((groups[:2], first), (groups[2:], second)):
        _, (alone,) = gradients_of(Learner(fresh, HAPO, CONFIG, Sampling()), part)
        for a, b in zip(alone, seen, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-7)
    whole, _ = gradients_of(Learner(fresh, HAPO, CONFIG, Sampling()), groups)
    assert figures["tokens_trained"] == whole["tokens_trained"] and figures["entropy"] == pytest.approx(whole["entropy"])
    assert figures["teacher_logp"] == pytest.approx(whole["teacher_logp"])


def test_a_minibatch_is_compared_with_the_policy_that_sampled(fresh, sums):
    """Its ratio is not 1 once another one has moved the policy; of a batch in one piece it is."""
    groups, narrow = taught(GRPO, sampled(moved(fresh), sums)), replace(GRPO, eps_low=1e-6, eps_high=1e-6)
    clipped = [Learner(fresh, narrow, replace(CONFIG, minibatches=n), Sampling()).update(groups, 1e-3)["clip_fraction"]
               for n in (1, 2)]
    assert clipped[0] == 0 and clipped[1] > 0.1


def test_more_minibatches_than_prompts_are_one_each(fresh, sums):
    groups = taught(HAPO, sampled(moved(fresh), sums, problems=2))
    _, seen = gradients_of(Learner(fresh, HAPO, replace(CONFIG, minibatches=9), Sampling()), groups)
    assert len(seen) == 2


# what an engine did not say ----------------------------------------------------------------------------------------

def without_logps(group, seats):
    rollouts = [replace(r, engine_logps=()) if i in seats else r for i, r in enumerate(group.rollouts)]
    return replace(group, rollouts=tuple(rollouts))


def test_missing_log_probs_are_no_zeros(fresh, sums):
    groups = taught(HAPO, sampled(moved(fresh), sums))
    learner = Learner(fresh, HAPO, CONFIG, Sampling())
    known, some, none = (learner.update([without_logps(g, seats) for g in groups], 0.0) for seats in ((), (0,), range(4)))
    for found in (some, none):
        assert found["grad_norm"] == pytest.approx(known["grad_norm"], rel=1e-3)
        assert found["loss"] == pytest.approx(known["loss"], rel=1e-3)
    assert (known["without_engine_logp"], some["without_engine_logp"], none["without_engine_logp"]) == (0, 4, 12)
    assert known["engine_gap"] < 1e-4 and some["engine_gap_max"] < 1e-3 and none["engine_gap"] is None


def test_log_probs_for_some_of_the_tokens_are_refused_by_name(fresh, sums):
    groups = taught(GRPO, sampled(fresh, sums))
    torn = replace(groups[1], rollouts=(replace(groups[1].rollouts[0], engine_logps=(-1.0,)), *groups[1].rollouts[1:]))
    with pytest.raises(EngineError, match=f"1 log-probabilities for the .* tokens .* problem '.*{groups[1].problem.key[-3:]}"):
        Learner(fresh, GRPO, CONFIG, Sampling()).update([groups[0], torn], 0.0)


# divisors and bonus ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_imitation_does_not_depend_on_the_students(group_of, aggregation):
    method, weights = replace(SFT, aggregation=aggregation), []
    for students, length in ((3, 24), (3, 240), (7, 24)):
        group = group_of([0] * students)
        group = replace(group, rollouts=tuple(replace(r, ids=(5,) * length, engine_logps=()) for r in group.rollouts))
        batch = Batch.of([teach(method, group, TEACHER), teach(method, group, None)], [[1], [1]], method, Sampling(256))
        assert (batch.weights[~batch.teacher] == 0).all()
        weights.append(batch.weights[batch.teacher][:, :4])
    assert weights[0].shape == (1, 4) and (weights[0] == (1 / 256 if aggregation in ("dr_grpo", "luffy") else 1 / 4)).all()
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def log_softmax_of(policy, group, rollout):
    """(tokens, vocabulary)"""
    prompt = prompt_ids(policy, group.problem)
    logits = policy.model(input_ids=torch.tensor([prompt + list(rollout.ids)])).logits[0]
    return logits[len(prompt) - 1:-1].float().log_softmax(-1)


@pytest.mark.parametrize("method", [replace(LUFFY, entropy_bonus=0.5), replace(SFT, entropy_bonus=0.5)], ids=["LUFFY", "SFT"])
def test_the_loss_is_less_the_bonus_times_the_tokens_mean_entropy(fresh, sums, method):
    """By hand: -(1/L) sum A F - 0.5 mean H, over the demonstrations' tokens alone where the method imitates."""
    groups, limit = taught(method, sampled(moved(fresh), sums, problems=2, n=3)), 32
    figures, (found,) = gradients_of(Learner(fresh, method, CONFIG, Sampling(limit)), groups)
    objective, entropies, teachers = 0, [], sum(len(TEACHER.ids) for _ in groups)
    for g in groups:
        for r, a in zip(g.rollouts, g.advantages.tolist(), strict=True):
            table = log_softmax_of(fresh, g, r)
            logp = table.gather(1, torch.tensor(r.ids)[:, None])
            f = method.shaping(logp) if r.teacher else (logp - logp.detach()).exp()
            objective = objective + a * f.sum() / (teachers if method.imitation else limit)
            if r.teacher or not method.imitation:
                entropies.append(-(table.exp() * table).sum(1))
    loss = -objective - 0.5 * torch.cat(entropies).mean()
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for a, b in zip(torch.autograd.grad(loss, fresh.trainable()), found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3 * a.abs().max().item())


def test_a_rollout_alone_has_nothing_to_be_compared_with(fresh, sums):
    """The teacher has the other seat, and the student is compared with students."""
    record, = Trainer(fresh, sums, replace(LUFFY, compared="students"), replace(SMALL, steps=1, group_size=2))
    assert record.trials == (1, 1) and [student for student, _ in record.advantages] == [0, 0]


def test_without_demonstrations_luffy_is_a_group_of_students(fresh, sums):
    task = replace(sums, train=tuple(replace(p, demonstration=None) for p in sums.train))
    record, = Trainer(fresh, task, LUFFY, replace(SMALL, steps=1, group_size=2))
    assert record.advantages == ((0.0, 0.0), (0.0, 0.0)) and record.without_demonstration == 2


# intervals ---------------------------------------------------------------------------------------------------------

def evaluation(*rewards):
    """An evaluation with these rewards, a list a problem."""
    return Evaluation((None,) * len(rewards), tuple(tuple(Rollout((), "", float(r)) for r in row) for row in rewards))


@pytest.mark.parametrize("rewards, low, high", [
    ([0, 0], 0, 0.0881), ([1, 1], 0.9119, 1), ([0, 1], 0.3380, 0.6620), ([0, 0, 1], 0.1925, 0.4999)])
def test_where_all_problems_have_one_rate_the_interval_is_clopper_and_pearsons(rewards, low, high):
    assert evaluation(*[rewards] * 40).interval() == pytest.approx((low, high), abs=1e-4)


def test_where_problems_differ_they_are_resampled():
    low, high = evaluation(*[[0, 0]] * 20, *[[1, 1]] * 20).interval()
    assert low == pytest.approx(0.5 - 1.96 * (0.25 / 40) ** 0.5, abs=0.02) and high == pytest.approx(1 - low, abs=0.02)

"""The methods that HAPO is compared with: what each makes of groups that were reckoned by hand."""

import itertools
import json
from dataclasses import replace
from math import isfinite, log

import pytest
import torch
from conftest import teach_alone
from test_durable import SMALL, contents
from test_learner import CONFIG, moved, sampled, taught

from hapo_lab.baselines import (
    ALWAYS,
    AMPO,
    CHORD,
    CHORD_PHI,
    DAPO,
    DR_GRPO,
    GSPO,
    HARD,
    HPT,
    LUFFY_MATCHED,
    METHODS,
    RELIFT,
    RLOO,
    SFT_THEN_GRPO,
)
from hapo_lab.engines.protocol import Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.gates import AlwaysGate, HardGate
from hapo_lab.loss import group_advantages, hapo_loss, k3
from hapo_lab.methods import GRPO, HAPO, LUFFY, SFT, Decay, Method, judge, teach
from hapo_lab.policy.models import load_policy
from hapo_lab.reproducibility.catalogue import method_described, method_from
from hapo_lab.runs.log import RunLog
from hapo_lab.ssi import extra_seat, several_seats
from hapo_lab.tasks.builtin import load_task
from hapo_lab.tasks.problem import Verdict, with_demonstrations
from hapo_lab.training.learner import Learner
from hapo_lab.training.rebuilding import resume
from hapo_lab.training.trainer import Trainer


class WholeCompletions:
    """An engine whose completions count as finished: one that is cut at the limit would score 0."""

    def __init__(self, engine):
        self.engine, self.name, self.sync, self.sleep = engine, engine.name, engine.sync, engine.sleep

    def generate(self, *how):
        return [[replace(c, finished=True) for c in group] for group in self.engine.generate(*how)]


NO_TEACHER = torch.zeros(4, dtype=torch.bool)
ONE_RIGHT = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)


def losses(method, logp, old_logp, advantages, teacher=None, base_logp=None, max_length=10):
    """The loss and its gradient in logp, of sequences without padding."""
    logp = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    mask, teacher = torch.ones(logp.shape, dtype=torch.bool), torch.tensor(teacher or [False] * len(logp))
    old_logp, advantages = (torch.tensor(x, dtype=torch.float64) for x in (old_logp, advantages))
    loss, _ = hapo_loss(logp, old_logp, advantages, teacher,
                        mask, shaping=method.shaping, eps_low=method.eps_low, eps_high=method.eps_high,
                        weights=method.weights(mask, teacher, max_length), sequence_ratio=method.sequence_ratio, kl=method.kl,
                        base_logp=None if base_logp is None else torch.tensor(base_logp, dtype=torch.float64))
    loss.backward()
    return loss.item(), logp.grad


# without a teacher -------------------------------------------------------------------------------------------------


def test_rloo_compares_each_rollout_with_the_mean_of_the_others():
    assert RLOO.advantages(ONE_RIGHT, NO_TEACHER).tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_rloo_is_not_clipped():
    _, gradient = losses(RLOO, [[log(0.9)], [log(0.1)]], [[log(0.1)], [log(0.9)]], [1.0, -1.0])
    assert gradient[:, 0].tolist() == pytest.approx([-9 / 20, 1 / 9 / 20])  # -rho A / (B max_length)


def test_dr_grpo_divides_by_no_std_and_by_no_length():
    assert DR_GRPO.advantages(ONE_RIGHT, NO_TEACHER).tolist() == [0.75, -0.25, -0.25, -0.25]
    weights = DR_GRPO.weights(torch.tensor([[True, True], [True, False]]), torch.zeros(2, dtype=torch.bool), max_length=10)
    assert weights.tolist() == [[0.05, 0.05], [0.05, 0]]


def test_gspo_clips_a_sequences_ratio_and_not_a_tokens():
    """Token ratios 2 and 1/2 make a sequence ratio of 1: it is not clipped, though either token's is far outside."""
    loss, gradient = losses(GSPO, [[log(0.4), log(0.2)]], [[log(0.2), log(0.4)]], [1.0])
    assert loss == pytest.approx(-1) and gradient[0].tolist() == pytest.approx([-0.5, -0.5])


@pytest.mark.parametrize(("ratio", "advantage", "moves"), [(1.0003, 1, True), (1.0005, 1, False), (1.0005, -1, True),
                                                           (0.9998, -1, True), (0.9996, -1, False), (0.9996, 1, True)])
def test_gspos_clip_is_its_papers(ratio, advantage, moves):
    _, gradient = losses(GSPO, [[log(0.5 * ratio), log(0.5 * ratio)]], [[log(0.5)] * 2], [float(advantage)])
    assert gradient[0].tolist() == pytest.approx([-advantage * ratio / 2 if moves else 0] * 2)


def test_dapo_clips_higher():
    """An action that became likelier by 1.25 may go on; by 1.3 it may not."""
    for ratio, slope in ((1.25, -1.25), (1.3, 0), (0.79, -0.79)):
        assert losses(DAPO, [[log(0.3 * ratio)]], [[log(0.3)]], [1.0])[1].item() == pytest.approx(slope)


@pytest.mark.parametrize(("length", "reward"), [(10, 1), (16, 1), (18, 0.75), (20, 0.5)])
def test_dapo_takes_up_to_a_half_from_a_reward_in_the_limits_last_fifth(group_of, length, reward):
    group = group_of([1, 0, 0, 0])
    long = replace(group.rollouts[0], ids=(5,) * length)
    group = replace(group, rollouts=(long, *group.rollouts[1:]))
    expected = group_advantages(torch.tensor([reward, 0, 0, 0], dtype=torch.float64))
    assert torch.allclose(teach(DAPO, group, None, max_length=20).advantages, expected)
    with pytest.raises(ValueError, match="'DAPO' shapes rewards by length: pass max_length"):
        teach(DAPO, group, None)


def test_the_kl_penalty_pulls_a_student_back_to_the_base():
    """Probability .4 under the policy, .2 under the base: k3's slope is 1 - p_base / p = 1/2, times the coefficient."""
    method = replace(GRPO, kl=0.1)
    loss, gradient = losses(method, [[log(0.4)]], [[log(0.4)]], [0.0], base_logp=[[log(0.2)]])
    assert gradient.item() == pytest.approx(0.1 * (1 - 0.5))
    assert loss == pytest.approx(0.1 * (0.5 - log(0.5) - 1))
    with pytest.raises(ValueError, match="a KL penalty needs the base's log-probabilities"):
        losses(method, [[log(0.4)]], [[log(0.4)]], [0.0])


def test_the_kl_penalty_leaves_the_teacher_alone():
    with_kl, without = (losses(replace(HAPO, kl=kl), [[log(0.1)]], [[0.0]], [1.0], teacher=[True], base_logp=[[-5.0]])
                        for kl in (0.5, 0.0))
    assert with_kl[0] == without[0] and torch.equal(with_kl[1], without[1])


def test_a_lost_token_has_a_finite_kl():
    assert k3(torch.tensor(-800.0), torch.tensor(-1.0)).isfinite()


# with a teacher ----------------------------------------------------------------------------------------------------


def test_luffy_on_hapos_conventions_differs_from_hapo_in_the_gate_and_the_seat_alone():
    assert replace(LUFFY_MATCHED, name="HAPO", gate=HAPO.gate, teacher_seats=0) == HAPO


def test_always_and_hard_are_hapo_with_another_gate():
    assert [replace(m, name="HAPO", gate=HAPO.gate) for m in (ALWAYS, HARD)] == [HAPO, HAPO]
    assert (ALWAYS.gate, HARD.gate) == (AlwaysGate(), HardGate())


def test_sft_then_grpo_changes_over_in_the_middle():
    assert [SFT_THEN_GRPO.at(progress).name for progress in (0, 0.49, 0.5, 1)] == ["SFT, then GRPO"] * 2 + ["GRPO"] * 2
    assert replace(SFT_THEN_GRPO, name="SFT", until=1.0, then=None) == SFT


def test_an_extra_seat_keeps_every_rollout(group_of, demonstration):
    method = replace(HAPO, seat="extra")
    after = teach_alone(method, group_of([1, 1, 0, 0]), demonstration)
    assert after.replaced == 4 and after.removed is None and len(after.sampled) == 4 and after.successes == 2
    assert after.teacher_mask.tolist() == [False] * 4 + [True]
    assert torch.equal(after.advantages, group_advantages(torch.tensor([1.0, 1, 0, 0, 1], dtype=torch.float64)))


def test_an_extra_seat_does_not_erase_the_last_failure(group_of, demonstration):
    group = group_of([1, 1, 1, 0])
    gate = HAPO.gate  # S = 3 of 4: c = 4/6 < 0.8
    assert not teach_alone(replace(HAPO, gate=gate), group, demonstration).advantages.any()
    assert teach_alone(replace(HAPO, gate=gate, seat="extra"), group, demonstration).advantages.all()


def test_an_extra_seat_takes_verified_demonstrations_only(group_of, demonstration):
    with pytest.raises(ValueError, match="not a verified success"):
        extra_seat(group_of([0, 0]), replace(demonstration, reward=0.0))


def test_students_compared_among_themselves_keep_their_own_advantages(group_of, demonstration):
    method = replace(HAPO, seat="extra", compared="students", scale="none")
    after = teach_alone(method, group_of([1, 0, 0, 0]), demonstration)
    assert after.advantages.tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25, 1 - 2 / 5])


@pytest.mark.parametrize(("change", "words"), [
    ({"seat": "beside"}, "seat is 'beside'; choose one of replace, extra, alone, aside"),
    ({"compared": "all"}, "compared is 'all'; choose one of group, students"),
    ({"teachers": 2, "seat": "extra"}, "2 teachers; it must be at least 1, and with seat 'extra' no more"),
    ({"seat": "aside"}, "go together"), ({"aside": 3}, "go together")])
def test_a_method_that_means_nothing_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Method("mine", **change)


def test_hpt_imitates_where_all_failed_and_reinforces_elsewhere(group_of, demonstration):
    failed, mixed = (teach_alone(HPT, group_of(rewards), demonstration) for rewards in ([0, 0, 0, 0], [1, 0, 0, 0]))
    assert failed.advantages.tolist() == [0, 0, 0, 0, 1] and failed.teacher_mask.tolist() == [False] * 4 + [True]
    assert mixed.advantages.tolist() == [0.75, -0.25, -0.25, -0.25] and not mixed.teacher_mask.any()


def test_hpts_two_losses_have_divisors_of_their_own():
    """Students' tokens over the limit, as in LUFFY; demonstrations' over their number; a failed group's students none."""
    tokens = torch.ones(5, 2, dtype=torch.bool)
    teacher, group = torch.tensor([False, False, True, False, False]), torch.tensor([0, 0, 0, 1, 1])
    weights = HPT.weights(tokens, teacher, max_length=10, group_index=group)
    assert weights.tolist() == [[0, 0], [0, 0], [0.5, 0.5], [0.1, 0.1], [0.1, 0.1]]
    assert (HPT.scale, HPT.eps_low, HPT.entropy_bonus) == (LUFFY.scale, LUFFY.eps_low, LUFFY.entropy_bonus)


def test_chords_mu_falls_and_weighs_the_two_sides(group_of, demonstration):
    assert [CHORD.at(progress).mu for progress in (0, 0.5, 1)] == pytest.approx([0.9, 0.475, 0.05])
    half = CHORD.at(0.5)
    after = teach_alone(replace(half, scale="none"), group_of([1, 0, 0, 0]), demonstration)
    assert after.advantages.tolist() == [0.75, -0.25, -0.25, -0.25, 1]  # the students', as if no teacher were there
    weights = half.weights(torch.ones(5, 2, dtype=torch.bool), after.teacher_mask, max_length=10)
    assert weights[:4].sum().item() == pytest.approx(1 - 0.475) and weights[4].tolist() == pytest.approx([0.475 / 2] * 2)


@pytest.mark.parametrize(("p", "slope"), [(0.5, 0.25), (0.9, 0.09), (0.001, 0.000999)])
def test_chord_phi_hears_undecided_tokens_best(p, slope):
    _, gradient = losses(CHORD_PHI, [[log(p)]], [[0.0]], [1.0], teacher=[True])
    assert gradient.item() == pytest.approx(-0.1 * slope)


def test_a_decay_is_of_the_run_and_not_of_the_step():
    decay = Decay(1.0, 0.2)
    assert decay(0) == 1 and decay(1) == pytest.approx(0.2) and decay(2) == pytest.approx(0.2)
    assert decay(0.25) == pytest.approx(0.2 + 0.8 * (1 + 2 ** -0.5) / 2)
    with pytest.raises(ValueError, match="both must be above 0"):
        Decay(0.9, 0.0)  # an extended run would go on without its imitation's own token mean


def test_ampo_gives_two_failures_seats_to_two_teachers_where_all_failed(group_of, demonstration):
    other = replace(demonstration, text="It is 56", ids=(9, 56, 2))
    (judged,), _ = judge(AMPO.gate, [group_of([0, 0, 0, 0])], {}, [0.5])
    after = teach(AMPO, judged, demonstration, others=[other, demonstration])
    assert after.teacher_mask.tolist() == [True, True, False, False] and after.rollouts[1].text == "It is 56"
    assert after.advantages.tolist() == [0.5, 0.5, -0.5, -0.5]
    assert after.sampled == judged.rollouts and after.successes == 0
    (mixed,), _ = judge(AMPO.gate, [group_of([1, 0, 0, 0])], {}, [0.5])
    assert not teach(AMPO, mixed, demonstration, others=[other]).teacher_mask.any()


def test_several_teachers_take_no_success_away(group_of, demonstration):
    after = several_seats(group_of([1, 0, 1]), [demonstration] * 3)
    assert after.teacher_mask.tolist() == [False, True, False] and len(after.sampled) == 3


def test_ampo_needs_several_demonstrations(fresh, sums):
    with pytest.raises(ValueError, match="AMPO takes several demonstrations per problem; task 'sums' has one at most"):
        Trainer(fresh, sums, AMPO, SMALL)
    record, = Trainer(fresh, load_task("sums_teachers"), AMPO, replace(SMALL, steps=1))
    assert record.teacher_samples == 4 and record.successes == (0, 0) and record.reward == 0


def test_what_several_teachers_replaced_is_in_the_log(fresh, tmp_path):
    trainer = Trainer(fresh, load_task("sums_teachers"), AMPO, replace(SMALL, steps=1), folder=tmp_path)
    list(trainer)
    for group in RunLog.load(tmp_path).groups_of(1):
        assert len(group.sampled) == 4 and not any(r.teacher for r in group.sampled) and len(group.more) == 1


# in training -------------------------------------------------------------------------------------------------------


def test_where_demonstrations_are_few_sft_asks_for_what_has_one(fresh, sums):
    few = with_demonstrations(sums, 0.1)
    shown = {p.key for p in few.train if p.demonstration}
    records = list(Trainer(fresh, few, SFT_THEN_GRPO, replace(SMALL, steps=4)))
    assert all(set(record.problems) <= shown and record.teacher_samples == 2 for record in records[:2])
    assert [p.key for p in Trainer(fresh, few, GRPO, SMALL).problems(3)] == list(records[2].problems)
    assert len(shown) == round(0.1 * len(sums.train)) and not set(records[2].problems) <= shown


def test_where_a_problem_has_no_demonstration_luffy_samples_a_whole_group(fresh, sums):
    few = with_demonstrations(sums, 0.5)
    shown = {p.key for p in few.train if p.demonstration}
    records = list(Trainer(fresh, few, METHODS["luffy_matched"], SMALL))
    seen = [(key in shown, trials) for record in records for key, trials in zip(record.problems, record.trials, strict=True)]
    assert set(seen) == {(True, SMALL.group_size - 1), (False, SMALL.group_size)}
    assert [r.teacher_samples for r in records] == [sum(key in shown for key in r.problems) for r in records]


def test_relift_learns_apart_as_soon_as_enough_demonstrations_wait(fresh, sums):
    """Both prompts of each step fail whole; with three to an update, one waits for longer."""
    trainer = Trainer(fresh, sums, replace(RELIFT, aside=1.5), replace(SMALL, steps=4))
    problems = []
    waiting = []
    taught = []
    for record in trainer:
        problems += record.problems
        waiting.append(len(trainer.waiting))
        taught.append(record.teacher_samples)
    assert (waiting, taught) == ([2, 1, 0, 2], [0, 3, 3, 0])
    assert [record.updated for record in trainer.log.steps] == [False, True, True, False]
    assert not any(record.injected != (False, False) for record in trainer.log.steps)
    assert {sums.train[i].key for i in trainer.waiting} == set(problems[-2:])


def test_what_waits_survives_a_stop(fresh, sums, tmp_path):
    method = replace(RELIFT, aside=2.5)
    whole, halted = (Trainer(load_policy("tiny"), sums, method, SMALL, folder=tmp_path / name) for name in ("whole", "halted"))
    list(whole)
    for record in halted:
        if record.step == 2:
            halted.stop()
    assert len(resume(tmp_path / "halted").waiting) == 4
    list(resume(tmp_path / "halted"))
    assert contents(tmp_path / "whole") == contents(tmp_path / "halted")


def test_dynamic_sampling_draws_again_and_counts_what_it_throws_away(fresh, sums):
    """The verifier accepts every second rollout of every second group, and no other."""
    drawn = itertools.count()

    def verify(problem, completion):
        if completion == problem.demonstration:
            return Verdict(True, "")
        number = next(drawn)
        return Verdict(number // 4 % 2 == 1 and number % 2 == 0, "")

    task = replace(sums, verify=verify)
    record, = Trainer(fresh, task, replace(DAPO, overlong=0), replace(SMALL, steps=1),
                      engine=WholeCompletions(TransformersEngine(fresh)))
    assert record.successes == (2, 2) and record.thrown_away == 2 and record.dead_before == 0
    assert record.reward == pytest.approx(4 / 16)


def test_dynamic_sampling_gives_up_at_its_limit(fresh, sums):
    record, = Trainer(fresh, sums, replace(DAPO, redraws=2), replace(SMALL, steps=1))
    assert record.thrown_away == 4 and record.successes == (0, 0) and not record.updated
    assert record.tokens_sampled > 3 * 2 * 4


def test_a_kl_penalty_trains_dead_groups_too(fresh, sums):
    moved(fresh)
    groups = taught(replace(GRPO, kl=0.5), [replace(g, rollouts=tuple(replace(r, reward=0.0) for r in g.rollouts))
                                            for g in sampled(fresh, sums, problems=2)])
    learner = Learner(fresh, replace(GRPO, kl=0.5), CONFIG, Sampling(32))
    expected = learner.kl_to_base(groups)
    figures = learner.update(groups, 0.0)
    assert figures["updated"] and figures["loss"] == pytest.approx(0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_can_be_rebuilt(fresh, sums, name):
    method = METHODS[name]
    assert method_from(json.loads(json.dumps(method_described(method)))) == method
    task = load_task("sums_teachers") if method.teachers > 1 else sums
    records = list(Trainer(fresh, task, method, replace(SMALL, steps=2)))
    assert all(record.loss is None or isfinite(record.loss) for record in records)


def test_the_methods_names_are_different():
    assert len({method.name for method in METHODS.values()}) == len(METHODS)

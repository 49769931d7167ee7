"""Synthetic Success Injection: one seat changes hands, and nothing else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hapo_lab.ssi import Rollout, synthetic_success_injection

any_rewards = st.lists(st.sampled_from([0., 1.]), min_size=2, max_size=16)


@given(rewards=any_rewards)
def test_the_first_of_the_lowest_is_replaced(group_of, demonstration, rewards):
    after = synthetic_success_injection(group_of(rewards), demonstration)
    assert after.replaced == rewards.index(min(rewards))
    assert after.teacher_mask.tolist() == [seat == after.replaced for seat in range(len(rewards))]


@given(rewards=any_rewards)
def test_all_other_rollouts_stay_as_they_were(group_of, demonstration, rewards):
    before = group_of(rewards)
    after = synthetic_success_injection(before, demonstration)
    kept = [seat for seat in range(len(rewards)) if seat != after.replaced]
    assert [after.rollouts[seat] for seat in kept] == [before.rollouts[seat] for seat in kept]
    assert after.removed == before.rollouts[after.replaced]
    assert after.rollouts[after.replaced] == replace(demonstration, teacher=True)


@given(rewards=any_rewards)
def test_what_the_student_did_is_not_rewritten(group_of, demonstration, rewards):
    before = group_of(rewards)
    after = synthetic_success_injection(before, demonstration)
    assert after.sampled == before.sampled == before.rollouts
    assert after.successes == before.successes == sum(rewards)


def test_the_groups_statistics_see_the_teachers_reward(group_of, demonstration):
    after = synthetic_success_injection(group_of([1., 0., 0., 1.]), demonstration)
    assert after.rewards.tolist() == [1., 1., 0., 1.] and after.rewards.dtype == torch.float64


def test_the_old_group_and_the_demonstration_are_untouched(group_of, demonstration):
    before = group_of([1., 0., 0.])
    synthetic_success_injection(before, demonstration)
    assert before == group_of([1., 0., 0.]) and before.replaced == -1 and not demonstration.teacher


def test_the_gates_word_is_kept_and_stale_advantages_are_dropped(group_of, demonstration):
    before = replace(group_of([0., 0.]), decision=True, posterior="a posterior", advantages=torch.zeros(2))
    after = synthetic_success_injection(before, demonstration)
    assert (after.problem, after.decision, after.posterior) == (before.problem, True, "a posterior")
    assert after.advantages is None


def test_a_demonstration_that_failed_its_verifier_is_refused_with_the_reason(group_of, demonstration):
    with pytest.raises(ValueError, match="'7 times 8 is 56.*not a verified success.*it says 54"):
        synthetic_success_injection(group_of([0., 0.]), replace(demonstration, reward=0., reason="it says 54"))


def test_a_demonstration_without_tokens_is_refused(group_of, demonstration):
    with pytest.raises(ValueError, match="demonstration"):
        synthetic_success_injection(group_of([0., 0.]), replace(demonstration, ids=()))


def test_a_second_injection_is_refused(group_of, demonstration):
    once = synthetic_success_injection(group_of([1., 0., 0.]), demonstration)
    with pytest.raises(ValueError, match="seat 1 .* already"):
        synthetic_success_injection(once, demonstration)


@pytest.mark.parametrize("reward", [.5, -1., 2., float("nan")])
def test_a_reward_other_than_zero_or_one_is_refused(reward):
    with pytest.raises(ValueError, match="'a completion'.*rewards are 0 or 1"):
        Rollout(ids=(1,), text="a completion", reward=reward)


@pytest.mark.parametrize(("rewards", "dead"), [([0., 0., 0.], True), ([1., 1., 1.], True), ([0., 1., 0.], False)])
def test_a_group_of_equal_rewards_is_dead(group_of, rewards, dead):
    assert group_of(rewards).dead is dead


def test_injection_revives_a_failed_group_and_kills_one_with_a_single_failure(group_of, demonstration):
    assert not synthetic_success_injection(group_of([0., 0., 0.]), demonstration).dead
    assert synthetic_success_injection(group_of([1., 0., 1.]), demonstration).dead

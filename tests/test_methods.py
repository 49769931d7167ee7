"""Methods as data: what each of them makes of one group."""

from dataclasses import replace

import pytest
import torch
from conftest import teach_alone

from hapo_lab.baselines import METHODS
from hapo_lab.gate import BetaGate
from hapo_lab.gates import RunningGate
from hapo_lab.loss import group_advantages
from hapo_lab.methods import GRPO, HAPO, LUFFY, SFT
from hapo_lab.reproducibility.catalogue import get_gate, get_method


def rewards_of(successes, n=8):
    return [1.] * successes + [0.] * (n - successes)


@pytest.mark.parametrize("s", range(9))
def test_grpo_never_shows_the_teacher(group_of, demonstration, s):
    before = group_of(rewards_of(s))
    after = teach_alone(GRPO, before, demonstration)
    assert after.rollouts == before.rollouts and after.replaced == -1 and after.decision is False
    assert torch.equal(after.advantages, group_advantages(before.rewards))


@pytest.mark.parametrize("s", range(8))
def test_luffy_adds_the_teacher_to_every_seven(group_of, demonstration, s):
    before = group_of(rewards_of(s, 7))
    after = teach_alone(LUFFY, before, demonstration)
    assert after.teacher_mask.tolist() == [False] * 7 + [True]
    assert after.rollouts[:7] == after.sampled == before.rollouts
    assert after.replaced == -1 and after.successes == s
    assert after.advantages[7].item() == pytest.approx((7 - s) / 8)


@pytest.mark.parametrize("s", range(9))
def test_hapo_replaces_one_failure_up_to_six_of_eight(group_of, demonstration, s):
    before = group_of(rewards_of(s))
    after = teach_alone(HAPO, before, demonstration)
    injects = s <= 6
    assert after.decision is injects
    assert after.replaced == (s if injects else -1)  # the first failure's seat
    assert int(after.teacher_mask.sum()) == injects and len(after.rollouts) == 8
    assert after.rewards.sum().item() == s + injects
    assert torch.equal(after.advantages, group_advantages(after.rewards))


@pytest.mark.parametrize("s", range(9))
def test_the_posterior_comes_from_the_sampled_rollouts_alone(group_of, demonstration, s):
    after = teach_alone(HAPO, group_of(rewards_of(s)), demonstration)
    assert (after.posterior.alpha.item(), after.posterior.beta.item()) == (1 + s, 1 + 8 - s)
    assert after.posterior.alpha.shape == ()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_without_a_demonstration_the_group_is_left_alone_but_judged(group_of, method):
    before = group_of(rewards_of(2))
    after = teach_alone(replace(method, overlong=0), before, None)
    assert after.rollouts == before.rollouts and after.replaced == -1 and not after.teacher_mask.any()
    assert after.posterior.alpha == 3 and after.decision is bool(method.gate.chances({}, "", 8)[2])
    assert torch.equal(after.advantages, method.advantages(before.rewards, before.teacher_mask))


def test_sft_pulls_towards_the_teacher_only(group_of, demonstration):
    after = teach_alone(SFT, group_of(rewards_of(3)), demonstration)
    assert after.advantages.tolist() == [0.] * 8 + [1.]


def test_a_part_of_a_method_is_swapped_by_replacing_it(group_of, demonstration):
    stricter = replace(HAPO, gate=BetaGate(threshold=.5))
    decisions = [teach_alone(stricter, group_of(rewards_of(s)), demonstration).decision for s in range(9)]
    assert decisions == [True] * 4 + [False] * 5


def test_grpo_is_hapo_with_the_gate_never_open():
    assert replace(HAPO, name="GRPO", gate=GRPO.gate) == GRPO


def test_methods_are_found_by_name():
    assert get_method("hapo") is HAPO


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown method 'ppo'; choose one of hapo, grpo, luffy, sft, "):
        get_method("ppo")


def test_gates_are_found_by_name_with_their_numbers():
    assert get_gate("beta", threshold=.5) == BetaGate(threshold=.5) and type(get_gate("running")) is RunningGate
    with pytest.raises(ValueError, match="unknown gate 'coin'; choose one of beta, always, never, hard, thompson, by-step, "):
        get_gate("coin")
    with pytest.raises(ValueError, match="the gate 'hard' has no threshold: leave it out"):
        get_gate("hard", threshold=.5)

"""The methods that HAPO is compared with, as data.

Each follows its released code where there is some, else its paper; a docstring says which, and the differences of this kit. The
kit's own conventions are HAPO's: std, token mean over the batch, clip 0.2, no KL, no entropy bonus.

With one optimizer step per batch (`inner_epochs` and `minibatches` 1 in `Config`) every student's ratio is 1 when its gradient
is computed, so no clip acts. Methods that differ in clip or ratio alone (DAPO's clip-higher, GSPO) then differ from GRPO in
what remains: aggregation, sampling, rewards.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from hapo_lab.gates import AlwaysGate, HardGate, NeverGate, SuccessAnnealedGate
from hapo_lab.loss import log_probability, uncertain
from hapo_lab.methods import GRPO, HAPO, LUFFY, SFT, Decay, Method

# without a teacher -------------------------------------------------------------------------------------------------

DR_GRPO = Method("Dr. GRPO", scale="none", aggregation="dr_grpo")
"""No std and a constant length divisor (arXiv 2503.20783; TRL's loss_type "dr_grpo")."""

DAPO = Method("DAPO", eps_high=0.28, overlong=0.2, redraws=9)
"""Clip-higher, token mean, soft overlong punishment over the last 4,096 of 20,480 tokens, dynamic sampling with at most 10
batches a step (arXiv 2503.14476; verl's recipe). verl stops the run if ten batches do not fill the step; this kit continues
with the mixed groups that it has. Discarded groups count in the sampled tokens.

>>> DAPO.redraws, DAPO.eps_low, DAPO.eps_high
(9, 0.2, 0.28)
"""

GSPO = Method("GSPO", sequence_ratio=True, eps_low=3e-4, eps_high=4e-4, aggregation="grpo")
"""The ratio and its clip are per sequence: the geometric mean of its tokens' ratios (arXiv 2507.18071)."""

RLOO = Method("RLOO", scale="leave_one_out", eps_low=inf, eps_high=inf, aggregation="dr_grpo")
"""REINFORCE with the mean of a prompt's other rollouts as baseline, a completion being one action (arXiv 2402.14740).

The sum over a completion's tokens is divided by the completion limit, a constant, so that its gradients are as large as the
other methods' when they are clipped.
"""

# demonstrations first, or apart ------------------------------------------------------------------------------------

SFT_THEN_GRPO = replace(SFT, name="SFT, then GRPO", until=0.5, then=GRPO)
"""The first half of the steps imitates, the second reinforces, with the same optimizer and schedule: the common recipe."""

HPT = replace(LUFFY, name="HPT", gate=HardGate(), seat="alone", teacher_seats=0, shaping=log_probability)
"""A prompt whose rollouts all failed is only imitated; any other is reinforced (arXiv 2509.04419).

The released script's gate of 0, loss coefficients of 1, and conventions: no std, no clip, students' tokens over the length
limit, demonstrations' tokens in their own mean, entropy bonus 0.001.
"""

RELIFT = Method("ReLIFT", gate=HardGate(), seat="aside", aside=0.5, scale="none", eps_high=0.28, overlong=0.4)
"""Prompts whose rollouts all failed wait in a buffer, newest first; as soon as half a step's prompts wait, their demonstrations
make an update of their own, by maximum likelihood (arXiv 2506.07527; the released script: 64 of 128 prompts, overlong 4,096 of
10,240, clip 0.2 and 0.28). There the two kinds of update have an optimizer each; here they share one."""

CHORD = Method("CHORD-mu", gate=AlwaysGate(), seat="extra", imitation=Decay(0.9, 0.05), shaping=log_probability)
"""(1 - mu) times GRPO's loss plus mu times that of supervised fine-tuning, each in its own token mean; mu falls along half a
cosine from 0.9 to 0.05 (arXiv 2508.11408; Trinity-RFT's example). There demonstrations come from a separate set, one per four
rollouts; here each prompt has its own."""

CHORD_PHI = replace(CHORD, name="CHORD-phi", imitation=0.1, shaping=uncertain)
"""mu stays at 0.1, and a demonstration's token is weighted by p (1 - p)."""

AMPO = Method("AMPO", gate=HardGate(), teachers=2, scale="none", aggregation="luffy", entropy_bonus=0.001)
"""If all rollouts of a prompt failed, two teachers replace two of them (arXiv 2510.02227; its released script).

Its two READMEs disagree about when it injects: the first says "only upon complete on-policy failure", a later one that it does
not wait for that, and keeps about as many right rollouts as wrong. The code that we follow injects where the share of right
rollouts is below 1 / n, which is the former, and then replaces as many failures as there are teachers, two at most. The
script's conventions: no std, clip 0.2, F = p / (p + 0.1), tokens over the length limit, entropy bonus 0.001. It chooses the two
among four by the probability of the answer after each; here a problem's first two are taken. Tasks whose problems have one
demonstration at most are refused.
"""

# HAPO with one part exchanged --------------------------------------------------------------------------------------

LUFFY_MATCHED = replace(HAPO, name="LUFFY, HAPO's conventions", gate=NeverGate(), teacher_seats=1)
"""A teacher in every group, and nothing else changed. This is a control for the gate; LUFFY as released is not.

>>> replace(LUFFY_MATCHED, name="HAPO", gate=HAPO.gate, teacher_seats=0) == HAPO
True
"""

ALWAYS = replace(HAPO, name="always", gate=AlwaysGate())
"""SSI into every group."""

HARD = replace(HAPO, name="hard gate", gate=HardGate())
"""SSI if the whole group failed."""

HAPO_KL = replace(HAPO, name="HAPO with KL", kl=0.04)
"""With DeepSeekMath's KL penalty (arXiv 2402.03300: 0.04)."""

# ours: what the exact theory asks for -----------------------------------------------------------------------------

EXTRA_SEAT = replace(HAPO, name="HAPO, extra seat", seat="extra")
"""The demonstration sits beside the rollouts, so that it never replaces a group's last failure. In groups of 4, at a success
rate of 0.9, the relative bias of the expected update falls from 0.857 to 0.086 (`benchmarks/seats.py`)."""

OWN_STATISTICS = replace(EXTRA_SEAT, name="HAPO, extra seat, own statistics", compared="students")
"""An extra seat, and students who are compared among themselves: their advantages are those without a teacher."""

FALLING_BAR = replace(HAPO, name="HAPO, falling bar", gate=SuccessAnnealedGate())
"""The threshold falls with the student's success."""

METHODS = {"hapo": HAPO, "grpo": GRPO, "luffy": LUFFY, "sft": SFT, "luffy_matched": LUFFY_MATCHED, "always": ALWAYS,
           "hard": HARD, "hapo_kl": HAPO_KL, "dr_grpo": DR_GRPO, "dapo": DAPO, "gspo": GSPO, "rloo": RLOO,
           "sft_grpo": SFT_THEN_GRPO, "hpt": HPT, "relift": RELIFT, "chord": CHORD, "chord_phi": CHORD_PHI, "ampo": AMPO,
           "hapo_extra": EXTRA_SEAT, "hapo_own": OWN_STATISTICS, "hapo_falling": FALLING_BAR}
"""By name, for the command line.

>>> METHODS["sft_grpo"].at(0.7).name
'GRPO'
"""

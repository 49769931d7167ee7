"""The terms and the numbers of the method, each said once: the cheat sheet and docs/glossary.md are made from them.

The page alone has the lessons' other words.

Marks: [A] the paper's abstract, [R] a reader's account of its first version, [V] computed here, [ours] our choice where nothing
is published.
"""

from __future__ import annotations

from hapo_lab.gate import BetaGate
from hapo_lab.methods import HAPO
from hapo_lab.training.config import Config

TERMS = {
    "rollout": "One answer that the policy samples to a prompt. The verifier gives it the reward 1 or 0.",
    "group": "The N rollouts of one prompt in one step. S of them are right.",
    "dead group": "A group of equal rewards: all wrong or all right. Every advantage is 0, so it teaches nothing.",
    "advantage": "A rollout's reward less the mean of its group, divided by the group's standard deviation [R].",
    "advantage collapse": "Most groups fail whole, and the gradient that is left has high variance [A].",
    "demonstration": "The teacher's answer to a prompt, verified: its reward is 1.",
    "injection": "A demonstration enters a group's update.",
    "SSI": "Synthetic Success Injection: a demonstration replaces the group's lowest-reward rollout, and the group's mean and "
           "std are computed anew [R].",
    "gate": "The rule that decides by S whether a group gets a demonstration.",
    "prior": "Beta(a₀, b₀): the belief about a prompt's success probability before its group is seen.",
    "posterior": "Beta(a₀ + S, b₀ + N − S): the belief after the group. Its mean is c [R].",
    "threshold": "γ: the gate injects where c < γ. A tie does not inject [R].",
    "decision ladder": "A lamp for each S from 0 to N: inject or leave. It is all that prior and threshold decide [V].",
    "erased group": "At S = N − 1 an injection takes the only failure. All rewards are 1, and the group teaches nothing [V].",
    "ratio": "ρ = p / p_old: a token's probability under the policy, over that when it was sampled.",
    "clip ratio": "ε: a student's token loses its gradient once ρ leaves 1 ± ε in the direction of its advantage.",
    "shaping": "F(p): stands in the ratio's place for a teacher's token. It is not clipped [R].",
    "success rate": "μ: the probability that the policy answers a prompt right.",
    "injection probability": "P(inject): how often the gate injects at success rate μ. It is a sum over S, exact [V].",
    "relative bias": "The length of what injection adds to the expected update, over that of the update with the gate closed.",
    "asymptotic purity": "As the policy improves, P(inject) goes to 0, and the update becomes the unbiased on-policy "
                         "gradient [R]. Where μ stays 0.9, P(inject) stays 0.187 at N = 8 [V].",
    "Thompson sampling": "Deciding by a draw from the posterior. Algorithm 1 compares the mean and draws nothing [R].",
    "GRPO": "Group Relative Policy Optimization: advantages within a group, no teacher.",
    "LUFFY": "A mixed-policy method: its released recipe puts a demonstration in every group, for good.",
    "held-out success": "Success on problems that no training step used, without a teacher.",
}
"""Term -> its meaning, in one or two sentences."""

LESSONS_WORDS = {
    "policy": "The language model that is trained. Beside a teacher it is the student.",
    "SFT": "Supervised fine-tuning: plain imitation of the demonstrations, also called static teacher forcing.",
    "IQM": "Interquartile mean: the mean of the middle half of the runs.",
    "verifier": "The program that reads a rollout and gives its reward.",
    "live group": "A group that is not dead.",
    "pull": "The gradient of a token's objective in log p: how strongly an update raises or lowers it.",
    "score": "The gradient of a rollout's log-probability.",
    "LoRA adapter": "Two small matrices beside each linear layer. Only they are trained.",
    "NF4": "A number format of 4 bits per weight, in which the model's own weights stay.",
    "entropy": "How undecided the policy is about its next token, in nats.",
    "KL to base": "How far the policy has moved from the model that it started as, in nats per token.",
    "on-policy gradient": "The gradient that the policy's own rollouts alone would give.",
    "visit": "A step at which a prompt comes up. Only gates that remember count visits.",
    "discount": "d: a gate that remembers multiplies what is old by it at each visit.",
    "purity horizon": "The success rate from which on P(inject) stays below 1%.",
    "margin": "By how much another action must succeed more often than the teacher's before the policy leaves the teacher's.",
}
"""The same, for the page alone."""

_CONFIG, _GATE = Config(), BetaGate()

DEFAULTS = [
    ("rollouts per group, N", f"{_CONFIG.group_size}", "[R]"),
    ("prior", f"Beta({_GATE.alpha:g}, {_GATE.beta:g})", "[R]"),
    ("threshold γ", f"{_GATE.threshold:g}, strict", "[R]"),
    ("rewards", "0 or 1", "[A]"),
    ("injections per group", "at most 1", "[R]"),
    ("temperature in training", f"{_CONFIG.temperature:g}", "[R]"),
    ("injects at N = 8", f"up to S = {_GATE.cutoff(8)}", "[V]"),
    ("advantage's std", "ddof 1, eps 1e-4", "[ours]"),
    ("shaping F", "p / (p + 0.1), LUFFY's", "[ours]"),
    ("clip ratio ε", f"{HAPO.eps_low:g}", "[ours]"),
    ("loss per token", "mean over the batch", "[ours]"),
    ("learning rate", f"{_CONFIG.learning_rate:g}; paper: 1e-6 [R]", "[ours]"),
    ("prompts per step", f"{_CONFIG.prompts}; paper: 128 [R]", "[ours]"),
    ("inner epochs", f"{_CONFIG.inner_epochs}: ρ = 1, nothing is clipped", "[ours]"),
]
"""What a number is of, its value in the kit, and its mark."""

MARKS = ("[A] the paper's abstract, [R] a reader's account of its first version, [V] computed here, [ours] our choice where "
         "nothing is published.")
"""What the marks say."""


def page() -> str:
    """docs/glossary.md."""
    terms, words = ("\n".join(f"| {said} | {meaning} |" for said, meaning in d.items()) for d in (TERMS, LESSONS_WORDS))
    numbers = "\n".join(f"| {what} | {value} | {mark} |" for what, value, mark in DEFAULTS)
    return ("# Glossary\n\nThe [cheat sheet](cheat-sheet.pdf) has the method's terms and numbers on one page, with formulas "
            "and pictures.\n"
            f"Marks: {MARKS}\n\n| term | meaning |\n|---|---|\n{terms}\n\n"
            f"## Words of the lessons\n\n| word | meaning |\n|---|---|\n{words}\n\n"
            f"## Numbers\n\nThe kit's defaults, for the main job.\n\n| what | value | source |\n|---|---|---|\n{numbers}\n\n"
            "`hapo-lab picture glossary docs/glossary.md` writes this page.\n")

"""hapo_lab: a research kit for HAPO, Hindsight-Anchored Policy Optimization."""

import logging

from hapo_lab.doctor import doctor
from hapo_lab.gate import (
    AlwaysGate,
    BetaGate,
    BetaPosterior,
    HardGate,
    NeverGate,
    RunningGate,
    StepAnnealedGate,
    SuccessAnnealedGate,
    ThompsonGate,
)
from hapo_lab.loss import (
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
from hapo_lab.ssi import Group, Rollout, synthetic_success_injection

__version__ = "0.1.0"

__all__ = [
    "AlwaysGate", "BetaGate", "BetaPosterior", "Group", "HardGate", "NeverGate", "Rollout", "RunningGate", "StepAnnealedGate",
    "SuccessAnnealedGate", "ThompsonGate", "aggregation_weights", "clipped_surrogate", "doctor", "group_advantages",
    "hapo_loss", "log_probability", "probability", "ratio", "shaped_surrogate", "sqrt", "synthetic_success_injection",
]

# On a CPU bitsandbytes misses an optional kernel, which only layers in eval mode would use, and says so at every import.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

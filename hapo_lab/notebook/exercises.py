"""The checks of the lessons' exercises, by name: each takes an answer and says whether it is right, or which misconception it
shows.

`exercises()` lists them.
"""

from hapo_lab.notebook.claim_checks import (
    beats,
    best_and_worst,
    can_close,
    carried,
    confounders,
    draw_at_one,
    middle_half,
    smallest_pure_group,
    thirteen,
)
from hapo_lab.notebook.marking import Mark, exercises
from hapo_lab.notebook.method_checks import (
    advantages,
    all_four_fail,
    as_loud,
    called_at_85,
    clipped,
    cutoff,
    deadly_success_count,
    failures_advantage,
    per_draw,
    smallest_group,
    students_success,
    tie,
    two_of_five,
    whisper,
)

__all__ = ["Mark", "advantages", "all_four_fail", "as_loud", "beats", "best_and_worst", "called_at_85", "can_close", "carried",
           "clipped", "confounders", "cutoff", "deadly_success_count", "draw_at_one", "exercises", "failures_advantage",
           "middle_half", "per_draw", "smallest_group", "smallest_pure_group", "students_success", "thirteen", "tie",
           "two_of_five", "whisper"]

"""The paper's Table 1, shown beside a measured table, never in it."""

TABLE_1 = """\
HAPO's paper, Table 1, in percent [R, in part]. AIME24 is avg@32, the others are pass@1, at temperature 0.6 [R].

| method | AIME24 | MATH-500 | Olympiad |
|---|---|---|---|
| HAPO [R] | 36.7 | 87.0 | 51.4 |
| LUFFY [R] | 36.7 | 84.6 | 51.8 |
| GRPO [R, inferred from stated gains] | 27.0 | 83.0 |  |

[R]: by a reader's account of the paper's first version. Its models are Qwen2.5-Math-7B, trained on OpenR1-Math-46k-8192 and
cut at 8192 tokens [R]; steps, hardware, seeds and intervals are not disclosed [R]. LUFFY's own paper gives other figures for
itself (29.4, 87.6 and 57.2). Nothing in this table was measured by this kit.
"""

"""Peak memory of a training step on this CPU, beside what `plan` says: `tiny` and SmolLM2, new tokens from 64 to 2,048.

    python benchmarks/memory.py [--models tiny] [--tokens 64 512] [--prompts 1]

Each row is a process of its own: two steps of one prompt with 4 completions, all of full length, and two optimizer steps.
SmolLM2 at 2,048 tokens takes a quarter of an hour, the rest five minutes. Prints a table; results/memory.json.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from common import WholeCompletions, machine, mixed, write

GROUP = 4


def highest() -> int:
    """Bytes that the process has held at most since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure(model: str, new_tokens: int, prompts: int) -> None:
    """One row, printed as JSON: bytes of the process without a model, in rollouts and in the update; and what is planned."""
    from hapo_lab import GRPO, Config, Trainer, load_policy, load_task
    from hapo_lab.commands.plan import Job, shape_of
    from hapo_lab.engines.transformers_engine import TransformersEngine
    from hapo_lab.policy.chat import prompt_ids
    found = {"process": highest()}
    policy = replace(load_policy(model), ends=())  # so that every completion is of full length
    policy.model.config.max_position_embeddings = 8192  # `tiny` was made for 256: more is nonsense to it, of the same size
    task = mixed(load_task("sums" if model == "tiny" else "json_record"), prompts, new_tokens)
    found["loading"] = highest()
    config = Config(steps=2, prompts=prompts, group_size=GROUP, eval_every=0)
    trainer = Trainer(policy, task, GRPO, config, engine=WholeCompletions(TransformersEngine(policy)))
    sample, update = trainer._sample, trainer._update
    phases = {"rollouts": 0, "update": 0}

    def watched(name, work):
        def wrapped(*args):
            highest()
            made = work(*args)
            phases[name] = max(phases[name], highest())
            return made
        return wrapped

    trainer._sample, trainer._update = watched("rollouts", sample), watched("update", update)
    lengths = [record.length for record in trainer]
    assert lengths == [new_tokens] * 2, lengths
    job = Job(shape_of(model), config, new_tokens, max(len(prompt_ids(policy, p)) for p in task.train), gpu=False,
              width=policy.model.dtype.itemsize)
    parts = job.needs(job.rows)
    planned = {"rollouts": parts.rollouts, "update": parts.update, "peak": parts.peak}
    print(json.dumps(found | phases | {"planned": planned, "parts": asdict(parts)}))


def main() -> None:
    """Measure each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm2-135m"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        return measure(asked.models[0], asked.tokens[0], asked.prompts)
    rows = {}
    for model in asked.models:
        for tokens in asked.tokens:
            how = ["--row", "--models", model, "--tokens", str(tokens), "--prompts", str(asked.prompts)]
            out = subprocess.run([sys.executable, __file__, *how], check=True, text=True, stdout=subprocess.PIPE).stdout
            rows[f"{model}, {tokens}"] = json.loads(out.splitlines()[-1])
            print(*table(rows)[-1 if len(rows) > 1 else 0:], sep="\n", flush=True)
    write(Path(__file__).parent / "results" / "memory.json", machine=machine(), rows=rows)


def table(rows: dict[str, dict]) -> list[str]:
    """As it stands in benchmarks/README.md."""
    lines = ["| model, new tokens | rollouts | update | planned | planned over the larger |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        measured, planned = max(row["rollouts"], row["update"]), row["planned"]["peak"]
        lines.append(f"| {name} | {row['rollouts'] >> 20:,} MiB | {row['update'] >> 20:,} MiB | {planned >> 20:,} MiB "
                     f"| {planned / measured:.2f} |")
    return lines


if __name__ == "__main__":
    main()

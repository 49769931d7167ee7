"""What it takes to read a published table of OpenR1-Math-46k's size: seconds by part, and memory beside the text's own.

    python benchmarks/tables.py [--rows 46000]

It writes a table in that layout, with demonstrations of the length that --characters says (12,000), and reads it in a process
of its own. Two minutes and 2 GiB of disk; results/tables.json.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, write

WORDS = [f"{a}{b}" for a in ("re", "con", "tri", "sub", "in", "ex", "per") for b in ("sult", "vert", "angle", "tend", "duce")]


def write_table(path: Path, count: int, characters: int) -> None:
    """A table of so many made-up problems; of a hundred, one has a wrong demonstration, and one none."""
    from datasets import Dataset
    rng = random.Random(0)

    def rows():
        for i in range(count):
            a, b = rng.randrange(10**6), rng.randrange(10**6)
            thoughts = " ".join(rng.choices(WORDS, k=characters // 8))
            said = rf"<think>\n{thoughts}\n</think>\n The result is \boxed{{{a + b + (i % 100 == 1)}}}."
            yield {"data_source": "made-up", "ability": "math", "extra_info": {"index": i, "split": "default"},
                   "prompt": [{"role": "system", "content": "Think first."},
                              {"role": "user", "content": f"{' '.join(rng.choices(WORDS, k=40))}: what is {a} + {b}?"}],
                   "target": None if i % 100 == 2 else [{"role": "assistant", "content": said}],
                   "reward_model": {"ground_truth": str(a + b), "style": "rule"}}

    Dataset.from_generator(rows, cache_dir=str(path.parent)).to_parquet(path)


def read(path: Path) -> None:
    """Make its task, and print what that took, as JSON."""
    from datasets import load_dataset

    from hapo_lab import load_table
    start = time.perf_counter()
    rows = sum(1 for _ in load_dataset("parquet", data_files=str(path), split="train", streaming=True))
    library, start = time.perf_counter() - start, time.perf_counter()
    task = load_table(path, "math", 8192, heldout=500 / rows)
    seconds = {"library": round(library, 1), "task": round(time.perf_counter() - start, 1)}
    text = sum(len(t) for p in (*task.train, *task.heldout) for t in (*(m["content"] for m in p.messages), *p.demonstrations))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"rows": rows, "seconds": seconds, "text_mib": text >> 20, "peak_mib": peak >> 10,
                      "findings": task.findings[1:]}))


def main() -> None:
    """Write, read, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=46_000)
    parser.add_argument("--characters", type=int, default=12_000, help="of a demonstration")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read:
        return read(asked.read)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        write_table(path, asked.rows, asked.characters)
        out = subprocess.run([sys.executable, __file__, "--read", str(path)], capture_output=True, text=True, check=True)
    found = {"machine": machine(), "characters": asked.characters, **json.loads(out.stdout)}
    print(json.dumps(found, indent=1))
    write(Path(__file__).parent / "results" / "tables.json", **found)


if __name__ == "__main__":
    main()

"""What the live picture costs, and whether memory grows, while `tiny` trains in a notebook's kernel.

    python benchmarks/live.py [STEPS]      # default 2000: a quarter of an hour

Prints the share of the training time that redrawing takes, and the kernel's memory as the steps go by.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CELL = """
import tempfile, time
from dataclasses import replace
import psutil
from hapo_lab.dashboard import Dashboard
from hapo_lab.methods import HAPO
from hapo_lab.models import load_policy
from hapo_lab.tasks import load_task
from hapo_lab.trainer import TINY, Trainer

config = replace(TINY, steps={steps}, eval_every=0, save_every=50)
trainer = Trainer(load_policy("tiny"), load_task("sums"), HAPO, config, folder=tempfile.mkdtemp())
drawing, memory = 0.0, {{}}
with Dashboard(trainer.log) as dashboard:
    for record in trainer:
        start = time.perf_counter()
        dashboard.update()
        drawing += time.perf_counter() - start
        if record.step in (100, config.steps) or record.step % 500 == 0:
            memory[record.step] = psutil.Process().memory_info().rss / 2**20

training = sum(record.training_seconds for record in trainer.log.steps)
print(f"{{config.steps}} steps, {{training / config.steps:.2f}} s each; redrawing took {{drawing / training:.1%}} of that")
print("memory: " + ", ".join(f"{{size:.0f}} MiB at step {{step}}" for step, size in memory.items()))
"""


def main(steps: int) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.format(steps=steps))])
    root = Path(__file__).resolve().parent.parent
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(root)}}).execute()
    print("".join(output.text for output in notebook.cells[0].outputs if output.get("name") == "stdout"), end="")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)

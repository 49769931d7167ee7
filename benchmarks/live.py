"""What the live picture costs, and whether memory grows, while a model trains in a notebook's kernel.

    python benchmarks/live.py [STEPS]      # of tiny; default 2000: a quarter of an hour; and 12 of SmolLM2

Prints the share of the training time that redrawing takes, and the kernel's memory as the steps go by.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from hapo_lab.training.config import TINY, Config

CELL = """
import tempfile, time
import psutil
from hapo_lab.notebook.dashboard import Dashboard
from hapo_lab.methods import HAPO
from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import Config
from hapo_lab.training.trainer import Trainer

config = {config}
trainer = Trainer(load_policy("{model}"), load_task("{task}"), HAPO, config, folder=tempfile.mkdtemp())
drawing, memory = 0.0, {{}}
with Dashboard(trainer.log) as dashboard:
    for record in trainer:
        start = time.perf_counter()
        dashboard.update()
        drawing += time.perf_counter() - start
        if record.step in (100, config.steps) or record.step % 500 == 0:
            memory[record.step] = psutil.Process().memory_info().rss / 2**20

training = sum(record.training_seconds for record in trainer.log.steps)
print(f"{model}: {{config.steps}} steps of {{training / config.steps:.2f}} s; "
      f"redrawing took {{drawing / training:.1%}} of that")
print("memory: " + ", ".join(f"{{size:.0f}} MiB at step {{step}}" for step, size in memory.items()))
"""


def main(steps: int) -> None:
    for model, task, config in (("tiny", "sums", replace(TINY, steps=steps, eval_every=0, save_every=50)),
                                ("smollm2-135m", "json_record", Config(steps=12, eval_every=0))):
        cell = nbformat.v4.new_code_cell(CELL.format(model=model, task=task, config=config))
        root = Path(__file__).resolve().parent.parent
        NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=None, kernel_name="python3",
                       resources={"metadata": {"path": str(root)}}).execute()
        print("".join(output.text for output in cell.outputs if output.get("name") == "stdout"), end="", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)

"""One step of `HAPOTrainer` on given completions, as a program: python trl_step.py FOLDER GIVEN.json ROWS PIECES LOSS_TYPE

GIVEN holds the tokens of each prompt's completions. FOLDER/step.pt gets the loss and the gradients as the optimizer sees them.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback

from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.trl import HAPOConfig, HAPOTrainer

N, GROUPS = 8, 4


def policy():
    """Away from the base, so that all matrices have gradients."""
    found = load_policy("tiny", quantize=False, seed=0)
    with torch.no_grad():
        for i, p in enumerate(found.trainable()):
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return found


def problems():
    return load_task("sums").train[:GROUPS]


def reward(completions, key, **_):
    task = load_task("sums")
    by_key = {p.key: p for p in task.train}
    return [float(task.verify(by_key[k], c[0]["content"]).correct) for k, c in zip(key, completions, strict=True)]


def config(folder, rows, pieces, **more):
    return HAPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
                      per_device_train_batch_size=rows, gradient_accumulation_steps=pieces, num_generations=N,
                      max_completion_length=28, disable_tqdm=True, logging_steps=1,
                      lr_scheduler_type="constant", seed=0, **more)


def data():
    return Dataset.from_list([{"prompt": list(p.messages), "key": p.key, "demonstration": p.demonstration} for p in problems()])


class Given(HAPOTrainer):
    """Whose completions are given."""

    def _generate_single_turn(self, prompt_ids, *_):
        first = self.accelerator.process_index * len(prompt_ids)
        return [GIVEN[json.dumps(ids)][(first + i) % N] for i, ids in enumerate(prompt_ids)], None


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.found = [p.grad.clone() for p in model.parameters() if p.requires_grad]


if __name__ == "__main__":
    folder, given, rows, pieces, loss_type = sys.argv[1:]
    GIVEN = json.loads(Path(given).read_text())
    seen, one = Gradients(), policy()
    how = config(folder, int(rows), int(pieces), max_steps=1, save_strategy="no", max_grad_norm=0.0, learning_rate=1e-9,
                 shuffle_dataset=False, loss_type=loss_type)
    trainer = Given(one.model, reward, how, data(), processing_class=one.tokenizer, callbacks=[seen])
    trainer.train()
    if trainer.accelerator.is_main_process:
        logged, = (row for row in trainer.state.log_history if "loss" in row)
        torch.save({"logged": logged, "gradients": seen.found}, Path(folder) / "step.pt")

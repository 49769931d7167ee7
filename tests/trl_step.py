"""One step of `HAPOTrainer` on given completions, as a program: python trl_step.py FOLDER GIVEN.json ROWS PIECES LOSS_TYPE

GIVEN holds the tokens of each prompt's completions. FOLDER/step.pt gets the loss and the gradients: what a step of plain
gradient descent at rate 1 has taken from the weights, wherever they are kept.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import DistributedType, PartialState

from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.trl import HAPOConfig, HAPOTrainer, dataset_of, reward_of

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


SHARDED = {"ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"} & set(os.environ)
if SHARDED:  # accelerate shards over GPUs alone, until it takes these processes for some
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


def config(folder, rows, pieces, **more):
    return HAPOConfig(output_dir=str(folder), use_cpu=not SHARDED, bf16=False, gradient_checkpointing=False, report_to=[],
                      per_device_train_batch_size=rows, gradient_accumulation_steps=pieces, num_generations=N,
                      max_completion_length=28, disable_tqdm=True, logging_steps=1,
                      lr_scheduler_type="constant", seed=0, **more)


class Given(HAPOTrainer):
    """Whose completions are given."""

    def _generate_single_turn(self, prompt_ids, *_):
        first = self.accelerator.process_index * len(prompt_ids)
        return [GIVEN[json.dumps(ids)][(first + i) % N] for i, ids in enumerate(prompt_ids)], None


if __name__ == "__main__":
    folder, given, rows, pieces, loss_type = sys.argv[1:]
    GIVEN, one = json.loads(Path(given).read_text()), policy()
    before = {name: p.detach().clone() for name, p in one.model.named_parameters() if p.requires_grad}
    how = config(folder, int(rows), int(pieces), max_steps=1, save_strategy="no", max_grad_norm=0.0, learning_rate=1.0,
                 optim="sgd", shuffle_dataset=False, loss_type=loss_type)
    trainer = Given(one.model, reward_of(load_task("sums")), how, dataset_of(problems()), processing_class=one.tokenizer)
    trainer.train()
    after = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # put together by all processes
    if trainer.accelerator.is_main_process:
        logged, = (row for row in trainer.state.log_history if "loss" in row)
        torch.save({"logged": logged, "wrapped": type(trainer.model_wrapped).__name__,
                    "gradients": [p - after[name] for name, p in before.items()]}, Path(folder) / "step.pt")
    trainer.accelerator.end_training()  # a process that ends inside its group may be aborted

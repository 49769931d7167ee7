"""`tiny` learns sums inside TRL, as a program: python trl_train.py FOLDER STEPS ROWS LAST_STEP. It goes on from a checkpoint.

LAST_STEP: the process kills itself after this step, as a machine might; 0: it doesn't.
"""

import os
import signal
import sys

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl_step import config

from hapo_lab.gates import RunningGate
from hapo_lab.policy.models import load_policy
from hapo_lab.tasks.builtin import load_task
from hapo_lab.trl import HAPOTrainer, dataset_of, reward_of


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == LAST:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, steps, rows, LAST = sys.argv[1], *map(int, sys.argv[2:])
    policy, task = load_policy("tiny", quantize=False, seed=0), load_task("sums")
    how = config(folder, rows, 1, max_steps=steps, save_steps=4, learning_rate=2e-3)
    trainer = HAPOTrainer(policy.model, reward_of(task), how, dataset_of(task.train), gate=RunningGate(),
                          processing_class=policy.tokenizer, callbacks=[Kill()])
    trainer.train(resume_from_checkpoint=os.path.isdir(folder) and get_last_checkpoint(folder))

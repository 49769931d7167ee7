"""HAPO inside TRL, on the GPUs of accelerate's config. All of TRL's settings are options, or lines of a YAML file:

    accelerate launch --config_file examples/accelerate/2_processes.yaml examples/trl_hapo.py --config examples/tiny.yaml

docs/many-gpus.md says which launch is for which machine.
"""

from dataclasses import dataclass

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from hapo_lab import load_table, load_task
from hapo_lab.policy.models import model_source
from hapo_lab.tasks.tables import is_table
from hapo_lab.trl import HAPOConfig, HAPOTrainer, dataset_of, reward_of


@dataclass
class Data:
    """The problems, and their verifier."""

    task: str = "sums"
    """A task of the kit, or a table of problems: Parquet, JSONL, or a data set of the hub."""
    test: str | None = None
    """A table of test problems."""
    verifier: str = "math"
    """Grades a table's answers."""


if __name__ == "__main__":
    data, args, model = TrlParser((Data, HAPOConfig, ModelConfig)).parse_args_and_config()
    args.model_init_kwargs = {"dtype": model.dtype, "revision": model.model_revision,
                              "attn_implementation": model.attn_implementation}
    if is_table(data.task):
        task = load_table(data.task, data.verifier, args.max_completion_length, test=data.test)
    else:
        task = load_task(data.task)
    trainer = HAPOTrainer(model_source(model.model_name_or_path), reward_of(task), args, dataset_of(task.train),
                          eval_dataset=dataset_of(task.heldout), peft_config=get_peft_config(model),
                          quantization_config=get_quantization_config(model))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()

"""HAPO inside TRL's `GRPOTrainer`, for a model or a batch that one GPU can't hold.

    pip install "hapo_lab[trl]"

Gate, SSI and the shaped loss are this kit's; everything else is TRL's: accelerate, DeepSpeed, FSDP, vLLM, peft, logging,
checkpoints. After TRL has sampled a step's completions they are rewarded, the gate decides, and the teacher takes a seat. TRL
then continues with these groups. Its loss sees the students. The teacher's term is added, divided as TRL divides the students'.

The output folder is a run's folder, too (`runs.log`): `watch`, `report` and every figure read it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

try:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
except ModuleNotFoundError:
    raise ModuleNotFoundError('hapo_lab.trl needs the library trl: python -m pip install "hapo_lab[trl]".') from None

from hapo_lab.gate import BetaGate
from hapo_lab.gates import Gate
from hapo_lab.loss import Shaping, aggregation_weights, ratio, shaped_surrogate
from hapo_lab.methods import HAPO, Method, judge
from hapo_lab.policy.chat import end_ids
from hapo_lab.reproducibility.catalogue import method_described
from hapo_lab.reproducibility.kit import installed_version
from hapo_lab.reproducibility.seeds import gate_uniforms
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.record import changed_entries, record_of
from hapo_lab.ssi import Group, Rollout, known, synthetic_success_injection
from hapo_lab.tasks.problem import Problem, Task

STATE = "hapo.json"
"""A checkpoint's file with the gate's memory and the rounds so far."""
AGGREGATIONS = {"grpo": "grpo", "bnpo": "dapo", "dr_grpo": "dr_grpo"}
"""TRL's loss types that divide by the current piece of a batch -> the kit's aggregation of the same effect."""
LEFT = {"beta": 0.0, "off_policy_mask_threshold": None, "top_entropy_quantile": 1.0, "use_liger_kernel": False,
        "multi_objective_aggregation": "sum_then_normalize", "mask_truncated_completions": False, "delta": None}
"""TRL's settings that must keep these values: their effect on a teacher's tokens is not defined."""


@dataclass
class HAPOConfig(GRPOConfig):
    """TRL's `GRPOConfig`, and the sum of rewards that counts as a success."""

    success: float | None = field(default=None, metadata={
        "help": "The least sum of a completion's rewards that the gate counts as a success. Default: rewards are 0 or 1."})

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            if not (self.generation_batch_size or 0) % self.num_generations:
                raise
            raise ValueError(
                f"{self.generation_batch_size} completions per round are not whole groups of {self.num_generations}: choose a "
                "multiple for per_device_train_batch_size times gradient_accumulation_steps times the processes.") from error


def dataset_of(problems: Iterable[Problem]) -> Dataset:
    """A task's problems as a data set for TRL, with the column `demonstration`; `key` names the problem for gate and reward."""
    return Dataset.from_list([{"prompt": list(p.messages), "key": p.key, "demonstration": p.demonstration} for p in problems])


def reward_of(task: Task) -> Callable[..., list[float]]:
    """The task's verifier as a reward function for TRL, on the rows of `dataset_of`."""
    problems = {problem.key: problem for problem in (*task.train, *task.heldout)}

    def verified(completions: list[list[dict]], key: list[str], **_: Any) -> list[float]:
        return [float(task.verify(problems[k], c[0]["content"]).correct) for k, c in zip(key, completions, strict=True)]
    return verified


class Journal(TrainerCallback):
    """Writes the run's folder, in the main process. A step of that run is a round of completions, written when TRL logs.

    Parameters
    ----------
    method : Method
        As the folder's run.json names it.
    """

    def __init__(self, method: Method):
        self.method = method
        self.log: RunLog | None = None
        self.rounds = 0
        """Rounds that the checkpoint had seen from which training goes on; later those that were written."""
        self.rate = 0.0
        """As TRL last logged it."""
        self.open: list[dict[str, Any]] = []
        """What is known of the rounds that are still to be written."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Make the folder, or return to the checkpoint's step. ValueError: the folder holds another run."""
        if not state.is_world_process_zero:
            return
        folder, self.open = Path(args.output_dir), []
        if self.rounds and (folder / "run.json").exists():
            self.log = RunLog.load(folder)
            self.log.rewind(self.rounds)
        elif (folder / "run.json").exists():
            raise ValueError(f"{folder} holds a run already: go on from its last checkpoint "
                             "(train(resume_from_checkpoint=True)), or choose another output_dir.")
        else:
            config = {"steps": state.max_steps, "prompts": args.generation_batch_size // args.num_generations,
                      "group_size": args.num_generations, "seed": args.seed, "eval_every": 0}
            versions = {"engine": f"TRL {installed_version('trl')}", "processes": args.world_size, "device": args.device.type}
            self.log = RunLog({"model": model.config._name_or_path, "task": "TRL", "method": method_described(self.method),
                               "config": config, "versions": versions}, folder)
            self.log.create()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Write what is open; the log's figures are the last round's."""
        if logs and "loss" in logs:
            self.write(logs)

    def write(self, logs: dict[str, float]) -> None:
        """The open rounds, as steps of the run."""
        log, rounds, self.open = self.log, self.open, []
        if not log:  # in other processes than the main one
            return
        self.rate = logs.get("learning_rate", self.rate)
        for one in rounds:
            figures = logs if one is rounds[-1] else {}
            self.rounds += 1
            record = record_of(
                self.rounds, one["sampled"], one["taught"], gate_state=one["gate_state"], seconds=one["seconds"],
                teacher_samples=sum(g.replaced >= 0 for g in one["taught"]), dead_before=sum(g.dead for g in one["sampled"]),
                without_demonstration=sum(not g.problem.demonstration for g in one["sampled"]), updated=True,
                loss=figures.get("loss"), grad_norm=figures.get("grad_norm"), entropy=figures.get("entropy"),
                clip_fraction=figures.get("clip_ratio/region_mean"), learning_rate=self.rate,
                teacher_share=None, teacher_logp=None, kl=None, heldout=None,
                tokens_trained=sum(len(r.ids) for g in one["taught"] for r in g.rollouts if not g.dead))
            log.add(record, one["taught"])


class HAPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with a teacher: a gate decides in which groups a demonstration replaces the worst completion.

    Parameters
    ----------
    model, reward_funcs, args, train_dataset, and more
        As `GRPOTrainer` takes them; `args` may be a `HAPOConfig`. The data set's column `demonstration` holds a completion's
        text, or None; a column `key` names the unit that the gate remembers, by default the prompt.
    gate : Gate
    shaping : Shaping
        F, of the teacher's tokens.

    Raises
    ------
    ValueError
        A setting of TRL's that can't go with a teacher; a data set without demonstrations; while training, a demonstration that
        the reward functions reject, and rewards that are not 0 or 1 where `HAPOConfig.success` does not say what counts.
    """

    def __init__(self, model: Any, reward_funcs: Any, args: GRPOConfig | None = None, train_dataset: Any = None, *,
                 gate: Gate = BetaGate(), shaping: Shaping = ratio(0.1), **more: Any):
        args = args or HAPOConfig("HAPO")
        _refuse(args, train_dataset, more)
        self.gate, self.shaping = gate, shaping
        self.gate_state: dict = {}
        """The gate's memory."""
        self._rows: Sequence[dict] = ()
        self._rewards: torch.Tensor | None = None
        self._teacher = torch.zeros(0, dtype=torch.bool)
        self.journal = Journal(replace(HAPO, gate=gate, shaping=shaping))
        super().__init__(model, reward_funcs, args=args, train_dataset=train_dataset, **more)
        self.add_callback(self.journal)
        ends = end_ids(self._tokenizer, self.model.generation_config.eos_token_id, self.chat_template_kwargs)
        self._end = ends[0]

    # rollouts ------------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        began, self._rows, self._rewards = time.perf_counter(), inputs, None
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            output["teacher"] = self._teacher.to(output["advantages"].device)
            advantages = torch.tensor(list(self._logs["advantages"])).view(-1, self.num_generations)
            one = self.journal.open[-1]
            one["taught"] = [replace(g, advantages=a) for g, a in zip(one["taught"], advantages, strict=True)]
            one["seconds"] = {"rollout": time.perf_counter() - began}
        return output

    def _generate(self, prompts: list) -> tuple:
        found = super()._generate(prompts)
        if not self.model.training:
            return found
        prompt_ids, ids, masks, completions, logps, *rest = found
        rewards = super()._calculate_rewards(self._rows, prompts, completions, ids)
        before, groups = self.gate_state, self._judged(rewards, ids, completions)
        taught = [self._taught(group, totals) for group, totals in zip(groups, self._totals(rewards), strict=True)]
        rollouts = [rollout for group in taught for rollout in group.rollouts]
        first = self.accelerator.process_index * len(prompts)
        self._teacher = torch.tensor([rollout.teacher for rollout in rollouts[first:first + len(prompts)]])
        for i in self._teacher.nonzero()[:, 0].tolist():
            text, ids[i] = rollouts[first + i].text, list(rollouts[first + i].ids)
            completions[i] = text if isinstance(completions[i], str) else [{"role": "assistant", "content": text}]
            if logps is not None:
                logps[i] = [0.0] * len(ids[i])
        self._rewards = None if any(rollout.teacher for rollout in rollouts) else rewards
        self.journal.open.append({"sampled": groups, "taught": taught,
                                  "gate_state": changed_entries(before, self.gate_state)})
        self._note(groups, taught)
        return prompt_ids, ids, masks, completions, logps, *rest

    def _calculate_rewards(self, inputs: list[dict], prompts: list, completions: list,
                           completion_ids_list: list) -> torch.Tensor:
        if self._rewards is not None:  # nothing has changed since they were reckoned
            return self._rewards
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            self._refuse_rejected(rewards)
        return rewards

    def _judged(self, rewards: torch.Tensor, ids: list[list[int]], completions: list) -> list[Group]:
        """The whole step's groups, with the gate's decisions, the same in every process."""
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        rows = gather_object([(_problem(row), Rollout(tuple(tokens), text, 0.0, finished=tokens[-1] in self.eos_token_ids))
                              for row, tokens, text in zip(self._rows, ids, texts, strict=True)])
        right = self._is_success(self._totals(rewards)).double()
        n, groups = self.num_generations, []
        for g, rewarded in enumerate(right.tolist()):
            some = rows[g * n:(g + 1) * n]
            groups.append(Group(some[0][0], tuple(replace(r, reward=x) for (_, r), x in zip(some, rewarded, strict=True))))
        uniforms = gate_uniforms(self.args.seed, self.state.global_step, len(groups))
        groups, self.gate_state = judge(self.gate, groups, self.gate_state, uniforms)
        return groups

    def _taught(self, group: Group, totals: torch.Tensor) -> Group:
        """The group with the teacher in the seat of its lowest reward, if the gate asks for that, and if there is a
        demonstration no longer than a completion may be."""
        text = group.problem.demonstration
        if not group.decision or not text:
            return group
        ids = (*self._tokenizer.encode(text, add_special_tokens=False), self._end)
        if len(ids) > self.max_completion_length:
            return group
        return synthetic_success_injection(group, Rollout(ids, text, 1.0), int(totals.argmin()))

    def _totals(self, rewards: torch.Tensor) -> torch.Tensor:
        """(groups, N): the sum of each completion's rewards."""
        return (rewards * self.reward_weights.to(rewards.device)).nansum(1).view(-1, self.num_generations)

    def _is_success(self, totals: torch.Tensor) -> torch.Tensor:
        bar = getattr(self.args, "success", None)
        if bar is None and (odd := totals[(totals != 0) & (totals != 1)]).numel():
            raise ValueError(f"a completion's rewards add up to {odd[0].item():g}; the gate counts successes, so let them be 0 "
                             "or 1, or set HAPOConfig(success=...) to the least sum of a success.")
        return totals >= (1 if bar is None else bar)

    def _refuse_rejected(self, rewards: torch.Tensor) -> None:
        first = self.accelerator.process_index * len(self._rows)
        totals = self._totals(rewards)
        right, totals = self._is_success(totals).flatten(), totals.flatten()
        for i in self._teacher.nonzero()[:, 0].tolist():
            if not right[first + i]:
                raise ValueError(f"the reward functions reject the demonstration {self._rows[i]['demonstration'][:60]!r}, with "
                                 f"{totals[first + i].item():g}: correct it, or set it to None.")

    def _note(self, sampled: Sequence[Group], taught: Sequence[Group]) -> None:
        """Add to TRL's metrics. All but `teacher_samples` are of the students alone."""
        figures = {"success": sum(g.successes for g in sampled) / sum(len(g.rollouts) for g in sampled),
                   "posterior": sum(known(g.posterior).mean.item() for g in sampled) / len(sampled),
                   "asked": sum(known(g.decision) for g in sampled) / len(sampled),
                   "teacher_samples": sum(g.replaced >= 0 for g in taught),
                   "without_demonstration": sum(not g.problem.demonstration for g in sampled),
                   "dead": sum(g.dead for g in sampled)}
        for name, value in figures.items():
            self._metrics["train"][f"hapo/{name}"].append(float(value))

    # the loss ------------------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, *args: Any, **how: Any) -> tuple:
        found = super()._get_per_token_logps_and_entropies(*args, **how)
        self._logps = found[0]
        return found

    def _compute_loss(self, model: Any, inputs: dict) -> torch.Tensor:
        teacher = inputs.get("teacher")
        if teacher is None or not teacher.any():
            return super()._compute_loss(model, inputs)
        advantages, mask = inputs["advantages"], inputs["completion_mask"].bool()
        loss = super()._compute_loss(model, inputs | {"advantages": advantages.masked_fill(teacher, 0)})
        weights = self._weights(mask, inputs)[teacher].to(loss.dtype)
        logps = self._logps[teacher].masked_fill(~mask[teacher], 0)
        return loss - (weights * shaped_surrogate(logps, advantages[teacher, None], self.shaping)).sum()

    def _weights(self, mask: torch.Tensor, inputs: dict) -> torch.Tensor:
        """(B, T): the weight of a token's objective in TRL's loss of this piece of a step."""
        pieces = self.current_gradient_accumulation_steps
        if self.loss_type == "dapo":
            tokens = inputs["num_items_in_batch"].clamp(min=1) * pieces / self.args.steps_per_generation
            return mask / (tokens / self.accelerator.num_processes)
        return aggregation_weights(mask, AGGREGATIONS[self.loss_type], self.max_completion_length) / pieces

    # checkpoints ---------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            self.journal.write({})
            (folder / STATE).write_text(json.dumps({"gate": self.gate_state, "rounds": self.journal.rounds}))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and (path := Path(checkpoint, STATE)).exists():
            found = json.loads(path.read_text())
            self.gate_state, self.journal.rounds = found["gate"], found["rounds"]


def _problem(row: dict) -> Problem:
    """A row of the data set. The gate's memory is about its key, which is the prompt unless the row has one."""
    prompt = row["prompt"]
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    return Problem(row.get("key") or json.dumps(prompt), messages, "", row.get("demonstration") or None)


def _refuse(args: GRPOConfig, data: Any, more: dict[str, Any]) -> None:
    """ValueError, in one sentence, for a setting that can't go with a teacher."""
    if args.loss_type not in (*AGGREGATIONS, "dapo"):
        raise ValueError(f"loss_type is {args.loss_type!r}; with a teacher choose one of dapo, {', '.join(AGGREGATIONS)}.")
    for name, only in LEFT.items():
        if (value := getattr(args, name, only)) != only:
            raise ValueError(f"{name} is {value!r}; its effect on a teacher's tokens is not defined: leave it at {only!r}.")
    for name in ("tools", "rollout_func", "environment_factory"):
        if more.get(name):
            raise ValueError(f"{name} can't go with a teacher, whose demonstration has no such turns: leave it out.")
    if data is None or "demonstration" not in (data.column_names or ()):
        raise ValueError("the data set has no column 'demonstration': add one, with a completion's text, or None, in each row.")



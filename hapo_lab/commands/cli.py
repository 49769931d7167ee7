"""hapo-lab train | plan | resume | evaluate | bench | report | picture | experiment | demonstrate | doctor | demo | lessons |
quiz"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

from tqdm import tqdm

from hapo_lab.baselines import METHODS
from hapo_lab.commands.bench import add_bench_options
from hapo_lab.commands.cluster import plan_cluster
from hapo_lab.commands.demo import demo
from hapo_lab.commands.doctor import main as examine_machine
from hapo_lab.commands.doctor import report as report_findings
from hapo_lab.commands.experiment import add_experiment_commands
from hapo_lab.commands.lessons import lessons
from hapo_lab.commands.model_doctor import findings as model_findings
from hapo_lab.commands.options import (
    ROOM,
    add_columns_option,
    add_engine_option,
    add_task_option,
    add_template_option,
    columns_of,
    meanings,
)
from hapo_lab.commands.picture import add_picture_commands
from hapo_lab.commands.plan import PROMPT, Job, plan_recipe, shape_of
from hapo_lab.commands.quiz import add_quiz_options
from hapo_lab.commands.recipe import read_recipe
from hapo_lab.commands.report import report, report_run
from hapo_lab.engines.protocol import EngineError, Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.gates import GATES, numbers_of, with_numbers
from hapo_lab.loss import SHAPINGS
from hapo_lab.policy.models import PRESETS, load_policy
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.catalogue import get_gate, get_method, get_shaping
from hapo_lab.runs.log import RunLog
from hapo_lab.runs.manifest import policy_of
from hapo_lab.runs.progress import mean_of, progress_line
from hapo_lab.runs.trackers import TRACKERS, Maker, get_trackers, tracking
from hapo_lab.tasks.builtin import TASKS, load_task
from hapo_lab.tasks.gym import PREFIX
from hapo_lab.tasks.jsonl import load_jsonl
from hapo_lab.tasks.problem import Task
from hapo_lab.tasks.rebuilding import task_of_run
from hapo_lab.tasks.tables import is_table, load_table
from hapo_lab.tasks.verifiers import VERIFIERS, load_verifier
from hapo_lab.training.config import TINY, Config
from hapo_lab.training.demonstrations import Demonstrations
from hapo_lab.training.evaluation import evaluate
from hapo_lab.training.guards import TrainingError
from hapo_lab.training.rebuilding import resume
from hapo_lab.training.trainer import Trainer

USUAL = {"tiny": ("sums", TINY)}
"""Model -> its task and config, if these are not the main job's."""


def train(args: argparse.Namespace) -> None:
    """Train a policy, in a run folder."""
    usual_task, _ = USUAL.get(args.model, ("json_record", None))
    config = _config(args)
    method = get_method(args.method)
    if args.shaping:
        method = replace(method, name=f"{method.name}, {_part_name(args.shaping)}", shaping=get_shaping(args.shaping))
    prior = {name: value for name in ("alpha", "beta", "threshold") if (value := getattr(args, name)) is not None}
    if args.gate:
        method = replace(method, name=f"{method.name}, {_part_name(args.gate)}", gate=get_gate(args.gate, **prior))
    elif prior:
        if unknown := prior.keys() - numbers_of(method.gate):
            raise ValueError(f"the gate of method {args.method!r} has no {' and no '.join(sorted(unknown))}: leave it out.")
        method = replace(method, gate=with_numbers(method.gate, **prior))
    trackers = get_trackers(args.track)
    if (args.folder / "run.json").exists():  # before minutes of loading
        raise ValueError(f"{args.folder} holds a run already: continue it (hapo-lab resume {args.folder}), "
                         "or choose another folder.")
    task = _task(args, args.task or usual_task, config.seed if args.task_seed is None else args.task_seed)
    policy = load_policy(args.model, quantize=not args.no_quantize, rank=args.rank, template=dict(args.template_arg),
                         seed=config.seed if args.adapter_seed is None else args.adapter_seed)
    trainer = Trainer(policy, task, method, config, folder=args.folder, engine=args.engine)
    shown = len(trainer.with_demonstration)
    longer = sum(bool(p.demonstrations) for p in task.train) - shown
    print(f"{task.name}: {len(task.train)} training problems, {shown} with a demonstration of at most {task.max_new_tokens} "
          f"tokens{f' ({longer} only a longer one)' if longer else ''}; {len(task.heldout)} held out", flush=True)
    _train(trainer, trackers)


def resume_run(args: argparse.Namespace) -> None:
    """Continue a run from its last checkpoint."""
    trackers = get_trackers(args.track)
    trainer = resume(args.run, args.engine, args.steps)
    if len(trainer.log.steps) == trainer.log.planned:
        print(f"{args.run} has all of its {trainer.log.planned} steps; --steps extends it.")
    _train(trainer, trackers)


def _train(trainer: Trainer, trackers: dict[str, Maker]) -> None:
    track = tracking(trackers, trainer.log)
    for record in trainer:
        track(record)
        print(progress_line(trainer.log), flush=True)
    trainer.save_adapter()
    report_run(trainer.log, trainer.log.path())


def _part_name(name: str) -> str:
    """Without the file's folder."""
    return Path(name).name


def _task(args: argparse.Namespace, name: str, seed: int) -> Task:
    """By name, from the user's file, or from a published table."""
    room = ROOM if args.max_new_tokens is None else args.max_new_tokens
    table = args.columns or args.test or (name not in TASKS and is_table(name))
    if args.task_arg and (table or name.endswith(".jsonl")):
        raise ValueError(f"task {name!r} takes no --task-arg: leave it out.")
    if table:
        task = load_table(name, _verifier(args), room, columns=columns_of(args.columns), test=args.test,
                          heldout=args.heldout, seed=seed)
        print("\n".join(task.findings), flush=True)
        return task
    if name.endswith(".jsonl"):
        return load_jsonl(name, _verifier(args), room, heldout=args.heldout, seed=seed)
    if args.verifier:
        raise ValueError(f"task {name!r} has its own verifier: leave out --verifier.")
    if name.startswith(PREFIX) and args.max_new_tokens is not None:
        return load_task(name, seed, max_new_tokens=args.max_new_tokens, **dict(args.task_arg))
    if args.max_new_tokens is not None:
        raise ValueError(f"task {name!r} has its own limit on an answer's tokens: leave out --max-new-tokens.")
    return load_task(name, seed, **dict(args.task_arg))


def _verifier(args: argparse.Namespace) -> str:
    if not args.verifier:
        raise ValueError(f"a task file needs --verifier: {', '.join(VERIFIERS)}, or FILE.py:FUNCTION.")
    return args.verifier


def evaluate_run(args: argparse.Namespace) -> None:
    """A run's final figures on held-out problems: the base model, then its saved adapter, both loaded in this process."""
    manifest = RunLog.load(args.run).manifest
    if not (args.run / "adapter").is_dir():
        raise ValueError(f"{args.run} has no adapter yet: finish the run first (hapo-lab resume {args.run}).")
    task, figures = task_of_run(manifest), {}
    for who, adapter in (("before", None), ("after", args.run / "adapter")):
        policy = policy_of(manifest, adapter)
        found = evaluate(policy, TransformersEngine(policy), task, samples=args.samples, seed=manifest["config"]["seed"])
        print(f"held-out success {who} training: {found}", flush=True)
        by_key: dict[str, list[float]] = {}
        for problem, rate in zip(found.problems, found.by_problem, strict=True):
            by_key.setdefault(problem.key, []).append(rate)
        figures[who] = {"success": found.success, "interval_95": found.interval(), "dead_groups": found.dead,
                        "samples": args.samples, "by_problem": {key: mean_of(rates) for key, rates in by_key.items()}}
    disk.replace(args.run / "evaluation.json", (json.dumps(figures, indent=1) + "\n").encode())


def demonstrate(args: argparse.Namespace) -> None:
    """Let a model write demonstrations for a task file, and keep the right ones."""
    if str(args.file).startswith(PREFIX):
        task = load_task(str(args.file), args.task_seed, **dict(args.task_arg))
        room, given, verify = task.max_new_tokens, task, task.verify
        out = Path(f"{str(args.file).removeprefix(PREFIX)}.demonstrated.jsonl")
    else:
        room, given, verify = ROOM, args.file, load_verifier(_verifier(args))
        out = args.file.with_suffix(".demonstrated.jsonl")
    job = Demonstrations(given, args.out or out, verify, args.model, args.samples)
    sampling = Sampling(room if args.max_new_tokens is None else args.max_new_tokens, args.temperature)
    try:
        if job.pending:
            batches = job.sample(load_policy(args.model), sampling, seed=args.seed)
            with tqdm(total=len(job.pending), unit="problem") as bar:
                for asked in batches:
                    bar.set_postfix_str(f"{job.found} demonstrations", refresh=False)
                    bar.update(asked)
    except KeyboardInterrupt:
        sys.exit(f"stopped; {job.out} holds the demonstrations so far: repeat the command to continue.")
    print(job)


def examine(args: argparse.Namespace) -> None:
    """Check this machine, or a model on it. Exit code 1 if training can't work."""
    if not args.model:
        return examine_machine()
    found = model_findings(args.model, args.tokens, not args.no_quantize, dict(args.template_arg))
    sys.exit(not report_findings(found, f"{args.model} can be trained here.", f"{args.model} can't be trained here"))


def plan(args: argparse.Namespace) -> None:
    """Print a training's memory and time, before it starts."""
    asked = parser(args.recipe).parse_args(["train", "planned"])
    usual_task, _ = USUAL.get(asked.model, ("json_record", None))
    name = asked.task or usual_task
    named = name in TASKS or name.startswith(PREFIX)
    room = load_task(name, **dict(asked.task_arg)).max_new_tokens if named else ROOM
    room = room if asked.max_new_tokens is None else asked.max_new_tokens
    job = Job(shape_of(asked.model), _config(asked), room, args.prompt_tokens, quantize=not asked.no_quantize, rank=asked.rank)
    if args.gpus == 1:
        plan_recipe(args, job)
    else:
        print("\n".join(plan_cluster(job, args.gpus, args.memory)))


def _config(args: argparse.Namespace) -> Config:
    """The model's usual numbers, with the given options in their place."""
    _, usual = USUAL.get(args.model, ("", Config()))
    return replace(usual, **{f.name: value for f in fields(Config) if (value := getattr(args, f.name)) is not None})


def parser(recipe: Path | None = None) -> argparse.ArgumentParser:
    """Every command, with its options and their help. `recipe`: a file whose values are `train`'s defaults."""
    top = argparse.ArgumentParser(prog="hapo-lab", description="Train with HAPO, and look at the runs.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("train", help="train a policy, and write a run's folder")
    p.set_defaults(run_command=train)
    p.add_argument("folder", type=Path, help="the new run's folder")
    p.add_argument("--model", default="smollm2-135m",
                   help=f"{', '.join(PRESETS)}, a folder, or a hub id; default: smollm2-135m")
    p.add_argument("--task", help=f"{', '.join(TASKS)}, a FILE.jsonl of your own, a published table (FILE.parquet, or "
                                  f"ORG/NAME[:SPLIT] on the hub), or {PREFIX}NAME; default: sums for tiny, else json_record")
    _add_file_options(p)
    p.add_argument("--heldout", type=float, default=0.2,
                   help="share of a file's problems to hold out, if it has no splits; default: 0.2")
    add_task_option(p)
    p.add_argument("--test", help="a second table, whose problems are all held out")
    add_columns_option(p)
    p.add_argument("--method", default="hapo", help=f"{', '.join(METHODS)}, or FILE.py:NAME; default: hapo")
    p.add_argument("--gate", help=f"replaces the method's gate: {', '.join(GATES)}, or FILE.py:NAME")
    p.add_argument("--shaping", help=f"replaces the method's F for the teacher's tokens: {', '.join(SHAPINGS)}, or "
                                     "FILE.py:NAME")
    p.add_argument("--no-quantize", action="store_true", help="do not quantize the base model to 4 bits")
    p.add_argument("--rank", type=int, default=16, help="rank of the LoRA adapter; default: 16")
    add_template_option(p)
    add_engine_option(p)
    _add_track_option(p)
    for name in ("alpha", "beta", "threshold"):
        p.add_argument(f"--{name}", type=float, help=f"the gate's {name}; default: the method's")
    p.add_argument("--task-seed", type=int, help="seed for the draw of held-out problems; default: --seed")
    p.add_argument("--adapter-seed", type=int, help="seed for the new adapter's matrices; default: --seed")
    meant = meanings(Config)
    for f in fields(Config):
        default = "--seed" if f.default is None else f.default
        other = "".join(f"; {model}: {getattr(config, f.name)}" for model, (_, config) in USUAL.items()
                        if getattr(config, f.name) != f.default)
        p.add_argument(f"--{f.name.replace('_', '-')}", type=int if f.default is None else type(f.default),
                       help=f"{meant[f.name].removesuffix('.')}; default: {default}{other}")
    p.add_argument("--recipe", type=Path, help="a TOML file with any of these options; the command line overrides it")
    if recipe:
        p.set_defaults(**read_recipe(recipe, p._actions))

    p = commands.add_parser("plan", help="compute a training's memory and time from its recipe, before it starts")
    p.set_defaults(run_command=plan)
    p.add_argument("recipe", type=Path, help="a TOML file, as for train --recipe")
    p.add_argument("--memory", type=float, help="GiB of another machine's GPU; default: the free memory of this machine")
    p.add_argument("--gpus", type=int, default=1, help="H100s in one machine, for a training inside TRL; default: 1")
    p.add_argument("--prompt-tokens", type=int, default=PROMPT, help=f"tokens of the longest prompt; default: {PROMPT}")

    p = commands.add_parser("resume", help="continue a stopped or killed run from its last checkpoint, or extend a run")
    p.set_defaults(run_command=resume_run)
    p.add_argument("run", type=Path)
    p.add_argument("--steps", type=int, help="extend the run, finished or not, to this number of steps in all")
    add_engine_option(p)
    _add_track_option(p)

    p = commands.add_parser("evaluate", help="measure held-out success of the base model and of a run's saved adapter")
    p.set_defaults(run_command=evaluate_run)
    p.add_argument("run", type=Path)
    p.add_argument("--samples", type=int, default=8, help="samples per problem; default: 8")

    p = commands.add_parser("bench", help="compare models and runs on the same problems: avg@k, pass@k, length")
    add_bench_options(p)

    p = commands.add_parser("report", help="write a run's picture (PNG) and table (CSV); several runs also side by side")
    p.set_defaults(run_command=report)
    p.add_argument("runs", type=Path, nargs="+")
    p.add_argument("--out", type=Path, default=Path("report"), help="output folder; default: report/")

    p = commands.add_parser("picture", help="draw the pictures of the README and the docs")
    add_picture_commands(p)

    p = commands.add_parser("experiment", help="compare methods x tasks x seeds from a TOML file: run, examine, pack, report")
    add_experiment_commands(p)

    p = commands.add_parser("demonstrate", help="let a teacher model write a task file's missing demonstrations")
    p.set_defaults(run_command=demonstrate)
    p.add_argument("file", type=Path, help=f"a task file in JSONL, or {PREFIX}NAME")
    p.add_argument("--task-seed", type=int, default=0, help=f"seed of {PREFIX}NAME; default: 0")
    add_task_option(p)
    p.add_argument("--out", type=Path, help="output file; default: FILE.demonstrated.jsonl; a repeated command continues it")
    p.add_argument("--model", required=True, help=f"the teacher model: {', '.join(PRESETS)}, a folder, or a hub id")
    p.add_argument("--samples", type=int, default=8, help="completions per problem; the first right one is kept; default: 8")
    p.add_argument("--temperature", type=float, default=1.0, help="sampling temperature; default: 1.0")
    p.add_argument("--seed", type=int, default=0, help="seed of the samples; default: 0")
    _add_file_options(p)

    p = commands.add_parser("doctor", help="check this machine, or a model on it, and say how to close each gap")
    p.set_defaults(run_command=examine)
    p.add_argument("--model", help=f"check this model instead, without training it: {', '.join(PRESETS)}, a folder, or a "
                                   "hub id")
    p.add_argument("--tokens", type=int, default=Config.token_budget,
                   help=f"tokens per pass, to compute the model's memory; default: {Config.token_budget}")
    p.add_argument("--no-quantize", action="store_true", help="check the model without quantizing it to 4 bits")
    add_template_option(p)

    p = commands.add_parser("demo", help="train the main job: lesson 05_train_live, without a browser")
    p.set_defaults(run_command=demo)

    p = commands.add_parser("lessons", help="write the notebooks to a folder of yours")
    p.set_defaults(run_command=lessons)
    p.add_argument("folder", type=Path, help="created if missing; a notebook that you changed there is never overwritten")

    add_quiz_options(commands.add_parser("quiz", help="answer ten questions about the method; each names its lesson"))
    return top


def _add_track_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--track", action="append", default=[], metavar="TRACKER",
                   help=f"another place for each step's figures: {', '.join(TRACKERS)}, or FILE.py:NAME; repeatable")


def _add_file_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--verifier", help=f"a task file's verifier: {', '.join(VERIFIERS)}, or FILE.py:FUNCTION")
    p.add_argument("--max-new-tokens", type=int,
                   help=f"a completion's limit, for a task file; default: {ROOM}, or a reasoning-gym task's own")


def main(argv: list[str] | None = None) -> None:
    """Run one command. An error is one sentence."""
    args = parser().parse_args(argv)
    try:
        if args.run_command is train and args.recipe:
            args = parser(args.recipe).parse_args(argv)
        args.run_command(args)
    except (ValueError, TrainingError, EngineError) as error:
        sys.exit(f"hapo_lab: {error}")

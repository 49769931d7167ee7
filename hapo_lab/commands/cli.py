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
"""A model's own task and config, where these are not the main job's."""


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
        raise ValueError(f"{args.folder} holds a run already: go on with it (python -m hapo_lab resume {args.folder}), "
                         "or choose another folder.")
    task = _task(args, args.task or usual_task, config.seed if args.task_seed is None else args.task_seed)
    policy = load_policy(args.model, quantize=not args.no_quantize, rank=args.rank, template=dict(args.template_arg),
                         seed=config.seed if args.adapter_seed is None else args.adapter_seed)
    trainer = Trainer(policy, task, method, config, folder=args.folder, engine=args.engine)
    shown = len(trainer.with_demonstration)
    longer = sum(bool(p.demonstrations) for p in task.train) - shown
    print(f"{task.name}: {len(task.train)} problems to train on, {shown} with a demonstration of at most {task.max_new_tokens} "
          f"tokens{f' ({longer} only a longer one)' if longer else ''}; {len(task.heldout)} held out", flush=True)
    _train(trainer, trackers)


def resume_run(args: argparse.Namespace) -> None:
    """Go on with a run, where its last checkpoint left it."""
    trackers = get_trackers(args.track)
    _train(resume(args.run, args.engine, args.steps), trackers)


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
    """By name, from a file of one's own, or from a published table."""
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
        raise ValueError(f"task {name!r} brings its own verifier: leave out --verifier.")
    if name.startswith(PREFIX) and args.max_new_tokens is not None:
        return load_task(name, seed, max_new_tokens=args.max_new_tokens, **dict(args.task_arg))
    if args.max_new_tokens is not None:
        raise ValueError(f"task {name!r} brings its own room for an answer: leave out --max-new-tokens.")
    return load_task(name, seed, **dict(args.task_arg))


def _verifier(args: argparse.Namespace) -> str:
    if not args.verifier:
        raise ValueError(f"a task file needs --verifier: {', '.join(VERIFIERS)}, or FILE.py:FUNCTION.")
    return args.verifier


def evaluate_run(args: argparse.Namespace) -> None:
    """The final figures of a run: its saved adapter against the base model, in this new process, on held-out problems."""
    manifest = RunLog.load(args.run).manifest
    if not (args.run / "adapter").is_dir():
        raise ValueError(f"{args.run} has no adapter yet: the run has to end first.")
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
    """Let a model write demonstrations for a task file, and keep those that its verifier accepts."""
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
        sys.exit(f"stopped; what was found is in {job.out}: give the same command again to go on.")
    print(job)


def examine(args: argparse.Namespace) -> None:
    """This machine, or a model on it; exit code 1 where training can't work."""
    if not args.model:
        return examine_machine()
    found = model_findings(args.model, args.tokens, not args.no_quantize, dict(args.template_arg))
    sys.exit(not report_findings(found, f"{args.model} can be trained here.", f"{args.model} can't be trained here"))


def plan(args: argparse.Namespace) -> None:
    """What the training of a recipe needs, before it starts."""
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
    """A model's usual numbers, and those that were asked for."""
    _, usual = USUAL.get(args.model, ("", Config()))
    return replace(usual, **{f.name: value for f in fields(Config) if (value := getattr(args, f.name)) is not None})


def parser(recipe: Path | None = None) -> argparse.ArgumentParser:
    """Every command, with its options and their help. `recipe`: a file whose values are `train`'s defaults."""
    top = argparse.ArgumentParser(prog="python -m hapo_lab", description="Train with HAPO and look at what happened.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("train", help="train a policy; writes a run folder")
    p.set_defaults(run_command=train)
    p.add_argument("folder", type=Path, help="the run's folder")
    p.add_argument("--model", default="smollm2-135m",
                   help=f"{', '.join(PRESETS)}, a folder, or a hub id; default: smollm2-135m")
    p.add_argument("--task", help=f"{', '.join(TASKS)}, a FILE.jsonl of your own, a published table (FILE.parquet, or "
                                  f"ORG/NAME[:SPLIT] on the hub), or {PREFIX}NAME; default: sums for tiny, else json_record")
    _add_file_options(p)
    p.add_argument("--heldout", type=float, default=0.2, help="share of a file's problems, where it has no split; default: 0.2")
    add_task_option(p)
    p.add_argument("--test", help="another table, whose problems are held out")
    add_columns_option(p)
    p.add_argument("--method", default="hapo", help=f"{', '.join(METHODS)}, or FILE.py:NAME; default: hapo")
    p.add_argument("--gate", help=f"in place of the method's: {', '.join(GATES)}, or FILE.py:NAME")
    p.add_argument("--shaping", help=f"of the teacher's tokens, in place of the method's: {', '.join(SHAPINGS)}, or "
                                     "FILE.py:NAME")
    p.add_argument("--no-quantize", action="store_true", help="keep the base model out of 4 bits")
    p.add_argument("--rank", type=int, default=16, help="of the LoRA adapter; default: 16")
    add_template_option(p)
    add_engine_option(p)
    _add_track_option(p)
    for name in ("alpha", "beta", "threshold"):
        p.add_argument(f"--{name}", type=float, help="of the gate; default: the method's")
    p.add_argument("--task-seed", type=int, help="of the draw of held-out problems; default: --seed")
    p.add_argument("--adapter-seed", type=int, help="of the new adapter's matrices; default: --seed")
    for f in fields(Config):
        default = "--seed" if f.default is None else f.default
        other = "".join(f"; {model}: {getattr(config, f.name)}" for model, (_, config) in USUAL.items()
                        if getattr(config, f.name) != f.default)
        p.add_argument(f"--{f.name.replace('_', '-')}", type=int if f.default is None else type(f.default),
                       help=f"default: {default}{other}")
    p.add_argument("--recipe", type=Path, help="a TOML file with any of these options; the command line goes before it")
    if recipe:
        p.set_defaults(**read_recipe(recipe, p._actions))

    p = commands.add_parser("plan", help="what the training of a recipe needs in memory and time, before it starts")
    p.set_defaults(run_command=plan)
    p.add_argument("recipe", type=Path, help="TOML, as train --recipe takes it")
    p.add_argument("--memory", type=float, help="GiB of a GPU that is not this machine's; default: what is free here")
    p.add_argument("--gpus", type=int, default=1, help="of one machine, inside TRL, as H100s: a row per layout; default: 1")
    p.add_argument("--prompt-tokens", type=int, default=PROMPT, help=f"of the longest prompt; default: {PROMPT}")

    p = commands.add_parser("resume", help="go on with a run that was stopped or killed, from its last checkpoint")
    p.set_defaults(run_command=resume_run)
    p.add_argument("run", type=Path)
    p.add_argument("--steps", type=int, help="extend the run, finished or not, to so many in all")
    add_engine_option(p)
    _add_track_option(p)

    p = commands.add_parser("evaluate", help="held-out success of a run's saved adapter, and of the base model")
    p.set_defaults(run_command=evaluate_run)
    p.add_argument("run", type=Path)
    p.add_argument("--samples", type=int, default=8, help="a problem; default 8")

    p = commands.add_parser("bench", help="models and runs on the same problems, side by side: avg@k, pass@k, length")
    add_bench_options(p)

    p = commands.add_parser("report", help="the picture as PNG and the table as CSV; several runs side by side")
    p.set_defaults(run_command=report)
    p.add_argument("runs", type=Path, nargs="+")
    p.add_argument("--out", type=Path, default=Path("report"), help="default: report/")

    p = commands.add_parser("picture", help="what the README and the docs show")
    add_picture_commands(p)

    p = commands.add_parser("experiment", help="methods x tasks x seeds from a TOML file: run, examine, report")
    add_experiment_commands(p)

    p = commands.add_parser("demonstrate", help="let a teacher model write a task file's missing demonstrations")
    p.set_defaults(run_command=demonstrate)
    p.add_argument("file", type=Path, help=f"JSONL: prompt, answer, demonstration or none; or {PREFIX}NAME")
    p.add_argument("--task-seed", type=int, default=0, help=f"of {PREFIX}NAME; default: 0")
    add_task_option(p)
    p.add_argument("--out", type=Path, help="default: FILE.demonstrated.jsonl; the same command again goes on there")
    p.add_argument("--model", required=True, help=f"the teacher: {', '.join(PRESETS)}, a folder, or a hub id")
    p.add_argument("--samples", type=int, default=8, help="completions a problem; the first right one is kept; default: 8")
    p.add_argument("--temperature", type=float, default=1.0, help="default: 1.0")
    p.add_argument("--seed", type=int, default=0, help="default: 0")
    _add_file_options(p)

    p = commands.add_parser("doctor", help="what this machine can do, and how to mend what it can't")
    p.set_defaults(run_command=examine)
    p.add_argument("--model", help=f"look at this model instead, without training it: {', '.join(PRESETS)}, a folder, or a "
                                   "hub id")
    p.add_argument("--tokens", type=int, default=Config.token_budget,
                   help=f"of a pass, to reckon the model's memory with; default: {Config.token_budget}")
    p.add_argument("--no-quantize", action="store_true", help="look at it out of 4 bits")
    add_template_option(p)

    p = commands.add_parser("demo", help="the main job: lesson 05_train_live, without a browser")
    p.set_defaults(run_command=demo)

    p = commands.add_parser("lessons", help="write the notebooks to a folder of yours")
    p.set_defaults(run_command=lessons)
    p.add_argument("folder", type=Path, help="is made if need be; a notebook in it that you changed is never overwritten")

    add_quiz_options(commands.add_parser("quiz", help="ten questions about the method, with the lesson that answers each"))
    return top


def _add_track_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--track", action="append", default=[], metavar="TRACKER",
                   help=f"where each step's figures go as well: {', '.join(TRACKERS)}, or FILE.py:NAME; as often as needed")


def _add_file_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--verifier", help=f"of a task file: {', '.join(VERIFIERS)}, or FILE.py:FUNCTION")
    p.add_argument("--max-new-tokens", type=int,
                   help=f"of a task file: room for a right completion; default: {ROOM}, or a reasoning-gym task's own")


def main(argv: list[str] | None = None) -> None:
    """Run one command; what goes wrong is one sentence."""
    args = parser().parse_args(argv)
    try:
        if args.run_command is train and args.recipe:
            args = parser(args.recipe).parse_args(argv)
        args.run_command(args)
    except (ValueError, TrainingError, EngineError) as error:
        sys.exit(f"hapo_lab: {error}")

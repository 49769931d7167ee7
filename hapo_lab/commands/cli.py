"""python -m hapo_lab train | resume | evaluate | bench | report | experiment | demonstrate | doctor | demo | lessons"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hapo_lab.baselines import METHODS
from hapo_lab.commands.bench import add_bench_options
from hapo_lab.commands.doctor import main as examine_machine
from hapo_lab.commands.doctor import report as report_findings
from hapo_lab.commands.experiment import add_experiment_commands
from hapo_lab.commands.lessons import lessons
from hapo_lab.commands.model_doctor import findings as model_findings
from hapo_lab.commands.options import add_engine_option, add_template_option
from hapo_lab.engines.protocol import EngineError, Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.gates import GATES, numbers_of, with_numbers
from hapo_lab.loss import SHAPINGS
from hapo_lab.pictures.figures import comparison_figure, training_figure
from hapo_lab.pictures.style import to_png
from hapo_lab.policy.models import PRESETS, load_policy
from hapo_lab.reproducibility import disk
from hapo_lab.reproducibility.catalogue import get_gate, get_method, get_shaping
from hapo_lab.reproducibility.kit import CHECKOUT, LESSONS
from hapo_lab.runs.log import RunLog, runs_folder
from hapo_lab.runs.manifest import policy_of
from hapo_lab.runs.progress import mean_of, progress_line
from hapo_lab.runs.trackers import TRACKERS, Maker, get_trackers, tracking
from hapo_lab.tasks.builtin import TASKS, load_task
from hapo_lab.tasks.jsonl import load_jsonl, task_of_run
from hapo_lab.tasks.problem import Task
from hapo_lab.tasks.verifiers import VERIFIERS, load_verifier
from hapo_lab.training.config import TINY, Config
from hapo_lab.training.demonstrations import Demonstrations
from hapo_lab.training.evaluation import evaluate
from hapo_lab.training.guards import TrainingError
from hapo_lab.training.trainer import Trainer, resume

USUAL = {"tiny": ("sums", TINY)}
"""A model's own task and config, where these are not the main job's."""


def train(args: argparse.Namespace) -> None:
    """Train a policy, in a run folder."""
    usual_task, usual = USUAL.get(args.model, ("json_record", Config()))
    config = replace(usual, **{f.name: value for f in fields(Config) if (value := getattr(args, f.name)) is not None})
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
    shown = sum(trainer.demonstration(p) is not None for p in task.train)
    print(f"{task.name}: {len(task.train)} problems to train on, {shown} with a demonstration of at most {task.max_new_tokens} "
          f"tokens; {len(task.heldout)} held out", flush=True)
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
    """By name, or from a file."""
    if name.endswith(".jsonl"):
        return load_jsonl(name, _verifier(args), args.max_new_tokens, heldout=args.heldout, seed=seed)
    if args.verifier:
        raise ValueError(f"task {name!r} brings its own verifier: leave out --verifier.")
    return load_task(name, seed)


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


def report(args: argparse.Namespace) -> None:
    """Write the pictures and tables of runs, and a picture that compares them."""
    logs = [RunLog.load(run) for run in args.runs]
    args.out.mkdir(parents=True, exist_ok=True)
    for log in logs:
        report_run(log, args.out if len(logs) == 1 else args.out / log.path().name)
    if len(logs) > 1:
        exams = {split.get("heldout_sha256"): split.get("seed") for log in logs for split in [log.manifest.get("problems", {})]}
        if len(exams) > 1:
            print(f"note: these runs hold out different problems (task seeds {', '.join(map(str, exams.values()))}); "
                  "train with one --task-seed to compare them on the same")
        path = args.out / "comparison.png"
        path.write_bytes(to_png(comparison_figure(logs)))
        print(path)


def report_run(log: RunLog, out: Path) -> None:
    """Write a run's picture and its table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "training.png").write_bytes(to_png(training_figure(log)))
    log.write_csv(out / "steps.csv")
    print(f"{out / 'training.png'}, {out / 'steps.csv'}")


def demonstrate(args: argparse.Namespace) -> None:
    """Let a model write demonstrations for a task file, and keep those that its verifier accepts."""
    out = args.out or args.file.with_suffix(".demonstrated.jsonl")
    job = Demonstrations(args.file, out, load_verifier(_verifier(args)), args.model, args.samples)
    sampling = Sampling(args.max_new_tokens, args.temperature)
    try:
        if job.pending:
            batches = job.sample(load_policy(args.model), sampling, seed=args.seed)
            with tqdm(total=len(job.pending), unit="problem") as bar:
                for asked in batches:
                    bar.set_postfix_str(f"{job.found} demonstrations", refresh=False)
                    bar.update(asked)
    except KeyboardInterrupt:
        sys.exit(f"stopped; what was found is in {out}: give the same command again to go on.")
    print(job)


def examine(args: argparse.Namespace) -> None:
    """This machine, or a model on it; exit code 1 where training can't work."""
    if not args.model:
        return examine_machine()
    found = model_findings(args.model, args.tokens, not args.no_quantize, dict(args.template_arg))
    sys.exit(not report_findings(found, f"{args.model} can be trained here.", f"{args.model} can't be trained here"))


def demo(args: argparse.Namespace) -> None:
    """Execute 05_train_live.ipynb, the very notebook, and say in the terminal how its training goes."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    source = LESSONS / "05_train_live.ipynb"
    if CHECKOUT:  # an installed package's own folder is no place for runs
        os.environ.setdefault("HAPO_LAB_RUNS", str(LESSONS / "runs"))
    run = runs_folder() / "05_train_live"
    os.environ["HAPO_LAB_RUNS"] = str(run.parent)  # the kernel works in another folder
    notebook = nbformat.read(source, as_version=4)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(LESSONS)}},
                            extra_arguments=["--log-level=40"])
    print(f"executing {_short(source)}; its run is written to {_short(run)}; Ctrl-C ends it after the step")
    client.on_cell_start = lambda cell, cell_index: cell.cell_type == "code" and print(
        f"cell {cell_index + 1} of {len(notebook.cells)}: {cell.source.splitlines()[0]}", flush=True)
    executed = run / "05_train_live.ipynb"
    try:
        with _watched(run), _interrupt_goes_to(client):
            client.execute()
    except CellExecutionError as error:
        raise ValueError(f"a cell of the notebook failed, {error.ename}: {error.evalue or 'see there'}; the notebook is kept, "
                         f"as far as it came, in {_short(executed)}.") from None
    finally:
        run.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, executed)
    report_run(RunLog.load(run), run)
    print(f"\n{summary(run)}\n\nexecuted notebook: {_short(executed)}\npicture:           {_short(run / 'training.png')}")


def summary(run: Path) -> str:
    """What a run reached, in a few lines."""
    log = RunLog.load(run)
    last = log.steps[-5:]
    groups = sum(len(s.problems) for s in last)
    lines = [f"{log.name} on {log.manifest['task']}: {len(log.steps)} of {log.planned} steps, "
             f"{sum(s.training_seconds for s in log.steps) / 60:.1f} minutes of training, evaluation excluded "
             f"({_phases(log)})",
             f"teacher in the last {len(last)} steps: {sum(s.teacher_samples for s in last)} of {groups} groups"]
    if (run / "evaluation.json").exists():
        for who, found in json.loads((run / "evaluation.json").read_text()).items():
            low, high = found["interval_95"]
            lines.append(f"held-out success {who} training: {found['success']:.1%} (95% interval {low:.1%} to {high:.1%}; "
                         f"{len(found['by_problem'])} problems x {found['samples']}; "
                         f"{found['dead_groups']:.0%} of the groups fail whole)")
    return "\n".join(lines)


def _phases(log: RunLog) -> str:
    total = sum(s.training_seconds for s in log.steps) or 1.0
    named = {"rollout": "rollouts", "gate": "gate, SSI and advantages", "update": "update"}
    return ", ".join(f"{words} {sum(s.seconds[phase] for s in log.steps) / total:.2%}" for phase, words in named.items())


@contextmanager
def _watched(run: Path) -> Iterator[None]:
    """Print a line whenever there is a new step of a run that another process writes, or is about to begin."""
    done = threading.Event()

    def watch() -> None:
        while not (run / "run.json").exists():
            if done.wait(0.5):
                return
        for log in RunLog.load(run).follow(stop=done):
            print(progress_line(log), flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _interrupt_goes_to(client: Any) -> Iterator[None]:
    """The first Ctrl-C goes to the kernel, whose trainer then finishes its step and saves; a second one stops us."""
    def forward(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        print("stopping after this step; Ctrl-C again to stop at once", flush=True)
        os.kill(client.km.provisioner.pid, signal.SIGINT)

    before = signal.signal(signal.SIGINT, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def parser() -> argparse.ArgumentParser:
    """Every command, with its options and their help."""
    top = argparse.ArgumentParser(prog="python -m hapo_lab", description="Train with HAPO and look at what happened.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("train", help="train a policy; writes a run folder")
    p.set_defaults(run_command=train)
    p.add_argument("folder", type=Path, help="the run's folder")
    p.add_argument("--model", default="smollm2-135m",
                   help=f"{', '.join(PRESETS)}, a folder, or a hub id; default: smollm2-135m")
    p.add_argument("--task", help=f"{', '.join(TASKS)}, or a FILE.jsonl of your own; default: sums for tiny, else json_record")
    _add_file_options(p)
    p.add_argument("--heldout", type=float, default=0.2, help="share of a file's problems, where it has no split; default: 0.2")
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

    p = commands.add_parser("experiment", help="methods x tasks x seeds from a TOML file: run, examine, report")
    add_experiment_commands(p)

    p = commands.add_parser("demonstrate", help="let a teacher model write a task file's missing demonstrations")
    p.set_defaults(run_command=demonstrate)
    p.add_argument("file", type=Path, help="JSONL: prompt, answer, demonstration or none")
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
    return top


def _add_track_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--track", action="append", default=[], metavar="TRACKER",
                   help=f"where each step's figures go as well: {', '.join(TRACKERS)}, or FILE.py:NAME; as often as needed")


def _add_file_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--verifier", help=f"of a task file: {', '.join(VERIFIERS)}, or FILE.py:FUNCTION")
    p.add_argument("--max-new-tokens", type=int, default=64, help="of a task file: room for a right completion; default: 64")


def main(argv: list[str] | None = None) -> None:
    """Run one command; what goes wrong is one sentence."""
    args = parser().parse_args(argv)
    try:
        args.run_command(args)
    except (ValueError, TrainingError, EngineError) as error:
        sys.exit(f"hapo_lab: {error}")

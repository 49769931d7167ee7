"""An experiment as data: methods x tasks x seeds, one budget, and the expectation.

Every trial of a seed sees the same problems in the same order, from the same new adapter. The task's held-out problems are kept
away from training altogether: what is measured on the way is success on `validation`, the last of the training problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hapo_lab.methods import Method
from hapo_lab.reproducibility import disk, parts
from hapo_lab.reproducibility.catalogue import PARTS, get_gate, get_method, get_shaping, method_described, method_from
from hapo_lab.reproducibility.seeds import derive
from hapo_lab.runs.trackers import get_trackers
from hapo_lab.tasks.builtin import load_task
from hapo_lab.tasks.jsonl import load_jsonl
from hapo_lab.tasks.problem import Task, with_demonstrations
from hapo_lab.training.config import TINY, Config

BASE = "base"
"""The untrained model's name among the trials."""
_LISTS = ("seeds", "rates", "tuning_seeds", "track")


@dataclass(frozen=True)
class TaskSpec:
    """One of an experiment's tasks.

    >>> TaskSpec("sums", demonstrations=0.1).base
    'sums'
    >>> with open("own.jsonl", "w") as file:
    ...     print('{"prompt": "What is 27 + 58?", "answer": "85"}', file=file)
    >>> TaskSpec.of_file("own.jsonl", "last_number", max_new_tokens=16).verifier
    'last_number'
    """

    base: str
    """A task of the kit or of reasoning-gym, by name; or the path of a JSONL file."""
    demonstrations: float = 1.0
    """The share of training problems that keep their demonstration; each seed draws its own."""
    verifier: str = ""
    """A file's: a name, or FILE.py:FUNCTION."""
    max_new_tokens: int = 0
    """A file's: a completion's limit in tokens."""
    sha256: str = ""
    """A file's: its checksum, and that of its verifier's file, so that all trials train on one version of them."""

    @classmethod
    def of_file(cls, path: str | Path, verifier: str, max_new_tokens: int, demonstrations: float = 1.0) -> TaskSpec:
        """Of a file as it is now."""
        base = str(Path(path).resolve())
        return cls(base, demonstrations, verifier, max_new_tokens, _checksum(base, verifier))

    def load(self, seed: int) -> Task:
        """The task, its held-out problems drawn with the seed. ValueError: an unknown task; an unreadable or changed file."""
        if not self.sha256:
            return load_task(self.base, seed)
        if _checksum(self.base, self.verifier) != self.sha256:
            raise ValueError(f"{self.base} or its verifier has changed since the experiment began: bring the old file back, or "
                             "begin another experiment.")
        return load_jsonl(self.base, self.verifier, self.max_new_tokens, seed=seed)


def _checksum(base: str, verifier: str) -> str:
    files = [base, verifier.rpartition(":")[0]] if ".py:" in verifier else [base]
    return " ".join(parts.checksum(Path(file)) for file in files)


@dataclass(frozen=True)
class Trial:
    """One run of an experiment."""

    task: str
    method: str
    seed: int
    learning_rate: float
    tuning: bool = False
    """True: made to choose the learning rate, and never reported."""

    @property
    def name(self) -> str:
        """Its folder's name, below the experiment's."""
        run = f"{self.task}-{self.method}-{self.seed}"
        return f"tuning/{run}-{self.learning_rate:g}" if self.tuning else f"trials/{run}"


@dataclass(frozen=True)
class Experiment:
    """Methods x tasks x seeds.

    Raises
    ------
    ValueError
        Nothing to compare, a seed twice, in both uses or in the config, a method called base, no evaluations, steps for an
        unknown method, an unknown tracker.

    Examples
    --------
    >>> methods, tasks = {"hapo": HAPO, "grpo": GRPO}, {"sums": TaskSpec("sums")}
    >>> experiment = Experiment("two", "HAPO learns, GRPO does not", methods, tasks, seeds=(0, 1))
    >>> [trial.name for trial in experiment.trials({})][:2]
    ['trials/sums-hapo-0', 'trials/sums-grpo-0']
    """

    name: str
    """The name of its folder and of its report."""
    expected: str
    """The expected outcome in words, written before the runs."""
    methods: Mapping[str, Method]
    """By a short name."""
    tasks: Mapping[str, TaskSpec]
    """By a short name."""
    seeds: tuple[int, ...]
    model: str = "tiny"
    config: Config = TINY
    """The config of every trial, except seed and learning rate."""
    rates: tuple[float, ...] = ()
    """Learning rates that each method may choose from, per task; none: the config's."""
    tuning_seeds: tuple[int, ...] = ()
    """Seeds of the runs that choose the rates. None of these runs is reported."""
    validation: int = 40
    """Training problems that are kept for choosing rates and for the curves."""
    task_seed: int = 0
    """Seed of the draw of held-out problems: one split for all trials."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Method -> another number of steps than the config's."""
    engine: str = "transformers"
    """See `Trainer`."""
    track: tuple[str, ...] = ()
    """Further places for each step's figures: see `runs.trackers`."""

    def __post_init__(self) -> None:
        say = f"experiment {self.name!r}"
        if not (self.methods and self.tasks and self.seeds):
            raise ValueError(f"{say}: it needs at least one method, one task and one seed.")
        for what, seeds in (("seeds", self.seeds), ("tuning seeds", self.tuning_seeds)):
            if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
                raise ValueError(f"{say}: its {what} hold {', '.join(map(str, twice))} twice; each seed is one trial.")
        names = [method.name for method in self.methods.values()]
        if alike := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{say}: two of its methods are named {', '.join(alike)} in figures; give one another `name`.")
        if BASE in self.methods:
            raise ValueError(f"{say}: {BASE!r} is the untrained model; give the method another short name.")
        if self.config.order_seed is not None or self.config.sampling_seed is not None:
            raise ValueError(f"{say}: order_seed or sampling_seed is set, so its seeds would share their draws, and intervals "
                             "over seeds would be too narrow: leave both out.")
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(f"{say}: seed {', '.join(map(str, both))} is to tune and to report; rates must be chosen by other "
                             "seeds than they are judged by.")
        if bool(self.rates) != bool(self.tuning_seeds):
            raise ValueError(f"{say}: rates to choose from and seeds to choose by go together; it has one of the two.")
        if not self.config.eval_every:
            raise ValueError(f"{say}: eval_every is 0, so no trial would measure its success on the way; set it to 5, say.")
        get_trackers(self.track)  # an unknown one says so now
        if unknown := sorted(self.steps.keys() - self.methods.keys()):
            raise ValueError(f"{say}: steps are given for {', '.join(unknown)}; its methods are {', '.join(self.methods)}.")

    def task(self, key: str, seed: int) -> Task:
        """The task of a seed's trials: `validation` replaces the held-out problems, and a share of the rest has
        demonstrations."""
        spec = self.tasks[key]
        whole = spec.load(self.task_seed)
        if not 0 < self.validation < len(whole.train):
            raise ValueError(f"experiment {self.name!r}: validation is {self.validation}; task {key!r} has {len(whole.train)} "
                             "training problems, and needs some of them to train on.")
        task = replace(whole, train=whole.train[:-self.validation], heldout=whole.train[-self.validation:])
        return task if spec.demonstrations == 1 else with_demonstrations(task, spec.demonstrations, seed)

    def config_of(self, trial: Trial) -> Config:
        """The numbers of one trial."""
        seed = derive(trial.seed, "tuning") if trial.tuning else trial.seed
        return replace(self.config, steps=self.steps.get(trial.method, self.config.steps), seed=seed,
                       learning_rate=trial.learning_rate)

    def tuning(self) -> list[Trial]:
        """The trials that choose the rates; none if there is no choice."""
        return [Trial(task, method, seed, rate, tuning=True)
                for seed in self.tuning_seeds for task in self.tasks for method in self.methods for rate in self.rates]

    def trials(self, chosen: Mapping[tuple[str, str], float]) -> list[Trial]:
        """The reported trials, with the chosen rate per (task, method). Seeds are outermost, so that unfinished work covers
        all methods."""
        return [Trial(task, method, seed, chosen.get((task, method), self.config.learning_rate))
                for seed in self.seeds for task in self.tasks for method in self.methods]

    def described(self) -> dict:
        """As JSON; `from_description` reads it."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "methods": {key: method_described(method) for key, method in self.methods.items()},
            "tasks": {key: asdict(spec) for key, spec in self.tasks.items()}, "config": asdict(self.config),
            "steps": dict(self.steps), **{name: list(getattr(self, name)) for name in _LISTS}}

    def differs(self, other: dict) -> list[str]:
        """The differences from a folder's description that forbid to continue there. Further seeds, methods and tasks are
        allowed."""
        mine = self.described()
        other = other | {"methods": {key: _completed(method) for key, method in other["methods"].items()},
                         "tasks": {key: asdict(TaskSpec(**spec)) for key, spec in other["tasks"].items()},
                         "config": asdict(Config()) | other["config"]}
        common = {part: [key for key in mine[part] if key in other[part]] for part in ("methods", "tasks")}
        pairs = {f"{part} {key}": (other[part][key], mine[part][key]) for part, keys in common.items() for key in keys}
        pairs |= {name: (other.get(name), mine[name]) for name in mine
                  if name not in ("methods", "tasks", "seeds", "steps", "track")}
        pairs |= {f"steps of {key}": (other["steps"].get(key), mine["steps"].get(key)) for key in common["methods"]}
        return [name for name, (there, here) in pairs.items() if there != here]


def _completed(method: dict) -> dict:
    """A method's description, with defaults for newer fields."""
    whole = method_described(Method("")) | method
    return whole | {"then": whole["then"] and _completed(whole["then"])}


def from_description(described: dict) -> Experiment:
    """The experiment that `Experiment.described` described; ValueError: a part of it can't be restored."""
    return Experiment(**described | {
        "methods": {key: method_from(method) for key, method in described["methods"].items()},
        "tasks": {key: TaskSpec(**spec) for key, spec in described["tasks"].items()}, "config": Config(**described["config"]),
        **{name: tuple(described[name]) for name in _LISTS}})


# from a file -------------------------------------------------------------------------------------------------------


def load_experiment(path: str | Path) -> Experiment:
    """An experiment from a TOML file, as docs/experiments.md shows one.

    ValueError, in one sentence, names the place of an unreadable or unknown entry.

    >>> with open("mine.toml", "w") as file:
    ...     print('expected = "HAPO learns"', 'methods = ["hapo", "grpo"]', 'tasks = ["sums"]', "seeds = 3", sep=chr(10),
    ...           file=file)
    >>> load_experiment("mine.toml").seeds
    (0, 1, 2)
    """
    path = Path(path)
    table = disk.read_toml(path)
    try:
        return _from_table(table, path.stem, path.parent)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


KINDS: dict[str, tuple[Any, str]] = {
    "model": (str, "a name"), "methods": ((list, dict), "a list of names, or a table"),
    "tasks": ((list, dict), "a list of names, or a table"), "seeds": ((int, list), "a number, or a list of seeds"),
    "validation": (int, "a whole number"), "config": (dict, "a table"), "tuning": (dict, "a table"), "steps": (dict, "a table"),
    "track": (list, "a list of names")}
"""Of an experiment's file."""


def _from_table(table: dict, stem: str, folder: Path) -> Experiment:
    for name, (kind, words) in KINDS.items():
        if name in table and (not isinstance(table[name], kind) or isinstance(table[name], bool)):
            raise ValueError(f"{name!r} is {table[name]!r}; it must be {words}.")
    tuning = table.pop("tuning", {})
    allowed = {f.name for f in fields(Experiment)} - {"rates", "tuning_seeds"}
    _refuse_unknown("the file", table, allowed | {"tuning"})
    _refuse_unknown("[tuning]", tuning, {"rates", "seeds"})
    for name, why in (("expected", "write down what you expect before you run it"), ("methods", "name at least one"),
                      ("tasks", "name at least one"), ("seeds", "say how many, or list them")):
        if not table.get(name):
            raise ValueError(f"{name!r} is missing: {why}.")
    usual = TINY if table.get("model", "tiny") == "tiny" else Config()
    changes = table.get("config", {})
    _refuse_unknown("[config]", changes, {f.name for f in fields(Config)} - {"seed", "order_seed", "sampling_seed"})
    for name, value in changes.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"[config] {name} is {value!r}; it must be a number.")
    return Experiment(**{"name": stem} | table | {
        "methods": {key: _method(key, given) for key, given in _keyed(table["methods"], "methods")},
        "tasks": {key: _task(key, given, folder) for key, given in _keyed(table["tasks"], "tasks")},
        "config": replace(usual, **changes), "seeds": _seeds(table["seeds"], 0), "rates": tuple(tuning.get("rates", ())),
        "tuning_seeds": _seeds(tuning.get("seeds", ()), 1000), "track": tuple(table.get("track", ()))})


def _refuse_unknown(where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"{where} has {', '.join(unknown)}, which means nothing here; it may have {', '.join(sorted(known))}.")


def _keyed(given: list[str] | dict[str, dict], what: str) -> list[tuple[str, dict]]:
    """Names, or names with their changed fields."""
    if isinstance(given, list):
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise ValueError(f"{what} names {', '.join(twice)} twice.")
        return [(name, {}) for name in given]
    return list(given.items())


def _seeds(given: int | list[int], first: int) -> tuple[int, ...]:
    """A number of seeds, or a list."""
    return tuple(range(first, first + given)) if isinstance(given, int) else tuple(given)


def _task(key: str, given: dict, folder: Path) -> TaskSpec:
    """Its file, and its verifier's, lie beside the experiment's."""
    base, of_file = given.get("base", key), ("verifier", "max_new_tokens")
    if not isinstance(base, str):
        raise ValueError(f"task {key!r}: base is {base!r}; it must be a name, or a file's.")
    if not base.endswith(".jsonl"):
        _refuse_unknown(f"task {key!r}", given, {"base", "demonstrations"})
        load_task(base)  # an unknown one says so now
        return TaskSpec(**{"base": key} | given)
    _refuse_unknown(f"task {key!r}", given, {"base", "demonstrations", *of_file})
    if missing := [name for name in of_file if name not in given]:
        raise ValueError(f"task {key!r} is a file and needs {' and '.join(missing)}, as `train` does.")
    name = given["verifier"]
    spec = TaskSpec.of_file(folder / base, str(folder.resolve() / name) if ".py:" in name else name, given["max_new_tokens"],
                            given.get("demonstrations", 1.0))
    spec.load(0)  # a line that can't be read says so now
    return spec


def _method(key: str, given: dict) -> Method:
    """A method by name, or another with some of its parts exchanged."""
    given = dict(given)
    base = get_method(given.pop("base", key))
    _refuse_unknown(f"method {key!r}", given, {f.name for f in fields(Method)})
    named: dict[str, Callable[[str], Any]] = {"gate": get_gate, "shaping": get_shaping, "then": get_method}
    try:
        changes = {name: named[name](value) if name in named and isinstance(value, str) else parts.rebuilt(value, PARTS)
                   for name, value in given.items()}
    except TypeError as error:  # of a part that has no such number
        raise ValueError(f"method {key!r}: {error}.") from None
    return replace(base, **{"name": base.name if not changes else f"{base.name}, {key}"} | changes)

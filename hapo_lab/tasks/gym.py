"""Tasks of reasoning-gym: procedural problems of any number and difficulty, graded by their own data set."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hapo_lab.reproducibility import parts
from hapo_lab.reproducibility.seeds import derive
from hapo_lab.tasks.problem import Problem, Task, Verdict

PREFIX = "reasoning_gym:"
RUNS = re.compile(r"(?<![\w.])(eval|exec)\(|(?<!\w)(parse_expr|sympify)\(")
"""A grader that has this in its source runs an answer as code, as those of n_queens and countdown do. Such a data set is
refused, because a policy's output is never run."""
ASKING = "Think it through, then write the answer alone between <answer> and </answer>."
"""What the prompt adds to a data set's question."""


@dataclass(frozen=True)
class GymVerifier:
    """Grades by a data set's own `score_answer`: right at its full score, 1.

    The answer is the text between the last <answer> and </answer>; without these marks there is none.
    """

    data_set: str
    options: str
    """Of the data set, as JSON; its seed and size as well."""

    def __call__(self, problem: Problem, completion: str) -> Verdict:
        """Grade a completion."""
        from reasoning_gym.utils import extract_answer
        said = extract_answer(completion)
        if said is None:
            return Verdict(False, "there is no <answer>...</answer> in it")
        made = _data_set(self.data_set, self.options)
        try:
            score = float(made.score_answer(said, _entry(self.data_set, self.options, int(problem.key.rpartition(" ")[2]))))
        except Exception as error:  # whatever a grader makes of any text
            return Verdict(False, f"it can't be graded ({type(error).__name__})")
        return Verdict(score >= 1, f"it says {said!r:.40}, of score {score:.2f}; of score 1 is {problem.answer!r:.40}")


def load_gym(data_set: str, seed: int = 0, *, train: int = 280, heldout: int = 40, max_new_tokens: int = 256,
             demonstration: Any = None, **options: Any) -> Task:
    """A task of reasoning-gym's problems.

    Parameters
    ----------
    data_set : str
        Its name there, such as "chain_sum".
    seed : int
        Of all problems; those held out are drawn after those of training.
    train, heldout : int
        The number of problems. Repeated draws are dropped, so there may be fewer.
    demonstration : callable, str or path, optional
        A function of the data set's entry (`question`, `answer`, `metadata`) that gives a completion or None; the same as
        "FILE.py:FUNCTION"; or a file of `hapo-lab demonstrate`. Without it no problem has a demonstration.
    **options
        The data set's own options, such as its problems' difficulty.

    Raises
    ------
    ValueError
        reasoning-gym is not installed; an unknown data set, or one that would run an answer as code; an option that it
        does not have, or of a value that it refuses; a demonstration that its grader rejects.

    Examples
    --------
    >>> task = load_gym("chain_sum", train=4, heldout=2, max_terms=2, max_digits=1,
    ...                 demonstration=lambda entry: "<answer>" + entry["answer"] + "</answer>")
    >>> task.verify(task.heldout[0], f"I think <answer>{task.heldout[0].answer}</answer>").correct
    True
    """
    if train < 1 or heldout < 1:
        raise ValueError(f"{PREFIX}{data_set}: train is {train} and heldout {heldout}; both must be at least 1.")
    told = json.dumps(options | {"seed": derive(seed, PREFIX, data_set), "size": train + heldout}, sort_keys=True)
    if isinstance(demonstration, str | Path):
        demonstration = parts.load(str(demonstration)) if ".py:" in str(demonstration) else str(Path(demonstration).absolute())
    made, show = _data_set(data_set, told), _demonstrations(demonstration)
    found: dict[str, Problem] = {}
    for i in range(len(made)):
        entry = _entry(data_set, told, i)
        problem = Problem(f"{data_set} {i}", ({"role": "user", "content": f"{entry['question'].strip()}\n\n{ASKING}"},),
                          str(entry["answer"]), show(f"{data_set} {i}", entry))
        found.setdefault(problem.messages[0]["content"], problem)
    problems = tuple(found.values())
    if len(problems) <= heldout:
        raise ValueError(f"{PREFIX}{data_set} gives {len(problems)} different problems in {train + heldout}: beside {heldout} "
                         "held out that leaves none to train on.")
    source = {"gym": data_set, "options": options, "train": train, "heldout": heldout,
              "demonstration": parts.described(demonstration)}
    return Task(f"{PREFIX}{data_set}", problems[:-heldout], problems[-heldout:], GymVerifier(data_set, told), max_new_tokens,
                source, seed)


def gym_of_run(source: Mapping[str, Any], seed: int, max_new_tokens: int) -> Task:
    """The task of a run's `source`. ValueError: its function of demonstrations is gone or has changed."""
    return load_gym(source["gym"], seed, train=source["train"], heldout=source["heldout"], max_new_tokens=max_new_tokens,
                    demonstration=parts.rebuilt(source["demonstration"], {}), **source["options"])


def _demonstrations(given: Callable[[dict], str | None] | str | None) -> Callable[[str, dict], str | None]:
    """A problem's key and entry -> its demonstration."""
    if given is None:
        return lambda key, entry: None
    if callable(given):
        return lambda key, entry: given(entry)
    try:
        rows = [json.loads(line) for line in Path(given).read_text(encoding="utf-8").splitlines()]
        written = {row["key"]: row.get("demonstration") for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{given} is not a file that hapo-lab demonstrate wrote ({error!r}).") from None
    return lambda key, entry: written.get(key)


@lru_cache
def _data_set(name: str, options: str) -> Any:
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ValueError(f'the task {PREFIX}{name} needs reasoning-gym: python -m pip install "hapo_lab[gym]".') from None
    if name not in DATASETS:
        raise ValueError(f"reasoning-gym has no data set {name!r}; it has {', '.join(sorted(DATASETS))}.")
    if RUNS.search(inspect.getsource(DATASETS[name][0].score_answer)):
        raise ValueError(f"reasoning-gym's {name} grades an answer by running it as code: choose another data set.")
    try:
        return create_dataset(name, **json.loads(options))
    except (TypeError, AssertionError, ValueError, AttributeError) as error:
        raise ValueError(f"{PREFIX}{name} does not take {options} ({error}).") from None


@lru_cache(maxsize=4096)
def _entry(name: str, options: str, index: int) -> dict:
    return dict(_data_set(name, options)[index])

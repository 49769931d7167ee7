"""HAPO in 60 lines: its checks, its length, and its step beside the kit's own, on real groups."""

import ast
import doctest
import io
import tokenize
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_checks import Hostile, broken

from hapo_lab.engines.protocol import Sampling
from hapo_lab.methods import HAPO, judge
from hapo_lab.methods import teach as taught_by_the_kit
from hapo_lab.notebook import build, checks_of_updates, classroom, quiz, sixty_lines
from hapo_lab.notebook.build import CHECKS, checked
from hapo_lab.notebook.classroom import Diary, Student, teacher_of
from hapo_lab.notebook.sixty_lines import log_probs, step, teach, token_losses
from hapo_lab.pictures.figures import training_figure
from hapo_lab.policy.models import load_policy
from hapo_lab.ssi import Group, Rollout
from hapo_lab.tasks.builtin import load_task
from hapo_lab.training.config import TINY
from hapo_lab.training.learner import Learner


def lines_of_code(source: str) -> int:
    """Lines that hold more than a comment, a docstring or nothing."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = {line for token in tokens if token.type not in nothing for line in range(token.start[0], token.end[0] + 1)}
    owners = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)]
    for node in owners:
        if ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_lines_of_code_are_counted():
    source = '"""Doc."""\n\n\ndef f(x):\n    """Two\n    lines."""\n    # why\n    return (x +\n            1)\n'
    assert lines_of_code(source) == 3


def test_the_whole_of_hapo_is_at_most_sixty_lines():
    """Imports included."""
    assert 40 <= lines_of_code(Path(sixty_lines.__file__).read_text()) <= 60


@pytest.mark.parametrize("module", [build, classroom, quiz])
def test_the_examples_in_the_docstrings_hold(module):
    failed, tried = doctest.testmod(module, extraglobs={"load_policy": load_policy, "load_task": load_task})
    assert not failed and tried >= 2


# the same step -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    """Away from the base, so that all matrices have gradients."""
    found = load_policy("tiny", seed=0, device="cpu")
    with torch.no_grad():
        for i, p in enumerate(found.trainable()):
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return found


@pytest.fixture(scope="module")
def task():
    return load_task("sums")


class Recorded(Student):
    """Whose rollouts are given."""

    def __init__(self, policy, task, groups):
        super().__init__(policy, task)
        self.groups = groups

    def sample(self, problems):
        return [list(group) for group in self.groups]


@pytest.fixture(scope="module")
def groups(policy, task):
    """Of four problems: two as sampled, which fail; one with three right, one all right and dead."""
    problems = task.train[:4]
    sampled = Student(policy, task).sample(problems)
    told = [replace(teacher_of(policy, task)(p), teacher=False) for p in problems]
    sampled[2][4:7] = [told[2]] * 3
    sampled[3] = [told[3]] * 8
    return sampled


def still(policy):
    """An optimizer that leaves the weights where they are."""
    return torch.optim.SGD(policy.trainable(), lr=0.0)


def test_the_steps_loss_and_gradients_are_the_kits(policy, task, groups):
    problems, teacher = task.train[:4], teacher_of(policy, task)
    loss, sampled, taught = step(Recorded(policy, task, groups), teacher, problems, still(policy))
    gradients = [p.grad.clone() for p in policy.trainable()]

    judged, _ = judge(HAPO.gate, [Group(p, tuple(g)) for p, g in zip(problems, groups, strict=True)], {}, [0.5] * 4)
    shown = [taught_by_the_kit(HAPO, g, teacher(g.problem)) for g in judged]
    learner, seen = Learner(policy, HAPO, replace(TINY, max_grad_norm=1e9), Sampling(28)), []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad.clone() for p in learner.parameters]))
    kit = learner.update(shown, 0.0)

    assert [g.decision for g in shown] == [True, True, True, False] and shown[3].dead
    assert [tuple(group) for group in taught] == [g.rollouts for g in shown] and sampled == groups
    assert abs(loss - kit["loss"]) < 1e-6 < abs(loss)
    assert max(g.abs().max() for g in gradients) > 1e-3
    for mine, theirs in zip(gradients, seen[0], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


def test_every_slip_of_a_step_is_another_step_on_the_kits_groups(policy, task, groups):
    """So none is named in vain: beside `tiny`, too, it has another loss or other gradients."""
    def found(one):
        for p in policy.trainable():
            p.grad = torch.full_like(p, 0.01)  # of the step before
        before = [p.detach().clone() for p in policy.trainable()]
        loss, *_ = one(Recorded(policy, task, groups), teacher_of(policy, task), task.train[:4],
                       torch.optim.SGD(policy.trainable(), lr=1.0))
        with torch.no_grad():
            moved = torch.cat([(p - old).flatten() for p, old in zip(policy.trainable(), before, strict=True)])
            for p, old in zip(policy.trainable(), before, strict=True):
                p.copy_(old)
        return loss, moved

    loss, moved = found(step)
    for slip in checks_of_updates.STEP_SLIPS:
        other_loss, other_moved = found(checks_of_updates._step_with(slip))
        assert abs(loss - other_loss) > 1e-4 or (moved - other_moved).norm() > 0.01 * moved.norm(), slip


def test_log_probs_are_the_kits_and_the_mask_is_the_completions(policy, task, groups):
    from hapo_lab.policy.logprobs import completion_logprobs
    student, problems = Student(policy, task), task.train[:4]
    logp, mask = log_probs(student, problems, groups)
    theirs, _, their_mask = completion_logprobs(policy.model, [student.prompt(p) for p in problems],
                                                [[r.ids for r in group] for group in groups])
    assert mask.sum(1).tolist() == [len(r.ids) for group in groups for r in group] and not mask.all(1).any()
    torch.testing.assert_close(logp[mask], theirs[their_mask], atol=1e-5, rtol=0)


def test_a_diary_is_a_run_that_any_picture_reads(policy, task, groups):
    diary = Diary(policy, task, steps=1, rate=0.5)
    student = Recorded(policy, task, groups)
    loss, sampled, taught = step(student, teacher_of(policy, task), task.train[:4], still(policy))
    diary.add(task.train[:4], sampled, taught, loss)
    record, = diary.log.steps
    assert record.successes == (0, 0, 3, 8) and record.decisions == (True, True, True, False)
    assert record.replaced == (0, 0, 0, -1) and record.teacher_samples == 3 and record.reward == 11 / 32
    assert record.dead_before == 3 and record.dead_after == 1 and record.loss == loss and record.learning_rate == 0.5
    assert record.advantages[2][1] == pytest.approx(-0.9353, abs=1e-3)  # 4 of 8 with the teacher
    assert "HAPO, your own" in training_figure(diary.log).says


# the checks --------------------------------------------------------------------------------------------------------


def list_advantages(rewards, std=True):
    mean = sum(rewards) / len(rewards)
    spread = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
    return [(r - mean) / (spread + 1e-4) if std else r - mean for r in rewards]


def numpy_advantages(rewards, std=True):
    return (rewards - np.mean(rewards)) / (np.std(rewards, ddof=1) + 1e-4) if std else rewards - np.mean(rewards)


def torch_advantages(rewards, std=True):
    rewards = torch.tensor(rewards)
    return (rewards - rewards.mean()) / (rewards.std(correction=1) + 1e-4) if std else rewards - rewards.mean()


def other_inject(rollouts, demonstration):
    rollouts = list(rollouts)
    worst = sorted(rollouts, key=lambda r: r.reward)[0]
    rollouts.remove(worst)
    return (*rollouts, demonstration)


def other_teach(rollouts, demonstration):
    rewards = np.array([r.reward for r in rollouts])
    if (1 + rewards.sum()) / 10 < 0.8:
        rollouts = other_inject(rollouts, demonstration)
    return rollouts, list_advantages([r.reward for r in rollouts])


def other_losses(logp, old_logp, advantages, teacher):
    rho, shaped = torch.exp(logp - old_logp), torch.sigmoid(logp - np.log(0.1))
    clipped = torch.where(advantages > 0, torch.clamp(rho, max=1.2), torch.clamp(rho, min=0.8))
    return torch.where(teacher, -shaped * advantages, -clipped * advantages)


def other_mean(losses, mask):
    return losses[mask].mean()


def other_step(student, teacher, problems, optimizer):
    optimizer.zero_grad()
    groups = student.sample(problems)
    taught, advantages, is_teacher = [], [], []
    for problem, group in zip(problems, groups, strict=True):
        after, a = other_teach(group, teacher(problem)) if len(group) == 8 else teach(group, teacher(problem))
        taught.append(after)
        advantages += list(a)
        is_teacher += [r.teacher for r in after]
    logp, mask = log_probs(student, problems, taught)
    losses = other_losses(logp, logp.detach(), torch.tensor(advantages)[:, None], torch.tensor(is_teacher)[:, None])
    loss = losses[mask].mean()
    loss.backward()
    optimizer.step()
    return loss, groups, taught


RIGHT = [(name, getattr(sixty_lines, name)) for name in CHECKS] + [
    ("advantages", list_advantages), ("advantages", numpy_advantages), ("advantages", torch_advantages),
    ("injects", lambda S, N, a=1, b=1, g=0.8: np.float64(a + S) / (N + a + b) < g),
    ("injects", lambda S, N, a=1, b=1, g=0.8: torch.tensor((a + S) / (N + a + b) < g)),
    ("injects", lambda S, N, a=1, b=1, g=0.8: int(S + a < g * (N + a + b) - 1e-9)),
    ("inject", other_inject), ("teach", other_teach), ("token_losses", other_losses), ("masked_mean", other_mean),
    ("masked_mean", lambda losses, mask: sum(x[m].sum() for x, m in zip(losses, mask, strict=True)) / mask.float().sum()),
    ("step", other_step)]

def with_ratio(logp, old_logp, a, teacher):
    rho = (logp - old_logp).exp()
    return -torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a)


def detached_shape(logp, old_logp, a, teacher):
    rho, p = (logp - old_logp).exp(), logp.exp()
    return -torch.where(teacher, p / (p + 0.1).detach() * a, torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a))


def late_gate(rollouts, demonstration):
    after = other_inject(rollouts, demonstration)
    if not sum(r.reward for r in after) < 7:
        after = rollouts
    return after, list_advantages([r.reward for r in after])


def stale_advantages(rollouts, demonstration):
    return teach(rollouts, demonstration)[0], list_advantages([r.reward for r in rollouts])


def in_place(rollouts, demonstration):
    rollouts[min(range(len(rollouts)), key=lambda i: rollouts[i].reward)] = demonstration
    return rollouts


def in_place_and_silent(rollouts, demonstration):
    in_place(rollouts, demonstration)


def swapped(student, teacher, problems, optimizer):
    loss, sampled, taught = step(student, teacher, problems, optimizer)
    return loss, taught, sampled


def silent_step(*given):
    step(*given)


def by_the_row(logp, old_logp, a, teacher):
    if teacher:
        return -logp.exp() / (logp.exp() + 0.1) * a
    return with_ratio(logp, old_logp, a, teacher)


def upside_down(logp, old_logp, a, teacher):
    rho = (old_logp - logp).exp()
    return -torch.where(teacher, torch.sigmoid(logp - np.log(0.1)) * a, torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a))


def quotient_of_logs(logp, old_logp, a, teacher):
    rho = logp / old_logp
    return -torch.where(teacher, torch.sigmoid(logp - np.log(0.1)) * a, torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a))


def in_a_row(student, teacher, problems, optimizer):
    """Advantages and teacher flags are (B,), and not (B, 1)."""
    sampled = student.sample(problems)
    taught, weights = zip(*[teach(group, teacher(p)) for group, p in zip(sampled, problems, strict=True)], strict=True)
    logp, mask = log_probs(student, problems, taught)
    flags = torch.tensor([r.teacher for group in taught for r in group])
    loss = token_losses(logp, logp.detach(), torch.cat(weights), flags)[mask].mean()
    return loss.item(), sampled, taught


WRONG = [
    ("advantages", lambda r, std=True: (r - r.mean()) / (r.std(correction=0) + 1e-4) if std else r - r.mean(), "N - 1"),
    ("advantages", lambda r, std=True: (r - r.mean()) / r.std() if std else r - r.mean(), "0/0"),
    ("advantages", lambda r, std=True: (r - r.mean()) / (r.std() + 1e-8) if std else r - r.mean(), "1e-4 here"),
    ("advantages", lambda r, std=True: (r - r.mean()) / (r.std() + 4e-4) if std else r - r.mean(), "rewards [1, 0, 0, 0]"),
    ("advantages", lambda r, std=True: (r - r.mean()) / (r.std() + 1e-4), "std=False makes no difference"),
    ("advantages", lambda r, std=True: r - r.mean(), "nothing is divided"),
    ("advantages", lambda r, std=True: r, "these are the rewards"),
    ("advantages", lambda r, std=True: r / (r.std() + 1e-4) if std else r, "subtract the group's mean first"),
    ("advantages", lambda r, std=True: (r - r.mean()) / (r.var() + 1e-4) if std else r - r.mean(), "take its root"),
    ("advantages", lambda r: r - r.mean(), "can't be read (TypeError"),
    ("advantages", lambda r, std=True: (r.mean() - r) / (r.std() + 1e-4 if std else 1), "turned around"),
    ("advantages", lambda r, std=True: (r - r.mean()) / (1 if std else r.std() + 1e-4), "std=True divides"),
    ("advantages", lambda r, std=True: (r - r.mean()) / (r.std() + 1e-4) if std else None, "std=False: yours gives nothing"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (a + S) / (a + b + N) <= g, "at a tie"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: S / N < g, "the prior is missing"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (a + S) / N < g, "you divided by N"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (a + S) / (a + N) < g, "prior's failures"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (1 + S) / (2 + N) < g, "always Beta(1, 1)"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (a + S) / (a + b + N) < 0.8, "always 0.8"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (a + S) / (a + b + N) > g, "the other way around"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: not (a + S) / (a + b + N) < g, "the other way around"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (a + S - 1) / (a + b + N - 2) < g, "the posterior's mode"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: S == 0, "hard gate"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (a + S) / (a + b + N), "compare it with gamma"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: True, "S = 7 of 8"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (b + N - S) / (a + b + N) < g, "counted the failures"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: (a + S) / (b + N - S) < g, "by the failures alone"),
    ("injects", lambda S, N, a=1, b=1, g=0.8: True if (a + S) / (a + b + N) < g else None, "yours gives nothing"),
    ("inject", lambda rollouts, d: [*rollouts, d], "grown to N + 1"), ("inject", in_place, "changed the sampled list"),
    ("inject", in_place_and_silent, "returned nothing"), ("inject", lambda rollouts, d: [d, *rollouts[1:]], "took seat 0"),
    ("inject", lambda rollouts, d: [*rollouts[:-1], d], "the last seat"),
    ("inject", lambda rollouts, d: [d if r is max(rollouts, key=lambda r: r.reward) else r for r in rollouts], "best rollout"),
    ("inject", lambda rollouts, d: [r if r.reward else d for r in rollouts], "replaced every failure"),
    ("inject", lambda rollouts, d: other_inject(rollouts[::-1], d), "of equals the kit takes the first"),
    ("inject", lambda rollouts, d: rollouts if all(r.reward for r in rollouts) else other_inject(rollouts, d), "a reward of 0"),
    ("teach", late_gate, "before the injection"), ("teach", stale_advantages, "compute them anew"),
    ("teach", lambda rollouts, d: (other_inject(rollouts, d), list_advantages([r.reward for r in other_inject(rollouts, d)])),
     "ask the gate first"),
    ("teach", lambda rollouts, d: (rollouts, list_advantages([r.reward for r in rollouts])), "the teacher never comes"),
    ("teach", lambda rollouts, d: teach(rollouts, d) if not any(r.reward for r in rollouts) else (
        rollouts, list_advantages([r.reward for r in rollouts])), "only where all have failed"),
    ("teach", lambda rollouts, d: teach(rollouts, d)[::-1], "in this order"),
    ("teach", lambda rollouts, d: teach(rollouts, d)[0], "return two things"),
    ("teach", lambda rollouts, d: teach(rollouts, d) if sum(r.reward for r in rollouts) < 7 else None, "yours gives nothing"),
    ("teach", lambda rollouts, d: (after := teach(rollouts, d)[0], list_advantages([r.reward for r in after], False)),
     "without std"),
    ("token_losses", by_the_row, "Choose for each row"),
    ("token_losses", lambda logp, old, a, teacher: token_losses(logp, old, a, ~teacher), "is True where F counts"),
    ("token_losses", upside_down, "upside down"),
    ("token_losses", quotient_of_logs, "divided two logarithms"),
    ("token_losses", lambda logp, old, a, teacher: torch.where(teacher, token_losses(logp, old, torch.ones_like(a), teacher),
                                                               token_losses(logp, old, a, teacher)), "miss their advantage"),
    ("token_losses", lambda logp, old, a, teacher: torch.where(teacher, token_losses(old, old, a, teacher),
                                                               token_losses(logp, old, a, teacher)), "of the present p"),
    ("token_losses", lambda *given: token_losses(*given).mean(), "ratios [0.5, 0.9, 1.0, 1.1, 1.5]"),
    ("token_losses", lambda *given: -token_losses(*given), "minus the objective"),
    ("token_losses", lambda *given: token_losses(*given).detach(), "no gradient reaches logp"),
    ("token_losses", with_ratio, "nobody knows"), ("token_losses", detached_shape, "gradients in logp: yours gives"),
    ("token_losses", lambda *given: token_losses(*given).detach().numpy(), "no gradient reaches logp"),
    ("masked_mean", lambda losses, mask: losses.mean(), "prompts and padding"),
    ("masked_mean", lambda losses, mask: (losses * mask).mean(), "still divide by them"),
    ("masked_mean", lambda losses, mask: ((losses * mask).sum(1) / mask.sum(1)).mean(), "each rollout's mean"),
    ("masked_mean", lambda losses, mask: (losses * mask).sum(1) / mask.sum(1), "one mean per row"),
    ("masked_mean", lambda losses, mask: (losses * mask).sum(), "divide by the number of tokens"),
    ("masked_mean", lambda losses, mask: (losses * mask).sum() / len(mask), "number of rollouts"),
    ("masked_mean", lambda losses, mask: losses[~mask].mean(), "the other way around"),
    ("masked_mean", lambda losses, mask: losses[mask].mean().item(), "no gradient reaches the losses"),
    ("step", swapped, "teachers in the sampled and in the taught groups"), ("step", silent_step, "it returned nothing"),
    ("step", lambda *given: step(*given)[0], "return three things"), ("step", in_a_row, "[:, None]"),
    *[("step", checks_of_updates._step_with(slip), says) for slip, says in checks_of_updates.STEP_SLIPS.items()]]


def test_every_check_has_a_function_in_the_sixty_lines_and_is_tried_here():
    assert all(callable(getattr(sixty_lines, name)) for name in CHECKS)
    assert {name for name, _ in RIGHT} == {name for name, *_ in WRONG} == set(CHECKS)


@pytest.mark.parametrize("name, answer", RIGHT)
def test_right_answers_in_any_form(name, answer):
    mark = CHECKS[name](answer)
    assert mark.right is True, mark


@pytest.mark.parametrize("name, answer, words", WRONG, ids=[f"{name}-{words}" for name, _, words in WRONG])
def test_misconceptions_are_named(name, answer, words):
    mark = CHECKS[name](answer)
    assert mark.right is False and words in mark.says, mark


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("answer", [..., None, lambda *_, **__: ..., lambda *_, **__: None])
def test_an_unwritten_function(name, answer):
    assert CHECKS[name](answer).right is None


@pytest.mark.parametrize("answer", ["a word", [], {}, object(), broken, lambda: 1, Hostile(), float("nan"), torch.zeros(2, 2),
                                    lambda *_, **__: "a word", lambda *_, **__: [1, 2], lambda *_, **__: float("nan"),
                                    lambda *_, **__: Hostile()])
@pytest.mark.parametrize("name", CHECKS)
def test_nothing_raises(name, answer):
    mark = CHECKS[name](answer)
    assert mark.right is False and mark.says and "\n" not in repr(mark)


# what goes on ------------------------------------------------------------------------------------------------------


def named(name, function):
    function.__name__ = name
    return function


def test_a_right_function_goes_on_and_takes_any_form(capsys):
    mine = checked(named("advantages", lambda rewards, std=True: [(r - sum(rewards) / len(rewards)) / (
        np.std(rewards, ddof=1) + 1e-4 if std else 1) for r in rewards]))
    assert capsys.readouterr().out.startswith("✓ Right: ")
    for rewards in ([1, 0, 0, 0], np.array([1.0, 0, 0, 0]), torch.tensor([1.0, 0, 0, 0])):
        torch.testing.assert_close(mine(rewards), torch.tensor([1.4997, -0.4999, -0.4999, -0.4999]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("answer", [lambda *_: ..., lambda *_: (1, 2), broken])
@pytest.mark.parametrize("name", CHECKS)
def test_until_then_the_solution_stands_in(name, answer, capsys):
    written = named(name, lambda *given: answer(*given))
    found = checked(written)
    assert found is not written and found.__code__ is getattr(sixty_lines, name).__code__
    assert capsys.readouterr().out[0] in "…✗"


def test_what_stands_in_calls_the_functions_that_are_written(capsys):
    notebook = {"checked": checked, "inject": lambda rollouts, demonstration: ["mine"], "injects": lambda *_: True,
                "advantages": len, "torch": None}
    source = ast.parse("def teach(rollouts, demonstration):\n    ...")
    written = next(c for c in compile(source, "cell", "exec").co_consts if hasattr(c, "co_code"))
    found = checked(type(broken)(written, notebook, "teach"))
    with pytest.raises(AttributeError):  # "mine" has no reward
        found([Rollout((1,), "", 0.0)], None)


def test_an_unknown_name_is_told_the_names(capsys):
    written = named("advantage", lambda rewards: rewards)
    assert checked(written) is written
    assert f"there is no exercise 'advantage': the functions are called {', '.join(CHECKS)}" in capsys.readouterr().out

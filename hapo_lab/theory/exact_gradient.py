"""The expected update of a softmax policy over K actions, exact, and the parts of its bias.

One prompt, one group, one token a completion; action a succeeds with probability q_a. With mu = pi . q, the gradient of
the success probability in the logits is

    g = d mu / d logits,    g_a = pi_a (q_a - mu)

A rollout's advantage depends on its own reward and on S alone, and given the rewards the actions are independent; their
scores d log pi_a / d logits = e_a - pi have the mean g / mu after a success and -g / (1 - mu) after a failure. So the sum
runs over S = 0..N alone, whatever K is. The student's part of every update is a multiple of g: only the teacher's term can
rotate the update.

The update is that of a first inner epoch: every ratio is 1, and the clip is inactive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from hapo_lab.gates import Gate
from hapo_lab.loss import slope
from hapo_lab.methods import Decay, Method, seated
from hapo_lab.ssi import Group, Rollout
from hapo_lab.theory.injection import binomial_pmf, group_size, injection_chances

MOST_ACTIONS = 10**6
MOST_WORK = 10**9
"""Steps of a curve, times about the numbers that each of them touches: minutes."""


@dataclass(frozen=True)
class ExpectedGradient:
    """The average of one update. Vectors are (K,), in the logits, in the direction of ascent."""

    success: float
    """mu."""
    injection: float
    """P(inject). A reserved seat is no injection."""
    objective: np.ndarray
    """g, the true gradient of mu."""
    never: np.ndarray
    """The reference: E[update] under the same conventions with the gate never open and no reserved seat."""
    put_in: np.ndarray
    """The bias's first part: the teacher's sample, with its advantage in the new group."""
    taken_out: np.ndarray
    """The second: minus the replaced rollout, with its advantage in the old group."""
    recomputed: np.ndarray
    """The third: the effect of the new mean and std on the rollouts that stay."""
    variance: float
    """E|update - E[update]|^2: the trace of the covariance."""

    @property
    def bias(self) -> np.ndarray:
        """put_in + taken_out + recomputed."""
        return self.put_in + self.taken_out + self.recomputed

    @property
    def update(self) -> np.ndarray:
        """E[update] = never + bias."""
        return self.never + self.bias

    @property
    def relative_bias(self) -> float:
        """|bias| / |never|; NaN where `never` is 0."""
        return _per(_norm(self.bias), _norm(self.never), np.nan)

    @property
    def cosine(self) -> float:
        """Between the update and g; NaN where one of them is 0."""
        return _per(self.update @ self.objective, _norm(self.update) * _norm(self.objective), np.nan)

    @property
    def scale(self) -> float:
        """The update's component along g, in units of g: (N - 1) / N for GRPO without std. NaN where g is 0."""
        return _per(self.update @ self.objective, self.objective @ self.objective, np.nan)


def expected_gradient(logits: ArrayLike, success_probs: ArrayLike, trials: int, method: Method, teacher: ArrayLike,
                      visit: int = 1) -> ExpectedGradient:
    """The exact mean and variance of one update, with all of the method's conventions.

    Parameters
    ----------
    logits : (K,)
        Of the softmax policy.
    success_probs : (K,)
        q: the probability with which each action earns reward 1.
    trials : int
        N, the group size, a reserved teacher's seat included; 2 to 1024.
    method : Method
        Its gate, seats, advantages, shaping, aggregation and entropy bonus are read; a completion limit is 1 token.
    teacher : int or (K,)
        The demonstration's action, or its distribution. It is verified: its reward is 1.
    visit : int
        For gates with memory, see `injection.injection_chances`: the policy was the same in the earlier visits.

    Raises
    ------
    ValueError
        Invalid logits or probabilities; a size that takes more than seconds; a method with both a reserved seat and a gate
        that may open.

    Examples
    --------
    Three actions, of which two succeed; the teacher plays the first:

    >>> found = {method.name: expected_gradient([0, 0, 0], [1, 1, 0], 8, method, teacher=0) for method in (GRPO, HAPO)}
    >>> {name: round(update.relative_bias, 3) for name, update in found.items()}
    {'GRPO': 0.0, 'HAPO': 0.139}
    """
    return expected_gradients([logits], success_probs, trials, method, teacher, visit)[0]


def expected_gradients(policies: Sequence[ArrayLike], success_probs: ArrayLike, trials: int, method: Method, teacher: ArrayLike,
                       visit: int = 1) -> list[ExpectedGradient]:
    """`expected_gradient` for the logits of each of some policies: what they share is computed once."""
    checked = [_checked(logits, success_probs, teacher) for logits in policies]
    table = _table(method, group_size(trials, smallest=2))
    found = [_Policy.of(z, q) for z, q, _ in checked]
    chances = _chances(method, np.array([p.mu for p in found]), trials, visit)
    slopes = slope(method.shaping, np.array([p.logp for p in found]))
    return [_expected(p, method, table, chances[i], checked[i][-1], slopes[i]) for i, p in enumerate(found)]


def _expected(p: _Policy, method: Method, table: _Table, chances: np.ndarray, nu: np.ndarray, slopes: np.ndarray,
              ) -> ExpectedGradient:
    lesson, entropy = p.lesson(nu, slopes), method.entropy_bonus * p.entropy_gradient()

    reference, _ = p.coefficients(table.plain)
    if method.teacher_seats:  # the seat of any rollout: its share of the reference
        student, teachers = p.coefficients(table.taught)
        removed = reference * method.teacher_seats / (len(table.plain) - 1)
        recomputed = student - (reference - removed)
    else:  # a failure's seat
        removed, _ = p.coefficients(chances[:, None] * table.removed)
        recomputed, teachers = p.coefficients(chances[:, None] * (table.taught - table.plain + table.removed))

    return ExpectedGradient(
        success=float(p.mu), injection=float(p.pmf(table.sampled) @ chances), objective=p.g, never=reference * p.g + entropy,
        put_in=teachers * lesson, taken_out=-removed * p.g, recomputed=recomputed * p.g,
        variance=p.variance(*table.branches(chances), nu, slopes))


@dataclass(frozen=True)
class LearningCurve:
    """A policy that follows the expected update, without noise. Arrays have an entry before each step, and a last one."""

    success: np.ndarray
    """mu."""
    injection: np.ndarray
    """P(inject)."""
    update_norm: np.ndarray
    """|E[update]|."""
    objective_norm: np.ndarray
    """|g|."""
    logits: np.ndarray
    """(K,), after the last step."""


def learning_curve(logits: ArrayLike, success_probs: ArrayLike, trials: int, method: Method, teacher: ArrayLike,
                   steps: int = 20_000, step_size: float = 1.0, decay: bool = False) -> LearningCurve:
    """logits <- logits + eta_t E[update], t = 1..steps; eta_t = step_size, or step_size / sqrt(t) with `decay`.

    The decaying step is the one of Theorem 4.1. A gate that changes with time alone changes with t. The other parameters, and
    the errors: see `expected_gradient`; gates whose memory depends on the path are refused as well.
    """
    if steps != int(steps) or steps < 1:
        raise ValueError(f"exact_gradient: {steps} steps; it must be a whole number, at least 1.")
    if not (np.isfinite(step_size) and step_size > 0):
        raise ValueError(f"exact_gradient: the step size is {step_size}; it must be a positive number, such as 1.")
    z, q, nu = _checked(logits, success_probs, teacher)
    if (work := steps * (1000 + len(z) + trials)) > MOST_WORK:  # 1000: what a step costs however small it is
        raise ValueError(f"exact_gradient: {steps:,} steps over {len(z):,} actions would cost {work:.0e} operations, and "
                         f"{MOST_WORK:.0e} take minutes: ask for fewer steps or actions.")
    table = _table(method, group_size(trials, smallest=2))
    seen = np.empty((4, steps + 1))
    state: dict = {}
    before: dict | None = None
    for t in range(1, steps + 2):
        p = _Policy.of(z, q)
        if state != before:  # of a gate without memory: once
            chances = _one_teacher(method, method.gate.chances(state, "", table.sampled).numpy())
            terms = table.terms(chances)
            before, state = state, _next_state(method.gate, state, table.sampled)
        student, teachers = p.coefficients(terms)
        update = student * p.g + teachers * p.lesson(nu, slope(method.shaping, p.logp))
        if method.entropy_bonus:
            update += method.entropy_bonus * p.entropy_gradient()
        seen[:, t - 1] = p.mu, p.pmf(table.sampled) @ chances, _norm(update), _norm(p.g)
        if t <= steps:
            z = z + step_size / (t**0.5 if decay else 1) * update
    success, injection, update_norm, objective_norm = seen
    return LearningCurve(success, injection, update_norm, objective_norm, z)


def teacher_margin(teacher_success: float, trials: int, method: Method) -> float:
    """The margin in success by which an action must exceed the teacher's, for a policy settled on the teacher's to leave it.

    Let the policy play the teacher's action, of success q_T, except for a share e. Per step, the other action's logit gains 2
    e (c (q - q_T) - tau) on the teacher's: c from the students, tau = E[teachers' advantages] F'(log 1). So it grows if and
    only if q - q_T > tau / c, which is returned. Below it the teacher is a ceiling; above, only a delay. An entropy bonus is
    ignored.
    """
    table = _table(method, group_size(trials, smallest=2))
    chances = _chances(method, teacher_success, trials, visit=1)
    pmf = binomial_pmf(table.sampled, teacher_success)
    c, teachers = _coefficients(table.terms(chances), pmf, teacher_success, 1 - teacher_success)
    return float(_per(teachers * slope(method.shaping, [0.0])[0], c, np.inf))


@dataclass(frozen=True)
class _Policy:
    """A softmax policy, with mu and 1 - mu each to full precision."""

    q: np.ndarray
    logp: np.ndarray
    pi: np.ndarray
    mu: float
    fail: float
    g: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, q: np.ndarray) -> _Policy:
        logp = logits - np.logaddexp.reduce(logits)
        pi = np.exp(logp)
        mu, fail = min(pi @ q, 1.0), pi @ (1 - q)
        return cls(q, logp, pi, mu, fail, pi * (q * fail - (1 - q) * mu))

    def pmf(self, trials: int) -> np.ndarray:
        return _pmf(trials, self.mu, self.fail)

    def coefficients(self, terms: np.ndarray) -> tuple[float, float]:
        """(c, T): the student's part of the expected update is c g, the teacher's T times its lesson."""
        return _coefficients(terms, self.pmf(len(terms) - 1), self.mu, self.fail)

    def lesson(self, nu: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """The teacher's mean step at advantage 1: sum over a of nu_a F'(log pi_a) (e_a - pi); `slopes` are the F'."""
        pull = nu * slopes
        return pull - pull.sum() * self.pi

    def entropy_gradient(self) -> np.ndarray:
        """dH / dlogits = -pi_a (log pi_a + H)."""
        return -self.pi * (self.logp - self.pi @ self.logp)

    def variance(self, shares: np.ndarray, rows: np.ndarray, nu: np.ndarray, slopes: np.ndarray) -> float:
        """E|update - E[update]|^2: the spread given S and the decision, and the spread of what they let expect."""
        distance = 1 - 2 * self.pi + self.pi @ self.pi  # |e_a - pi|^2
        lesson, gg = self.lesson(nu, slopes), self.g @ self.g
        within = np.array([_per(self.pi * self.q @ distance, self.mu) - _per(gg, self.mu**2),
                           _per(self.pi * (1 - self.q) @ distance, self.fail) - _per(gg, self.fail**2),
                           nu * slopes**2 @ distance - lesson @ lesson])
        p = (self.pmf(shares.shape[1] - 1) * shares).ravel()
        right, wrong, teachers, right_squares, wrong_squares = rows.reshape(-1, 5).T
        steps = np.array([_per(right, self.mu) - _per(wrong, self.fail), teachers])
        steps = steps - (steps @ p)[:, None]
        between = np.array([[gg, self.g @ lesson], [self.g @ lesson, lesson @ lesson]])
        return float(within @ np.array([right_squares, wrong_squares, teachers**2]) @ p
                     + ((between @ steps) * steps).sum(0) @ p)


@dataclass(frozen=True)
class _Table:
    """What a group's S decides under a method's conventions, times the weight of a sequence in the loss.

    A row is an S, its columns: the sums of the advantages of the right and of the wrong students and of the teacher,
    and the sums of the students' squares, right and wrong.
    """

    sampled: int
    """Rollouts that the student draws."""
    plain: np.ndarray
    """(N + 1, 5): N of them and no teacher."""
    taught: np.ndarray
    """(sampled + 1, 5): with the teacher, in the seat that the method gives it."""
    removed: np.ndarray
    """(N + 1, 5): what SSI takes out of `plain`."""
    reserved: bool

    def branches(self, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(branch, S): how often each branch is taken at S; (branch, S, 5): its rows."""
        if self.reserved:
            return np.ones((1, self.sampled + 1)), self.taught[None]
        return np.stack([1 - chances, chances]), np.stack([self.plain, self.taught])

    def terms(self, chances: np.ndarray) -> np.ndarray:
        """(S, 5): the rows to expect at S."""
        shares, rows = self.branches(chances)
        return (shares[..., None] * rows).sum(0)


def _table(method: Method, trials: int) -> _Table:
    """One for all gates: a gate decides how often a row counts, not what stands in it."""
    return _table_of(replace(method, name="", gate=PLAIN.gate), trials)


@lru_cache(maxsize=64)
def _table_of(method: Method, trials: int) -> _Table:
    right, wrong = (Rollout(ids=(0,), text="", reward=float(r)) for r in (1, 0))
    demonstration = replace(right, teacher=True)

    def group(successes: int, n: int) -> Group:
        return Group(None, (wrong,) * (n - successes) + (right,) * successes)

    def taught(successes: int) -> Group:
        if method.teacher_seats:
            before = group(successes, sampled)
            return replace(before, rollouts=before.rollouts + (demonstration,) * method.teacher_seats)
        return seated(method, group(successes, sampled), demonstration)

    @lru_cache
    def weights(mask: tuple[bool, ...]) -> torch.Tensor:  # of few masks, whatever S is
        return method.weights(torch.ones(len(mask), 1, dtype=torch.bool), torch.tensor(mask), max_length=1)[:, 0]

    def row(g: Group) -> list[float]:
        rewards, mask = g.rewards, g.teacher_mask
        a = (weights(tuple(mask.tolist())) * method.advantages(rewards, mask)).numpy()
        success, teacher = rewards.numpy() == 1, mask.numpy()
        seats = [success & ~teacher, ~success & ~teacher]
        return [a[seats[0]].sum(), a[seats[1]].sum(), a[teacher].sum(), *((a[s] ** 2).sum() for s in seats)]

    sampled = trials - method.teacher_seats
    plain = np.array([row(group(s, trials)) for s in range(trials + 1)])
    removed = np.zeros_like(plain)
    if method.seat == "replace":
        removed[:-1, 1] = plain[:-1, 1] / (trials - np.arange(trials))  # the failures' advantages are equal: one of them
    return _Table(sampled, plain, np.array([row(taught(s)) for s in range(sampled + 1)]), removed,
                  method.teacher_seats > 0)


@lru_cache(maxsize=4)
def _pmf(trials: int, mu: float, fail: float) -> np.ndarray:
    """One update asks for it five times."""
    return binomial_pmf(trials, mu, fail)


def _coefficients(terms: np.ndarray, pmf: np.ndarray, mu: float, fail: float) -> tuple[float, float]:
    right, wrong, teachers = pmf @ terms[:, :3]
    return _per(right, mu) - _per(wrong, fail), teachers


def _chances(method: Method, mu: ArrayLike, trials: int, visit: int) -> np.ndarray:
    return _one_teacher(method, injection_chances(mu, trials - method.teacher_seats, method.gate, visit))


PLAIN = Method("")


def _one_teacher(method: Method, chances: np.ndarray) -> np.ndarray:
    beyond = [part for part in ("teachers", "aside", "kl", "redraws", "then") if getattr(method, part) != getattr(PLAIN, part)]
    if beyond := beyond + ["a decay"] * isinstance(method.imitation, Decay):
        raise ValueError(f"exact_gradient: {method.name} has {' and '.join(beyond)}, which the exact theory does not hold.")
    if method.teacher_seats and chances.any():
        raise ValueError(f"exact_gradient: {method.name} reserves a seat for the teacher and has a gate that may open; "
                         "the bias can be taken apart for one of the two only.")
    return chances


def _next_state(gate: Gate, state: dict, trials: int) -> dict:
    """What the gate remembers after one more step; ValueError if that depends on the groups drawn."""
    after = [gate.decide(state, [""], [s], [trials], [0.5])[2] for s in (0, trials)]
    if after[0] != after[1]:
        raise ValueError(f"exact_gradient: {gate} remembers groups that were drawn from other policies, so its "
                         "expected update is not a function of the present one; use a gate without such a memory.")
    return after[0]


def _checked(logits: ArrayLike, success_probs: ArrayLike, teacher: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, q = np.asarray(logits, dtype=float), np.asarray(success_probs, dtype=float)
    if z.ndim != 1 or q.shape != z.shape or not np.isfinite(z).all():
        raise ValueError(f"exact_gradient: logits {z.shape} and success_probs {q.shape} must be two lists of K finite numbers.")
    if len(z) > MOST_ACTIONS:
        raise ValueError(f"exact_gradient: a policy over {len(z):,} actions; an update is a pass over all of them, and more "
                         f"than {MOST_ACTIONS:,} take longer than seconds.")
    if not ((q >= 0) & (q <= 1)).all():
        raise ValueError("exact_gradient: a success probability lies outside [0, 1].")
    nu = np.asarray(teacher, dtype=float)
    if nu.ndim == 0:
        if not (0 <= nu < len(z) and nu == np.floor(nu)):
            raise ValueError(f"exact_gradient: the teacher plays action {nu:g}; the actions are 0 to {len(z) - 1}.")
        nu = (np.arange(len(z)) == nu).astype(float)
    if nu.shape != z.shape or not (nu >= 0).all() or abs(nu.sum() - 1) > 1e-9:
        raise ValueError(f"exact_gradient: the teacher's distribution must hold {len(z)} probabilities that sum to 1.")
    return z, q, nu


def _norm(vector: np.ndarray) -> float:
    return float(vector @ vector) ** 0.5


def _per(amount: Any, of: float, otherwise: float = 0.0) -> Any:
    """amount / of; where `of` is 0, nothing of the kind occurs."""
    return amount / of if of else otherwise

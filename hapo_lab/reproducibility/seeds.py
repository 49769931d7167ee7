"""One seed, many uses: each draws from its own stream."""
import random


def derive(seed: int, *use: str | int) -> int:
    """The seed of one use, 48 bits, derived from a seed: derive(0, "rollouts", 7).

    A hash of use and seed together. So no two uses, and no two seeds, draw alike, on any machine and version of Python.
    """
    return random.Random(" ".join(map(str, (*use, seed)))).getrandbits(48)


def gate_uniforms(seed: int, step: int, groups: int) -> list[float]:
    """A step's randomness for the gate, one number in [0, 1) per group: a function of (seed, step), like all of the
    trainer's."""
    rng = random.Random(f"gate {seed} {step}")
    return [rng.random() for _ in range(groups)]

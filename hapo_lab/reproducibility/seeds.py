"""One seed, many uses: each draws from a stream of its own."""
import random


def derive(seed: int, *use: str | int) -> int:
    """The seed of one use, 48 bits, from the seed that it belongs to: derive(0, "rollouts", 7).

    A hash of use and seed together. So no two uses, and no two seeds, draw alike, on any machine and version of Python.
    """
    return random.Random(" ".join(map(str, (*use, seed)))).getrandbits(48)


def gate_uniforms(seed: int, step: int, groups: int) -> list[float]:
    """A step's randomness for the gate, one number in [0, 1) a group: a function of (seed, step), like all the trainer's."""
    rng = random.Random(f"gate {seed} {step}")
    return [rng.random() for _ in range(groups)]

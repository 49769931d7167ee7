r"""Make `mathematics/train.jsonl` and `test.jsonl`: 60 and 12 made-up problems, in the layout of LUFFY's files.

    python data/make_mathematics.py

Five kinds of school problems. Each training problem has a teacher's long way, of 150 to 1,400 tokens, which thinks aloud,
checks itself, and ends with its result in \boxed{...}. The kit's lessons train on them where no published data set is at hand.
"""

import json
import random
from collections.abc import Callable
from fractions import Fraction
from math import gcd
from pathlib import Path

SYSTEM = r"Think step by step between <think> and </think>. Then give the final answer in \boxed{}."
TRAIN, TEST = 60, 12

Made = tuple[str, str, list[str]]
"""Question, answer, and the teacher's thoughts."""


def multiples(rng: random.Random) -> Made:
    """A sum over an arithmetic series."""
    k, low = rng.randint(3, 12), rng.randint(20, 90)
    high = low + rng.randint(60, 240)
    first, last = -(-low // k) * k, high // k * k
    count = (last - first) // k + 1
    total = count * (first + last) // 2
    few = [first + i * k for i in range(min(count, 4))]
    return (f"Find the sum of all multiples of {k} between {low} and {high}.", str(total), [
        f"I need the multiples of {k} that are at least {low} and at most {high}.",
        f"The first one: {low} divided by {k} is {low / k:.2f}, so the first is {k} * {first // k} = {first}.",
        f"The last one: {high} divided by {k} is {high / k:.2f}, so the last is {k} * {last // k} = {last}.",
        f"They begin {', '.join(map(str, few))}, always {k} more.",
        f"How many are there? ({last} - {first}) / {k} + 1 = {(last - first) // k} + 1 = {count}.",
        f"Pairs from both ends all give {first} + {last} = {first + last}. So the sum is {count} * {first + last} / 2.",
        f"{count} * {first + last} = {count * (first + last)}, and half of that is {total}.",
        f"A check by another way: {k} times the sum of {first // k} to {last // k}. That sum is "
        f"({first // k} + {last // k}) * {count} / 2 = {total // k}, and {k} * {total // k} = {total}. It agrees."])


def roots(rng: random.Random) -> Made:
    """A quadratic equation, by trying pairs of factors."""
    small, large = sorted(rng.sample(range(2, 48), 2))
    total, product = small + large, small * large
    tried = []
    for d in range(1, small + 1):
        if product % d == 0:
            other = product // d
            verdict = f"that is {total}, as it should be." if d == small else f"not {total}. Next."
            tried.append(f"{d} * {other} = {product}. Their sum is {d + other}: {verdict}")
        else:
            tried.append(f"{d} does not divide {product}: {product} = {d} * {product // d} + {product % d}. Next.")
    return (f"What is the larger root of x^2 - {total}x + {product} = 0?", str(large), [
        f"If the roots are r and s, then r + s = {total} and r * s = {product}. Let me try the divisors of {product}.", *tried,
        f"So x^2 - {total}x + {product} = (x - {small})(x - {large}), and the roots are {small} and {large}.",
        f"A check: {large}^2 - {total} * {large} + {product} = {large**2} - {total * large} + {product} = 0. It holds.",
        f"The larger one is {large}."])


def remainder(rng: random.Random) -> Made:
    """A power, modulo a prime."""
    base, prime, power = rng.randint(2, 9), rng.choice([7, 11, 13]), rng.randint(12, 40)
    base += base % prime == 0
    steps, value, period = [], 1, 0
    for n in range(1, prime):
        value, before = value * base % prime, value
        steps.append(f"{base}^{n}: {before} * {base} = {before * base}, which leaves {value}.")
        if value == 1:
            period = n
            break
    left = power % period
    answer = pow(base, left, prime)
    return (f"What is the remainder when {base}^{power} is divided by {prime}?", str(answer), [
        f"Powers of {base} repeat when they are divided by {prime}. I look at one after the other.", *steps,
        f"After {period} steps it is 1 again, so the remainders repeat every {period}.",
        f"{power} = {period} * {power // period} + {left}. So {base}^{power} leaves what {base}^{left} leaves.",
        f"{base}^{left} leaves {answer}." + (" (A power of 0 is 1.)" if left == 0 else ""),
        f"A check: {base}^{left} = {base**left}, and {base**left} - {answer} = {base**left - answer} is {prime} times "
        f"{(base**left - answer) // prime}. It agrees."])


def divisors(rng: random.Random) -> Made:
    """The number of divisors, by trial."""
    n = rng.choice([2, 3, 4, 6]) * rng.choice([5, 6, 7, 9, 10, 14]) * rng.choice([3, 4, 5, 8])
    left, factors, steps = n, {}, []
    for p in (2, 3, 5, 7):
        while left % p == 0:
            steps.append(f"{left} / {p} = {left // p}, so {p} is a factor.")
            factors[p], left = factors.get(p, 0) + 1, left // p
        steps.append(f"{left} is 1, I am done." if left == 1 else f"{p} does not divide {left}.")
        if left == 1:
            break
    count, product = 1, []
    for power in factors.values():
        count *= power + 1
        product.append(f"({power} + 1)")
    listed = [d for d in range(1, n + 1) if n % d == 0]
    return (f"How many positive divisors does {n} have?", str(count), [
        f"I write {n} as a product of primes.", *steps,
        f"So {n} = {' * '.join(f'{p}^{e}' for p, e in factors.items())}.",
        f"A divisor takes each prime from 0 times to as often as it is there: {' * '.join(product)} = {count} ways.",
        f"A check, by writing all of them down: {', '.join(map(str, listed))}.", f"I count {len(listed)}. It agrees."])


def fractions(rng: random.Random) -> Made:
    """A sum of two fractions, in lowest terms."""
    b, d = rng.sample([3, 4, 5, 6, 8, 9, 10, 12, 15], 2)
    a, c = rng.randint(1, b - 1), rng.randint(1, d - 1)
    total, common = Fraction(a, b) + Fraction(c, d), b * d // gcd(b, d)
    up, right = common // b, common // d
    top = a * up + c * right
    divisor = gcd(top, common)
    answer = str(total) if total.denominator == 1 else rf"\frac{{{total.numerator}}}{{{total.denominator}}}"
    return (rf"What is \frac{{{a}}}{{{b}}} + \frac{{{c}}}{{{d}}}, in lowest terms?", answer, [
        f"Both need one denominator. Multiples of {b}: {', '.join(str(b * i) for i in range(1, up + 1))}.",
        f"Multiples of {d}: {', '.join(str(d * i) for i in range(1, right + 1))}. The first that both have is {common}.",
        f"{a}/{b} = {a * up}/{common}, because {common} / {b} = {up} and {a} * {up} = {a * up}.",
        f"{c}/{d} = {c * right}/{common}, because {common} / {d} = {right} and {c} * {right} = {c * right}.",
        f"Together {a * up} + {c * right} = {top}, so the sum is {top}/{common}.",
        f"Their greatest common divisor is {divisor}" + (
            ", so nothing can be cancelled." if divisor == 1 else f": {top}/{divisor} = {top // divisor}, {common}/{divisor} = "
            f"{common // divisor}."),
        f"A check with decimals: {a / b:.4f} + {c / d:.4f} = {a / b + c / d:.4f}, and {float(total):.4f} is the same."])


KINDS: tuple[Callable[[random.Random], Made], ...] = (multiples, roots, remainder, divisors, fractions)


def problems() -> list[tuple[str, Made]]:
    """(Kind, problem), none of them twice."""
    rng, found = random.Random(0), {}
    while len(found) < TRAIN + TEST:
        kind = KINDS[len(found) % len(KINDS)]
        made = kind(rng)
        found.setdefault(made[0], (kind.__name__, made))
    return list(found.values())


def row(index: int, kind: str, made: Made, split: str) -> dict:
    """As a line of LUFFY's files."""
    question, answer, thoughts = made
    said = "<think>\n" + "\n".join(thoughts) + f"\n</think>\nThe answer is \\boxed{{{answer}}}."
    return {"data_source": kind, "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            "target": [{"role": "assistant", "content": said}] if split == "train" else None, "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": answer}, "extra_info": {"split": split, "index": index}}


def main(folder: Path = Path(__file__).parent / "mathematics") -> None:
    """Write both files."""
    found = problems()
    for split, some in (("train", found[:TRAIN]), ("test", found[TRAIN:])):
        lines = [json.dumps(row(i, *problem, split), ensure_ascii=False) + "\n" for i, problem in enumerate(some)]
        (folder / f"{split}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()

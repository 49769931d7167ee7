"""Peak memory of token log-probabilities, ours over naive: 8 x 512 tokens, 49,152 words, float32, forward and backward.

    python benchmarks/logprob_head.py

Each way runs in a process of its own; the figure is the growth of its peak memory over having the hidden states and
the head. Both processes write their gradient, and the two are compared.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TOKENS, WIDTH, VOCABULARY = 8 * 512, 576, 49_152


def peak() -> float:
    """This process's, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(way: str, out: str) -> None:
    from hapo_lab.policy.decoder import Head
    from hapo_lab.policy.logprobs import head_logprobs
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, requires_grad=True)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.05
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    (hidden[:4] @ head.T).sum().item()  # the libraries' own buffers
    before, start = peak(), time.perf_counter()
    if way == "ours":
        logp, _ = head_logprobs(hidden, Head(head), targets)
    else:
        logp = (hidden @ head.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(logp.sum(), hidden)
    torch.save((peak() - before, time.perf_counter() - start, gradient), out)


def main() -> None:
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("naive", "ours"):
            out = Path(folder) / way
            subprocess.run([sys.executable, __file__, way, str(out)], check=True)
            results[way] = torch.load(out, weights_only=True)
            print(f"{way:6} peak memory +{results[way][0]:6.0f} MiB   {results[way][1]:.1f} s")
    (naive, naive_s, expected), (ours, ours_s, found) = results["naive"], results["ours"]
    error = ((found - expected).norm() / expected.norm()).item()
    print(f"ours over naive: memory {ours / naive:.3f}, time {ours_s / naive_s:.2f}; relative gradient error {error:.1e}")


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()

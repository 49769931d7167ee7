"""benchmarks/gpu.py: its dry run on a CPU. Its figures come from a GPU, where a session has one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GPU = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"


def test_the_dry_run_goes_through_every_part(tmp_path):
    done = subprocess.run([sys.executable, GPU, "--dry", tmp_path / "gpu.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    figures = found["shapes"]["dry"]
    assert figures["rollout_seconds"] > 0 and figures["update_seconds"] > 0 and 0 < figures["share_of_matrix_rate"] < 1
    assert set(found["tiny"]) == {"here", "cpu"} and "dry run: no figure of it means anything" in found["machine"]["device"]
    assert "over its limit" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, GPU], capture_output=True, text=True)
    assert done.returncode == 1 and "there is no GPU here; --dry tries the program on a CPU" in done.stderr

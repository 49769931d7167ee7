"""On a real GPU, and only when asked for: `python -m pytest -m gpu`."""

import on_device
import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.fixture
def dtype() -> str:
    assert torch.cuda.is_available(), "these tests want a CUDA device, and torch finds none here"
    return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"


def test_tiny_trains_resumes_and_is_evaluated(tmp_path, dtype):
    on_device.trains_resumes_and_evaluates(str(tmp_path / "run"), dtype)


def test_the_doctor_finds_it(dtype, monkeypatch):
    monkeypatch.setenv("HAPO_LAB_VLLM", "")
    on_device.the_doctor_finds_it(dtype)

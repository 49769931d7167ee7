"""Python starts with a CUDA device where this folder is on its path: `device.cpp`, compiled to $FAKE_CUDA.

Its capability is $FAKE_CUDA_CAPABILITY. As with a real one, CUDA_VISIBLE_DEVICES="" hides it, until somebody has looked, and a
fork has no use of it: bitsandbytes has begun with CUDA when it was imported.
"""

import ctypes
import functools
import os

ctypes.CDLL(os.environ["FAKE_CUDA"])  # torch asks for a device's library once, when it is imported

import bitsandbytes  # noqa: E402, F401  it sees no device yet, or it would look for kernels of its own
import torch  # noqa: E402

GIB = 1 << 30
ANSWERS = {"is_initialized": True, "_lazy_init": None, "current_device": 0, "get_device_name": "fake",
           "get_device_capability": tuple(map(int, os.environ["FAKE_CUDA_CAPABILITY"].split("."))),
           "mem_get_info": (14 * GIB, 16 * GIB), "memory_reserved": 0, "memory_allocated": 0, "max_memory_allocated": 0,
           "reset_peak_memory_stats": None, "synchronize": None, "empty_cache": None}


@functools.cache
def visible() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def answering(answer):
    def asked(*_, **__):
        if forked:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")
        return answer
    return asked


forked: list[bool] = []
os.register_at_fork(after_in_child=lambda: forked.append(True))
for name, answer in ANSWERS.items():  # torch's Python would ask the driver
    setattr(torch.cuda, name, answering(answer))
torch.cuda.is_available = visible
torch.cuda.device_count = lambda: int(visible())
torch.cuda.default_generators = (torch.Generator("cuda"),)

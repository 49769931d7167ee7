"""hapo_lab: a research kit for HAPO, Hindsight-Anchored Policy Optimization.

Every name below is imported when it is first asked for, so the gate alone costs no model library. `__init__.pyi` says where
each lives. The examples in their docstrings suppose `import torch` and `from hapo_lab import *`.
"""

import logging
import os

import lazy_loader

# OpenMP reads this when torch is loaded, so it stands before. A thread that waits for another turns on its core for a moment,
# and then gives it away: beside a busy process that is half the step's time (`benchmarks/neighbour.py`).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# On a CPU bitsandbytes misses an optional kernel, which only layers in eval mode would use, and says so at every import.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

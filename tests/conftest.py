"""What every test runs under: one thread, so sums keep their order, and examples that repeat."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fedfair", derandomize=True, deadline=None)
settings.load_profile("fedfair")

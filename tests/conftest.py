"""What every test runs under: one thread, so sums keep their order, and examples that repeat."""

from __future__ import annotations

import signal

import torch
from hypothesis import settings

# A shell that starts the tests in the background makes them, and the programs they start, deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
settings.register_profile("fedfair", derandomize=True, deadline=None)
settings.load_profile("fedfair")

"""A federation of real sites: the centre's programs, the code it sends, the runs it submits."""

from __future__ import annotations

from simulations.federation.app_code import build_code, code_hash
from simulations.federation.engine import networks_of, run_on_federation
from simulations.federation.supervisor import start

__all__ = ["build_code", "code_hash", "networks_of", "run_on_federation", "start"]

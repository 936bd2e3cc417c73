"""One run of the unmodified apps on the in-process grid; as a program, a probe in a fresh process.

``python -m benchmarks._run SITES ROUNDS`` prints, as JSON, the seconds of the imports, those to the
first round, and the peak resident memory after every round.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks._timing import peak_memory

RECORDS = 128


def experiment(sites: int, rounds: int) -> dict[str, Any]:
    """Return a configuration: synthetic sites of `RECORDS` records, a small MLP, federated averaging."""
    return {
        "name": "benchmark",
        "rounds": rounds,
        "data": {"name": "synthetic", "options": {"sites": sites, "records": RECORDS}},
        "method": {"name": "fedavg"},
        "training": {"batch_size": 32, "learning_rate": 0.05},
    }


def run(plain: Mapping[str, Any], sites: int, on_record: Callable[[], None]) -> None:
    """Run the server app on the in-process grid; `on_record` is called as each round is recorded."""
    from flwr.app import Context, RecordDict

    from client.app import app as client_app
    from server.app import app as server_app
    from simulations.grid import InProcessGrid

    handler = _Recorded(on_record)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rounds = logging.getLogger("fedfair.rounds")
    rounds.setLevel(logging.INFO)
    rounds.propagate = False
    rounds.addHandler(handler)
    try:
        with tempfile.TemporaryDirectory() as folder, InProcessGrid(client_app, sites) as grid:
            # JSON is YAML.
            (config := Path(folder) / "config.yaml").write_text(json.dumps(plain), encoding="utf-8")
            run_config: dict[str, bool | float | int | str] = {"config": str(config), "output": folder}
            state = RecordDict()
            server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=state, run_config=run_config))
    finally:
        rounds.removeHandler(handler)


class _Recorded(logging.Handler):
    def __init__(self, on_record: Callable[[], None]) -> None:
        super().__init__()
        self.on_record = on_record

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "round_record"):
            self.on_record()


def _probe(sites: int, rounds: int) -> None:
    begin = time.perf_counter()
    import client.app  # noqa: F401
    import server.app  # noqa: F401
    import simulations.grid  # noqa: F401

    start = time.perf_counter()
    times: list[float] = []
    memory: list[float] = []

    def on_record() -> None:
        times.append(time.perf_counter() - start)
        memory.append(peak_memory())

    run(experiment(sites, rounds), sites, on_record)
    print(json.dumps({"imports": start - begin, "first_round": times[0], "memory": memory}))


if __name__ == "__main__":
    _probe(*map(int, sys.argv[1:]))

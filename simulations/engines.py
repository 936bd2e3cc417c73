"""The engines that a run can use: this process, Flower's simulation, a federation of real sites."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from fedfair.config import Config
from fedfair.data.schema import Schema
from fedfair.errors import RunError
from simulations.programs import RunConfig

ROOT = Path(__file__).resolve().parents[1]
IN_PROCESS = "in-process"
FEDERATION = "federation"
Engine = Callable[[RunConfig, Config, Schema], None]


def engine_of(name: str, workers: int, federation: Path | None) -> Engine:
    """Return what runs one configuration to its end.

    Parameters
    ----------
    name : str
        in-process, flower or federation.
    workers : int
        Processes that share the sites, in process.
    federation : Path | None
        The folder of a federation's centre.

    Raises
    ------
    RunError
        If the engine is a federation and none is given, or the other way round.
    """
    if (name == FEDERATION) != (federation is not None):
        raise RunError(
            f"`federation` must be a folder for engine {FEDERATION} alone, got {federation} for {name}"
        )
    if federation is not None:
        from simulations.federation import run_on_federation

        return lambda values, config, _: run_on_federation(values, federation, ROOT, config.server.min_sites)
    if name == "flower":
        from simulations.flower_engine import run_on_flower

        return lambda values, _, schema: run_on_flower(values, len(schema.sites))
    return lambda values, _, schema: _run_in_process(values, len(schema.sites), workers)


def _run_in_process(values: RunConfig, sites: int, workers: int) -> None:
    # Imported late: Flower takes half a second that `fedfair --help` does not need.
    from flwr.app import Context, RecordDict

    from client.app import app as client_app
    from server.app import app as server_app
    from simulations.grid import InProcessGrid

    logging.getLogger("flwr").setLevel(logging.WARNING)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(values))
    with InProcessGrid(client_app, sites, workers) as grid:
        server_app(grid, context)

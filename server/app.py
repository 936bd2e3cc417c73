"""The ServerApp that every engine runs: read the configuration, build the state, train, finish."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedfair.budget import account, notices, resolve, server_ledger
from fedfair.config import Config, load
from fedfair.coordinator import Coordinator
from fedfair.dataset import dataset_of
from fedfair.files import only_one
from fedfair.networks import with_networks
from fedfair.provenance import source_digest
from fedfair.record import RunFolder, next_folder
from fedfair.site import Workbench
from fedfair.uploads import Uploads
from server.capacity import Demand, require_room
from server.crew import Crew
from server.exchange import Sites
from server.journal import Journal
from server.roster import Roster
from server.strategy import ModulatedAggregation

app = ServerApp()
logger = logging.getLogger("fedfair.rounds")
ROOT = Path(__file__).resolve().parents[1]


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train one model as the run config says.

    The run config holds `config` (a YAML file, relative to the app), `overrides`
    (``key=value`` separated by ``;``) and `output` (a folder, created; empty for a numbered one
    in ``~/fedfair-runs``); on a federation also `roster` (which node is which site), `audit` (the
    centre's log) and `weights` (its folder of stored networks). A checkpoint in the folder is resumed.
    """
    config = resolve(read_config(context))
    path = Path(str(context.run_config.get("output") or default_output(config)))
    folder = RunFolder(path, config.server.keep)
    with only_one(folder.path):
        _run(grid, context, config, folder)


def _run(grid: Grid, context: Context, config: Config, folder: RunFolder) -> None:
    adapter = dataset_of(config)
    schema = adapter.schema
    bench = Workbench(with_networks(config, _path(context, "weights")), schema)
    coordinator = Coordinator(config, schema, bench.vectors(), server_ledger(config))
    source, run = source_digest(ROOT), str(folder.path)
    registered = _path(context, "roster")
    journal, roster = Journal(_path(context, "audit"), run), Roster(registered)
    timeout = config.server.round_timeout
    sites = Sites(
        grid, schema.digest(), schema.sites, timeout, folder.path, roster, journal, config.privacy.mode
    )
    uploads = Uploads(config, schema, bench)
    if registered is not None:
        size = sum(value.nbytes for value in coordinator.model.values())
        require_room(Demand(size, uploads.largest, len(schema.sites)), folder.path)
    crew = Crew(coordinator, sites, source, run, uploads)
    strategy = ModulatedAggregation(coordinator, crew, folder)
    begun = folder.checkpoints.load(coordinator)
    folder.save_config(config)
    told: list[str] = []
    if begun is not None:
        logger.info("resuming after round %d of %s", coordinator.round, folder.path)
        told += begun.notices
        strategy.made = begun.made
        strategy.monitor.restore(begun.extra["monitor"])
    folder.truncate(coordinator.round - 1)
    told += notices(config, len(schema.sites), coordinator.values)
    for notice in told:
        logger.warning(notice)
    journal.started(config.digest(), source, config.to_json())
    status = "failed"
    try:
        stopped = _train(strategy)
        folder.save_outcome(stopped, strategy.monitor.best_round, config.server.monitor, told)
        bench.load(coordinator.model)
        folder.save_model(bench.model.state_dict(), coordinator.moments)
        status = "completed"
    finally:
        journal.ended(status, coordinator.round)


def _train(strategy: ModulatedAggregation) -> str | None:
    """Train and measure; return why training ended early, or None."""
    config, coordinator, folder = strategy.config, strategy.coordinator, strategy.folder
    try:
        strategy.crew.survey()
        if (stopped := strategy.train()) is not None:
            logger.warning("training ends after round %d: %s", coordinator.round, stopped)
        strategy.finish()
    finally:
        # A run that fails has spent what it has spent.
        if config.privacy.on:
            folder.save_privacy(account(config, coordinator.round, folder.asked(), strategy.capped))
    return stopped


def read_config(context: Context) -> Config:
    """Return the configuration that the run config points at."""
    path = Path(str(context.run_config["config"]))
    overrides = [part.strip() for part in str(context.run_config.get("overrides", "")).split(";")]
    return load(path if path.is_absolute() else ROOT / path, [part for part in overrides if part])


def _path(context: Context, key: str) -> Path | None:
    value = str(context.run_config.get(key, ""))
    return Path(value) if value else None


def default_output(config: Config) -> Path:
    """Return the next free ``~/fedfair-runs/NAME/NNN``."""
    return next_folder(Path.home() / "fedfair-runs" / config.name)

"""The ServerApp that every engine runs: read the configuration, build the state, start the strategy."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedfair.budget import account, notices, resolve, server_ledger
from fedfair.config import Config, load
from fedfair.coordinator import Coordinator
from fedfair.data import open_dataset
from fedfair.errors import PrivacyBudgetExhausted
from fedfair.provenance import source_digest
from fedfair.record import RunFolder, next_folder
from fedfair.site import Workbench
from server.strategy import ModulatedAggregation

app = ServerApp()
logger = logging.getLogger("fedfair.rounds")
ROOT = Path(__file__).resolve().parents[1]


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train one model as the run config says.

    The run config holds `config` (a YAML file, relative to the app), `overrides`
    (``key=value`` separated by ``;``) and `output` (a folder, created; empty for a numbered one
    in ``~/fedfair-runs``). A checkpoint in the folder is resumed.
    """
    config = resolve(read_config(context))
    adapter = open_dataset(config.data.name, config.data.path, config.data.options, config.seed)
    bench = Workbench(config, adapter.schema)
    folder = RunFolder(Path(str(context.run_config.get("output") or default_output(config))))
    coordinator = Coordinator(config, adapter.schema, bench.vectors(), server_ledger(config))
    folder.save_config(config)
    strategy = ModulatedAggregation(coordinator, folder, source_digest(ROOT), str(folder.path))
    if made := folder.load_checkpoint(coordinator):
        logger.info("resuming after round %d of %s", coordinator.round, folder.path)
        strategy.made = made
    folder.truncate(coordinator.round - 1)
    for notice in notices(config, len(adapter.schema.sites), coordinator.values):
        logger.warning(notice)
    stopped: list[str] = []
    try:
        _train(grid, strategy, stopped)
        strategy.finish(grid)
    finally:
        # A run that fails has spent what it has spent.
        if config.privacy.on:
            folder.save_privacy(
                account(config, coordinator.round, folder.asked(), "; ".join(stopped) or None)
            )
    bench.load(coordinator.model)
    folder.save_model(bench.model.state_dict(), coordinator.moments)


def _train(grid: Grid, strategy: ModulatedAggregation, stopped: list[str]) -> None:
    """Train the rounds that are left, or those that the privacy budget allows; add why it ended."""
    config, coordinator = strategy.config, strategy.coordinator
    strategy.survey(grid)
    if not (remaining := config.rounds - coordinator.round):
        return
    try:
        strategy.start(grid, ArrayRecord(), num_rounds=remaining, timeout=config.server.round_timeout)
    except PrivacyBudgetExhausted as stop:
        if coordinator.round == 0:
            raise
        stopped.append(str(stop))
        logger.warning("training ends after round %d: %s", coordinator.round, stop)


def read_config(context: Context) -> Config:
    """Return the configuration that the run config points at."""
    path = Path(str(context.run_config["config"]))
    overrides = [part.strip() for part in str(context.run_config.get("overrides", "")).split(";")]
    return load(path if path.is_absolute() else ROOT / path, [part for part in overrides if part])


def default_output(config: Config) -> Path:
    """Return the next free ``~/fedfair-runs/NAME/NNN``."""
    return next_folder(Path.home() / "fedfair-runs" / config.name)

"""The ClientApp that every engine runs: unwrap a message, let the site work, wrap its answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedfair import wire
from fedfair.budget import ledger_folder, site_ledger
from fedfair.config import Config, parse_json
from fedfair.data import open_dataset
from fedfair.errors import ConfigError, PrivacyBudgetExhausted, RunError, nearest
from fedfair.privacy.edge import Discreet
from fedfair.privacy.policy import Policy
from fedfair.provenance import source_digest
from fedfair.site import Site, Workbench

app = ClientApp()
ROOT = Path(__file__).resolve().parents[1]
Work = Callable[[Site, Workbench], wire.Arrays]


@app.query()
def survey(message: Message, context: Context) -> Message:
    """Tell what standardisation and the report need to know of this site."""
    return _answer(message, context, lambda site, _: wire.pack_survey(site.survey))


@app.train()
def work(message: Message, context: Context) -> Message:
    """Measure the downloaded model and train it."""
    number = int(str(message.content.config_records["run"]["round"]))
    download = _download(message)
    return _answer(message, context, lambda site, bench: wire.pack_update(site.work(bench, download, number)))


@app.train("signals")
def signals(message: Message, context: Context) -> Message:
    """Measure the downloaded model on the training records (the first of two exchanges)."""
    download = _download(message)
    return _answer(
        message, context, lambda site, bench: wire.pack_signals("train", site.signals(bench, download))
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the final model on the training and the test records."""
    download = _download(message)
    return _answer(message, context, lambda site, bench: wire.pack_update(site.assess(bench, download)))


class _Run:
    """What a process keeps of one run: the data, the model it trains, the sites it has played."""

    def __init__(self, config: Config, run: str, policy: Policy) -> None:
        self.config, self.run, self.policy = config, run, policy
        self.adapter = open_dataset(config.data.name, config.data.path, config.data.options, config.seed)
        self.bench = Workbench(config, self.adapter.schema)
        self._sites: dict[str, Site] = {}

    def site(self, name: str) -> Site:
        """Return a site, its records read once."""
        if name not in self._sites:
            self._sites[name] = self._open(name)
        return self._sites[name]

    def _open(self, name: str) -> Site:
        if self.config.privacy.mode != "sample":
            return Site(name, self.config, self.adapter)
        from fedfair.privacy.site import PrivateSite

        folder = self.policy.ledger or ledger_folder(self.config)
        ledger = site_ledger(self.config, folder, name, self.policy.max_epsilon, self.policy.dataset)
        return PrivateSite(name, self.config, self.adapter, ledger, self.run)


@lru_cache(maxsize=1)
def _run(run_id: int, config_json: str, run: str, policy: Policy) -> _Run:
    """Return the run; its id keeps a later run from seeing files as they were before."""
    del run_id
    return _Run(parse_json(config_json), run, policy)


def _answer(message: Message, context: Context, work: Work) -> Message:
    told = message.content.config_records["run"]
    _check_source(str(told["source"]))
    # More than one thread would change the order of sums, hence bits.
    torch.set_num_threads(1)
    config = parse_json(str(told["config"]))
    policy = Policy.of(context.node_config)
    policy.check(config)
    with Discreet(f"of node {context.node_id}") if config.privacy.on else contextlib.nullcontext():
        run = _run(context.run_id, str(told["config"]), str(told["run"]), policy)
    name = _site_name(context, run.adapter.schema.sites)
    arrays: wire.Arrays = {}
    said = {"name": name, "schema": run.adapter.schema.digest()}
    with contextlib.ExitStack() as stack:
        if config.privacy.on:
            stack.enter_context(Discreet(name))
        try:
            site = run.site(name)
            arrays = work(site, run.bench)
            # The one gate through which anything of a private site leaves.
            site.guard(arrays)
        except PrivacyBudgetExhausted as stop:
            arrays, said["exhausted"] = {}, str(stop)
    content = RecordDict(
        {
            "arrays": ArrayRecord({key: _wrap(value) for key, value in arrays.items()}),
            "site": ConfigRecord({**said}),
        }
    )
    return Message(content, reply_to=message)


def _wrap(value: NDArray[np.generic]) -> Array:
    return Array(value.dtype.name, value.shape, "numpy.ndarray", wire.to_bytes(value))


def _download(message: Message) -> wire.Download:
    record = message.content.array_records["arrays"]
    arrays = {key: wire.from_bytes(value.data, value.dtype, value.shape) for key, value in record.items()}
    return wire.unpack_download(arrays)


def _site_name(context: Context, sites: Sequence[str]) -> str:
    """Return this node's site: `site` of its node config, or the partition's place in the schema.

    Raises
    ------
    RunError
        If the number of virtual nodes is not the number of sites.
    ConfigError
        If the node config names no site of the data.
    """
    if "site" in context.node_config:
        name = str(context.node_config["site"])
        if name not in sites:
            raise ConfigError(
                f"`site` of the node must be one of the data's sites, got {name!r}{nearest(name, sites)}"
            )
        return name
    nodes = int(str(context.node_config["num-partitions"]))
    if nodes != len(sites):
        raise RunError(
            f"`num-supernodes` must be {len(sites)}, one per site of the data, got {nodes}; "
            f'add --federation-config "num-supernodes={len(sites)}"'
        )
    return sites[int(str(context.node_config["partition-id"]))]


def _check_source(expected: str) -> None:
    """Refuse to work for a server whose code differs: a worker may have imported another copy."""
    if (own := source_digest(ROOT)) != expected:
        raise RunError(
            f"the site's code must be the server's ({expected}), got {own} in {ROOT}; "
            "start Flower from an empty directory so that its workers import the app they were sent"
        )

"""The ClientApp that every engine runs: unwrap a message, let the site work, wrap its answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.journal import Journal, Spent
from client.records import brought, wrapped
from client.run import run_of
from client.secure import Sealed
from fedfair import wire
from fedfair.config import parse_json
from fedfair.errors import (
    ConfigError,
    FedfairError,
    InconsistentUpdates,
    PrivacyBudgetExhausted,
    RunError,
    nearest,
)
from fedfair.privacy.policy import Policy
from fedfair.provenance import source_digest
from fedfair.secagg import SECURE
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
    return _answer(
        message,
        context,
        lambda site, bench: wire.pack_update(site.work(bench, _download(message), _round(message))),
    )


@app.train("signals")
def signals(message: Message, context: Context) -> Message:
    """Measure the downloaded model on the training records (the first of two exchanges)."""
    return _answer(
        message,
        context,
        lambda site, bench: wire.pack_signals("train", site.signals(bench, _download(message))),
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the final model on the training and the test records."""
    return _answer(
        message, context, lambda site, bench: wire.pack_update(site.assess(bench, _download(message)))
    )


@app.evaluate("validation")
def validate(message: Message, context: Context) -> Message:
    """Measure the last model as a round would have, so that it can be compared with those before."""
    return _answer(
        message, context, lambda site, bench: wire.pack_update(site.validate(bench, _download(message)))
    )


@app.query("secure")
def prepare(message: Message, context: Context) -> Message:
    """Prepare a secure sum, or open the last one; nothing of the records is in it."""
    return _answer(message, context, lambda *_: {})


def _answer(message: Message, context: Context, work: Work) -> Message:
    policy = Policy.of(context.node_config)
    with policy.pathless():
        journal = Journal(policy.audit, message)
        with journal.refusals():
            upload = _worked(message, context, policy, work)
            journal.opens(upload.opened)
            upload.said |= journal.leaves(upload.arrays, upload.spent)
    return _reply(message, upload)


@dataclass
class _Upload:
    """All that leaves the site with an answer, and how to learn what the site has spent."""

    said: dict[str, str | int]
    arrays: wire.Arrays = field(default_factory=dict)
    spent: Spent = lambda: None
    secure: dict[str, bytes] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)


def _worked(message: Message, context: Context, policy: Policy, work: Work) -> _Upload:
    told = _told(message)
    _check_source(str(told["source"]))
    # More than one thread would change the order of sums, hence bits.
    torch.set_num_threads(1)
    config = parse_json(str(told["config"]))
    policy.check(config)
    with policy.discretion(config, policy.site or f"of node {context.node_id}"):
        run = run_of(context.run_id, str(told["config"]), str(told["run"]), policy)
    name = _site_name(context, policy, run.adapter.schema.sites)
    upload = _Upload({"name": name, "schema": run.adapter.schema.digest()})
    with _own_failure(upload, policy), policy.discretion(config, name):
        sealed = None
        if config.secure.enabled:
            sealed = Sealed(message, context, config, policy, name, run.adapter.schema.sites)
            sealed.check()
        site = run.site(name)
        upload.spent = site.spent
        try:
            upload.arrays = work(site, run.bench)
            # The one gate through which anything of a private site leaves.
            site.guard(upload.arrays)
        except PrivacyBudgetExhausted as stop:
            upload.arrays, upload.said["exhausted"] = {}, str(stop)
        if sealed is not None:
            upload.arrays = sealed.upload(upload.arrays, run.layouts)
            upload.secure, upload.opened = sealed.said, sealed.opened
    return upload


@contextlib.contextmanager
def _own_failure(upload: _Upload, policy: Policy) -> Iterator[None]:
    """Answer with what a virtual site refuses, so that its name stands beside it.

    A node with anything of its own raises: of a hospital nothing is told but the text of its error.
    """
    try:
        yield
    except FedfairError as error:
        if policy != Policy():
            raise
        upload.arrays, upload.said["failed"] = {}, str(error)


def _reply(message: Message, upload: _Upload) -> Message:
    """Return the answer: all that leaves the site but the text of an error."""
    content = RecordDict(
        {
            "arrays": wrapped(upload.arrays),
            "site": ConfigRecord({**upload.said}),
        }
    )
    if upload.secure:
        content[SECURE] = ConfigRecord({**upload.secure})
    return Message(content, reply_to=message)


def _download(message: Message) -> wire.Download:
    if (found := brought(message.content)) is None:
        raise InconsistentUpdates("a message must bring a model, got none")
    return found


def _told(message: Message) -> ConfigRecord:
    """Return what a message says of its run.

    Raises
    ------
    InconsistentUpdates
        If something of it is missing.
    """
    told = message.content.config_records.get("run") or ConfigRecord()
    if lacking := [key for key in ("run", "round", "source", "config") if key not in told]:
        raise InconsistentUpdates(f"a message must say of its run {lacking}, it does not")
    return told


def _round(message: Message) -> int:
    number = str(_told(message)["round"])
    if not (number.isascii() and number.isdecimal()):
        raise InconsistentUpdates("the round of a message must be a whole number, it is not")
    return int(number)


def _site_name(context: Context, policy: Policy, sites: Sequence[str]) -> str:
    """Return this node's site: `site` of its settings, or the partition's place in the schema.

    Raises
    ------
    RunError
        If the number of virtual nodes is not the number of sites.
    ConfigError
        If the node names no site of the data, or has neither name nor number.
    """
    if policy.site is not None:
        if policy.site not in sites:
            raise ConfigError(
                f"`site` of the node must be one of the data's sites, got {policy.site!r}"
                f"{nearest(policy.site, sites)}"
            )
        return policy.site
    if "partition-id" not in context.node_config:
        raise ConfigError(f"`site` of the node must be one of {list(sites)}, got none")
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
            f"the site's code must be the server's ({expected}), got {own} in `{ROOT}`; "
            "start Flower from an empty directory so that its workers import the app they were sent"
        )

"""A server that asks for more than a run needs: what a hospital answers, charges and notes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.app import app as client_app
from client.secure import _identity
from fedfair.audit import entries
from fedfair.budget import site_ledger
from fedfair.config import apply, load, parse
from fedfair.coordinator import Coordinator
from fedfair.data import open_dataset
from fedfair.data.heart import heart_table
from fedfair.errors import ConfigError, PrivacyError
from fedfair.federation.keys import make_node_key, roster_text
from fedfair.privacy.policy import Policy
from fedfair.privacy.site import PrivateSite
from fedfair.provenance import source_digest
from fedfair.site import Workbench
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, PRIVATE, ROOT
from tests.apps.test_site_settings import CONSTANTS, SITES, nodes_with_files

SECURE = "secure.enabled=true"


@dataclass
class Asked:
    """A message to a node, and the node's state before it."""

    message: Message
    state: RecordDict


class Recorder(InProcessGrid):
    """Keeps each message with the state that it met, and can send one again."""

    def __init__(self, sites: int) -> None:
        super().__init__(client_app, sites)
        self.asked: list[Asked] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        states = {node: copy.deepcopy(context.state) for node, context in self._contexts.items()}
        self.asked += [Asked(copy.deepcopy(m), states[m.metadata.dst_node_id]) for m in listed]
        return super().push_messages(listed)

    def told(self, message: Message) -> str:
        """Return the words with which a node refuses, or nothing if it answers."""
        (number,) = super().push_messages([message])
        (reply,) = self.pull_messages([number])
        return str(reply.error.reason) if reply.has_error() else ""

    def again(self, asked: Asked) -> str:
        """Send a message to the node as it was."""
        self._contexts[asked.message.metadata.dst_node_id].state = copy.deepcopy(asked.state)
        return self.told(copy.deepcopy(asked.message))


def hospital(folder: Path, keys: dict[str, Any], grid: Recorder) -> None:
    """Give the next node without one a settings file."""
    node = next(c for c in grid._contexts.values() if "settings" not in c.node_config)
    path = folder / f"{keys['site']}.yaml"
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    node.node_config = {"site": keys["site"], "settings": str(path)}


def federated(folder: Path, config: Path, *overrides: str) -> Recorder:
    """Run the apps over four hospitals with a log and a ledger each."""
    grid = Recorder(len(SITES))
    for site, keys in nodes_with_files(folder).items():
        hospital(folder, {"site": site, **keys, "audit": f"{site}.jsonl"}, grid)
    values = {"config": str(config), "overrides": ";".join([SECURE, *overrides])}
    values["output"] = str(folder / "out")
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values))
    return grid


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A private run in secure sums that is over."""
    folder = tmp_path_factory.mktemp("ran")
    return folder, federated(folder, PRIVATE, *CONSTANTS)


def lone(folder: Path, **keys: Any) -> Callable[..., str]:
    """Return how to send one hospital, Cleveland, a survey, or what else; it gives the refusal."""
    grid = Recorder(1)
    own = nodes_with_files(folder)["Cleveland"]
    hospital(folder, {"site": "Cleveland", **own, "audit": "log.jsonl", **keys}, grid)

    def ask(plain: dict[str, Any], *overrides: str, kind: str = "query", **told: Any) -> str:
        config = parse(apply(plain, list(overrides)))
        run = {"config": config.to_json(), "round": 0, "source": source_digest(ROOT), "run": "r", **told}
        content = RecordDict({"run": ConfigRecord({k: v for k, v in run.items() if v is not None})})
        content["arrays"] = ArrayRecord({})
        if config.secure.enabled:
            content["secure"] = ConfigRecord({"session": "s", "advertise": 1})
        if kind == "bare":
            kind = "train"
            del content["arrays"]
        return grid.told(Message(content, dst_node_id=2, message_type=kind, group_id="0", ttl=100.0))

    return ask


PLAIN: dict[str, Any] = yaml.safe_load(HEART.read_text())


def by_csv(**categorical: list[str]) -> dict[str, Any]:
    """Return the configuration that reads the columns by hand, some by a list of values."""
    options = copy.deepcopy(heart_table()[1])
    for modality in options["modalities"].values():
        modality["numeric"] = [c for c in modality.get("numeric", []) if c not in categorical]
    modality.setdefault("categorical", {}).update(categorical)
    return {**PLAIN, "data": {**PLAIN["data"], "name": "csv", "options": options}}


@pytest.mark.parametrize("overrides", [(), (SECURE,)], ids=["open", "secure"])
def test_no_choice_of_the_format_tells_a_row(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """The first row whose value is in the list, or is not, was named before."""
    told = lone(tmp_path)(by_csv(chol=["233", "2"]), *overrides, kind="query.secure")
    assert told.endswith("site Cleveland failed with DataError; its own log has the details")


def test_with_its_format_in_the_settings_a_site_reads_by_no_other(tmp_path: Path) -> None:
    ask = lone(tmp_path, schema={"name": "csv", "options": heart_table()[1]})
    assert ask(by_csv()) == ""
    for plain in (by_csv(chol=["233"]), PLAIN):
        assert "`data.name` and `data.options` must be those of `schema`" in ask(plain)


def test_no_split_of_a_secure_run_tells_the_number_of_records(tmp_path: Path) -> None:
    """All of the 303 count, however few are trained on; with more asked for, no number is told."""
    split = "data.test_fraction=0.9"
    assert lone(tmp_path, **{"min-records": 303})(PLAIN, SECURE, split, kind="query.secure") == ""
    told = lone(tmp_path, **{"min-records": 304})(PLAIN, SECURE, kind="query.secure")
    assert told == "site Cleveland does not take part in this run"


def test_one_key_speaks_for_one_site(tmp_path: Path) -> None:
    """Three spellings of a name would be three members of a sum, all in one hand."""
    key = make_node_key("cleveland")
    (tmp_path / "roster.txt").write_bytes(roster_text({"cleveland": key.public}))
    (tmp_path / "node.key").write_bytes(key.private)
    policy = Policy(site="Cleveland", key=tmp_path / "node.key", roster=tmp_path / "roster.txt")
    assert _identity(policy, "Cleveland", ["Cleveland", "Hungary"]).roster is not None
    with pytest.raises(ConfigError, match="one key would speak for several"):
        _identity(policy, "Cleveland", ["Cleveland", "CLEVELAND", "cleveland"])


@pytest.mark.parametrize("key", ["roll-number", "mask-number", "request-number"])
def test_an_older_state_gives_no_second_answer(key: str, ran: tuple[Path, Recorder]) -> None:
    """Flower stores the state after the answer has left, so a process may end in between."""
    _, grid = ran
    demands = [a for a in grid.asked if key in a.message.content.config_records["secure"]]
    assert len(demands) >= len(SITES)
    for asked in demands:
        assert "once, its record has it already" in grid.again(asked)


def test_no_budget_is_charged_for_what_could_not_leave(ran: tuple[Path, Recorder]) -> None:
    """The run is over: its sums are answered, and a delivery can be left out."""
    folder, grid = ran
    ledgers = sorted((folder / "ledgers").glob("*.json"))
    before = [path.read_bytes() for path in ledgers]
    assert len(before) == len(SITES)
    for asked in [a for a in grid.asked if a.message.metadata.message_type == "train"]:
        assert "has shared no secrets for sum" in grid.told(copy.deepcopy(asked.message))
        bare = copy.deepcopy(asked)
        del bare.message.content.config_records["secure"]["delivery"]
        assert "must mask what a site sends, got no `delivery`" in grid.again(bare)
    assert [path.read_bytes() for path in ledgers] == before


def test_a_sum_stands_in_the_logs_of_those_who_opened_it(ran: tuple[Path, Recorder]) -> None:
    folder, _ = ran
    for site in SITES:
        log = entries(folder / f"{site}.jsonl")
        sums = [(e["round"], e["sites"]) for e in log if e["event"] == "secure-sum"]
        # A round and the final evaluation; a private survey sums nothing.
        assert sums == [(1, sorted(SITES)), (2, sorted(SITES))]


@pytest.mark.parametrize("number", [0, 4, 99])
def test_a_round_that_the_run_does_not_have_is_neither_charged_nor_trained(
    number: int, tmp_path: Path
) -> None:
    """After the last round one charge would pay for statistics, and the update left for nothing."""
    config = load(PRIVATE, [*CONSTANTS, "rounds=3"])
    config = replace(config, privacy=replace(config.privacy, target_epsilon=None))
    adapter = open_dataset("heart", None, {}, 0)
    ledger, bench = site_ledger(config, tmp_path, "Cleveland"), Workbench(config, adapter.schema)
    site = PrivateSite("Cleveland", config, adapter, ledger, "r")
    download = Coordinator(config, adapter.schema, bench.vectors()).download()
    with pytest.raises(PrivacyError, match=rf"must be in 1 \.\. 3, got {number}"):
        site.work(bench, download, number)
    assert ledger.events() == ()
    site.work(bench, download, 3)
    assert ledger.events() != ()


@pytest.mark.parametrize(
    ("kind", "told", "reason"),
    [
        ("bare", {}, "a message must bring a model, got none"),
        ("query", {"round": None}, "a message must say of its run ['round'], it does not"),
        ("query", {"source": None}, "a message must say of its run ['source'], it does not"),
        ("query", {"config": "{"}, "failed with JSONDecodeError"),
        ("query", {"audit-hash": "a", "audit-n": "x"}, ""),
    ],
    ids=["no model", "no round", "no source", "no configuration", "odd head"],
)
def test_whatever_is_refused_stands_in_the_sites_log(
    kind: str, told: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    words = lone(tmp_path)(PLAIN, kind=kind, **told)
    last = entries(tmp_path / "log.jsonl")[-1]
    assert bool(words) is bool(reason)
    assert (last["event"], last.get("reason", "")) == ("refused" if reason else "left-site", reason)


def test_a_refusal_by_the_ledger_or_the_log_tells_no_folder(tmp_path: Path) -> None:
    ask = lone(tmp_path, dataset="registry")
    plain = yaml.safe_load(PRIVATE.read_text())
    config = load(PRIVATE, list(CONSTANTS))
    ledger = site_ledger(config, tmp_path / "ledgers", "Cleveland", None, "registry")
    ledger._path.parent.mkdir()
    ledger._path.write_text(json.dumps({}))
    told = ask(plain, *CONSTANTS)
    assert told.startswith(f"privacy ledger `{ledger._path.name}` must be a ledger")
    # The site itself may know.
    assert str(ledger._path) in entries(tmp_path / "log.jsonl")[-1]["reason"]
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").mkdir()
    assert ask(plain, *CONSTANTS).startswith("audit log `log.jsonl` must be writable")

"""What travels from private sites through the real apps: declared arrays, two words, and nothing else."""

from __future__ import annotations

import contextlib
import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.app import app as client_app
from fedfair import wire
from fedfair.blocks import block_names
from fedfair.config import load
from fedfair.data.heart import heart
from fedfair.data.schema import DataAdapter, SiteRecords
from fedfair.errors import PrivacyBudgetExhausted, RunError
from fedfair.provenance import source_digest
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import ROOT
from tests.privacy.hospital import Hospital
from tests.privacy.people import patient, patients, schema

CONFIG = ROOT / "configs" / "heart_private.yaml"
QUICK = (
    "rounds=2",
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=2.0",
    "privacy.statistics.noise_multiplier=20",
    "privacy.statistics.every=2",
    "report.resamples=20",
)
SECRET = "412.625"


class Tapped(InProcessGrid):
    """A grid that keeps every message and its answer."""

    def __init__(self, sites: int) -> None:
        super().__init__(client_app, sites)
        self.heard: dict[str, list[Message]] = defaultdict(list)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            self.heard[reply.metadata.message_type].append(reply)
        return replies


def tapped(
    folder: Path, *overrides: str, sites: int = 4, refused: type[Exception] | None = None
) -> dict[str, list[Message]]:
    """Run the apps and return all replies by kind of message; `refused` is how the run must end, if so."""
    ledgers = f"privacy.ledger={folder / 'ledgers'}"
    values = {
        "config": str(CONFIG),
        "overrides": ";".join([*QUICK, ledgers, *overrides]),
        "output": str(folder / "out"),
    }
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with Tapped(sites) as grid, pytest.raises(refused) if refused else contextlib.nullcontext():
        server_app(grid, context)
    return grid.heard


def statistics(prefix: str, gradients: bool = False) -> set[str]:
    fields = ["counts", "losses", "histograms", "variance", *(["head_gradients"] if gradients else [])]
    return {f"{prefix}/{field}" for field in fields}


EXACT_TEST = {"test/counts", "test/losses", "test/histograms"}


def rows(source: Mapping[str, str]) -> set[str]:
    blocks = block_names(tuple(heart().schema.modalities))
    return {f"rows/{block}:{source[block.partition('/')[0]]}" for block in blocks}


WHOLE = rows({"fusion": "all", "encoder": "all", "head": "all"})
BY_GROUP = rows({"fusion": "fused", "encoder": "fused", "head": "unimodal"})
RELEASED = statistics("train") | statistics("test")
MULTIFAIR = statistics("train", True) | statistics("test")
CASES = {
    "exact evaluation": ([], [WHOLE | EXACT_TEST | statistics("train"), WHOLE | EXACT_TEST], EXACT_TEST),
    "released evaluation": (
        ["privacy.evaluation=released", "training.mode=update"],
        [BY_GROUP | RELEASED, BY_GROUP],
        RELEASED,
    ),
    "no evaluation": (["privacy.evaluation=none"], [WHOLE | statistics("train"), WHOLE], set()),
    "head gradients": (
        ["privacy.evaluation=released", "method.name=multifair"],
        [WHOLE | MULTIFAIR, WHOLE],
        MULTIFAIR,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_replies_hold_the_declared_arrays_and_two_words(case: str, tmp_path: Path) -> None:
    overrides, rounds, last = CASES[case]
    heard = tapped(tmp_path, *overrides)
    assert {kind: len(replies) for kind, replies in heard.items()} == {"query": 4, "train": 8, "evaluate": 4}
    expected = {"query": [set()], "train": rounds, "evaluate": [last]}
    for kind, replies in heard.items():
        for i, reply in enumerate(replies):
            assert not reply.has_error(), reply.error
            content = reply.content
            assert set(content.array_records) == {"arrays"}
            assert set(content.config_records) == {"site"}
            assert set(content.metric_records) == set()
            assert set(content.config_records["site"]) == {"name", "schema"}
            assert set(content.array_records["arrays"]) == expected[kind][i // 4]


def test_all_sites_replies_have_one_form(tmp_path: Path) -> None:
    """Whatever their size, groups and modalities: one hospital has no cholesterol, one has 46 patients."""
    heard = tapped(tmp_path, "privacy.evaluation=released", "training.mode=update")
    for replies in heard.values():
        for first in range(0, len(replies), 4):
            forms = [
                {
                    name: (array.shape, array.dtype, len(array.data))
                    for name, array in reply.content.array_records["arrays"].items()
                }
                for reply in replies[first : first + 4]
            ]
            assert all(form == forms[0] for form in forms)


def test_no_value_of_a_private_reply_is_a_count(tmp_path: Path) -> None:
    """Noise is on every cell: none is a whole number, but for the variances that the schedule gives."""
    heard = tapped(tmp_path, "privacy.evaluation=released", "training.mode=update")
    for reply in heard["train"] + heard["evaluate"]:
        for name, array in reply.content.array_records["arrays"].items():
            if not name.endswith("/variance"):
                values = array.numpy().astype(np.float64)
                assert not (values == np.round(values)).any(), name


def test_an_exhausted_site_sends_nothing_but_that(tmp_path: Path) -> None:
    heard = tapped(tmp_path, "privacy.max_epsilon=0.01", refused=PrivacyBudgetExhausted)
    assert len(heard["train"]) == 4
    for reply in heard["train"]:
        assert len(reply.content.array_records["arrays"]) == 0
        assert set(reply.content.config_records["site"]) == {"name", "schema", "exhausted"}


def test_a_leaf_that_nobody_declared_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever adds a count of records to the client's answer finds it refused at the edge."""
    own = wire.pack_update
    monkeypatch.setattr(wire, "pack_update", lambda update: own(update) | {"num_examples": np.ones(1)})
    with pytest.raises(RunError, match="declared public or released, got 1 that do not match"):
        tapped(tmp_path)


def test_nothing_exact_is_recorded_either(tmp_path: Path) -> None:
    tapped(tmp_path, "privacy.evaluation=none")
    records = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert len(records) == 3
    assert all(record["test"] == {} for record in records)
    assert not (tmp_path / "out" / "evaluation.npz").exists()


# --- errors ------------------------------------------------------------------------------------------


def broken_data(**_: object) -> DataAdapter:
    """Return two hospitals of which one has a category that the vocabulary does not have."""
    wrong = patient(labs=(140, 15, float(SECRET)))
    return Hospital({"north": wrong, "south": patients(9)}, schema())


def unreadable_data(**_: object) -> DataAdapter:
    """Return hospitals whose loader fails in its own words."""

    class Unreadable(Hospital):
        def load(self, _: str) -> SiteRecords:
            raise OSError(f"cannot parse the cell {SECRET}")

    return Unreadable({}, schema())


OWN = ("data.ranges={sodium: [130, 150], iron: [5, 25]}", "server.min_sites=2")


@pytest.mark.parametrize(("factory", "kind"), [("broken_data", "DataError"), ("unreadable_data", "OSError")])
def test_an_error_at_a_site_tells_its_type_alone(factory: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        tapped(tmp_path, *OWN, f"data.name={__name__}:{factory}", sites=2)
    assert SECRET not in str(caught.value)
    assert f"failed with {kind}; its own log has the details" in str(caught.value)


def test_without_privacy_the_same_error_helps(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=SECRET):
        tapped(tmp_path, *OWN, f"data.name={__name__}:unreadable_data", "privacy={mode: 'off'}", sites=2)


def asked(kind: str, overrides: list[str], number: int = 1) -> Message:
    """Return one site's answer to a message that a server could send."""
    config = load(CONFIG, [*QUICK, *overrides])
    told = {"config": config.to_json(), "round": number, "source": source_digest(ROOT), "run": "run"}
    content = RecordDict({"run": ConfigRecord({**told}), "arrays": ArrayRecord({})})
    with InProcessGrid(client_app, 1) as grid:
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=node, message_type=kind)])
    return reply


def test_a_table_that_cannot_be_read_tells_no_cell(tmp_path: Path) -> None:
    """A hospital's own file, in which a cell of the site's column is not a site."""
    table = tmp_path / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["hospital", "sodium", "sex", "ill"], ["A", 140, "F", 1], ["Doe, Jane 1961", 141, "F", 0]]
        )
    options = (
        "{site: hospital, sites: [A], label: {column: ill, values: {well: ['0'], sick: ['1']}}, "
        "modalities: {lab: {numeric: [sodium]}}, "
        "attributes: {sex: {column: sex, values: {f: ['F'], m: ['M']}}}}"
    )
    data = f"data={{name: csv, path: {table}, ranges: {{sodium: [130, 150]}}, options: {options}}}"
    reply = asked("query", [data, f"privacy.ledger={tmp_path}"])
    assert reply.has_error()
    assert "Jane" not in reply.error.reason


def test_a_server_that_asks_for_exact_signals_gets_none(tmp_path: Path) -> None:
    reply = asked("train.signals", [f"privacy.ledger={tmp_path}"])
    assert reply.has_error()
    assert not reply.has_content()

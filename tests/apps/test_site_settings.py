"""Hospitals with settings of their own: own file, own ledger, own floor, whatever the server sends."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Context, RecordDict

from client.app import app as client_app
from fedfair.data.heart import heart_table
from fedfair.errors import PrivacyBudgetExhausted, RunError
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, PRIVATE, SHORT, run, same_bits

SITES = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
QUICK = ("rounds=1", "report.resamples=20")
CONSTANTS = (
    *QUICK,
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=4",
    "privacy.statistics.noise_multiplier=20",
    "privacy.evaluation=released",
)
SECRET = "412.625"
OWN_CODE = f"""
from fedfair.data.heart import heart
from fedfair.models import late_fusion


class Careless:
    schema = heart().schema

    def load(self, site):
        return float("cell {SECRET}")


def records(path, options, seed):
    return Careless()


def model(schema):
    return late_fusion(schema)
"""
Nodes = dict[str, dict[str, Any]]
"""What each site's settings file says."""


def own_file(folder: Path, site: str, named: bool = False, /, **cells: str) -> Path:
    """Write one hospital's records, in the table's order; `cells` change the third."""
    rows = [dict(row) for row in heart_table()[0] if row["site"] == site]
    rows[2].update(cells)
    columns = [column for column in rows[0] if named or column != "site"]
    path = folder / f"{site}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def elsewhere(folder: Path) -> Path:
    """Return a folder for other files of the same name."""
    other = folder / "elsewhere"
    other.mkdir(exist_ok=True)
    return other


def nodes_with_files(folder: Path, **first: Any) -> Nodes:
    """Return settings with a file each, the path relative to them; `first` are more of the first site."""
    nodes: Nodes = {site: {"data": own_file(folder, site).name} for site in SITES}
    nodes["Cleveland"].update(first)
    return nodes


def federate(folder: Path, nodes: Nodes, *overrides: str, config: Path = HEART, out: str = "out") -> Path:
    """Run the apps over nodes that have nothing but a name and a settings file, as SuperNodes do."""
    output = folder / out
    values = {"config": str(config), "overrides": ";".join(overrides), "output": str(output)}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with InProcessGrid(client_app, len(nodes)) as grid:
        for node, (site, keys) in zip(grid._contexts.values(), nodes.items(), strict=True):
            path = folder / f"{site}.yaml"
            path.write_text(yaml.safe_dump({"site": site, **keys}, sort_keys=False))
            node.node_config = {"site": site, "settings": str(path)}
        server_app(grid, context)
    return output


def refusal(folder: Path, nodes: Nodes, *overrides: str, config: Path = HEART) -> str:
    """Return what the server hears when a site refuses; nothing of where the site keeps things is in it."""
    with pytest.raises(RunError) as caught:
        federate(folder, nodes, *(overrides or QUICK), config=config, out="refused")
    told = str(caught.value)
    assert str(folder) not in told
    assert SECRET not in told
    return told


def csv_config(folder: Path, **data: Any) -> Path:
    """Write a configuration that maps heart's columns by hand."""
    plain = yaml.safe_load(HEART.read_text())
    plain["data"] = {**plain["data"], "name": "csv", "options": heart_table()[1], **data}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an importable module with a data set and a model."""
    (tmp_path / "hospital_code_under_test.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return "hospital_code_under_test"


@pytest.mark.parametrize("mapped", [False, True], ids=["heart", "csv"])
def test_own_files_give_the_bits_of_the_whole_table(mapped: bool, tmp_path: Path) -> None:
    """The server has no file; a column that names the site may stand in a hospital's, or not."""
    nodes = nodes_with_files(tmp_path)
    own_file(tmp_path, "Hungary", True)
    config = csv_config(tmp_path) if mapped else HEART
    assert same_bits(federate(tmp_path, nodes, *SHORT, config=config), run(tmp_path / "whole", SHORT))


def test_the_path_that_the_server_names_is_not_read(tmp_path: Path) -> None:
    """Here it is another hospital's file, good enough for the server to open."""
    other = own_file(elsewhere(tmp_path), "Hungary", True)
    nodes, named = nodes_with_files(tmp_path), csv_config(tmp_path, path=str(other))
    assert same_bits(federate(tmp_path, nodes, *QUICK, config=named), run(tmp_path / "whole", QUICK))
    del nodes["Cleveland"]["data"]
    with pytest.raises(RunError, match="`data.path` must be left out, the path is the site's to choose"):
        federate(tmp_path, nodes, *QUICK, config=named, out="second")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"min-noise": 1.0}, "`privacy.mode` must be sample, as this site asks, got 'off'"),
        ({"attributes": {"sex": ["female", "male"]}}, "attribute `age` must be one of ['sex']"),
        ({"max-epsilom": 3}, "`max-epsilom` of the site's settings is not a known key"),
        ({"schema": {"name": "csv"}}, "must be those of `schema` in the site's settings"),
    ],
    ids=["floor", "vocabulary", "misspelt", "format"],
)
def test_a_refusal_reaches_the_server_in_words(keys: Mapping[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path, nodes_with_files(tmp_path, **keys))


@pytest.mark.parametrize("keys", [{"data": None}, {"data": "none.csv"}], ids=["no path", "no file"])
def test_a_site_without_a_file_says_so_in_its_own_log(
    keys: Mapping[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = refusal(tmp_path, nodes_with_files(tmp_path, **keys), config=csv_config(tmp_path))
    assert "site Cleveland failed with DataError; its own log has the details" in told
    assert "`data` of the site's settings" in caplog.text


@pytest.mark.parametrize(
    ("named", "cells", "words"),
    [
        (False, {"chol": f"{SECRET}x"}, "`chol` must be a finite number, got another value in row 3"),
        (False, {"cp": SECRET}, "got another value in row 3"),
        (
            True,
            {"site": SECRET},
            "`site` must be 'Cleveland' in every row of that site's own file, got another",
        ),
    ],
    ids=["number", "code", "site"],
)
def test_a_bad_row_is_told_by_its_number_at_the_site_alone(
    named: bool, cells: Mapping[str, str], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which row fails under which format would give away cell after cell."""
    nodes = nodes_with_files(tmp_path)
    own_file(tmp_path, "Cleveland", named, **cells)
    told = refusal(tmp_path, nodes)
    assert "site Cleveland failed with DataError" in told
    assert "row" not in told
    assert words in caplog.text


def test_a_plug_in_runs_where_the_site_allows_it(tmp_path: Path, own_code: str) -> None:
    name = f"{own_code}:model"
    overrides = (*QUICK, f"model.name={name}", "model.options={}")
    nodes: Nodes = {site: {"allow": [name]} for site in SITES}
    assert (federate(tmp_path, nodes, *overrides) / "model.pt").is_file()
    nodes["Hungary"]["allow"] = ["elsewhere:model"]
    assert f"`model.name` must be built in or listed in `allow` of the site's settings, got '{name}'" in (
        refusal(tmp_path, nodes, *overrides)
    )


def test_an_unexpected_error_keeps_its_text_at_the_site(
    tmp_path: Path, own_code: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{own_code}:records"
    nodes: Nodes = {site: {"allow": [name]} for site in SITES}
    told = refusal(tmp_path, nodes, *QUICK, f"data.name={name}")
    assert "site Cleveland failed with ValueError; its own log has the details" in told
    assert SECRET in caplog.text


def test_the_fewest_records_are_of_training_ones(tmp_path: Path) -> None:
    """Of Cleveland's 303 records, 106 are held out for the test."""
    nodes = nodes_with_files(tmp_path, **{"min-records": 197})
    assert (federate(tmp_path, nodes, *QUICK) / "model.pt").is_file()
    nodes["Cleveland"]["min-records"] = 198
    with pytest.raises(RunError, match="Cleveland must have 198 training records to take part, got 197"):
        federate(tmp_path, nodes, *QUICK, out="second")


def test_under_privacy_no_choice_of_the_server_tells_the_number(tmp_path: Path) -> None:
    """The split is the run's to choose; all of Cleveland's 303 records count, however few are trained on."""
    nodes = nodes_with_files(tmp_path, **{"min-records": 303})
    split = "data.test_fraction=0.9"
    assert (federate(tmp_path, nodes, *CONSTANTS, split, config=PRIVATE) / "model.pt").is_file()
    nodes["Cleveland"]["min-records"] = 304
    with pytest.raises(RunError) as caught:
        federate(tmp_path, nodes, *CONSTANTS, "data.test_fraction=0.1", config=PRIVATE, out="second")
    assert str(caught.value).endswith(": site Cleveland does not take part in this run")


def test_the_account_is_the_sites_whatever_the_run_calls_the_data(tmp_path: Path) -> None:
    """A second run under another name, from a copy of the file, spends from the same ledger, to its cap."""
    nodes = nodes_with_files(tmp_path)
    server = f"privacy.ledger={tmp_path / 'server'}"
    federate(tmp_path, nodes, *CONSTANTS, server, config=PRIVATE)
    for site in SITES:
        nodes[site]["data"] = str(own_file(elsewhere(tmp_path), site))
    federate(tmp_path, nodes, *CONSTANTS, server, "privacy.dataset=new", config=PRIVATE, out="second")
    assert not (tmp_path / "server").exists()
    ledgers = [json.loads(path.read_text()) for path in (tmp_path / "ledgers").glob("*.json")]
    assert sorted(ledger["site"] for ledger in ledgers) == sorted(SITES)
    assert [len(ledger["runs"]) for ledger in ledgers] == [2, 2, 2, 2]
    nodes["Cleveland"]["max-epsilon"] = 0.01
    with pytest.raises(PrivacyBudgetExhausted, match="Cleveland must not be exceeded, .* 0.01 is the cap"):
        federate(tmp_path, nodes, *CONSTANTS, "privacy.dataset=third", config=PRIVATE, out="third")

"""Both sides' audit logs of a run: complete, agreeing, and none of them can be cut or rewritten unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from client.app import app as client_app
from fedfair.audit import entries, verify
from fedfair.errors import AuditError, RunError
from fedfair.federation.settings import slug
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, SHORT
from tests.apps.test_site_settings import SITES, nodes_with_files

Logs = dict[str, Path]


def logged(folder: Path, *overrides: str, roster: dict[str, str] | None = None) -> Logs:
    """Run the apps with a log at the centre and at every site; `roster` changes the sites' slugs."""
    logs = {site: folder / f"{slug(site)}.jsonl" for site in SITES}
    grid = InProcessGrid(client_app, len(SITES))
    entered = {}
    for (node, context), (site, keys) in zip(
        grid._contexts.items(), nodes_with_files(folder).items(), strict=True
    ):
        context.node_config = {"site": site, "audit": str(logs[site]), "data": str(folder / keys["data"])}
        entered[(roster or {}).get(site, slug(site))] = {"key": "", "node": str(node)}
    (folder / "nodes.json").write_text(json.dumps(entered))
    values = {
        "config": str(HEART),
        "overrides": ";".join([*SHORT, *overrides]),
        "output": str(folder / "out"),
        "audit": str(folder / "centre.jsonl"),
        "roster": str(folder / "nodes.json"),
    }
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values))
    return {"centre": folder / "centre.jsonl", **logs}


def test_both_sides_say_the_same(tmp_path: Path) -> None:
    logs = logged(tmp_path)
    centre = entries(logs["centre"])
    assert centre[1]["event"] == "run-started"
    assert (centre[-1]["event"], centre[-1]["status"], centre[-1]["rounds"]) == ("run-ended", "completed", 2)
    for site in SITES:
        left = [e for e in entries(logs[site]) if e["event"] == "left-site"]
        came = [e for e in centre if e["event"] == "answered" and e["site"] == site]
        # A survey, two rounds, the final evaluation.
        assert [e["kind"] for e in left] == ["query", "train", "train", "evaluate"]
        assert [(e["kind"], e["digest"], e["bytes"]) for e in left] == [
            (e["kind"], e["digest"], e["bytes"]) for e in came
        ]
        assert verify(logs[site], [logs["centre"]]).witnessed == 4
        assert verify(logs["centre"], [logs[site]]).witnessed == 4


def test_a_cut_end_shows_in_the_other_log(tmp_path: Path) -> None:
    logs = logged(tmp_path)
    lines = logs["Hungary"].read_bytes().splitlines(keepends=True)
    logs["Hungary"].write_bytes(b"".join(lines[:-1]))
    verify(logs["Hungary"])
    with pytest.raises(AuditError, match=r"hungary\.jsonl"):
        verify(logs["Hungary"], [logs["centre"]])


def test_no_log_holds_a_cell_of_a_patient(tmp_path: Path) -> None:
    """Names and shapes of what left stand in it; no value does, beyond digests and sizes."""
    logs = logged(tmp_path)
    for entry in entries(logs["Hungary"])[1:]:
        numbers = {k: v for k, v in entry.items() if isinstance(v, int | float)}
        assert numbers.keys() <= {"n", "round", "bytes", "peer_n"}
        assert all(isinstance(size, int) for shape in entry["leaves"].values() for size in shape)


def test_a_refusal_stands_in_both_logs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be left out for synthetic"):
        logged(tmp_path, "data.name=synthetic", "data.options={}")
    centre, hungary = (entries(tmp_path / f"{name}.jsonl") for name in ("centre", "hungary"))
    assert [e["event"] for e in hungary[1:]] == ["refused"]
    (told,) = {e["reason"] for e in centre if e["event"] == "refused"}
    assert told == hungary[1]["reason"]
    assert (centre[-1]["event"], centre[-1]["status"]) == ("run-ended", "failed")


def test_a_node_cannot_be_a_site_that_its_key_is_not_registered_for(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="it says that it is Hungary, for which its key is not registered"):
        logged(tmp_path, roster={"Hungary": "another"})


def test_nothing_leaves_a_site_that_cannot_log_it(tmp_path: Path) -> None:
    (tmp_path / "hungary.jsonl").mkdir()
    with pytest.raises(RunError, match="audit log"):
        logged(tmp_path)

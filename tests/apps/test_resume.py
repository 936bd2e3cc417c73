"""A run that was cut short goes on to the same bits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from fedfair.config import load
from fedfair.coordinator import Coordinator
from fedfair.data.heart import heart
from fedfair.errors import DataError, RunError
from fedfair.record import Made, RunFolder
from fedfair.site import Site, Workbench
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, run, same_bits


class Cut(Exception):
    """Stands for a kill."""


class CutGrid(InProcessGrid):
    """A grid that dies at one exchange."""

    left = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.left -= 1
        if self.left < 0:
            raise Cut
        return super().push_messages(messages)


@pytest.mark.parametrize("method", ["fedavg", "multifair", "dual_mimo"])
@pytest.mark.parametrize("exchange", [1, 3, 5, 6])
def test_resume_ends_with_the_same_bits(tmp_path: Path, method: str, exchange: int) -> None:
    """Exchange 0 is the survey, 1 to 5 are the rounds, 6 is final."""
    overrides = ["rounds=5", f"method.name={method}", "server.momentum=0.5", "training.momentum=0.5"]
    values = {"config": str(HEART), "overrides": ";".join(overrides), "output": str(tmp_path / "cut")}
    grid = CutGrid(client_app, 4)
    grid.left = exchange
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with pytest.raises(Cut):
        server_app(grid, context)
    assert same_bits(run(tmp_path / "whole", overrides), run(tmp_path / "cut", overrides))


def test_another_configuration_is_refused_by_its_key(tmp_path: Path) -> None:
    run(tmp_path / "run", ["rounds=1"])
    with pytest.raises(RunError, match="`training.learning_rate` must be as in the run to resume"):
        run(tmp_path / "run", ["rounds=1", "training.learning_rate=0.2"])


def damage(checkpoint: Path) -> None:
    raw = bytearray(checkpoint.read_bytes())
    raw[-1] ^= 1
    checkpoint.write_bytes(raw)


def test_a_damaged_checkpoint_costs_a_round_and_no_bit(tmp_path: Path) -> None:
    overrides = ["rounds=3", "method.name=multifair", "server.momentum=0.5"]
    whole, folder = run(tmp_path / "whole", overrides), run(tmp_path / "run", overrides)
    damage(folder / "checkpoints" / "round-0003.npz")
    (folder / "model.pt").unlink()
    assert same_bits(whole, run(tmp_path / "run", overrides))
    assert (folder / "checkpoints" / "round-0003.npz.damaged").is_file()


def test_nothing_but_damaged_checkpoints_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", ["rounds=1"])
    damage(folder / "checkpoints" / "round-0001.npz")
    with pytest.raises(RunError, match="all are damaged"):
        run(tmp_path / "run", ["rounds=1"])


def test_a_torn_last_line_of_the_records_is_dropped(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", ["rounds=2"])
    whole = (folder / "rounds.jsonl").read_text()
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "test": {"group_counts": {"f": [1, 2]}')
    run(tmp_path / "run", ["rounds=2"])
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    assert len(lines) == len(whole.splitlines()) == 3


def test_a_resumed_run_keeps_its_moments_and_refuses_other_records(tmp_path: Path) -> None:
    """Who answers after the restart must not change how inputs are standardised."""
    config, schema = load(HEART), heart().schema
    bench = Workbench(config, schema)
    surveys = {site: Site(site, config, heart()).survey for site in schema.sites}
    first = Coordinator(config, schema, bench.vectors())
    first.standardise(surveys)
    RunFolder(tmp_path).checkpoints.save(first, Made(), {})
    second = Coordinator(config, schema, bench.vectors())
    RunFolder(tmp_path).checkpoints.load(second)
    second.standardise({"Cleveland": surveys["Cleveland"]})
    assert all(np.array_equal(first.moments[m], second.moments[m]) for m in first.moments)
    with pytest.raises(DataError, match="site Cleveland must have the records that the run began with"):
        second.standardise({"Cleveland": surveys["Hungary"]})

"""What the strategy does with replies: order, failures, and sites that must not be summed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import app as client_app
from fedfair.errors import InconsistentUpdates, RunError
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, SHORT, rounds, run, same_bits


class ChangedGrid(InProcessGrid):
    """A grid that changes the replies on their way."""

    change: Callable[[list[Message]], list[Message]]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.change(list(super().send_and_receive(messages, timeout=timeout)))


def run_changed(
    output: Path, change: Callable[[list[Message]], list[Message]], overrides: Iterable[str] = SHORT
) -> Path:
    grid = ChangedGrid(client_app, 4)
    grid.change = change
    values = {"config": str(HEART), "overrides": ";".join(overrides), "output": str(output)}
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values))
    return output


def edit(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Callable[[list[Message]], list[Message]]:
    """Return a change of one array of Hungary's training replies."""

    def change(replies: list[Message]) -> list[Message]:
        for reply in replies:
            site = reply.content.config_records["site"]["name"]
            arrays = reply.content.array_records["arrays"]
            if site == "Hungary" and name in arrays and reply.metadata.message_type == "train":
                arrays[name] = Array(function(arrays[name].numpy().copy()))
        return replies

    return change


def with_nan(value: np.ndarray) -> np.ndarray:
    value.flat[0] = np.nan
    return value


def test_the_order_of_replies_does_not_change_a_bit(tmp_path: Path) -> None:
    assert same_bits(run(tmp_path / "a"), run_changed(tmp_path / "b", lambda replies: replies[::-1]))


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("rows/fusion:fused", with_nan, "`fusion:fused` of site Hungary must be finite"),
        ("rows/fusion:fused", lambda v: v[:, :-1], "`fusion:fused` of site Hungary must be"),
        ("train/losses", with_nan, "`losses` of site Hungary .* must be finite"),
        ("train/counts", lambda v: -v, "`counts` of site Hungary .* must not be negative"),
        ("test/histograms", lambda v: v + 1, "`histograms` of site Hungary .* must sum to `counts`"),
    ],
)
def test_a_poisonous_update_ends_the_run_by_name(
    tmp_path: Path, name: str, function: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    with pytest.raises(InconsistentUpdates, match=words):
        run_changed(tmp_path / "run", edit(name, function))


def test_a_failed_site_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    def fail(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2 and message.metadata.message_type == "train":
            raise OSError("disk full")
        return client_app(message, context)

    failing: ClientApp = fail  # type: ignore[assignment]
    values = {"config": str(HEART), "overrides": ";".join(SHORT), "output": str(tmp_path / "run")}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    server_app(InProcessGrid(failing, 4), context)
    last = rounds(tmp_path / "run")[-1]
    assert last["sites"] == ["Cleveland", "Hungary", "VA Long Beach"]
    assert list(last["failed"].values()) == ["OSError: disk full"]


def test_too_few_sites_end_the_run_with_the_first_failure(tmp_path: Path) -> None:
    def fail(*_: object) -> Message:
        raise OSError("disk full")

    failing: ClientApp = fail  # type: ignore[assignment]
    values = {"config": str(HEART), "overrides": "rounds=1", "output": str(tmp_path / "run")}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with pytest.raises(RunError, match="at least 1 sites must answer, got 0 .*disk full"):
        server_app(InProcessGrid(failing, 4), context)


def test_a_site_with_other_code_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.app.source_digest", lambda _: "another")
    with pytest.raises(RunError, match="the site's code must be the server's"):
        run(tmp_path / "run")


def test_the_number_of_virtual_nodes_must_be_the_number_of_sites(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="`num-supernodes` must be 4"):
        run(tmp_path / "run", sites=3)


def test_two_nodes_of_one_site_are_refused(tmp_path: Path) -> None:
    grid = InProcessGrid(client_app, 4)
    for context in grid._contexts.values():
        context.node_config["site"] = "Cleveland"
    values = {"config": str(HEART), "overrides": "rounds=1", "output": str(tmp_path / "run")}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with pytest.raises(RunError, match="site Cleveland must be one node, got two"):
        server_app(grid, context)

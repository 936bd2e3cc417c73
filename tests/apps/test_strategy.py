"""What the strategy does with replies: order, failures, and sites that must not be summed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import app as client_app
from fedfair.errors import RunError
from fedfair.files import only_one
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, SHORT, rounds, run, same_bits, weights


class ChangedGrid(InProcessGrid):
    """A grid that changes the replies on their way."""

    change: Callable[[list[Message]], list[Message]]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.change(list(super().pull_messages(message_ids)))


def run_changed(
    output: Path, change: Callable[[list[Message]], list[Message]], overrides: Iterable[str] = SHORT
) -> Path:
    grid = ChangedGrid(client_app, 4)
    grid.change = change
    return app_run(grid, output, overrides)


def edit(
    name: str, function: Callable[[np.ndarray], np.ndarray], kind: str = "train"
) -> Callable[[list[Message]], list[Message]]:
    """Return a change of one array of Hungary's replies of a kind."""

    def change(replies: list[Message]) -> list[Message]:
        for reply in replies:
            arrays = reply.content.array_records["arrays"]
            if site_of(reply) == "Hungary" and name in arrays and reply.metadata.message_type == kind:
                arrays[name] = Array(function(arrays[name].numpy().copy()))
        return replies

    return change


def site_of(reply: Message) -> str:
    return str(reply.content.config_records["site"]["name"])


def with_nan(value: np.ndarray) -> np.ndarray:
    value.flat[0] = np.nan
    return value


class BackwardsGrid(InProcessGrid):
    """A grid whose last site answers first."""

    waiting: list[str]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.waiting = list(super().push_messages(messages))
        return self.waiting

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if list(message_ids) != self.waiting[-1:]:
            return []
        return super().pull_messages([self.waiting.pop()])


def app_run(grid: InProcessGrid, output: Path, overrides: Iterable[str] = SHORT) -> Path:
    values = {"config": str(HEART), "overrides": ";".join(overrides), "output": str(output)}
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values))
    return output


def test_the_order_of_replies_does_not_change_a_bit(tmp_path: Path) -> None:
    assert same_bits(run(tmp_path / "a"), app_run(BackwardsGrid(client_app, 4), tmp_path / "b"))


POISON = [
    ("rows/fusion:fused", with_nan, "`rows/fusion:fused` of site Hungary must be finite"),
    ("rows/fusion:fused", lambda v: v[:, :-1], "`rows/fusion:fused` of site Hungary must be"),
    ("train/losses", with_nan, "`train/losses` of site Hungary must be finite"),
    ("train/counts", lambda v: -v, "`train/counts` of site Hungary must hold counts"),
    ("test/histograms", lambda v: v + 1, "`histograms` of site Hungary .* must sum to `counts`"),
]


@pytest.mark.parametrize(("name", "function", "words"), POISON)
def test_a_poisonous_update_is_left_out_by_name(
    tmp_path: Path, name: str, function: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    for line in rounds(run_changed(tmp_path / "run", edit(name, function)))[1:]:
        assert line["sites"] == ["Cleveland", "Switzerland", "VA Long Beach"]
        assert list(line["failed"]) == ["Hungary"]
        assert re.match(words, line["failed"]["Hungary"])


@pytest.mark.parametrize(("name", "function", "words"), POISON)
def test_a_poisonous_update_ends_the_run_that_needs_all_sites(
    tmp_path: Path, name: str, function: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    with pytest.raises(RunError, match=f"round 1 could not be committed in 2 attempts: .*{words}"):
        run_changed(
            tmp_path / "run", edit(name, function), [*SHORT, "server.min_sites=4", "server.attempts=2"]
        )


def test_an_answer_that_lacks_an_array_is_left_out(tmp_path: Path) -> None:
    def change(replies: list[Message]) -> list[Message]:
        for reply in replies:
            if reply.metadata.message_type == "train" and site_of(reply) == "Hungary":
                del reply.content.array_records["arrays"]["train/losses"]
        return replies

    (_, first, _) = rounds(run_changed(tmp_path / "run", change))
    assert "must hold `train/losses`" in first["failed"]["Hungary"]


class LateGrid(InProcessGrid):
    """A grid in which the answers of one site to training never come, in some exchanges."""

    late = range(1, 2)
    trained = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        ids = list(super().push_messages(sent))
        self.never = set()
        if sent[0].metadata.message_type == "train":
            self.trained += 1
            self.never = {ids[1]} if self.trained in self.late else set()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [] if set(message_ids) & self.never else super().pull_messages(message_ids)


def test_a_round_closes_at_its_deadline_without_the_late_site(tmp_path: Path) -> None:
    folder = app_run(LateGrid(client_app, 4), tmp_path / "run", [*SHORT, "server.round_timeout=2"])
    (_, first, second) = rounds(folder)
    assert first["failed"] == {"Hungary": "no answer before `server.round_timeout` (2 s)"}
    assert second["sites"] == ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]


def test_a_round_that_too_few_answered_is_repeated_to_the_same_bits(tmp_path: Path) -> None:
    overrides = [*SHORT, "server.min_sites=4", "server.round_timeout=2"]
    folder = app_run(LateGrid(client_app, 4), tmp_path / "late", overrides)
    whole = run(tmp_path / "whole", overrides)
    assert all(torch.equal(weights(folder)[k], weights(whole)[k]) for k in weights(whole))
    assert [line["attempts"] for line in rounds(folder)] == [0, 2, 1]


class GrowingGrid(InProcessGrid):
    """A grid that one site joins when the run has begun."""

    messages = 0

    def get_node_ids(self) -> Iterable[int]:
        return list(super().get_node_ids())[: 3 if self.messages < 2 else 4]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.messages += 1
        return super().push_messages(messages)


def test_a_site_that_comes_later_takes_part_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.crew.GATHER_SECONDS", 0.0)
    folder = app_run(GrowingGrid(client_app, 4), tmp_path / "run")
    assert [len(line["sites"]) for line in rounds(folder)] == [0, 3, 4]
    with np.load(folder / "evaluation.npz") as evaluation:
        assert (evaluation["counts"].sum(axis=(1, 2, 3)) > 0).all()


def test_too_few_records_of_a_group_keep_a_round_from_being_committed(tmp_path: Path) -> None:
    overrides = [*SHORT, "server.min_group_records=5000", "server.attempts=1"]
    with pytest.raises(RunError, match="in 1 attempt: group 'female' must have at least 5000 training"):
        run(tmp_path / "run", overrides)


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
    assert last["failed"] == {"Switzerland": "OSError: disk full"}


def test_a_site_that_is_not_ready_keeps_the_run_from_starting(tmp_path: Path) -> None:
    def fail(*_: object) -> Message:
        raise OSError("disk full")

    failing: ClientApp = fail  # type: ignore[assignment]
    values = {"config": str(HEART), "overrides": "rounds=1", "output": str(tmp_path / "run")}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with pytest.raises(RunError, match="every connected site must be ready, node 2 is not: .*disk full"):
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


def test_two_servers_do_not_work_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with only_one(tmp_path / "run"), pytest.raises(RunError, match="one server at a time may work in"):
        run(tmp_path / "run")


class SickGrid(InProcessGrid):
    """A grid that one site joins late, and cannot be asked at first."""

    asked = 0

    def get_node_ids(self) -> Iterable[int]:
        return list(super().get_node_ids())[: 3 if self.asked == 0 else 4]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        query = sent[0].metadata.message_type == "query"
        self.asked += query
        ids = list(super().push_messages(sent))
        self.away = set(ids) if query and self.asked == 2 else set()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [] if set(message_ids) & self.away else super().pull_messages(message_ids)


def test_a_site_that_was_not_ready_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.crew.GATHER_SECONDS", 0.0)
    overrides = ["rounds=4", "report.resamples=20", "server.round_timeout=1"]
    folder = app_run(SickGrid(client_app, 4), tmp_path / "run", overrides)
    assert [len(line["sites"]) for line in rounds(folder)] == [0, 3, 3, 4, 4]


def test_signals_that_cannot_be_summed_leave_a_site_out_of_the_coefficients(tmp_path: Path) -> None:
    def change(replies: list[Message]) -> list[Message]:
        for reply in replies:
            if reply.metadata.message_type == "train.signals" and site_of(reply) == "Hungary":
                arrays = reply.content.array_records["arrays"]
                arrays["train/losses"] = Array(with_nan(arrays["train/losses"].numpy().copy()))
        return replies

    folder = run_changed(tmp_path / "run", change, [*SHORT, "training.exchanges=2"])
    assert len(rounds(folder)) == 3


def test_a_survey_that_no_records_have_is_refused_with_its_site(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"every connected site must be ready, Hungary is not: .*counts >= 0"):
        run_changed(tmp_path / "out", edit("features/rest", np.negative, "query"))

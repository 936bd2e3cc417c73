"""Whole runs in which the server sees sums alone: the same model, no single site's upload, dropouts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Context, Message, RecordDict

from client.app import app as client_app
from fedfair.errors import ConfigError, RunError
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, PRIVATE, rounds, run, weights

SECURE = ("secure.enabled=true", "report.resamples=20", "training.dtype=float64")
METHODS = ("fedavg", "multifair", "mimo", "dual_mimo")


def same_model(a: Path, b: Path, tolerance: float) -> bool:
    left, right = weights(a), weights(b)
    return all(float((left[k] - right[k]).abs().max()) <= tolerance for k in left)


@pytest.mark.parametrize("mode", ["gradient", "update", "weights"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_model_of_the_open_run(tmp_path: Path, method: str, mode: str) -> None:
    """Sums of squares, some 1e8, come in steps of 2^-20, so standard deviations to about 1e-8 of
    themselves: that bounds the difference. Updates come in steps of 2^-36 and add far less."""
    settings = ["rounds=3", f"method.name={method}", f"training.mode={mode}", *SECURE]
    folder = run(tmp_path / "secure", settings)
    plain = run(tmp_path / "plain", [*settings, "secure.enabled=false"])
    assert same_model(folder, plain, 1e-7)
    for ours, theirs in zip(rounds(folder), rounds(plain), strict=True):
        assert ours["sites"] == theirs["sites"]
        # Histograms and counts are summed exactly.
        assert ours["test"]["auc"] == pytest.approx(theirs["test"]["auc"], abs=1e-12)
    with np.load(folder / "evaluation.npz") as ours, np.load(plain / "evaluation.npz") as theirs:
        assert np.array_equal(ours["histograms"][0], theirs["histograms"].sum(0))
        assert np.array_equal(ours["train_counts"][0], theirs["train_counts"].sum(0))


def test_two_exchanges_are_summed_too(tmp_path: Path) -> None:
    settings = ["rounds=2", "training.exchanges=2", *SECURE]
    plain = run(tmp_path / "plain", [*settings, "secure.enabled=false"])
    assert same_model(run(tmp_path / "secure", settings), plain, 1e-7)


class Tapped(InProcessGrid):
    """A grid that keeps all replies, and loses those of some sites to some messages."""

    heard: list[Message]
    lost: Sequence[tuple[str, int, int]] = ()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.sent = getattr(self, "sent", 0) + 1
        asked = list(messages)
        ids = list(super().push_messages(asked))
        self.away = {
            number
            for number, message in zip(ids, asked, strict=True)
            if (message.metadata.message_type, int(message.metadata.group_id), message.metadata.dst_node_id)
            in self.lost
        }
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = [number for number in message_ids if number not in self.away]
        replies = list(super().pull_messages(wanted))
        self.heard = [*getattr(self, "heard", []), *replies]
        return replies


def tapped(folder: Path, *overrides: str, config: Path = HEART, lost: Sequence[object] = ()) -> Tapped:
    grid = Tapped(client_app, 4)
    grid.lost = lost  # type: ignore[assignment]
    values = {"config": str(config), "overrides": ";".join([*SECURE, *overrides]), "output": str(folder)}
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values))
    return grid


def test_no_upload_is_seen_alone(tmp_path: Path) -> None:
    grid = tapped(tmp_path / "run", "rounds=2")
    kinds = [m.metadata.message_type for m in grid.heard]
    # A survey, two rounds, the final evaluation; each has one message that opens its sum.
    assert kinds.count("query.secure") == 4 * (2 + 4)
    for reply in grid.heard:
        arrays = reply.content.array_records["arrays"]
        assert set(arrays) <= {"words"}
        if "words" in arrays:
            words = arrays["words"].numpy()
            # Uniform words: the mean of n of them has a standard error of 2^64 / sqrt(12 n).
            off = abs(float(words.astype(np.float64).mean()) / 2.0**64 - 0.5)
            assert off < 5 / np.sqrt(12 * len(words))


def test_a_site_that_is_lost_before_it_sends_is_left_out_of_the_sum(tmp_path: Path) -> None:
    lost = [("train", 1, 3)]  # Hungary
    grid_folder = tmp_path / "lost"
    tapped(grid_folder, "rounds=2", "server.round_timeout=3", lost=lost)
    (_, first, second) = rounds(grid_folder)
    assert first["sites"] == ["Cleveland", "Switzerland", "VA Long Beach"]
    assert list(first["failed"]) == ["Hungary"]
    # Its keys for the second sum went with the answer that was lost.
    assert second["sites"] == ["Cleveland", "Switzerland", "VA Long Beach"]


def test_an_answer_of_another_size_is_not_read(tmp_path: Path) -> None:
    class Swollen(Tapped):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                arrays = reply.content.array_records["arrays"]
                if reply.metadata.message_type == "train" and reply.metadata.src_node_id == 3:
                    arrays["words"] = Array(np.tile(arrays["words"].numpy(), 2))
            return replies

    values = {
        "config": str(HEART),
        "overrides": ";".join([*SECURE, "rounds=1"]),
        "output": str(tmp_path / "r"),
    }
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    server_app(Swollen(client_app, 4), context)
    (_, first) = rounds(tmp_path / "r")
    assert first["sites"] == ["Cleveland", "Switzerland", "VA Long Beach"]
    assert "`words` of site Hungary must be" in first["failed"]["Hungary"]


def test_a_site_that_is_lost_when_the_sum_is_opened_stays_in_it(tmp_path: Path) -> None:
    """The others' shares suffice: t = 3 of 4."""
    lost = [("query.secure", 1, 3)]
    tapped(tmp_path / "lost", "rounds=1", "server.round_timeout=3", "secure.collusion=0", lost=lost)
    (_, first) = rounds(tmp_path / "lost")
    assert first["sites"] == ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]


def test_too_many_lost_sites_commit_nothing(tmp_path: Path) -> None:
    lost = [("train", 1, 2), ("train", 1, 3)]
    with pytest.raises(RunError, match="the round cannot be unmasked"):
        tapped(tmp_path / "lost", "rounds=1", "server.round_timeout=3", "server.attempts=2", lost=lost)
    assert not (tmp_path / "lost" / "checkpoints").is_dir()


@pytest.mark.parametrize("method", ["fedavg", "dual_mimo"])
def test_private_releases_are_summed_with_their_noise(tmp_path: Path, method: str) -> None:
    overrides = ["rounds=2", f"method.name={method}", "privacy.noise_seed=3", *SECURE]
    secure, plain = (
        run(tmp_path / name, [*overrides, f"secure.enabled={enabled}"], config=PRIVATE)
        for name, enabled in (("secure", "true"), ("plain", "false"))
    )
    assert same_model(secure, plain, 1e-9)
    accounts = [json.loads((folder / "privacy.json").read_text()) for folder in (secure, plain)]
    assert accounts[0]["events"] == accounts[1]["events"]


def test_sites_in_other_processes_keep_their_secrets_between_messages(tmp_path: Path) -> None:
    one = run(tmp_path / "one", ["rounds=2", *SECURE])
    assert same_model(one, run(tmp_path / "two", ["rounds=2", *SECURE], workers=2), 0.0)


def test_a_secure_run_resumes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", ["rounds=3", *SECURE])
    cut = run(tmp_path / "cut", ["rounds=3", *SECURE])
    (cut / "model.pt").unlink()
    (cut / "checkpoints" / "round-0003.npz").unlink()
    assert same_model(whole, run(cut, ["rounds=3", *SECURE]), 0.0)


def test_an_update_beyond_its_bound_is_refused_at_the_site(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be finite and within 0.001, got a value that is not"):
        run(tmp_path / "run", ["rounds=1", *SECURE, "secure.bound=0.001"])


def test_site_level_privacy_is_refused(tmp_path: Path) -> None:
    privacy = "mode: site, clipping_norm: 1, noise_multiplier: 1, target_delta: 0.001, evaluation: none"
    with pytest.raises(ConfigError, match="`secure.enabled` must be false under `privacy.mode` site"):
        run(tmp_path / "run", [f"privacy={{{privacy}}}", *SECURE])

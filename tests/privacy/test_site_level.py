"""Privacy of a whole site at a trusted server: neighbouring sets of sites, under noise that is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.budget import server_ledger
from fedfair.config import Config
from fedfair.data.moments import public_moments
from fedfair.data.schema import SiteRecords
from fedfair.errors import PrivacyBudgetExhausted
from fedfair.local import SiteUpdate
from fedfair.plan import row_plan
from fedfair.privacy import server as privacy_server
from fedfair.privacy import site_level
from fedfair.privacy.server import Protected, protect, statistics_layout
from fedfair.site import Site, Workbench
from fedfair.wire import Download
from tests.privacy.hospital import Constant, Hospital, chosen, configured
from tests.privacy.people import joined, patient, patients, schema

CLIP, SIGMA = 0.05, 2.0
MODE = (
    f"privacy={{mode: site, noise_multiplier: {SIGMA}, target_delta: 1e-5, clipping_norm: {CLIP}, "
    "evaluation: exact, statistics: {every: 1, bins: 8, noise_multiplier: 5.0}}"
)
SHARED = dataclasses.replace(schema(), sites=("north", "south", "east", "west"))
# Float64 sums of four sites.
SLACK = 1e-9


@pytest.fixture(params=["dual_mimo", "multifair"])
def config(request: pytest.FixtureRequest) -> Config:
    return configured(
        MODE, f"method.name={request.param}", "training.batch_size=8", "training.learning_rate=0.5"
    )


def updates(config: Config, records: dict[str, SiteRecords]) -> list[SiteUpdate]:
    """Return what these sites send, by the real site code."""
    bench = Workbench(config, SHARED)
    vectors = bench.vectors()
    coefficients, terms = chosen(config, SHARED)
    download = Download(vectors, public_moments(SHARED, config.data.ranges), coefficients, terms)
    adapter, sent = Hospital(records, SHARED), []
    for name in records:
        update = Site(name, config, adapter).work(bench, download, 1)
        sent.append(dataclasses.replace(update, rows={k: np.array(v) for k, v in update.rows.items()}))
    return sent


@pytest.fixture
def protected(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Sequence[SiteUpdate], float], Protected]:
    """Return the server's part as a function of updates and the value of all noise."""
    lengths = {name: len(value) for name, value in Workbench(config, SHARED).vectors().items()}
    _, terms = chosen(config, SHARED)
    paths = row_plan(config, SHARED).paths(tuple(SHARED.modalities), config.method.live, bool(terms))

    def run(sent: Sequence[SiteUpdate], value: float) -> Protected:
        noise = type("Known", (), {"from_os": staticmethod(lambda: Constant(value))})
        monkeypatch.setattr(privacy_server, "Noise", noise)
        own = dataclasses.replace(config, privacy=dataclasses.replace(config.privacy, ledger=str(tmp_path)))
        return protect(own, SHARED, 1, sent, paths, lengths, server_ledger(own))

    return run


Run = Callable[[Sequence[SiteUpdate], float], Protected]


def everybody() -> dict[str, SiteRecords]:
    """Return sites of all kinds: usual, ten times as large, extreme, and one record of a rare group."""
    far = joined(*[patient((1e6, -1e6, 1), (1e4,) * 4, (1e4,) * 3, label=i % 2, sex=i % 3) for i in range(6)])
    return {
        "north": patients(24),
        "south": patients(240, seed=1),
        "east": far,
        "west": joined(patient(sex=2, notes=(1.0, 2.0, 3.0)), patient(sex=2, label=0)),
    }


def rows_moved(one: Protected, other: Protected) -> float:
    """Return how far all rows together are apart, as a multiple of the clipping norm."""
    a, b = one.updates[0].rows, other.updates[0].rows
    assert a.keys() == b.keys()
    return float(np.sqrt(sum(((a[key] - b[key]) ** 2).sum() for key in a))) / CLIP


def statistics_moved(config: Config, one: Protected, other: Protected) -> float:
    """Return how far all statistics together are apart, in units of their noise."""
    units = statistics_layout(config, SHARED).units()
    assert one.train is not None
    assert other.train is not None
    square = 0.0
    for name, unit in units._asdict().items():
        a, b = getattr(one.train, name), getattr(other.train, name)
        if a is not None:
            square += float(((a - b) ** 2).sum()) / unit**2
    return float(np.sqrt(square))


def test_one_site_more_moves_the_sums_by_at_most_their_sensitivity(config: Config, protected: Run) -> None:
    sent = updates(config, everybody())
    whole = protected(sent, 0.0)
    moved = []
    for i in range(len(sent)):
        rest = protected(sent[:i] + sent[i + 1 :], 0.0)
        assert statistics_moved(config, whole, rest) <= 1 + SLACK
        moved.append(rows_moved(whole, rest))
    assert max(moved) <= 1 + SLACK
    # Extreme sites use all of it, so the bound is reached.
    assert max(moved) == pytest.approx(1.0, abs=1e-6)


def test_noise_is_of_the_declared_size_on_every_entry(config: Config, protected: Run) -> None:
    sent = updates(config, everybody())
    off, on = protected(sent, 0.0), protected(sent, 1.0)
    for key, value in on.updates[0].rows.items():
        np.testing.assert_allclose(value - off.updates[0].rows[key], SIGMA * CLIP, rtol=1e-9)
    units = statistics_layout(config, SHARED).units()
    assert on.train is not None
    assert off.train is not None
    np.testing.assert_allclose(on.train.losses - off.train.losses, 5.0 * units.losses, rtol=1e-9)
    np.testing.assert_allclose(on.train.histograms - off.train.histograms, 5.0 * units.histograms, rtol=1e-9)


def test_ten_times_the_records_move_no_more(config: Config, protected: Run) -> None:
    """Ten copies of the same patients are one site: its mean is the same, and so is its part."""
    one = updates(config, {"north": patients(24)})[0]
    assert one.train is not None
    ten = dataclasses.replace(
        one,
        rows={key: 10 * value for key, value in one.rows.items()},
        train=dataclasses.replace(one.train, **{k: 10 * v for k, v in one.train._arrays().items()}),
    )
    small, large = protected([one], 0.0), protected([ten], 0.0)
    assert rows_moved(small, large) <= SLACK
    assert statistics_moved(config, small, large) <= SLACK


def test_the_divisor_is_the_public_number_of_sites(config: Config, protected: Run) -> None:
    sent = updates(config, everybody())
    for some in (sent, sent[:2], sent[:1]):
        denominators = protected(some, 0.0).denominators
        assert denominators is not None
        assert set(denominators.values()) == {4.0}


def test_shapes_do_not_tell_which_sites_answered(config: Config, protected: Run) -> None:
    """Notes are at two sites only; without them their rows are noise alone."""
    sent = updates(config, everybody())
    one, other = protected(sent, 1.0), protected(sent[:1], 1.0)
    assert [u.site for u in one.updates] == [u.site for u in other.updates]
    shapes = [{key: value.shape for key, value in p.updates[0].rows.items()} for p in (one, other)]
    assert shapes[0] == shapes[1]


def test_the_server_charges_before_it_computes(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = dataclasses.replace(config.privacy, ledger=str(tmp_path), max_epsilon=0.1)
    capped = dataclasses.replace(config, privacy=private)
    monkeypatch.setattr(privacy_server, "noised_sum", lambda *_: pytest.fail("computed before the charge"))
    sent = updates(config, {"north": patients(24)})
    with pytest.raises(PrivacyBudgetExhausted, match="all sites"):
        protect(capped, SHARED, 1, sent, (), {}, server_ledger(capped))


# --- broken variants ---------------------------------------------------------------------------------


def weighted_by_records(update: SiteUpdate, *given: Any) -> site_level.Rows:
    """Records behind an update weigh it after the clipping."""
    assert update.train is not None
    weight = float(update.train.counts[0].sum()) / 24
    return {key: weight * value for key, value in CLIPPED(update, *given).items()}


def clipped_by_row(update: SiteUpdate, *given: Any) -> site_level.Rows:
    """Each array is clipped on its own."""
    parts = [dataclasses.replace(update, rows={key: value}) for key, value in update.rows.items()]
    return {key: value for part in parts for key, value in CLIPPED(part, *given).items()}


CLIPPED = site_level.clipped_change


@pytest.mark.parametrize("broken", [weighted_by_records, clipped_by_row])
def test_broken_clipping_is_found(
    broken: Callable[..., site_level.Rows], config: Config, protected: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_level, "clipped_change", broken)
    sent = updates(config, everybody())
    whole = protected(sent, 0.0)
    rest = [protected(sent[:i] + sent[i + 1 :], 0.0) for i in range(len(sent))]
    assert max(rows_moved(whole, other) for other in rest) > 1.01

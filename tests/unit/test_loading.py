"""Batches are read ahead in order, errors reach who asks, and no thread outlives the iteration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fedfair import loading
from fedfair.batch import MultimodalBatch
from fedfair.config import TrainingConfig
from fedfair.data.encode import to_batch
from fedfair.loading import AHEAD, batches
from fedfair.local import _mini_batches
from fedfair.measure import chunks, measure
from fedfair.models import build_model
from fedfair.stored import StoredBatch
from tests.unit.data.test_pixels import SCHEMA, N, twins
from tests.unit.test_stored import MOMENTS, assert_equal
from tests.unit.test_stored import batches as both


@pytest.fixture(params=[False, True], ids=["here", "ahead"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Read in the thread of the caller or ahead, whatever the size."""
    monkeypatch.setattr(loading, "SMALL", -1 if request.param else 1 << 60)
    return bool(request.param)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fedfair-reader")]


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("size", [1, 7, N, 100])
def test_batches_are_those_from_memory(size: int) -> None:
    stored, memory = both(torch.float32)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    pairs = zip(batches(stored, order, size), batches(memory, order, size), strict=True)
    for one, other in pairs:
        assert_equal(one, other)
    assert not readers()


@pytest.mark.usefixtures("ahead")
def test_an_empty_order_is_one_batch() -> None:
    stored, memory = both(torch.float32)
    for records in (stored, memory):
        (only,) = batches(records, torch.arange(0), 5)
        assert len(only) == 0


@pytest.mark.usefixtures("ahead")
def test_training_and_measuring_see_the_same_records() -> None:
    stored, memory = both(torch.float32)
    settings = TrainingConfig(batch_size=9, local_epochs=2)
    drawn = [
        list(_mini_batches(records, settings, torch.Generator().manual_seed(3)))
        for records in (stored, memory)
    ]
    assert len(drawn[0]) == 2 * 5
    for one, other in zip(*drawn, strict=True):
        assert_equal(one, other)
    for size in (11, N, 2 * N):
        for one, other in zip(chunks(stored, size), chunks(memory, size), strict=True):
            assert_equal(one, other)
    model = build_model("late_fusion", SCHEMA, {"hidden": [4], "embedding_dim": 4}, 0)
    signals = [measure(model, records, 2, 8, 13) for records in (stored, memory)]
    np.testing.assert_array_equal(signals[0].losses, signals[1].losses)
    np.testing.assert_array_equal(signals[0].histograms, signals[1].histograms)


def test_no_records_can_be_measured() -> None:
    eight, _ = twins()
    none = eight.select(np.arange(0))
    stored = to_batch(none, SCHEMA, MOMENTS, none.attributes["sex"])
    model = build_model("late_fusion", SCHEMA, {"hidden": [4], "embedding_dim": 4}, 0)
    assert measure(model, stored, 2, 8, 13).counts.sum() == 0


class Watched(StoredBatch):
    """Counts what is read, and fails at one batch."""

    read: list[int]
    fails_at: int

    def select(self, index: torch.Tensor) -> MultimodalBatch:
        self.read.append(int(index[0]))
        if len(self.read) == self.fails_at:
            raise OSError("the disk is gone")
        return super().select(index)


def watched(fails_at: int = 0) -> Watched:
    stored, _ = both(torch.float32)
    made = Watched(**vars(stored))
    object.__setattr__(made, "read", [])
    object.__setattr__(made, "fails_at", fails_at)
    return made


@pytest.fixture
def always_ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loading, "SMALL", -1)
    yield
    assert not readers()


@pytest.mark.usefixtures("always_ahead")
def test_so_many_are_read_ahead_and_no_more() -> None:
    records = watched()
    drawn = batches(records, torch.arange(N), 1)
    next(drawn)
    end = time.monotonic() + 10
    while len(records.read) < 1 + AHEAD and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.05)  # long for a read of 150 bytes: more would have come by now
    assert records.read == list(range(1 + AHEAD))
    next(drawn)
    drawn.close()
    assert len(records.read) <= 2 + AHEAD


@pytest.mark.usefixtures("always_ahead")
def test_an_error_reaches_who_asks_for_that_batch() -> None:
    drawn = batches(watched(fails_at=3), torch.arange(N), 4)
    assert [int(next(drawn).labels.shape[0]) for _ in range(2)] == [4, 4]
    with pytest.raises(OSError, match="the disk is gone"):
        next(drawn)


@pytest.mark.usefixtures("always_ahead")
def test_who_stops_early_leaves_no_thread() -> None:
    for error in (KeyboardInterrupt, ValueError):
        records = watched()
        with pytest.raises(error):
            for _ in batches(records, torch.arange(N), 1):
                raise error
        assert len(records.read) <= 1 + AHEAD
        assert not readers()


def test_a_small_site_starts_no_thread() -> None:
    stored, _ = both(torch.float32)
    assert stored.bytes_each == 3 * 4 * 5 + 2 * 4 * 4
    drawn = batches(stored, torch.arange(N), 4)
    next(drawn)
    assert not readers()
    large = batches(stored, torch.arange(N).repeat(1 + loading.SMALL // (N * stored.bytes_each)), 4)
    next(large)
    assert readers()
    large.close()
    assert not readers()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("always_ahead")
def test_on_a_gpu_batches_are_there_when_they_are_used() -> None:
    device = torch.device("cuda")
    stored, memory = both(torch.float32, device)
    order = torch.arange(N).repeat(50)
    for one, other in zip(batches(stored, order, 8), batches(memory, order, 8), strict=True):
        torch.ones(512, 512, device=device) @ torch.ones(512, 512, device=device)
        assert_equal(one, other)

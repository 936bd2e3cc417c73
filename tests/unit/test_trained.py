"""Prediction reads images a few records at a time, whatever the labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedfair import trained as module
from fedfair.data.pixels import Pixels
from fedfair.models import build_model
from fedfair.stored import Stored
from fedfair.trained import TrainedModel
from tests.unit.data.test_pixels import SCHEMA, N, twins

OPTIONS = {"hidden": [4], "embedding_dim": 4}
MOMENTS = {"lab": np.array([[0.0], [1.0]])}


def trained() -> TrainedModel:
    return TrainedModel(build_model("late_fusion", SCHEMA, OPTIONS, 0).double().eval(), SCHEMA, MOMENTS)


def test_images_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    eight, written = twins()
    assert isinstance(eight.modalities["slo"], Pixels)
    whole = trained().predict(written)
    assert whole.shape == (N, 2)
    assert np.ptp(whole[:, 0]) > 0.01
    asked: list[int] = []
    read = Stored.read
    monkeypatch.setattr(module, "AT_ONCE", 7)
    monkeypatch.setattr(Stored, "read", lambda own, index: (asked.append(len(index)), read(own, index))[1])
    # In float64 another number of rows moves sums of some tens of terms by their last digits.
    np.testing.assert_allclose(trained().predict(eight), whole, rtol=1e-12)
    assert asked == [7, 7] * 5 + [5, 5]  # two modalities of 40 records


def test_labels_are_not_read_and_nobody_is_no_error() -> None:
    eight, _ = twins()
    labels = np.full(N, -1)
    found = trained().predict(replace(eight, labels=labels, attributes={}))
    assert np.array_equal(found, trained().predict(eight))
    assert trained().predict(eight.select(np.zeros(0, np.int64))).shape == (0, 2)

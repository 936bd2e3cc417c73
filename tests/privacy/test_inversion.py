"""What an update tells of one patient: all of the inputs and the label without noise, nothing with it.

A demonstration for readers, and no proof: an attack that fails says nothing about better ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedfair.data.schema import ArrayModality, Schema, SiteRecords
from fedfair.privacy.noise import Noise
from fedfair.site import Site
from tests.privacy.hospital import Hospital, Lab, configured
from tests.privacy.people import SITE, on_side

WIDTH, PATIENTS = 64, 60
# The mean absolute cosine of two random directions, sqrt(2 / (pi d)).
RANDOM = np.sqrt(2 / (np.pi * WIDTH))
SCHEMA = Schema({"scan": ArrayModality((WIDTH,))}, ("well", "ill"), {"sex": ("f", "m")}, (SITE,))
# Wide enough that some unit is never dead.
COMMON = ("data.ranges={}", "training.mode=weights", "method.name=fedavg", "model.options.embedding_dim=32")
PRIVATE = ("privacy.noise_multiplier=1.0", "privacy.noise_seed=0", "rounds=400")


def laboratory(folder: Path, *overrides: str) -> Lab:
    """Return one of a hospital that has scans only."""
    return Lab(configured(*COMMON, *overrides), folder, shared=SCHEMA)


def one_patient(seed: int) -> SiteRecords:
    """Return a hospital's only training record."""
    rng = np.random.default_rng(seed)
    scan = rng.normal(size=(1, WIDTH)).astype(np.float32)
    one = np.zeros(1, np.int64)
    return on_side(SiteRecords({"scan": scan}, one + seed % 2, {"sex": one}), "train", configured())


def recovered(arrays: dict[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], int]:
    """Return an attacker's guess of the scan, dW / db of the first layer, and of the label."""
    encoder, head = arrays["rows/encoder/scan:all"][0], arrays["rows/head/scan:all"][0]
    units = len(encoder) // (WIDTH + 1)
    weight, bias = encoder[:-units].reshape(units, WIDTH), encoder[-units:]
    loudest = np.abs(bias).argmax()
    scan = weight[loudest] / bias[loudest]
    # Minus the gradient of the last bias is e_y - p: positive for the label alone.
    return scan, int(head[-2:].argmax())


def attacked(lab: Lab, private: bool) -> tuple[float, float]:
    """Return the mean absolute cosine of guess and scan, and the share of labels found."""
    cosines, labels = [], []
    for seed in range(PATIENTS):
        records = one_patient(seed)
        if private:
            arrays = lab.work(lab.site(records), seed + 1).arrays
        else:
            site = Site(SITE, lab.config, Hospital({SITE: records}, SCHEMA))
            arrays = {
                f"rows/{key}": value.copy()
                for key, value in site.work(lab.bench, lab.download, 1).rows.items()
            }
        scan, label = recovered(arrays)  # type: ignore[arg-type]
        own = records.modalities["scan"][0]
        cosines.append(abs(scan @ own) / np.linalg.norm(scan) / np.linalg.norm(own))
        labels.append(label == records.labels[0])
    return float(np.mean(cosines)), float(np.mean(labels))


def test_a_plain_update_of_one_patient_gives_it_away(tmp_path: Path) -> None:
    lab = laboratory(tmp_path, "privacy={mode: 'off'}")
    cosine, labels = attacked(lab, private=False)
    assert cosine > 0.9999
    assert labels == 1.0


def test_clipping_alone_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "gaussian", lambda _, shape: np.zeros(shape))
    cosine, labels = attacked(laboratory(tmp_path, *PRIVATE), private=True)
    assert cosine > 0.9999
    assert labels == 1.0


def test_a_private_update_looks_like_a_random_direction(tmp_path: Path) -> None:
    """With noise of the size of the clipped gradient already; 60 patients leave 5 sd to either side."""
    cosine, labels = attacked(laboratory(tmp_path, *PRIVATE), private=True)
    assert cosine == pytest.approx(RANDOM, abs=5 * RANDOM * np.sqrt(np.pi / 2 - 1) / np.sqrt(PATIENTS))
    assert labels < 0.5 + 5 * 0.5 / np.sqrt(PATIENTS)

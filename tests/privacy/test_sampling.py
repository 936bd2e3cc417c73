"""The samples that the real site code draws: independent coins, whose number varies as it must."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.privacy import opacus_engine, sample_level
from fedfair.privacy.noise import Noise
from fedfair.privacy.opacus_engine import _differentiate
from fedfair.privacy.sample_level import record_gradients
from tests.privacy.hospital import OPACUS, Lab, configured
from tests.privacy.people import patients

RATE, STEPS, PATIENTS = 0.2, 300, 100
# Two-sided, of a statistic that is drawn once, with a fixed seed.
SURE = 1e-4
POISSON = Noise.poisson


def drawn(folder: Path, patch: pytest.MonkeyPatch, *overrides: str) -> NDArray[np.bool_]:
    """Return which of the training records each step of a round took, [steps, n]."""
    config = configured(
        f"privacy.sample_rate={RATE}",
        f"privacy.local_steps={STEPS}",
        "privacy.noise_seed=1",
        "privacy.expected_batch=20",
        "training.mode=weights",
        "training.learning_rate=1e-6",
        *overrides,
    )
    lab = Lab(config, folder)
    base = patients(PATIENTS)
    # Everybody has a scan, so that no two records are the same.
    scan = np.random.default_rng(1).normal(size=(PATIENTS, 4)).astype(np.float32)
    site = lab.site(dataclasses.replace(base, modalities={**base.modalities, "scan": scan}))
    records = site._batches(lab.bench, lab.download).train
    known = {row: i for i, row in enumerate(keys(records))}
    assert len(known) == len(records)
    steps = []

    def spied(own: Callable[..., Any]) -> Callable[..., Any]:
        def spy(model: object, blocks: object, batch: MultimodalBatch, *others: object) -> Any:
            steps.append([known.get(row, -1) for row in keys(batch)])
            return own(model, blocks, batch, *others)

        return spy

    patch.setattr(sample_level, "record_gradients", spied(record_gradients))
    patch.setattr(opacus_engine, "_differentiate", spied(_differentiate))
    lab.work(site)
    # Made-up records check Opacus first; they are none of the site's.
    steps = [taken for taken in steps if -1 not in taken]
    # A step that drew nobody differentiates nothing.
    masks = np.zeros((STEPS, len(records)), bool)
    for mask, taken in zip(masks, steps, strict=False):
        mask[taken] = True
    return masks


def keys(batch: MultimodalBatch) -> list[bytes]:
    """Return each record's values, which tell it from the others."""
    table = torch.cat([*batch.modalities.values(), batch.labels[:, None], batch.groups[:, None]], 1)
    return [row.numpy().tobytes() for row in table]


def oddities(masks: NDArray[np.bool_]) -> set[str]:
    """Return what independent coins of the rate would hardly show."""
    steps, n = masks.shape
    sizes = masks.sum(1)
    share = RATE * (1 - RATE)
    tests = {
        # Sizes are binomial; the sum of their squared, scaled deviations is close to chi-square.
        "size variance": stats.chi2.cdf(((sizes - n * RATE) ** 2).sum() / (n * share), steps),
        "share": stats.binom.cdf(masks.sum(), steps * n, RATE),
        "records alike": stats.chi2.cdf(((masks.sum(0) - steps * RATE) ** 2).sum() / (steps * share), n),
        "steps apart": stats.norm.cdf(correlation(masks[1:], masks[:-1])),
        "records apart": stats.norm.cdf(correlation(masks[:, 1:], masks[:, :-1])),
    }
    return {name for name, p in tests.items() if min(p, 1 - p) < SURE / 2}


def correlation(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the correlation of coins in units of its deviation."""
    products = (one - RATE) * (other - RATE)
    return float(products.mean() / (RATE * (1 - RATE)) * np.sqrt(products.size))


@pytest.mark.parametrize("overrides", [(), OPACUS], ids=["functional", "opacus"])
def test_samples_are_independent_coins(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = drawn(tmp_path, monkeypatch, *overrides)
    assert oddities(masks) == set()
    ratio = masks.sum(1).var() / (masks.shape[1] * RATE * (1 - RATE))
    assert 0.7 < ratio < 1.4


def fixed_size(self: Noise, n: int, rate: float) -> Tensor:
    """A batch of the expected size, drawn without replacement."""
    taken = np.argsort(self._uniform(self._coins, n))[: round(n * rate)]
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.from_numpy(taken)] = True
    return mask


def shuffled() -> Callable[[Noise, int, float], Tensor]:
    """Batches of a shuffled epoch, one after the other."""
    rng, order = np.random.default_rng(0), list[int]()

    def poisson(_: Noise, n: int, rate: float) -> Tensor:
        if len(order) < round(n * rate):
            order[:] = rng.permutation(n).tolist()
        mask = torch.zeros(n, dtype=torch.bool)
        taken, order[:] = order[: round(n * rate)], order[round(n * rate) :]
        mask[taken] = True
        return mask

    return poisson


def same_each_step(_: Noise, n: int, rate: float) -> Tensor:
    """One sample for all steps."""
    return POISSON(Noise.fixed(0, "one"), n, rate)


@pytest.mark.parametrize(
    ("sampler", "oddity"),
    [(fixed_size, "size variance"), (shuffled(), "size variance"), (same_each_step, "steps apart")],
    ids=["fixed size", "shuffled", "same each step"],
)
def test_other_samplers_are_found(
    sampler: Callable[[Noise, int, float], Tensor],
    oddity: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Noise, "poisson", sampler)
    assert oddity in oddities(drawn(tmp_path, monkeypatch))

"""A release hides one record: brute-force neighbours, the noise of every cell, nothing exact besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fedfair.batch import MultimodalBatch
from fedfair.errors import ConfigError, PrivacyError
from fedfair.measure import RecordBounds, measure
from fedfair.privacy.noise import Noise
from fedfair.privacy.release import Layout, release
from fedfair.signals import Array, Signals
from tests.oracles.cohort import GROUPS, cohort, small_model
from tests.unit.privacy.worlds import layout_of

BINS = 8
# Small, so that most records reach both bounds and the sensitivity is attained.
BOUNDS = RecordBounds(loss=0.3, gradient=0.2)
HEADS = 4
NAMES = ("counts", "histograms", "losses", "head_gradients")

both_class_counts = pytest.mark.parametrize("classes", [2, 3])


def extreme(classes: int, records: int = 60, complete: bool = False, seed: int = 4) -> MultimodalBatch:
    """Return a cohort with inputs scaled by 1e-2 to 1e3, a few huge, infinite or NaN."""
    batch = cohort(records, classes, complete, seed)
    scale = 10.0 ** np.random.default_rng(seed).uniform(-2, 3, records)
    scale[[1, 7, 11, 13]] = [1e200, np.inf, np.nan, 1e-300]
    by_record = torch.as_tensor(scale)[:, None]
    values = {
        name: torch.where(batch.present[:, [m]], value * by_record, 0.0)
        for m, (name, value) in enumerate(batch.modalities.items())
    }
    return replace(batch, modalities=values)


def arrays(signals: Signals) -> dict[str, Array]:
    return {name: value for name in NAMES if (value := getattr(signals, name)) is not None}


def neighbours(records: MultimodalBatch) -> Iterator[MultimodalBatch]:
    """Yield the records without each of them in turn."""
    for i in range(len(records)):
        yield records.select(torch.arange(len(records)) != i)


def test_bounded_sums_are_those_of_clipped_records() -> None:
    model, records = small_model(3), cohort(classes=3)
    counts, losses, histograms, gradients = 0.0, 0.0, 0.0, 0.0
    for i in range(len(records)):
        alone = measure(model, records.select(torch.tensor([i])), GROUPS, BINS, 512, head_gradients=True)
        counts, histograms = counts + alone.counts, histograms + alone.histograms
        losses = losses + np.minimum(alone.losses, 0.9)
        gradients = gradients + alone.head_gradients * min(1.0, 1.5 / np.linalg.norm(alone.head_gradients))
    # The chunks of 7 are summed in another order, a hundred terms of order one.
    got = measure(model, records, GROUPS, BINS, 7, True, RecordBounds(0.9, 1.5))
    np.testing.assert_array_equal(got.counts, counts)
    np.testing.assert_array_equal(got.histograms, histograms)
    np.testing.assert_allclose(got.losses, losses, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.head_gradients, gradients, rtol=1e-12, atol=1e-12)
    free = measure(model, records, GROUPS, BINS, 7, True)
    assert (got.losses < free.losses).any()
    wide = measure(model, records, GROUPS, BINS, 7, True, RecordBounds(1e6, 1e6))
    for name, value in arrays(wide).items():
        np.testing.assert_array_equal(value, getattr(free, name))


@both_class_counts
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_records_without_a_score_are_counted_at_the_bound(classes: int, value: float) -> None:
    model, records = small_model(classes), cohort(classes=classes, complete=True)
    with torch.no_grad():
        model.fusion.classifier.weight[0] = value  # of one class: that no record has a score follows
    got = measure(model, records, GROUPS, BINS, 512, True, BOUNDS)
    finite = measure(small_model(classes), records, GROUPS, BINS, 512)
    np.testing.assert_array_equal(got.counts, finite.counts)
    np.testing.assert_array_equal(got.histograms[0, ..., 0].sum(-1), finite.histograms[0].sum((-1, -2)))
    np.testing.assert_array_equal(got.histograms[1:], finite.histograms[1:])
    # A sum of equal bounds.
    np.testing.assert_allclose(got.losses[0], 0.3 * got.counts[0].sum(-1), rtol=1e-12)
    assert not got.head_gradients.any()
    got.check("a site")


def test_bounds_must_bound() -> None:
    for wrong in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ConfigError, match="bounds.loss"):
            RecordBounds(wrong)
        with pytest.raises(ConfigError, match="bounds.gradient"):
            RecordBounds(1.0, wrong)
    with pytest.raises(ConfigError, match="bounds.gradient"):
        measure(small_model(), cohort(), GROUPS, BINS, 512, True, RecordBounds(1.0))


@both_class_counts
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("complete", [False, True])
def test_one_record_moves_a_release_by_its_sensitivity(classes: int, gradients: bool, complete: bool) -> None:
    records = extreme(classes, complete=complete)
    bounds = BOUNDS if gradients else RecordBounds(BOUNDS.loss)
    model = small_model(classes)
    whole = measure(model, records, GROUPS, BINS, 512, gradients, bounds)
    layout = layout_of(whole, bounds)
    units = layout.units()
    worst, joint = dict.fromkeys(arrays(whole), 0.0), 0.0
    for fewer in neighbours(records):
        without = arrays(measure(model, fewer, GROUPS, BINS, 512, gradients, bounds))
        moved = {name: float(np.linalg.norm(value - without[name])) for name, value in arrays(whole).items()}
        worst = {name: max(worst[name], distance) for name, distance in moved.items()}
        parts = [moved[name] / getattr(units, name) for name in NAMES[1:] if name in moved]
        joint = max(joint, float(np.linalg.norm(parts)))
    # 1e-9: sums of 60 terms of order one, in another order.
    for name, distance in worst.items():
        assert distance <= layout.sensitivity(name) * (1 + 1e-9), name
    assert joint <= 1 + 1e-9
    if complete:  # all heads score the record
        assert joint > 0.95
        assert all(distance > 0.95 * layout.sensitivity(name) for name, distance in worst.items())


@pytest.mark.parametrize("gradient_norm", [None, 2.0])
def test_units_make_the_stack_of_parts_one_unit(gradient_norm: float | None) -> None:
    layout = Layout(HEADS, 3, 1.7, gradient_norm)
    shares = [
        (layout.sensitivity(name) / unit) ** 2
        for name, unit in layout.units()._asdict().items()
        if layout.sensitivity(name)
    ]
    assert sum(shares) == pytest.approx(1.0, abs=1e-12)  # rounding
    assert len(shares) == (2 if gradient_norm is None else 3)


def parts_of(classes: int) -> list[Signals]:
    """Return training signals with an empty group, and test signals by more cells without gradients."""
    records = cohort(classes=classes)
    train, test = records.select(torch.arange(60)), records.select(torch.arange(60, 96))
    train = train.select(train.groups != 1)
    model = small_model(classes)
    return [
        measure(model, train, GROUPS, BINS, 512, True, BOUNDS),
        measure(model, test, GROUPS + 2, BINS, 512, False, BOUNDS),
    ]


@both_class_counts
def test_every_cell_of_all_parts_has_noise_of_its_own_and_of_the_stated_scale(classes: int) -> None:
    parts, sigma, repetitions = parts_of(classes), 2.5, 400
    assert not parts[0].counts[:, 1].any(), "an empty group"
    layout = layout_of(parts[0], BOUNDS)
    drawn: dict[tuple[int, str], list[Array]] = {}
    for repetition in range(repetitions):
        released = release(parts, layout, sigma, Noise.fixed(5, "release", repetition))
        for k, (exact, noised) in enumerate(zip(parts, released, strict=True)):
            for name, value in arrays(noised).items():
                if name != "counts":
                    sd = sigma * getattr(layout.units(), name)
                    assert getattr(noised.variance, name) == pytest.approx(sd**2, rel=1e-12)  # rounding
                    drawn.setdefault((k, name), []).append(((value - getattr(exact, name)) / sd).ravel())
    cells = {key: np.stack(value) for key, value in drawn.items()}
    assert len(cells) == 5
    for key, noise in cells.items():
        # A sum of n squares is chi-square of n degrees: two sides of 1e-6 for all, 1e-6 / cells for each.
        for square, level in ((noise**2).sum(), 1e-6), ((noise**2).sum(0), 1e-6 / noise.shape[1]):
            degrees = noise.size if np.ndim(square) == 0 else repetitions
            low, high = stats.chi2.ppf([level / 2, 1 - level / 2], degrees)
            assert (square > low).all(), key
            assert (square < high).all(), key
    # Correlations of 400 draws have a standard deviation of 1/20; 7 of them for some 1e6 pairs.
    correlation = np.corrcoef(np.concatenate(list(cells.values()), 1), rowvar=False)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 7 / 20


@both_class_counts
def test_nothing_exact_is_returned(classes: int) -> None:
    parts = parts_of(classes)
    released = release(parts, layout_of(parts[0], BOUNDS), 1.0, Noise.fixed(0))
    for exact, noised in zip(parts, released, strict=True):
        for name, value in arrays(noised).items():
            assert (value != getattr(exact, name)).all(), name
        rows = noised.histograms.sum(-1)
        expected = rows[:, :, 0] if classes == 2 else rows[:, :, :, 1]
        np.testing.assert_array_equal(noised.counts, expected)
        noised.check("a site")


@both_class_counts
def test_no_noise_returns_the_signals(classes: int) -> None:
    parts = parts_of(classes)
    for exact, same in zip(
        parts, release(parts, layout_of(parts[0], BOUNDS), 0.0, Noise.fixed(0)), strict=True
    ):
        assert same.variance == (0.0, 0.0, 0.0)
        for name, value in arrays(same).items():
            np.testing.assert_array_equal(value, getattr(exact, name))


def test_noise_of_sites_adds_up() -> None:
    parts = parts_of(2)
    layout = layout_of(parts[0], BOUNDS)
    one, other = (release(parts[:1], layout, sigma, Noise.fixed(1, sigma))[0] for sigma in (3, 4))
    assert (one + other).variance == pytest.approx([25 * unit**2 for unit in layout.units()])


def test_what_is_no_release_is_refused() -> None:
    parts, noise = parts_of(2), Noise.fixed(0)
    layout = layout_of(parts[0], BOUNDS)
    for sigma in (-1.0, np.nan, np.inf):
        with pytest.raises(PrivacyError, match="sigma"):
            release(parts, layout, sigma, noise)
    with pytest.raises(PrivacyError, match="released ones"):
        release(release(parts, layout, 1.0, noise), layout, 1.0, noise)
    with pytest.raises(PrivacyError, match="3 heads and 1 histograms"):
        release(parts, replace(layout, heads=3), 1.0, noise)
    with pytest.raises(PrivacyError, match="gradient_norm"):
        release(parts, replace(layout, gradient_norm=None), 1.0, noise)
    for name in ("heads", "scored", "loss_bound", "gradient_norm"):
        with pytest.raises(ConfigError, match=name):
            replace(layout, **{name: 0})
    with pytest.raises(ConfigError, match="head_gradients"):
        layout.sensitivity("labels")

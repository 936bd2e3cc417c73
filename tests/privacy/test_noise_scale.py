"""Under noise so large that nothing else is left, uploads of neighbours are the same.

What differs then tells of a record through the scale of the noise, which no noise can hide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.local import LocalTraining
from fedfair.models import MultimodalModel
from fedfair.paths import Scales
from fedfair.privacy import site as private_site
from fedfair.privacy.noise import Noise
from fedfair.privacy.release import Layout, release
from fedfair.privacy.sample_level import Mechanism, train_privately
from fedfair.signals import Signals
from fedfair.terms import PreparedTerms
from tests.privacy.hospital import OPACUS, Lab, configured
from tests.privacy.people import patients
from tests.privacy.replay import HUGE, jumps, wobbles

METHODS = ("fedavg", "mimo", "multifair", "dual_mimo")
# Small steps keep the model's values, which the noise moves, within float64.
STEPS = (*HUGE, "privacy.local_steps=2", "training.learning_rate=1e-6", "privacy.expected_batch=9")
Rows = dict[str, Tensor]
Training = Callable[..., Rows]


@pytest.mark.parametrize("mode", ["update", "weights"])
@pytest.mark.parametrize("method", METHODS)
def test_all_noise_is_the_same_for_neighbours(method: str, mode: str, tmp_path: Path) -> None:
    config = configured(*STEPS, f"method.name={method}", f"training.mode={mode}", "training.momentum=0.5")
    assert list(wobbles(config, tmp_path)) == []


def test_by_opacus_too(tmp_path: Path) -> None:
    assert list(wobbles(configured(*STEPS, *OPACUS), tmp_path)) == []


@pytest.mark.parametrize("overrides", [("privacy.clipping=flat",), ("privacy.noise_units=isotropic",)])
def test_with_three_classes(overrides: tuple[str, ...], tmp_path: Path) -> None:
    config = configured(*STEPS, *overrides, "method.name=multifair")
    assert list(wobbles(config, tmp_path, classes=3)) == []


# --- what this replay must find ---------------------------------------------------------------------


def broken(own: Callable[..., Rows]) -> Training:
    """Return training as the site calls it, its arguments by name."""

    def train(
        model: MultimodalModel,
        blocks: ParameterBlocks,
        records: MultimodalBatch,
        scales: Scales,
        terms: PreparedTerms | None,
        settings: LocalTraining,
        public: Mechanism,
        noise: Noise,
    ) -> Rows:
        def run(mechanism: Mechanism) -> Rows:
            return train_privately(model, blocks, records, scales, terms, settings, mechanism, noise)

        return own(run, records, public, scales)

    return train


Run = Callable[[Mechanism], Rows]


@broken
def by_the_true_number(run: Run, records: MultimodalBatch, public: Mechanism, _: Scales) -> Rows:
    return run(dataclasses.replace(public, divisor=float(max(1, len(records)))))


@broken
def times_a_coefficient_of_the_data(run: Run, records: MultimodalBatch, public: Mechanism, _: Scales) -> Rows:
    positive = float(records.labels.double().mean()) if len(records) else 0.5
    return {key: value * (0.5 + positive) for key, value in run(public).items()}


@broken
def scaled_to_groups_that_are_there(
    run: Run, records: MultimodalBatch, public: Mechanism, scales: Scales
) -> Rows:
    there = records.groups.unique() if len(records) else slice(None)
    share = float(scales.fused[:, there].max() / scales.fused.max())
    return run(dataclasses.replace(public, deviations={k: share * v for k, v in public.deviations.items()}))


@broken
def nothing_if_nobody_is_drawn(run: Run, records: MultimodalBatch, public: Mechanism, _: Scales) -> Rows:
    rows = run(public)
    return rows if len(records) else {key: torch.zeros_like(value) for key, value in rows.items()}


@broken
def no_noise_for_an_absent_modality(run: Run, records: MultimodalBatch, public: Mechanism, _: Scales) -> Rows:
    here = dict(zip(records.modalities, records.present.any(0).tolist(), strict=True))
    absent = {key for key in public.deviations if not here.get(key.partition(":")[0].partition("/")[2], True)}
    return run(
        dataclasses.replace(
            public, deviations={k: v * (k not in absent) for k, v in public.deviations.items()}
        )
    )


TRAININGS: Mapping[str, Training] = {
    "divided by the true number": by_the_true_number,
    "times a coefficient of the data": times_a_coefficient_of_the_data,
    "scaled to groups that are there": scaled_to_groups_that_are_there,
    "nothing if nobody is drawn": nothing_if_nobody_is_drawn,
    "no noise for an absent modality": no_noise_for_an_absent_modality,
}


@pytest.mark.parametrize("name", TRAININGS)
def test_this_replay_finds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_site, "train_privately", TRAININGS[name])
    assert any("rows/" in what for what in wobbles(configured(*STEPS, "training.mode=weights"), tmp_path))


@pytest.mark.parametrize("name", ["scaled to groups that are there", "nothing if nobody is drawn"])
def test_only_on_purpose_made_neighbours_show_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why there are records of a rare group and hospitals of one record among the neighbours."""
    monkeypatch.setattr(private_site, "train_privately", TRAININGS[name])
    found = list(wobbles(configured(*STEPS, "training.mode=weights"), tmp_path))
    assert not any(what.startswith(("ordinary, train", "one less, train")) for what in found)


def means(parts: list[Signals], layout: Layout, sigma: float, noise: Noise) -> list[Signals]:
    """Release means over the true number of records."""
    done = release(parts, layout, sigma, noise)
    n = sum(float(part.counts[0].sum()) for part in parts) or 1.0
    return [dataclasses.replace(part, histograms=part.histograms / n) for part in done]


def occupied_cells(parts: list[Signals], layout: Layout, sigma: float, noise: Noise) -> list[Signals]:
    """Leave empty cells as they are."""
    done = release(parts, layout, sigma, noise)
    return [
        dataclasses.replace(new, histograms=np.where(old.histograms > 0, new.histograms, 0.0))
        for old, new in zip(parts, done, strict=True)
    ]


@pytest.mark.parametrize("broken_release", [means, occupied_cells])
def test_releases_of_statistics_too(
    broken_release: Callable[..., list[Signals]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_site, "release", broken_release)
    assert any("histograms" in what for what in wobbles(configured(*STEPS), tmp_path))


def test_each_replay_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A division by the true number shrinks what one record changes: without noise nothing is to be seen."""
    monkeypatch.setattr(private_site, "train_privately", by_the_true_number)
    found = jumps(configured("training.mode=weights"), tmp_path)
    assert [what for what in found if "rows" in what and "alone" not in what] == []


def test_every_round_is_charged_and_every_leaf_declared(tmp_path: Path) -> None:
    """What a site sends in each round of a schedule with releases in every second one is let through."""
    lab = Lab(configured("privacy.statistics.every=2"), tmp_path)
    site = lab.site(patients(9))
    prefixes = [{leaf.partition("/")[0] for leaf in lab.work(site, number).arrays} for number in (1, 2, 3, 4)]
    assert prefixes == [{"rows", "train", "test"}, {"rows"}, {"rows", "train", "test"}, {"rows"}]
    assert {leaf.partition("/")[0] for leaf in lab.assess(site).arrays} == {"train", "test"}

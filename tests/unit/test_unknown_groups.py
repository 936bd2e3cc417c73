"""Runs with records of whom the modulated attribute is unknown: they train, and no method sees them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fedfair import coordinator as module
from fedfair.config import Config, parse
from fedfair.coordinator import Committed, Coordinator
from fedfair.data.checks import check_coverage
from fedfair.data.partition import pooled
from fedfair.data.schema import TEST, TRAIN, UNKNOWN, SiteRecords
from fedfair.data.synthetic import SyntheticAdapter
from fedfair.errors import DataError, RoundRefused
from fedfair.signals import Signals, Variance
from fedfair.site import Site, Workbench

OPTIONS = {"sites": 3, "records": 90, "concentration": 50.0}
# Gates are off and thresholds low, so that every factor moves on two hundred records.
METHODS = {
    "fedavg": {},
    "mimo": {"mu": 0.05},
    "dual_mimo": {"mu": 0.05, "shrinkage": 0.0},
    "multifair": {"gate": 0.0, "warmup": 0, "group_min": 2, "progress": "absolute", "decay": 0.5},
}


class Masked:
    """Synthetic sites that do not know the sex of a fifth of their records, nor the age of another fifth."""

    def __init__(self, name: str = UNKNOWN, one_site: bool = False, flipped: bool = False) -> None:
        base = SyntheticAdapter(OPTIONS, 0)
        groups = {own: (*known, name) for own, known in base.schema.attributes.items()}
        self._parts = {site: lost(base.load(site), k, flipped) for k, site in enumerate(base.schema.sites)}
        sites = base.schema.sites
        if one_site:
            self._parts, sites = {"all": pooled(list(self._parts.values()))}, ("all",)
        self.schema = replace(base.schema, attributes=groups, sites=sites)

    def load(self, site: str) -> SiteRecords:
        return self._parts[site]


def lost(records: SiteRecords, number: int, flipped: bool) -> SiteRecords:
    """Return the records without what is not known; `flipped`, those of unknown sex have the other label."""
    draw = np.random.default_rng(number).random(len(records))
    sex = np.where(draw < 0.2, 2, records.attributes["sex"])
    age = np.where(draw > 0.8, 3, records.attributes["age"])
    labels = np.where(flipped & (sex == 2), 1 - records.labels, records.labels)
    sides = np.where(np.arange(len(records)) % 5 == 0, TEST, TRAIN).astype(np.int8)
    return SiteRecords(records.modalities, labels, {"sex": sex, "age": age}, sides)


def config_of(method: str, mode: str = "gradient", **server: float) -> Config:
    return parse(
        {
            "rounds": 3,
            "data": {"name": "synthetic", "attribute": "sex", "split": "given"},
            "model": {"options": {"hidden": [4], "embedding_dim": 4}},
            "method": {"name": method, **METHODS[method]},
            "training": {"mode": mode, "dtype": "float64", "learning_rate": 0.3, "device": "cpu"},
            "server": {"recombination": 1e6, **server},
        }
    )


class Trained:
    """A run of three rounds: what was committed, and the model."""

    def __init__(self, config: Config, adapter: Masked) -> None:
        bench = Workbench(config, adapter.schema)
        self.sites = [Site(name, config, adapter) for name in adapter.schema.sites]
        self.coordinator = Coordinator(config, adapter.schema, bench.vectors())
        self.coordinator.standardise({site.name: site.survey for site in self.sites})
        self.rounds: list[Committed] = []
        for number in range(config.rounds):
            download = self.coordinator.download()
            told = [site.work(bench, download, number + 1) for site in self.sites]
            for update in told:
                self.coordinator.check(update)
            self.rounds.append(self.coordinator.commit(told))
        self.model = {name: np.array(value) for name, value in self.coordinator.model.items()}


@cache
def trained(method: str, mode: str = "gradient") -> Trained:
    return Trained(config_of(method, mode), Masked())


def without_unknown(signals: Signals) -> Signals:
    """Return the signals that the known records of a cohort give: groups are separate sums."""
    arrays = (signals.counts, signals.losses, signals.histograms)
    return Signals(*(np.delete(array, 2, axis=1) for array in arrays), signals.head_gradients)


@pytest.mark.parametrize("mode", ["gradient", "update", "weights"])
@pytest.mark.parametrize("method", METHODS)
def test_a_methods_answer_is_that_to_the_known_groups(method: str, mode: str) -> None:
    run, memory = trained(method, mode), {}
    own = run.coordinator.config.method
    for done in run.rounds:
        assert done.train is not None
        assert done.train.counts[0, 2].sum() > 20
        alone = own.modulate(without_unknown(done.train), memory)
        memory, found = alone.memory, done.modulation.coefficients
        np.testing.assert_array_equal(found.fused[:, :2], alone.coefficients.fused)
        np.testing.assert_array_equal(found.unimodal[:, :2], alone.coefficients.unimodal)
        np.testing.assert_array_equal(found.fused[:, 2], 1.0)
        for name, told in alone.diagnostics.items():
            np.testing.assert_array_equal(done.modulation.diagnostics[name], told)
        # All that is over all groups is still over all records.
        assert done.test is not None
        assert done.test.counts[0].sum() == sum(
            update.counts[0].sum() for update in done.test_by_site.values()
        )
    # Else nothing is shown.
    moved = done.modulation.coefficients
    assert method == "fedavg" or max(np.ptp(moved.fused), np.ptp(moved.unimodal)) > 0.01


def test_the_fairness_term_pushes_known_groups_alone() -> None:
    term = trained("multifair").coordinator.terms.fairness
    assert term is not None
    assert term.slopes[:, :2].any()
    assert not term.slopes[:, 2].any()
    assert not term.histograms[:, 2].any()


@pytest.mark.parametrize("mode", ["gradient", "update", "weights"])
@pytest.mark.parametrize("method", METHODS)
def test_records_of_the_unknown_group_move_the_model(method: str, mode: str) -> None:
    one, other = trained(method, mode), Trained(config_of(method, mode), Masked(flipped=True))
    before, after = one.rounds[0].train, other.rounds[0].train
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(before.counts[:, :2], after.counts[:, :2])
    # With a weight of zero these would be the same bits: no coefficient depends on the flipped labels.
    for name in ("fusion", "encoder/image", "encoder/table"):
        assert np.abs(one.model[name] - other.model[name]).max() > 1e-4


@pytest.mark.parametrize("mode", ["gradient", "update", "weights"])
def test_federated_averaging_does_not_know_what_a_group_is_called(mode: str) -> None:
    other = Trained(config_of("fedavg", mode), Masked("not said"))
    for name, value in trained("fedavg", mode).model.items():
        np.testing.assert_array_equal(value, other.model[name])


@pytest.mark.parametrize("method", METHODS)
def test_sites_give_what_one_site_gives(method: str) -> None:
    whole, parts = Trained(config_of(method), Masked(one_site=True)), trained(method)
    assert len(whole.sites) == 1 < len(parts.sites)
    # float64: a few hundred operations in another order. Coefficients amplify them by the steep tilt.
    for name, value in whole.model.items():
        np.testing.assert_allclose(parts.model[name], value, rtol=0, atol=1e-10)
    for one, other in zip(whole.rounds, parts.rounds, strict=True):
        np.testing.assert_allclose(one.applied.fused, other.applied.fused, rtol=0, atol=1e-9)
        np.testing.assert_allclose(one.applied.unimodal, other.applied.unimodal, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_with_all_groups_known_nothing_changes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Trained:
        return Trained(config_of(method), Masked("other"))

    masked = run()
    monkeypatch.setattr(module, "of_known", lambda signals, _: signals)
    monkeypatch.setattr(module, "expanded", lambda modulation, *_: modulation)
    plain = run()
    for name, value in plain.model.items():
        np.testing.assert_array_equal(masked.model[name], value)
    for one, other in zip(masked.rounds, plain.rounds, strict=True):
        np.testing.assert_array_equal(one.applied.fused, other.applied.fused)
        np.testing.assert_array_equal(one.applied.unimodal, other.applied.unimodal)


def test_a_round_asks_no_unknown_group_for_records() -> None:
    fewest = int(
        min(done.train.counts[0, :2].sum(-1).min() for done in trained("fedavg").rounds if done.train)
    )
    unknown = int(trained("fedavg").rounds[0].train.counts[0, 2].sum())  # type: ignore[union-attr]
    assert unknown < fewest
    Trained(config_of("fedavg", min_group_records=fewest), Masked())
    with pytest.raises(RoundRefused, match="group '(female|male)' must have at least"):
        Trained(config_of("fedavg", min_group_records=fewest + 1), Masked())
    with pytest.raises(RoundRefused, match="group 'other' must have at least"):
        Trained(config_of("fedavg", min_group_records=fewest), Masked("other"))


def test_a_data_set_needs_no_record_of_an_unknown_group() -> None:
    schema = Masked().schema
    counts = np.ones((3, 3, 4, 2))
    counts[:, 2] = counts[:, :, 3] = 0
    check_coverage(schema, counts.reshape(3, 12, 2), ["sex"])
    with pytest.raises(DataError, match="group `other` of attribute `sex` must have a training record"):
        check_coverage(Masked("other").schema, counts.reshape(3, 12, 2), ["sex"])


def test_released_sums_are_settled_without_the_unknown_group() -> None:
    run = trained("dual_mimo")
    train = run.rounds[-1].train
    assert train is not None
    noisy = replace(train, variance=Variance(0.5, 0.5, 0.5), head_gradients=None)
    coordinator = Coordinator(run.coordinator.config, Masked().schema, run.model)
    found = []
    for more in (0.0, 40.0):
        counts = noisy.counts + np.array([0.0, 0.0, more])[:, None]
        answer = coordinator._modulation(replace(noisy, counts=counts))
        assert coordinator.released is not None
        assert coordinator.released.num_groups == 2
        assert answer.diagnostics["auc_gap"].shape == answer.diagnostics["loss_gap"].shape == (3, 2)
        assert answer.coefficients.fused.shape == (3, 3)
        found.append(answer)
        coordinator.released = None
    one, other = (answer.coefficients for answer in found)
    np.testing.assert_array_equal(one.fused, other.fused)
    np.testing.assert_array_equal(one.unimodal, other.unimodal)

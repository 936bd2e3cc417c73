"""With validation records a run is trained and chosen without a look at the test records."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedfair.aggregation import pool
from fedfair.config import Config, apply, parse
from fedfair.coordinator import Coordinator
from fedfair.data.heart import heart
from fedfair.data.schema import SiteRecords
from fedfair.data.split import hashed_split, split_sides, train_test_split
from fedfair.monitor import Monitor
from fedfair.record import Made, RoundRecord, train_loss
from fedfair.record import test_metrics as metrics_of
from fedfair.site import Site, Workbench
from fedfair.wire import pack_update

SHORT = ["rounds=3", "data.test_fraction=0.3", "training.device=cpu"]
CHOOSING = [*SHORT, "data.validation_fraction=0.25", "server.monitor=es_auc", "report.group_min=2"]
SITES = heart().schema.sites


def configured(*overrides: str) -> Config:
    return parse(apply({"name": "chosen", "method": {"name": "dual_mimo"}}, overrides))


def poisoned(records: SiteRecords) -> SiteRecords:
    """Return the records with wrong labels, and each with another one's values."""
    changed = {name: np.roll(raw, 1, 0) for name, raw in records.modalities.items()}
    return SiteRecords(changed, 1 - records.labels, records.attributes)


def sites_of(config: Config, poison: str = "") -> list[Site]:
    """Return the hospitals, those records wrong that `poison` names, which are split as if they were not."""
    sites = [Site(name, config, heart()) for name in SITES]
    for site in sites:
        if poison:
            setattr(site, poison, poisoned(getattr(site, poison)))
    return sites


class Trained:
    """What a whole run shows: its records, what the monitor chose, the model, and the last assessment."""

    def __init__(self, config: Config, poison: str = "") -> None:
        sites, schema = sites_of(config, poison), heart().schema
        bench, monitor = Workbench(config, schema), Monitor(config)
        coordinator = Coordinator(config, schema, bench.vectors())
        coordinator.standardise({site.name: site.survey for site in sites})
        self.records, self.improved = [], []
        for number in range(config.rounds):
            told = [site.work(bench, coordinator.download(), number + 1) for site in sites]
            done = coordinator.commit(told)
            assert done.test is not None
            metrics = metrics_of(config, schema, done.test, done.test_by_site)
            record = RoundRecord(number, train_loss(done.train), metrics, Made(), 0.0)
            self.records.append(record.to_json())
            self.improved.append(monitor.see(number, record))
        self.chosen = monitor.state()
        self.model = {name: value.tobytes() for name, value in coordinator.model.items()}
        self.validated = [site.validate(bench, coordinator.download()) for site in sites]
        self.assessed = pool([site.assess(bench, coordinator.download()) for site in sites])[1]


@pytest.mark.parametrize("split", ["stratified", "hashed"])
def test_what_is_chosen_never_sees_a_test_record(split: str) -> None:
    config = configured(*CHOOSING, f"data.split={split}")
    clean, wrong = Trained(config), Trained(config, "_test_records")
    assert clean.records == wrong.records
    assert clean.chosen == wrong.chosen
    assert any(clean.improved)
    assert clean.model == wrong.model
    for one, other in zip(clean.validated, wrong.validated, strict=True):
        assert same(pack_update(one), pack_update(other))
    # The poison works: the last assessment, and only that, is of these records.
    assert clean.assessed is not None
    assert wrong.assessed is not None
    assert not np.array_equal(clean.assessed.histograms, wrong.assessed.histograms)


def test_what_is_told_of_the_chosen_model_sees_no_validation_record() -> None:
    clean, wrong = Trained(configured(*CHOOSING)), Trained(configured(*CHOOSING), "_round_records")
    assert clean.records != wrong.records
    assert clean.model == wrong.model
    assert clean.assessed is not None
    assert wrong.assessed is not None
    assert np.array_equal(clean.assessed.histograms, wrong.assessed.histograms)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("split", ["stratified", "hashed"])
@pytest.mark.parametrize("name", SITES)
def test_every_count_is_of_its_own_side(name: str, split: str) -> None:
    config = configured(*CHOOSING, f"data.split={split}")
    site, schema, records = Site(name, config, heart()), heart().schema, heart().load(name)
    divide = hashed_split if split == "hashed" else train_test_split
    sides = split_sides(divide, records, 0.3, 0.25, config.seed, name)
    bench = Workbench(config, schema)
    coordinator = Coordinator(config, schema, bench.vectors())
    coordinator.standardise({s: Site(s, config, heart()).survey for s in SITES})
    update, last = (measure(bench, coordinator.download()) for measure in (site.validate, site.assess))
    worked = site.work(bench, coordinator.download(), 1)

    def by_label(side: np.ndarray) -> list[int]:
        return np.bincount(records.labels[side], minlength=2).tolist()

    survey = site.survey
    for told, side in (
        (survey.train_counts, sides.train),
        (survey.test_counts, sides.test),
        (update.train, sides.train),
        (update.test, sides.validation),
        (worked.train, sides.train),
        (worked.test, sides.validation),
        (last.train, sides.train),
        (last.test, sides.test),
    ):
        assert told is not None
        counts = told if isinstance(told, np.ndarray) else told.counts
        assert counts[0].sum(0).tolist() == by_label(side)


def test_without_validation_records_rounds_measure_the_test_records() -> None:
    config, schema = configured(*SHORT), heart().schema
    bench = Workbench(config, schema)
    sites = sites_of(config)
    coordinator = Coordinator(config, schema, bench.vectors())
    coordinator.standardise({site.name: site.survey for site in sites})
    for site in sites:
        last = site.assess(bench, coordinator.download())
        assert same(pack_update(site.validate(bench, coordinator.download())), pack_update(last))
        worked = dataclasses.replace(site.work(bench, coordinator.download(), 1), rows={})
        assert same(pack_update(worked), pack_update(last))

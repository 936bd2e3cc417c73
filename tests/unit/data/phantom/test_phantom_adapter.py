"""The adapter: schema, records that fit it, unknown groups left out, stored labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedfair.data.checks import checked_indices, checked_raw
from fedfair.data.phantom import PRESETS, PhantomAdapter
from fedfair.data.phantom.adapter import ATTRIBUTES
from fedfair.data.phantom.notes import note_of
from fedfair.data.phantom.patients import draw_patients
from fedfair.data.phantom.pictures import oct_of, slo_of
from fedfair.data.schema import ArrayModality, DataAdapter, SiteRecords, TextModality, VolumeModality
from fedfair.data.words import to_words
from fedfair.errors import ConfigError, DataError

SMALL: dict[str, Any] = {"patients": 40, "size": 16, "slices": 2}


def checked(adapter: PhantomAdapter, site: str) -> SiteRecords:
    records, schema = adapter.load(site), adapter.schema
    for name, modality in schema.modalities.items():
        raw = checked_raw(records, name, modality)
        assert raw.dtype == np.float32
    checked_indices("label", records.labels, len(records), 2)
    for name, groups in schema.attributes.items():
        checked_indices(name, records.attributes[name], len(records), len(groups))
    return records


@pytest.mark.parametrize("preset", PRESETS)
def test_records_fit_the_schema(preset: str) -> None:
    adapter = PhantomAdapter({**SMALL, "preset": preset, "modalities": ["note", "oct", "slo"]}, 0)
    assert isinstance(adapter, DataAdapter)
    assert dict(adapter.schema.modalities) == {
        "slo": ArrayModality((1, 16, 16)),
        "oct": VolumeModality((2, 16, 16)),
        "note": TextModality(128, 8192),
    }
    assert adapter.schema.attributes == {"race": ("asian", "black", "white"), "sex": ("female", "male")}
    records = checked(adapter, "site-2")
    assert len(records) == 40
    for name in ("slo", "oct"):
        assert 0 <= records.modalities[name].min() < 0.2
        assert 0.5 < records.modalities[name].max() <= 1


def test_defaults() -> None:
    assert list(PhantomAdapter({}, 0).schema.modalities) == ["slo", "oct"]
    assert list(PhantomAdapter({"preset": "fairvlmed"}, 0).schema.modalities) == ["slo", "note"]
    assert PhantomAdapter({}, 0).schema.modalities["oct"] == VolumeModality((8, 64, 64))


def test_records_are_the_patients_pictures_and_words() -> None:
    adapter = PhantomAdapter({**SMALL, "modalities": ["slo", "oct", "note"]}, 9)
    records = adapter.load("site-1")
    patients, spec = draw_patients(adapter.spec, 9, "site-1"), adapter.spec
    np.testing.assert_array_equal(records.labels, patients.label)
    np.testing.assert_array_equal(records.attributes["race"], patients.race)
    for row in (0, 39):
        slo = slo_of(patients, row, spec, 9, "site-1", 16) / np.float32(255)
        np.testing.assert_array_equal(records.modalities["slo"][row, 0], slo)
        volume = oct_of(patients, row, spec, 9, "site-1", 16, 2) / np.float32(255)
        np.testing.assert_array_equal(records.modalities["oct"][row], volume)
        words = to_words([note_of(patients, row, spec, 9, "site-1")], TextModality(128, 8192))
        np.testing.assert_array_equal(records.modalities["note"][row], words[0])


def test_patients_of_unknown_groups_are_left_out_and_counted() -> None:
    options = {**SMALL, "patients": 400, "modalities": ["slo"], "attributes": ["ethnicity", "sex"]}
    adapter = PhantomAdapter({**options, "sites": {"a": {"unknown": 0.2}}}, 0)
    patients = draw_patients(adapter.spec, 0, "a")
    known = (patients.group("ethnicity") >= 0) & (patients.group("sex") >= 0)
    records = checked(adapter, "a")
    assert 0 < adapter.left_out("a") == 400 - len(records) == (~known).sum()
    np.testing.assert_array_equal(records.attributes["ethnicity"], patients.group("ethnicity")[known])
    np.testing.assert_array_equal(records.labels, patients.label[known])
    everyone = PhantomAdapter({**options, "attributes": ["age_group"]}, 0)
    assert everyone.left_out("site-1") == 0
    first = draw_patients(everyone.spec, 0, "site-1")
    groups = everyone.load("site-1").attributes["age_group"]
    for group, (low, high) in enumerate([(0, 50), (50, 65), (65, 100)]):
        assert ((first.age[groups == group] >= low) & (first.age[groups == group] < high)).all()


def test_every_attribute_can_be_chosen() -> None:
    adapter = PhantomAdapter({**SMALL, "modalities": ["slo"], "attributes": list(ATTRIBUTES)[::-1]}, 0)
    assert list(adapter.schema.attributes) == list(ATTRIBUTES)
    checked(adapter, "site-1")


def test_missing_modalities_are_nan_and_labels_are_the_stored_ones() -> None:
    site = {"missing": [0.5, 0.4, 0.3], "label_noise": [0.5, 0.5, 0.5]}
    adapter = PhantomAdapter(
        {**SMALL, "patients": 100, "modalities": ["slo", "oct", "note"], "sites": {"a": site}}, 0
    )
    records = checked(adapter, "a")
    patients = draw_patients(adapter.spec, 0, "a")
    for column, name in enumerate(("slo", "oct", "note")):
        missing = np.isnan(records.modalities[name]).reshape(100, -1).all(axis=1)
        np.testing.assert_array_equal(missing, patients.missing[:, column])
        assert 0 < missing.sum() < 100
    np.testing.assert_array_equal(records.labels, patients.stored)
    assert (records.labels != patients.label).sum() > 20


def test_sites_have_their_own_number_unless_one_is_given() -> None:
    sites = {"a": {"patients": 3}, "b": {"patients": 5}}
    adapter = PhantomAdapter({"size": 16, "modalities": ["slo"], "sites": sites}, 0)
    assert [len(adapter.load(site)) for site in adapter.schema.sites] == [3, 5]
    drawn = PhantomAdapter({**SMALL, "modalities": ["slo"], "sites": 5}, 0)
    assert drawn.schema.sites == tuple(f"site-{k}" for k in range(1, 6))
    assert len(drawn.load("site-5")) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": ["slo"]}, r"`data.options.modality` is not a known key"),
        ({"modalities": ["sloo"]}, r"`data.options.modalities` must be of .*got 'sloo'; did you mean `slo`"),
        ({"modalities": []}, r"`data.options.modalities` must be a list with at least one item"),
        ({"attributes": ["age"]}, r"`data.options.attributes` must be of .*got 'age'"),
        ({"size": 8}, r"`data.options.size` must be an integer of at least 16, got 8"),
        ({"slices": 0}, r"`data.options.slices` must be an integer of at least 1, got 0"),
        ({"patients": 0}, r"`data.options.patients` must be an integer of at least 1, got 0"),
        (None, r"`data.options` must be a mapping, got None"),
    ],
)
def test_bad_options_are_refused(options: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PhantomAdapter(options, 0)


def test_an_unknown_site_is_refused() -> None:
    with pytest.raises(DataError, match=r"`site` must be .*got 'site-9'; did you mean"):
        PhantomAdapter({}, 0).load("site-9")

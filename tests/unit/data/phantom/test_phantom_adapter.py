"""The adapter: schema, records that fit it, unknown groups left out, stored labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.data.checks import checked_indices, checked_raw
from fedfair.data.eye import EyeAdapter
from fedfair.data.phantom import PRESETS, PhantomAdapter
from fedfair.data.phantom import adapter as adapter_module
from fedfair.data.phantom.adapter import ATTRIBUTES
from fedfair.data.phantom.notes import note_of
from fedfair.data.phantom.patients import RECORDED, draw_patients
from fedfair.data.phantom.pictures import oct_of, slo_of
from fedfair.data.pixels import Pixels
from fedfair.data.schema import ArrayModality, DataAdapter, SiteRecords, TextModality, VolumeModality
from fedfair.data.words import to_words
from fedfair.errors import ConfigError, DataError
from tests.unit.data.values import values

SMALL: dict[str, Any] = {"patients": 40, "size": 16, "slices": 2}


def checked(adapter: PhantomAdapter, site: str) -> SiteRecords:
    records, schema = adapter.load(site), adapter.schema
    for name, modality in schema.modalities.items():
        assert isinstance(checked_raw(records, name, modality), np.ndarray if name == "note" else Pixels)
        assert values(records, name).dtype == np.float32
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
        assert 0 <= values(records, name).min() < 0.2
        assert 0.5 < values(records, name).max() <= 1


def test_defaults() -> None:
    assert list(PhantomAdapter({}, 0).schema.modalities) == ["slo", "oct"]
    assert list(PhantomAdapter({"preset": "fairvlmed"}, 0).schema.modalities) == ["slo", "note"]
    assert PhantomAdapter({}, 0).schema.modalities["oct"] == VolumeModality((8, 64, 64))


NAMES = {
    "race": ("asian", "black", "white"),
    "sex": ("female", "male"),
    "ethnicity": ("non-hispanic", "hispanic"),
    "language": ("english", "spanish", "other"),
    "maritalstatus": ("married", "single", "divorced", "widowed", "separated"),
    "age_group": ("<50", "50-64", "65+"),
}


@pytest.mark.parametrize(
    ("preset", "profile"), [("fairvision", "fairvision"), ("fairvlmed", "fairvlmed"), ("iid", "fairfedmed")]
)
def test_all_names_are_those_of_the_readers(preset: str, profile: str) -> None:
    options: dict[str, Any] = {"size": 20, "slices": 3, "attributes": list(NAMES), "cache": False}
    if profile == "fairvlmed":
        options |= {"words": 40, "vocabulary": 500}
    made_up = PhantomAdapter({**options, "preset": preset}, 0).schema
    assert made_up.attributes == NAMES
    real = EyeAdapter(profile, None, options, 0).schema
    assert (made_up.modalities, made_up.classes) == (real.modalities, real.classes)
    assert list(made_up.attributes.items()) == list(real.attributes.items())
    options["age_edges"] = [40, 60, 61]
    made_up, real = PhantomAdapter(options, 0).schema, EyeAdapter(profile, None, options, 0).schema
    assert made_up.attributes["age_group"] == ("<40", "40-59", "60-60", "61+") == real.attributes["age_group"]


def test_ages_are_cut_as_asked_for() -> None:
    options = {**SMALL, "patients": 200, "modalities": ["slo"], "attributes": ["age_group"]}
    adapter = PhantomAdapter({**options, "age_edges": [40, 70]}, 0)
    ages = draw_patients(adapter.spec, 0, "site-1").age
    expected = (ages >= 40).astype(int) + (ages >= 70)
    np.testing.assert_array_equal(adapter.load("site-1").attributes["age_group"], expected)
    assert set(expected) == {0, 1, 2}


def test_notes_have_as_many_words_as_asked_for() -> None:
    adapter = PhantomAdapter({**SMALL, "modalities": ["note"], "words": 9, "vocabulary": 50}, 0)
    notes = adapter.load("site-1").modalities["note"]
    assert notes.shape == (40, 9)
    assert 1 <= np.nanmin(notes) <= np.nanmax(notes) < 50


def test_records_are_the_patients_pictures_and_words() -> None:
    adapter = PhantomAdapter({**SMALL, "modalities": ["slo", "oct", "note"]}, 9)
    records = adapter.load("site-1")
    patients, spec = draw_patients(adapter.spec, 9, "site-1"), adapter.spec
    np.testing.assert_array_equal(records.labels, patients.label)
    np.testing.assert_array_equal(records.attributes["race"], patients.race)
    for row in (0, 39):
        slo = slo_of(patients, row, spec, 9, "site-1", 16) / np.float32(255)
        np.testing.assert_array_equal(values(records, "slo")[row, 0], slo)
        volume = oct_of(patients, row, spec, 9, "site-1", 16, 2) / np.float32(255)
        np.testing.assert_array_equal(values(records, "oct")[row], volume)
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


def test_patients_of_unknown_groups_may_stay_in_a_group_of_their_own() -> None:
    options = {**SMALL, "patients": 400, "modalities": ["slo"], "unknown": "keep"}
    options["attributes"] = ["sex", "ethnicity", "age_group"]
    for rate in (0.0, 0.2):
        adapter = PhantomAdapter({**options, "sites": {"a": {"unknown": rate}, "b": {}}}, 0)
        sex, ethnicity, ages = adapter.schema.attributes.values()
        # The cohort says everyone's sex; where a site loses some, the group is there at all sites.
        assert sex == (("female", "male", "unknown") if rate else ("female", "male"))
        assert ethnicity == ("non-hispanic", "hispanic", "unknown")
        assert ages == ATTRIBUTES["age_group"]
        patients, records = draw_patients(adapter.spec, 0, "a"), checked(adapter, "a")
        assert len(records) == 400
        assert adapter.left_out("a") == 0
        for name in ("sex", "ethnicity"):
            found = patients.group(name)
            np.testing.assert_array_equal(records.attributes[name], np.where(found < 0, 2, found))
        assert (records.attributes["ethnicity"] == 2).any()
        assert (records.attributes["sex"] == 2).any() == (rate > 0)


def test_who_lacks_what_follows_from_the_options() -> None:
    adapter = PhantomAdapter({**SMALL, "attributes": list(ATTRIBUTES), "unknown": "keep"}, 0)
    drawn_groups = [draw_patients(adapter.spec, 0, site, range(1000)) for site in adapter.schema.sites]
    for name in RECORDED:
        lacking = any((patients.group(name) < 0).any() for patients in drawn_groups)
        assert ("unknown" in adapter.schema.attributes[name]) == lacking


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
        missing = np.isnan(values(records, name)).reshape(100, -1).all(axis=1)
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


SITE = {"missing": [0.3, 0.3, 0.0], "unknown": 0.1}


def drawn(seed: int = 0, site: str = "a", **options: Any) -> dict[str, np.ndarray]:
    adapter = PhantomAdapter({**SMALL, "sites": {"a": SITE, "b": {}}, **options}, seed)
    records = adapter.load(site)
    return {name: values(records, name) for name in records.modalities}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for name, own in one.items():
        np.testing.assert_array_equal(own, other[name])


def test_images_are_kept_on_demand_alone(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted = drawn()
    assert list(own_cache.iterdir()) == []
    assert_equal(drawn(cache=True, workers=3), painted)
    assert len(list(own_cache.rglob("*.npy"))) == 2
    monkeypatch.delattr(adapter_module, "slo_of")
    monkeypatch.delattr(adapter_module, "oct_of")
    assert_equal(drawn(cache=True), painted)
    assert_equal(drawn(cache=True, modalities=["slo"]), {"slo": painted["slo"]})


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"site": "b"},
        {"size": 17},
        {"slices": 3},
        {"contrast_slo": 0.5},
        {"attributes": ["race", "sex", "language"]},
        {"patients": 39},
        {"sites": {"a": {**SITE, "device": "B"}}},
    ],
)
def test_kept_images_stand_for_no_others(own_cache: Path, other: dict[str, Any]) -> None:
    drawn(cache=True)
    assert_equal(drawn(cache=True, **other), drawn(**other))
    # Another seed or site lies beside the first; what else differs takes its place.
    files = 4 if other.keys() & {"seed", "site"} else 2
    assert len(list(own_cache.rglob("*.npy"))) == files
    assert_equal(drawn(cache=True), drawn())
    assert len(list(own_cache.rglob("*.npy"))) == files


def test_as_many_other_patients_are_others() -> None:
    by_race, by_sex = ({"seed": 10, "attributes": [name]} for name in ("race", "sex"))
    first, second = drawn(**by_race), drawn(**by_sex)
    assert first["slo"].shape == second["slo"].shape
    assert not np.array_equal(first["slo"], second["slo"], equal_nan=True)
    assert_equal(drawn(cache=True, **by_race), first)
    assert_equal(drawn(cache=True, **by_sex), second)


def test_other_sites_matter_to_no_kept_image(monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn(cache=True)
    monkeypatch.delattr(adapter_module, "slo_of")
    monkeypatch.delattr(adapter_module, "oct_of")
    assert_equal(drawn(cache=True, sites={"a": SITE, "c": {"device": "C"}}), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": ["slo"]}, r"`data.options.modality` is not a known key; did you mean `modalities`"),
        ({"atributes": ["race"]}, r"`data.options.atributes` is not a known key; did you mean `attributes`"),
        ({"patiens": 9}, r"`data.options.patiens` is not a known key; did you mean `patients`"),
        ({"sise": 16}, r"`data.options.sise` is not a known key; did you mean `size`"),
        ({"contrast_slow": 1}, r"`data.options.contrast_slow` is not .* did you mean `contrast_slo`"),
        ({"preset": "noisygroup"}, r"`data.options.preset` must be one of .* did you mean `noisy-group`"),
        ({"sites": {"a": {"mising": [0, 0, 0]}}}, r"`data.options.sites.a.mising` .* mean `missing`"),
        ({"age_edges": [60, 50]}, r"`data.options.age_edges` must ascend, got \[60, 50\]"),
        ({"words": 0}, r"`data.options.words` must be an integer of at least 1, got 0"),
        ({"vocabulary": 1}, r"`data.options.vocabulary` must be an integer of at least 2, got 1"),
        ({"modalities": ["sloo"]}, r"`data.options.modalities` must be of .*got 'sloo'; did you mean `slo`"),
        ({"modalities": []}, r"`data.options.modalities` must be a list with at least one item"),
        ({"attributes": ["age"]}, r"`data.options.attributes` must be of .*got 'age'"),
        ({"unknown": True}, r"`data.options.unknown` must be one of \['leave_out', 'keep'\], got True"),
        ({"size": 8}, r"`data.options.size` must be an integer of at least 16, got 8"),
        ({"slices": 0}, r"`data.options.slices` must be an integer of at least 1, got 0"),
        ({"patients": 0}, r"`data.options.patients` must be an integer of at least 1, got 0"),
        ({"cache": 1}, r"`data.options.cache` must be true or false, got 1"),
        ({"workers": 0}, r"`data.options.workers` must be an integer of at least 1, got 0"),
        (None, r"`data.options` must be a mapping, got None"),
    ],
)
def test_bad_options_are_refused(options: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PhantomAdapter(options, 0)


def test_an_unknown_site_is_refused() -> None:
    with pytest.raises(DataError, match=r"`site` must be .*got 'site-9'; did you mean"):
        PhantomAdapter({}, 0).load("site-9")

"""The adapter: exact arrays, options, sites, the leak guard, and a loud failure for what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedfair.data.checks import checked_raw
from fedfair.data.encode import to_batch
from fedfair.data.eye import EyeAdapter
from fedfair.data.eye.notes import cut
from fedfair.data.schema import TEST, DataAdapter, TextModality
from fedfair.data.split import NOT_SAID, given_sides
from fedfair.data.words import to_words
from fedfair.errors import ConfigError, DataError
from tests.unit.data.eye.trees import (
    OCT,
    SLO,
    fairvision,
    fairvision_rows,
    fedmed,
    npz,
    table,
    vlm,
    vlm_members,
)
from tests.unit.data.values import values

SMALL = {"size": 2, "slices": 3}


def adapter(root: Path, profile: str = "fairvision", **options: Any) -> EyeAdapter:
    return EyeAdapter(profile, str(root), {**SMALL, **options}, 0)


def test_exact_arrays(tmp_path: Path) -> None:
    records = adapter(fairvision(tmp_path)).load("site1")
    # 4 x 6 to 2 x 2 after the swap: means over blocks of 3 x 2; B-scans 1, 3, 5 of 6, blocks of 2 x 2.
    slo = SLO.T.astype(float).reshape(2, 3, 2, 2).mean(axis=(1, 3)) / 255
    volume = OCT[[1, 3, 5]].astype(float).reshape(3, 2, 2, 2, 2).mean(axis=(2, 4)) / 255
    for place in range(4):
        # Rounded to 8 bits: half a code, and what float32 adds.
        np.testing.assert_allclose(values(records, "slo")[place, 0], slo, rtol=0, atol=0.5 / 255 + 1e-6)
        np.testing.assert_allclose(values(records, "oct")[place], volume, rtol=0, atol=0.5 / 255 + 1e-6)


def test_records_fit_the_schema(tmp_path: Path) -> None:
    made = adapter(fairvision(tmp_path))
    assert isinstance(made, DataAdapter)
    records = made.load("site1")
    assert list(records.modalities) == list(made.schema.modalities) == ["slo", "oct"]
    for name, modality in made.schema.modalities.items():
        checked_raw(records, name, modality)
    assert made.schema.classes == ("no glaucoma", "glaucoma")
    assert made.schema.attributes == {"race": ("asian", "black", "white"), "sex": ("female", "male")}


@pytest.mark.parametrize(
    ("profile", "write"), [("fairvision", fairvision), ("fairvlmed", vlm), ("fairfedmed", fedmed)]
)
def test_records_become_a_batch(tmp_path: Path, profile: str, write: Callable[[Path], Path]) -> None:
    made = adapter(write(tmp_path), profile, **({"words": 4} if profile == "fairvlmed" else {}))
    records = made.load("site1")
    whole = to_batch(records, made.schema, {}, records.attributes["sex"])
    batch = whole.select(torch.arange(len(whole)))
    assert batch.present.all()
    assert {name: tuple(value.shape[1:]) for name, value in batch.modalities.items()} == {
        name: modality.shape for name, modality in made.schema.modalities.items()
    }


@pytest.mark.parametrize("empty", [np.zeros((0,)), np.zeros((0, 4, 4), np.uint8), np.zeros((0, 0, 0))])
def test_an_empty_volume_is_missing(tmp_path: Path, empty: np.ndarray) -> None:
    root = fairvision(tmp_path)
    npz(root / "Glaucoma" / "Test" / "data_00004.npz", oct_bscans=empty, race=2, male=1, glaucoma=0)
    records = adapter(root).load("site1")
    assert np.isnan(values(records, "oct")[0]).all()
    assert np.isfinite(values(records, "oct")[1:]).all()
    assert np.isfinite(values(records, "slo")).all()
    only = adapter(root, modalities=["oct"])
    assert len(only.load("site1")) == 3
    assert only.left_out("site1") == {"no modality": 1}


def test_slices_that_a_record_lacks_are_missing(tmp_path: Path) -> None:
    volume = values(adapter(fairvision(tmp_path), slices=8).load("site1"), "oct")
    assert np.isfinite(volume[:, : len(OCT)]).all()
    assert np.isnan(volume[:, len(OCT) :]).all()


def test_unknowns_are_left_out_and_counted(tmp_path: Path) -> None:
    made = adapter(fairvision(tmp_path), attributes=["ethnicity", "language", "maritalstatus"])
    assert made.load("site1").labels.tolist() == [0, 1]
    assert made.left_out("site1") == {"ethnicity unknown": 1, "language unknown": 1}
    split = made.official_split("site1")
    assert split is not None
    assert split.tolist() == [0, 0]
    assert adapter(tmp_path, attributes=["race"]).left_out("site1") == {}


def test_unknowns_may_stay_in_a_group_of_their_own(tmp_path: Path) -> None:
    root, rows = fairvision(tmp_path, csv_at=""), fairvision_rows()
    rows[1]["age"] = ""
    rows.append({**rows[3], "filename": "data_00005.npz", "glaucoma": "unknown"})
    table(root / "data_summary_glaucoma.csv", rows)
    codes = {"race": 2, "male": 1, "hispanic": 0, "language": -1, "maritalstatus": 4}
    npz(root / "Glaucoma" / "Test" / "data_00005.npz", **codes, glaucoma=-1)
    chosen = {"attributes": ["ethnicity", "language", "race", "age_group"], "unknown": "keep"}
    made = adapter(root, **chosen)
    records = made.load("site1")
    # Every attribute has the group, whoever is there: schema and records of one site do not meet elsewhere.
    assert made.schema == EyeAdapter("fairvision", None, {**SMALL, **chosen}, 0).schema
    assert made.schema.attributes == {
        "ethnicity": ("non-hispanic", "hispanic", "unknown"),
        "language": ("english", "spanish", "other", "unknown"),
        "race": ("asian", "black", "white", "unknown"),
        "age_group": ("<50", "50-64", "65+", "unknown"),
    }
    # In the order of the files' paths, that of test before those to train and to validate.
    assert {name: groups.tolist() for name, groups in records.attributes.items()} == {
        "ethnicity": [0, 0, 1, 2],
        "language": [3, 0, 1, 2],
        "race": [2, 0, 1, 2],
        "age_group": [2, 1, 3, 2],  # 80, 50, not known, 70
    }
    assert made.left_out("site1") == {"label unknown": 1}
    with pytest.raises(ConfigError, match="`data.options.unknown` must be one of .*got 'refuse'"):
        adapter(root, unknown="refuse")


def test_unknown_label_is_left_out(tmp_path: Path) -> None:
    root = fairvision(tmp_path, csv_at="")
    npz(root / "Glaucoma" / "Test" / "data_00004.npz", race=2, male=1, glaucoma=-1)
    made = adapter(root)
    assert made.load("site1").labels.tolist() == [0, 1, 1]
    assert made.left_out("site1") == {"label unknown": 1}


def test_age_groups(tmp_path: Path) -> None:
    made = adapter(fairvision(tmp_path), attributes=["age_group"], age_edges=[60, 70, 80])
    assert made.schema.attributes == {"age_group": ("<60", "60-69", "70-79", "80+")}
    assert made.load("site1").attributes["age_group"].tolist() == [3, 0, 1, 2]  # 80, 50, 60, 70


def test_a_known_value_stands_against_an_unknown_one(tmp_path: Path) -> None:
    root = fairvision(tmp_path, csv_at="")
    table(root / "data_summary_glaucoma.csv", [{**row, "race": "unknown"} for row in fairvision_rows()])
    assert adapter(root).load("site1").attributes["race"].tolist() == [2, 0, 1, 2]


def rewritten(root: Path, **cells: object) -> Path:
    """Write the set with other cells in the second row."""
    rows = fairvision_rows()
    rows[1].update(cells)
    fairvision(root, csv_at="")
    table(root / "data_summary_glaucoma.csv", rows)
    return root


def with_file(root: Path, path: str, **members: Any) -> Path:
    npz(fairvision(root) / path, **{"race": 1, "male": 1, "glaucoma": 1, **members})
    return root


SECOND = "Glaucoma/Training/data_00002.npz"
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "label": (
        lambda r: rewritten(r, glaucoma="no"),
        "`glaucoma` must be the same in the tables and the .npz",
    ),
    "group": (
        lambda r: rewritten(r, race="white"),
        "`race` must be the same in the tables and the .npz file",
    ),
    "split": (lambda r: rewritten(r, use="test"), "the split must be the same by folder and by table"),
    "use": (lambda r: rewritten(r, use="holdout"), "`use` must be training, validation or test"),
    "race": (lambda r: rewritten(r, race="secret"), "`race` must be asian, black, white or unknown"),
    "diagnosis": (
        lambda r: rewritten(r, glaucoma="secret"),
        "`glaucoma` must be no glaucoma, glaucoma or unk",
    ),
    "row without file": (lambda r: rewritten(r, filename="data_9.npz"), "each row must have its .npz file"),
    "row twice": (lambda r: rewritten(r, filename="data_00001.npz"), "each `filename` must stand once in"),
    "file without row": (
        lambda r: with_file(r, "Glaucoma/Test/data_7.npz"),
        "each .npz file must have its row in",
    ),
    "file twice": (
        lambda r: with_file(r, "Glaucoma/Test/data_00002.npz"),
        "each name must be that of one .npz",
    ),
    "no image": (lambda r: with_file(r, SECOND, slo_fundus=None), "`slo_fundus` must be in the .npz file"),
    "flat volume": (
        lambda r: with_file(r, SECOND, oct_bscans=SLO),
        r"`oct_bscans` must be \[slices, height, width\]",
    ),
    "colour": (lambda r: with_file(r, SECOND, slo_fundus=OCT), r"`slo_fundus` must be \[height, width\]"),
    "pickle": (
        lambda r: with_file(r, SECOND, race=np.array({"a": "secret"}, dtype=object)),
        "`race` must be a number or a text, not another pickled object",
    ),
    "range": (
        lambda r: with_file(r, SECOND, slo_fundus=np.full((3, 3), 300.0)),
        r"`slo_fundus` must hold values in 0 \.\. 255",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    write, told = BROKEN[case]
    with pytest.raises(DataError, match=told) as caught:
        adapter(write(tmp_path)).load("site1")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "data_" in str(caught.value) or "`" in str(caught.value)
    assert len(str(caught.value)) < 220


def test_cut_file_is_refused_by_name(tmp_path: Path) -> None:
    path = fairvision(tmp_path) / SECOND
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        DataError, match=r"the \.npz file must be whole and readable, got 1 otherwise, first .*00002"
    ):
        adapter(tmp_path).load("site1")


def test_no_attribute_anywhere(tmp_path: Path) -> None:
    npz(tmp_path / "Training" / "data_00001.npz", male=1, glaucoma=1)
    with pytest.raises(
        DataError, match="`race` must be in a table or the .npz file, as race, got 1 otherwise"
    ):
        adapter(tmp_path).load("site1")
    assert len(adapter(tmp_path, attributes=["sex"]).load("site1")) == 1


def test_allow_missing(tmp_path: Path) -> None:
    rewritten(tmp_path, filename="data_9.npz")
    made = adapter(tmp_path, allow_missing=True)
    assert made.load("site1").labels.tolist() == [0, 0, 1, 1]


def test_split_none_asks_for_none(tmp_path: Path) -> None:
    rewritten(tmp_path, use="holdout")
    made = adapter(tmp_path, split="none")
    assert len(made.load("site1")) == 4
    assert made.official_split("site1") is None
    with pytest.raises(DataError, match="or leave out `data.options.split: none` if it is there"):
        given_sides(made.load("site1"), "site1", validates=False)


def test_official_split_must_be_said(tmp_path: Path) -> None:
    npz(tmp_path / "data" / "data_00001.npz", **vlm_members())
    npz(tmp_path / "data" / "Test" / "data_00002.npz", **vlm_members())
    made = EyeAdapter("fairvlmed", str(tmp_path), {"modalities": ["slo"]}, 0)
    records = made.load("site1")
    assert len(records) == 2
    assert sorted(made.official_split("site1")) == [NOT_SAID, TEST]
    with pytest.raises(
        DataError, match=r"site1 must have its records in folders Training, .* `use`"
    ) as caught:
        given_sides(records, "site1", validates=False)
    assert str(caught.value).endswith("or set `data.split: stratified`")
    assert "data_0" not in str(caught.value)
    said = records.select(np.flatnonzero(records.sides == TEST))
    assert given_sides(said, "site1", validates=False).test.tolist() == [0]


def test_a_split_that_two_tables_say_otherwise_is_not_said(tmp_path: Path) -> None:
    fedmed(tmp_path)
    rows = [{"filename": f"p{k}.npz", "glaucoma": k // 3, "use": "test"} for k in range(6)]
    table(tmp_path / "meta_all.csv", rows)  # the table of site 1 says that p0 is to train on
    assert adapter(tmp_path, "fairfedmed").load("site1").sides.tolist() == [NOT_SAID, TEST]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"must hold \.npz files of Harvard-FairVision .* got none .* looked for folders AMD"
    ):
        adapter(tmp_path).load("site1")
    with pytest.raises(DataError, match="`data.path` must be a folder that can be listed"):
        adapter(tmp_path / "nowhere").load("site1")
    with pytest.raises(DataError, match=r"Harvard-FairVision \(arXiv 2310.02492\), dr, got none"):
        adapter(fairvision(tmp_path), disease="dr").load("site1")


def test_notes_are_summaries_cut_at_a_word(tmp_path: Path) -> None:
    long = "word " * 35 + "lastfits overlong"  # 35 * 5 + 8 = 183 characters up to `lastfits`
    npz(tmp_path / "Training" / "data_1.npz", **vlm_members())
    table(
        tmp_path / "data_summary.csv",
        [{"filename": "data_1.npz", "note": "Full note.", "gpt4_summary": long}],
    )
    options = {"modalities": ["note"], "words": 40, "vocabulary": 100_000}
    made = EyeAdapter("fairvlmed", str(tmp_path), options, 0)
    space = made.schema.modalities["note"]
    assert isinstance(space, TextModality)
    np.testing.assert_array_equal(made.load("site1").modalities["note"], to_words(["word " * 35], space))
    full = EyeAdapter("fairvlmed", str(tmp_path), {**options, "text_field": "note"}, 0).load("site1")
    np.testing.assert_array_equal(full.modalities["note"], to_words(["Full note."], space))


def test_cut() -> None:
    assert cut("ab cd ef", 8) == "ab cd ef"
    assert cut("ab cd ef", 7) == "ab cd"
    assert cut("ab cd ef", 5) == "ab cd"
    assert cut("ab cd ef", 4) == "ab"
    assert cut("abcdef", 3) == "abc"


def test_a_record_without_a_note_lacks_the_modality(tmp_path: Path) -> None:
    rows = [{"filename": f"data_{k}.npz", "gpt4_summary": text} for k, text in ((1, "One two."), (2, ""))]
    table(tmp_path / "data_summary.csv", rows)
    for k in (1, 2):
        npz(tmp_path / "Training" / f"data_{k}.npz", **vlm_members())
    raw = EyeAdapter("fairvlmed", str(tmp_path), {"size": 2}, 0).load("site1").modalities["note"]
    assert np.isfinite(raw).sum(axis=1).tolist() == [2, 0]


def test_no_note_anywhere_is_refused(tmp_path: Path) -> None:
    npz(tmp_path / "Training" / "data_1.npz", **vlm_members())
    with pytest.raises(DataError, match="`gpt4_summary` must be a column of data_summary.csv"):
        EyeAdapter("fairvlmed", str(tmp_path), {}, 0).load("site1")


def test_leaks_are_no_input_unless_asked_for(tmp_path: Path) -> None:
    deviations = -np.arange(52.0)
    members = vlm_members(md=-1.0, tds=deviations, note_extra="A 61-year-old woman.", note="Seen.")
    npz(tmp_path / "Training" / "data_1.npz", **members)
    for options in ({"text_field": "note_extra"}, {"modalities": ["slo", "visual_field"]}):
        with pytest.raises(ConfigError, match="without `allow_leakage: true`"):
            EyeAdapter("fairvlmed", str(tmp_path), options, 0)
    options = {"size": 2, "text_field": "note_extra", "modalities": ["note", "visual_field"], "words": 9}
    made = EyeAdapter("fairvlmed", str(tmp_path), {**options, "allow_leakage": True}, 0)
    records = made.load("site1")
    np.testing.assert_array_equal(records.modalities["visual_field"], [[-1.0, *deviations]])
    assert np.isfinite(records.modalities["note"]).sum() == 5
    for name, modality in made.schema.modalities.items():
        checked_raw(records, name, modality)


def test_by_default_no_leak_is_among_the_inputs(tmp_path: Path) -> None:
    members = vlm_members(md=-1.0, tds=np.zeros(52), note_extra="x", note="x")
    npz(vlm(tmp_path) / "Training" / "data_00001.npz", **members)
    made = EyeAdapter("fairvlmed", str(tmp_path), {"size": 2}, 0)
    assert set(made.load("site1").modalities) == set(made.schema.modalities) == {"slo", "note"}


def test_visual_field_of_a_table(tmp_path: Path) -> None:
    made = adapter(fairvision(tmp_path), modalities=["visual_field"], allow_leakage=True)
    raw = made.load("site1").modalities["visual_field"]
    assert raw[:, 0].tolist() == [-4, -1, -2, -3]
    assert np.isnan(raw[:, 1:]).all()
    assert raw.shape == (4, 53)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"diseese": "dr"}, "did you mean `disease`"),
        ({"disease": "cataract"}, r"`data.options.disease` must be one of \['glaucoma', 'amd', 'dr'\]"),
        ({"modalities": ["slo", "octt"]}, "did you mean `oct`"),
        ({"modalities": ["note"]}, "`data.options.modalities` must be of"),
        ({"attributes": ["gender"]}, "`data.options.attributes` must be of"),
        ({"size": 0}, "`data.options.size` must be an integer of at least 1"),
        ({"age_edges": [60, 50]}, "`data.options.age_edges` must ascend"),
        ({"split": "random"}, "`data.options.split` must be one of"),
        ({"allow_missing": "yes"}, "`data.options.allow_missing` must be true or false"),
        ({"cache": "no"}, "`data.options.cache` must be true or false"),
        ({"workers": 0}, "`data.options.workers` must be an integer of at least 1"),
        (
            {"text_field": "note"},
            "`data.options.text_field` must be left out for fairvision, which has no notes",
        ),
        ({"words": 64}, "take it out, or set `data.name: fairvlmed` if your files are that set"),
        ({"vocabulary": 99}, "`data.options.vocabulary` must be left out for fairvision"),
        (
            {"site_tables": "race"},
            "must be left out for fairvision, which has no tables of its sites, got 'race'",
        ),
        ({"sites": ["A", "B"]}, "`data.options.site_file` must say which record is whose for 2 sites"),
    ],
)
def test_options_are_checked_before_any_file(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        EyeAdapter("fairvision", str(tmp_path / "nowhere"), options, 0)


def test_unknown_profile() -> None:
    with pytest.raises(ConfigError, match="did you mean `fairvision`"):
        EyeAdapter("fairvison", None, {}, 0)


def test_site_file_parts_the_records(tmp_path: Path) -> None:
    sites = ("North", "South", "North", "South")
    rows = [{"filename": f"data_{k:05d}", "site": site} for k, site in enumerate(sites, start=1)]
    table(fairvision(tmp_path) / "sites.csv", rows)
    made = adapter(tmp_path, site_file="sites.csv")
    assert made.schema.sites == ("North", "South")
    assert made.load("North").attributes["race"].tolist() == [0, 2]
    assert made.load("South").attributes["race"].tolist() == [2, 1]
    with pytest.raises(DataError, match="`site` must be one of the schema's 2"):
        made.load("East")
    with pytest.raises(DataError, match="`East` must have records that can be used, got none"):
        adapter(tmp_path, site_file="sites.csv", sites=["North", "South", "East"]).load("East")


def test_site_file_must_name_every_record(tmp_path: Path) -> None:
    table(fairvision(tmp_path) / "sites.csv", [{"filename": "data_00001.npz", "site": "North"}])
    with pytest.raises(DataError, match=r"each \.npz file must be at a site, got 3 otherwise"):
        adapter(tmp_path, site_file="sites.csv").load("North")
    assert len(adapter(tmp_path, site_file="sites.csv", allow_missing=True).load("North")) == 1


@pytest.mark.parametrize("rows", [[{"filename": "data_1.npz"}], [{"filename": "data_1.npz", "site": ""}]])
def test_site_file_without_sites(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    table(fairvision(tmp_path) / "sites.csv", rows)
    with pytest.raises(DataError, match=r"`sites\.csv` must have a column `site`"):
        adapter(tmp_path, site_file="sites.csv")


def test_a_record_at_two_sites_is_refused(tmp_path: Path) -> None:
    fedmed(tmp_path)
    table(tmp_path / "meta_site2_race_test.csv", [{"filename": "p0.npz"}])
    with pytest.raises(DataError, match="each record must be at one site and in one split, got 1 otherwise"):
        adapter(tmp_path, "fairfedmed").load("site1")


def test_a_server_needs_no_folder() -> None:
    made = EyeAdapter("fairfedmed", None, {}, 0)
    assert made.schema.sites == ("site1", "site2", "site3")
    assert EyeAdapter("fairvision", None, {"sites": ["A", "B"]}, 0).schema.sites == ("A", "B")
    with pytest.raises(DataError, match="no folder"):
        made.load("site1")
    with pytest.raises(ConfigError, match="`data.options.sites` must name the sites of `site_file`"):
        EyeAdapter("fairvision", None, {"site_file": "sites.csv"}, 0)


def test_an_owner_reads_its_own_folder_and_keeps_names_to_itself(tmp_path: Path) -> None:
    def own(**options: Any) -> EyeAdapter:
        chosen = {**SMALL, "sites": ["A", "B"], **options}
        return EyeAdapter("fairvision", str(tmp_path), chosen, 0, owner="A")

    fairvision(tmp_path)
    assert len(own().load("A")) == 4
    with pytest.raises(DataError, match="must hold the records of 'B'"):
        own().load("B")
    rewritten(tmp_path, glaucoma="no")
    with pytest.raises(
        DataError, match="`glaucoma` must be the same in the tables and the .npz file;"
    ) as caught:
        own().load("A")
    assert "data_0" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_owner_of_a_part_of_fairfedmed_needs_no_site_tables(tmp_path: Path) -> None:
    npz(tmp_path / "all" / "p1.npz", race=1, gender=0, glaucoma=1)
    made = EyeAdapter("fairfedmed", str(tmp_path), SMALL, 0, owner="site2")
    assert len(made.load("site2")) == 1


def test_fairfedmed_is_not_read_as_a_set_without_sites(tmp_path: Path) -> None:
    fedmed(tmp_path)
    with pytest.raises(DataError, match="set `data.name: fairfedmed`"):
        adapter(tmp_path, "fairvision").load("site1")

"""Every layout met in the wild gives the same four records; every spelling gives the same code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedfair.data.eye import EyeAdapter
from fedfair.data.eye.aliases import AMD, ATTRIBUTES, DR, GLAUCOMA, age_of, plain, split_of
from fedfair.data.eye.layout import scan
from fedfair.errors import DataError
from tests.unit.data.eye.trees import SLO, fairvision, fairvision_rows, fedmed, npz, table, vlm, vlm_old
from tests.unit.data.values import values

OPTIONS = {"size": 4, "slices": 2, "modalities": ["slo"], "attributes": ["race", "sex", "age_group"]}
LOWER = {"Training": "train", "Validation": "val", "Test": "test"}


def renamed_csv(root: Path) -> Path:
    rows = [
        {("FileName" if key == "filename" else key): value for key, value in row.items()}
        for row in fairvision_rows()
    ]
    table(root / "data_summary_glaucoma.csv", rows, "utf-8-sig")
    return fairvision(root, csv_at="")


def upper(root: Path) -> Path:
    fairvision(root, {k: k.upper() for k in LOWER}, disease="GLAUCOMA", csv_at="Data_Summary_Glaucoma.CSV")
    return root


def one_disease(root: Path) -> Path:
    return fairvision(root) / "Glaucoma"


def with_others(root: Path) -> Path:
    """Return a folder where AMD has files of the same names, as it does in the real set."""
    for number in range(1, 5):
        npz(root / "AMD" / "Training" / f"data_{number:05d}.npz", race=0, male=0, amd_condition="early.dry")
    table(root / "data_summary_amd.csv", [{"filename": "data_00001.npz", "amd": "late amd"}])
    return fairvision(root)


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "official": fairvision,
    "lower case": lambda root: fairvision(root, LOWER),
    "Testing": lambda root: fairvision(root, {"Test": "Testing"}),
    "ReadMe": lambda root: fairvision(root, csv_at="Glaucoma/ReadMe/data_summary_glaucoma.csv"),
    "Dataset": lambda root: fairvision(
        root, {k: f"Dataset/{k}" for k in LOWER}, csv_at="Glaucoma/ReadMe/data_summary_glaucoma.csv"
    ),
    "metadata beside data": lambda root: fairvision(
        root, {k: f"data/{k}" for k in LOWER}, csv_at="metadata/data_summary_glaucoma.csv", disease=""
    ),
    "old release": lambda root: fairvision(root, LOWER, csv_at="glaucoma_meta.csv"),
    "one folder, split by table": lambda root: fairvision(root, dict.fromkeys(LOWER, "all")),
    "byte order mark, other case": renamed_csv,
    "upper case": upper,
    "one disease, table beside it": one_disease,
    "three diseases": with_others,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fairvision(tmp_path: Path, layout: str) -> None:
    adapter = EyeAdapter("fairvision", str(LAYOUTS[layout](tmp_path)), OPTIONS, 0)
    records = adapter.load("site1")
    split = adapter.official_split("site1")
    assert split is not None
    order = np.argsort(split, kind="stable")
    assert split[order].tolist() == [0, 0, 1, 2]
    assert split.dtype == np.int8
    assert records.labels[order].tolist() == [0, 1, 1, 0]
    assert records.attributes["race"][order].tolist() == [0, 1, 2, 2]
    assert records.attributes["sex"][order].tolist() == [0, 1, 0, 1]
    assert records.attributes["age_group"][order].tolist() == [1, 1, 2, 2]
    assert records.modalities["slo"].shape == (4, 1, 4, 4)
    assert records.labels.dtype == records.attributes["race"].dtype == np.int64


def test_without_a_table_the_files_speak(tmp_path: Path) -> None:
    adapter = EyeAdapter("fairvision", str(fairvision(tmp_path, csv_at="")), {"size": 2, "slices": 2}, 0)
    assert adapter.load("site1").labels.tolist() == [0, 0, 1, 1]  # Test, Training, Validation
    split = adapter.official_split("site1")
    assert split is not None
    assert split.tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize(
    ("disease", "key", "told", "column", "said", "label", "classes"),
    [
        ("dr", "dr_subtype", "severe.npdr", "dr", "vision threatening dr", 1, 2),
        ("dr", "dr_subtype", "not.in.icd.table", "dr", "non-vision threatening dr", 0, 2),
        ("amd", "amd_condition", "wet.amd.inactive.scar", "amd", "late amd", 3, 4),
        ("amd", "dr_subtype", "intermediate.dry", "amd", "intermediate amd", 2, 4),
        ("amd", "amd_condition", "no.amd.diagnosis", "amd", "normal", 0, 4),
    ],
)
def test_labels_of_dr_and_amd(
    tmp_path: Path, disease: str, key: str, told: str, column: str, said: str, label: int, classes: int
) -> None:
    text = np.array(told, dtype=object)
    members = {key: text, "race": np.array("Black or African American", dtype=object), "male": 0}
    npz(tmp_path / disease.upper() / "Training" / "data_00001.npz", **members)
    table(tmp_path / f"data_summary_{disease}.csv", [{"filename": "data_00001.npz", column: said}])
    adapter = EyeAdapter("fairvision", str(tmp_path), {"disease": disease, "size": 2, "slices": 2}, 0)
    records = adapter.load("site1")
    assert records.labels.tolist() == [label]
    assert records.attributes["race"].tolist() == [1]
    assert len(adapter.schema.classes) == classes


@pytest.mark.parametrize("write", [vlm, vlm_old])
def test_fairvlmed(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    adapter = EyeAdapter("fairvlmed", str(write(tmp_path)), {"size": 4, "words": 8}, 0)
    records = adapter.load("site1")
    split = adapter.official_split("site1")
    assert split is not None
    order = np.argsort(split)
    assert split[order].tolist() == [0, 2]
    assert records.labels[order].tolist() == [1, 0]
    assert records.attributes["sex"][order].tolist() == [0, 1]
    assert records.attributes["race"][order].tolist() == [2, 0]
    assert np.isfinite(records.modalities["note"]).sum(axis=1)[order].tolist() == [8, 5]
    assert records.modalities["slo"].shape == (2, 1, 4, 4)
    wide = EyeAdapter("fairvlmed", str(tmp_path), {"size": 4, "modalities": ["slo"]}, 0)
    # FairVLMed's images are stored upright, FairVision's swapped.
    own = values(wide.load("site1"), "slo")[0, 0]
    swapped = EyeAdapter("fairvision", str(fairvision(tmp_path / "v")), OPTIONS, 0).load("site1")
    assert not np.allclose(own, values(swapped, "slo")[0, 0])
    np.testing.assert_array_equal(np.rint(own[:, 0] * 255), np.rint((SLO[:, 0] * 2.0 + SLO[:, 1]) / 3))


def test_fairfedmed_has_three_sites(tmp_path: Path) -> None:
    adapter = EyeAdapter(
        "fairfedmed", str(fedmed(tmp_path / "fairfedmed").parent), {"size": 2, "slices": 3}, 0
    )
    assert adapter.schema.sites == ("site1", "site2", "site3")
    found = [adapter.load(site) for site in adapter.schema.sites]
    assert [records.labels.tolist() for records in found] == [[0, 0], [0, 1], [1, 1]]
    assert [records.attributes["race"].tolist() for records in found] == [[0, 1], [2, 0], [1, 2]]
    assert [records.attributes["sex"].tolist() for records in found] == [[0, 1]] * 3
    for site in adapter.schema.sites:
        split = adapter.official_split(site)
        assert split is not None
        assert split.tolist() == [0, 2]
    assert found[0].modalities["oct"].shape == (2, 3, 2, 2)


def test_fairfedmed_family_is_an_option(tmp_path: Path) -> None:
    fedmed(tmp_path, "language")
    with pytest.raises(DataError, match=r"meta_site1_race_train\.csv, got those of \['language'\]"):
        EyeAdapter("fairfedmed", str(tmp_path), {}, 0).load("site1")
    adapter = EyeAdapter("fairfedmed", str(tmp_path), {"site_tables": "language", "size": 2}, 0)
    assert len(adapter.load("site2")) == 2


@pytest.mark.parametrize(
    ("field", "spellings"),
    [
        (ATTRIBUTES["race"], {"0": 0, "Asian": 0, "Black or African American": 1, " WHITE ": 2, "2.0": 2}),
        (ATTRIBUTES["sex"], {"0": 0, "Female": 0, "male": 1, "M": 1}),
        (ATTRIBUTES["ethnicity"], {"Non-Hispanic": 0, "hispanic": 1, "1": 1}),
        (ATTRIBUTES["language"], {"English": 0, "spanish": 1, "Others": 2, "other": 2}),
        (ATTRIBUTES["maritalstatus"], {"Married or Partnered": 0, "leg-sep": 4, "widowed": 3}),
        (GLAUCOMA, {"yes": 1, "no": 0, "1": 1, "0.0": 0}),
        (DR, {"pdr": 1, "mild.npdr": 0, "moderate.npdr": 0, "vision threatening dr": 1}),
        (AMD, {"early.dry": 1, "advanced.atrophic.dry.without.subfoveal.involvement": 3, "normal": 0}),
    ],
)
def test_spellings(field: object, spellings: dict[str, int]) -> None:
    for spelling, code in spellings.items():
        assert field.code(spelling) == code  # type: ignore[attr-defined]
    for unknown in ("-1", "-1.0", "unknown", "Unkown", "", "NaN"):
        assert field.code(unknown) is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("raw", ["3", "7", "martian", "1.5"])
def test_unknown_words_are_refused_without_being_shown(raw: str) -> None:
    with pytest.raises(DataError, match="`race` must be asian, black, white or unknown") as caught:
        ATTRIBUTES["race"].code(raw)
    assert "martian" not in str(caught.value)


def test_ages_and_splits() -> None:
    assert age_of("61.5") == 61.5
    assert age_of("unknown") is None
    for wrong in ("22000", "old", "-3"):
        with pytest.raises(DataError, match=r"`age` must be years in 0 \.\. 130"):
            age_of(wrong)
    assert [split_of(x) for x in ("Training", "val", "TESTING", "")] == [0, 1, 2, None]
    with pytest.raises(DataError, match="`use` must be"):
        split_of("holdout")
    assert plain("1.50") == "1.50"
    assert plain("-1.00") == "-1"


def test_links_are_followed_once_and_hidden_folders_left(tmp_path: Path) -> None:
    root = fairvision(tmp_path / "set")
    (root / "Glaucoma" / "loop").symlink_to(root)
    npz(root / ".cache" / "data_9.npz")
    assert [file.name for file in scan(root).files] == [f"data_0000{k}" for k in (4, 1, 2, 3)]
    (tmp_path / "elsewhere").symlink_to(root)
    assert len(scan(tmp_path / "elsewhere").files) == 4

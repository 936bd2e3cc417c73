"""open_dataset: built-in names, own factories, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedfair.data import open_dataset
from fedfair.data.heart import heart
from fedfair.errors import ConfigError, DataError

OWN = """
from fedfair.data import SyntheticAdapter

def factory(path, options, seed):
    assert path in ("somewhere", None)
    return SyntheticAdapter(options, seed)

def narrow(path, options):
    return options

def wrong(path, options, seed):
    return options

number = 3
"""

OPTIONS = {
    "site": "s",
    "label": {"column": "y", "edges": [1], "names": ["no", "yes"]},
    "modalities": {"m": {"numeric": ["x"]}},
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "hospital_data_under_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "records.py").write_text(OWN)
    (package / "broken.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "hospital_data_under_test"


def test_built_in_names() -> None:
    assert open_dataset("heart", None, {}, 0).schema == heart().schema
    first, second = (open_dataset("synthetic", None, {"sites": 2}, seed).load("site-0001") for seed in (1, 2))
    assert not np.array_equal(first.labels, second.labels)  # the seed arrives


def test_an_own_factory_gets_path_options_and_seed(own: str) -> None:
    made = open_dataset(f"{own}.records:factory", "somewhere", {"records": 5}, 3).load("site-0001")
    expected = open_dataset("synthetic", None, {"records": 5}, 3).load("site-0001")
    np.testing.assert_array_equal(made.modalities["image"], expected.modalities["image"])


def test_an_own_factory_is_asked_for_the_schema_without_a_path(own: str) -> None:
    made = open_dataset(f"{own}.records:factory", None, {"sites": 2}, 3)
    assert made.schema.sites == ("site-0001", "site-0002")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{own}.record:factory", "`data.name` must name an importable module, got .*No module named"),
        ("{own}.broken:factory", "`data.name` must name an importable module, got .*a_package_nobody_has"),
        ("{own}.records:factor", "function of .*records, got 'factor'; did you mean `factory`"),
        ("{own}.records:number", "function of .*records, got 'number'"),
        ("{own}.records:", "must look like package.module:factory"),
        ("{own}.records:wrong", "adapter with `schema` and `load`, got dict"),
        ("{own}.records:narrow", r"`data.name` must fit narrow\(path, options\)"),
    ],
)
def test_a_bad_factory_is_refused(name: str, message: str, own: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_dataset(name.format(own=own), None, {}, 0)
    assert "\n" not in str(caught.value)


def test_unknown_names_paths_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`data.name` must be one of .*got 'haert'; did you mean `heart`"):
        open_dataset("haert", None, {}, 0)
    with pytest.raises(ConfigError, match=r"`data.path` must be left out for heart, got 'x.csv'"):
        open_dataset("heart", "x.csv", {}, 0)
    with pytest.raises(ConfigError, match=r"`data.options` must be left out for heart, got \['sites'\]"):
        open_dataset("heart", None, {"sites": 2}, 0)
    with pytest.raises(ConfigError, match=r"`data.path` must be left out for synthetic"):
        open_dataset("synthetic", "x.csv", {}, 0)
    with pytest.raises(ConfigError, match=r"`data` of the site's settings must be left out .* got a file;"):
        open_dataset("synthetic", "x.csv", {}, 0, "site-0001")
    with pytest.raises(ConfigError, match=r"`data.options` must be left out for heart"):
        open_dataset("heart", "x.csv", {"sites": 2}, 0, "Hungary")
    with pytest.raises(ConfigError, match=r"`data.path` must name the file for csv, or .*, got no sites"):
        open_dataset("csv", None, OPTIONS, 0)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`data.path` '.*none.csv' must be a readable file: No such file"):
        open_dataset("csv", str(tmp_path / "none.csv"), OPTIONS, 0)

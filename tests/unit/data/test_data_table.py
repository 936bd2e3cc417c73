"""The table adapter: what it reads, and one sentence for every input it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.data import TableAdapter, TableSpec, open_dataset, read_csv
from fedfair.errors import ConfigError, DataError, FedfairError

Options = dict[str, Any]

OPTIONS: Options = {
    "site": "hospital",
    "label": {"column": "outcome", "values": {"healthy": [0], "ill": [1, 2]}},
    "modalities": {
        "rest": {"numeric": ["chol"], "categorical": {"pain": ["typical", "none"]}},
        "stress": {"numeric": ["rate", "slope"]},
    },
    "attributes": {
        "sex": {"column": "sex", "values": {"female": ["F", "f"], "male": ["M"]}},
        "age": {"column": "age", "edges": [50, 60], "names": ["<50", "50-59", "60+"]},
    },
}
HEADER = "hospital,outcome,chol,pain,rate,slope,sex,age,note"
LINES = [
    "South,0,200.5,none,150,-1,F,49.9,secret-a",
    "North,2,?,typical,NA,nan,M,60,secret-b",
    "South,1,,,140,2e0,f,50,secret-c",
]


def spec(change: Callable[[Options], object] = bool) -> TableSpec:
    options = copy.deepcopy(OPTIONS)
    change(options)
    return TableSpec.from_options(options)


def write(folder: Path, lines: list[str], header: str = HEADER) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def assert_one_sentence(error: FedfairError) -> None:
    text = str(error)
    assert text
    assert "\n" not in text
    assert "secret" not in text


def test_values_codes_and_missing_cells(tmp_path: Path) -> None:
    adapter = TableAdapter(read_csv(write(tmp_path, LINES)), spec())
    assert adapter.schema.sites == ("North", "South")
    assert adapter.schema.classes == ("healthy", "ill")
    south, north = adapter.load("South"), adapter.load("North")
    nan = np.nan
    np.testing.assert_array_equal(south.modalities["rest"], np.array([[200.5, 1], [nan, nan]], np.float32))
    np.testing.assert_array_equal(south.modalities["stress"], np.array([[150, -1], [140, 2]], np.float32))
    np.testing.assert_array_equal(north.modalities["rest"], np.array([[nan, 0]], np.float32))
    np.testing.assert_array_equal(north.modalities["stress"], np.array([[nan, nan]], np.float32))
    assert (south.labels.tolist(), north.labels.tolist()) == ([0, 1], [1])
    assert south.attributes["sex"].tolist() == [0, 0]
    assert south.attributes["age"].tolist() == [0, 1]  # an edge belongs to the upper band
    assert north.attributes["age"].tolist() == [2]
    assert south.modalities["rest"].dtype == np.float32
    assert south.labels.dtype == south.attributes["sex"].dtype == np.int64


def test_byte_order_mark_spaces_and_blank_lines(tmp_path: Path) -> None:
    plain = read_csv(write(tmp_path, LINES))
    spaced = tmp_path / "spaced.csv"
    spaced.write_text(
        "\ufeff" + HEADER.replace(",", " , ") + "\n\n" + "\n\n".join(LINES) + "\n", encoding="utf-8"
    )
    assert read_csv(spaced) == plain


def test_listed_sites_keep_their_order_and_may_have_no_rows_here(tmp_path: Path) -> None:
    adapter = TableAdapter(
        read_csv(write(tmp_path, LINES)), spec(lambda o: o.update(sites=["South", "North", "West"]))
    )
    assert adapter.schema.sites == ("South", "North", "West")
    assert len(adapter.load("South")) == 2
    with pytest.raises(DataError, match="West.*must have records.*got none"):
        adapter.load("West")


def test_a_hospitals_own_file_has_no_site_column(tmp_path: Path) -> None:
    options = {**OPTIONS, "site": None, "sites": ["North", "South"]}
    path = write(tmp_path, [line.split(",", 1)[1] for line in LINES], HEADER.split(",", 1)[1])
    adapter = open_dataset("csv", str(path), options, 0)
    assert adapter.schema.sites == ("North", "South")
    assert adapter.load("North").labels.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="did you mean `South`"):
        adapter.load("Soth")


SITES = {"sites": ["North", "South"]}
WITHOUT_SITE = [line.split(",", 1)[1] for line in LINES]


def test_a_server_has_the_schema_and_no_file(tmp_path: Path) -> None:
    adapter = open_dataset("csv", None, {**OPTIONS, **SITES}, 0)
    whole = open_dataset("csv", str(write(tmp_path, LINES)), {**OPTIONS, **SITES}, 0)
    assert adapter.schema == whole.schema
    with pytest.raises(DataError, match="no file: `data` of the site's settings or `data.path` must name it"):
        adapter.load("North")
    with pytest.raises(DataError, match="did you mean `South`"):
        adapter.load("Soth")


@pytest.mark.parametrize("path", [None, "own.csv"])
def test_sites_with_a_file_each_must_be_named(path: str | None) -> None:
    with pytest.raises(ConfigError, match="`data.options.sites` the sites that have a file each, got no"):
        open_dataset("csv", path, OPTIONS, 0, "North")


def test_a_sites_own_file_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    """All rows are the owner's, whose column may be left out; no other site has any."""
    adapter = open_dataset("csv", str(tmp_path / "table.csv"), {**OPTIONS, **SITES}, 0, "North")
    with pytest.raises(DataError, match="^`data` of the site's settings must be a readable file: No such"):
        adapter.load("North")
    write(tmp_path, WITHOUT_SITE, HEADER.split(",", 1)[1])
    assert adapter.load("North").labels.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="`South` must have records in the table, got none"):
        adapter.load("South")
    write(tmp_path, [f"North,{line}" for line in WITHOUT_SITE])
    assert adapter.load("North").labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("site", ["South", "secret", ""])
def test_a_row_of_another_site_in_an_own_file_is_refused_by_its_number(site: str, tmp_path: Path) -> None:
    path = write(tmp_path, [f"North,{WITHOUT_SITE[0]}", f"{site},{WITHOUT_SITE[1]}"])
    adapter = open_dataset("csv", str(path), {**OPTIONS, **SITES}, 0, "North")
    with pytest.raises(DataError, match="'North' in every row of that .* another value in row 2$") as caught:
        adapter.load("North")
    assert_one_sentence(caught.value)


def test_an_own_file_without_a_header_shows_no_record(tmp_path: Path) -> None:
    header = HEADER.replace("chol", "chol-secret")
    options = {**OPTIONS, **SITES}
    own = open_dataset("csv", str(write(tmp_path, LINES, header)), options, 0, "North")
    with pytest.raises(DataError, match="^`chol` must be a column of the table$"):
        own.load("North")


def test_threshold_label(tmp_path: Path) -> None:
    label = {"column": "outcome", "edges": [1], "names": ["healthy", "ill"]}
    by_edge = TableAdapter(read_csv(write(tmp_path, LINES)), spec(lambda o: o.update(label=label)))
    assert by_edge.load("South").labels.tolist() == [0, 1]
    assert by_edge.load("North").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("cell", "value", "message"),
    [
        ("chol", "high", r"`chol` must be a finite number, got another value in row 3"),
        ("chol", "inf", r"`chol` must be a finite number, got another value in row 3"),
        ("chol", "-inf", r"`chol` must be a finite number"),
        ("chol", "1e39", r"`chol` must be a finite number"),  # beyond float32
        ("chol", "1_5", r"`chol` must be a finite number"),
        ("chol", "1,5", r"`chol` must be a finite number"),
        (
            "pain",
            "non",
            r"`pain` must be one of 'typical', 'none', got another value in row 3",
        ),
        ("outcome", "3", r"`outcome` must be one of '0', '1', '2', got another value in row 3"),
        (
            "outcome",
            "?",
            r"`label` must be known for every record of South, got 1 without a value in `outcome`; drop",
        ),
        ("sex", "X", r"`sex` must be one of 'F', 'f', 'M', got another value in row 3"),
        ("sex", "", r"`sex` must be known for every record of South, got 1 without a value in `sex`; drop"),
        ("age", "old", r"`age` must be a finite number, got another value in row 3"),
        ("age", "NA", r"`age` must be known for every record of South, got 1 without"),
        ("chol", "a word that is far too long", r"got another value in row 3"),
    ],
)
def test_a_bad_cell_is_refused(cell: str, value: str, message: str, tmp_path: Path) -> None:
    rows = read_csv(write(tmp_path, LINES))
    rows[2][cell] = value
    adapter = TableAdapter(rows, spec())
    with pytest.raises(DataError, match=message) as caught:
        adapter.load("South")
    assert_one_sentence(caught.value)
    assert len(adapter.load("North")) == 1  # another site's slip does not stop this one


NOT_SAID = [
    "South,0,200.5,none,150,-1,,49.9,secret-a",
    "North,2,?,typical,NA,nan,M,NA,secret-b",
    "South,1,,,140,2e0,f,60,secret-c",
]


@pytest.mark.parametrize("owner", [None, "South"])
def test_records_without_an_attribute_may_stay_in_a_group_of_their_own(
    owner: str | None, tmp_path: Path
) -> None:
    options = {**OPTIONS, "unknown": "keep", "sites": ["North", "South"]}
    lines = [line for line in NOT_SAID if owner is None or line.startswith(owner)]
    adapter = open_dataset("csv", str(write(tmp_path, lines)), options, 0, owner)
    assert adapter.schema.attributes == {
        "sex": ("female", "male", "unknown"),
        "age": ("<50", "50-59", "60+", "unknown"),
    }
    south = adapter.load("South").attributes
    assert (south["sex"].tolist(), south["age"].tolist()) == ([2, 0], [0, 2])
    assert south["sex"].dtype == np.int64
    if owner is None:
        north = adapter.load("North").attributes
        assert (north["sex"].tolist(), north["age"].tolist()) == ([1], [3])
    # The server has no file, and the same groups.
    assert open_dataset("csv", None, options, 0).schema == adapter.schema


def test_a_group_of_unknowns_may_be_listed_too(tmp_path: Path) -> None:
    values = {"female": ["f"], "male": ["M"], "unknown": ["not asked"]}
    lines = [NOT_SAID[0], NOT_SAID[1].replace("NA", "70"), NOT_SAID[2].replace(",f,", ",not asked,")]
    rows = read_csv(write(tmp_path, lines))
    keeping = spec(lambda o: o.update(unknown="keep") or o["attributes"]["sex"].update(values=values))
    kept = TableAdapter(rows, keeping)
    assert kept.schema.attributes["sex"] == ("female", "male", "unknown")
    assert kept.load("South").attributes["sex"].tolist() == [2, 2]
    refused = TableAdapter(rows, spec(lambda o: o["attributes"]["sex"].update(values=values)))
    with pytest.raises(DataError, match="`sex` must be known for every record of South, got 1 without"):
        refused.load("South")


def test_a_record_without_a_label_never_stays(tmp_path: Path) -> None:
    lines = [NOT_SAID[0].replace("South,0", "South,")]
    adapter = TableAdapter(read_csv(write(tmp_path, lines)), spec(lambda o: o.update(unknown="keep")))
    with pytest.raises(DataError, match="`label` must be known for every record of South, got 1 without"):
        adapter.load("South")


def test_unknown_is_refuse_or_keep() -> None:
    assert spec(lambda o: o.update(unknown="refuse")) == spec()
    with pytest.raises(
        ConfigError, match="`data.options.unknown` must be one of .*got 'kep'; did you mean `keep`"
    ):
        spec(lambda o: o.update(unknown="kep"))


def test_a_record_without_any_modality_is_refused(tmp_path: Path) -> None:
    lines = [*LINES, "South,0,,,,,F,40,secret", "South,0,NaN,?,na,NA,F,40,secret"]
    adapter = TableAdapter(read_csv(write(tmp_path, lines)), spec())
    with pytest.raises(DataError, match="South.*some modality for every record, got 2 without") as caught:
        adapter.load("South")
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("site", "sites", "message"),
    [
        ("", None, r"`hospital` must be one of the sites, got '' in row 1"),
        (
            "Suoth",
            ["North", "South"],
            r"`hospital` must be one of the sites, got 'Suoth' in row 1; did you mean `South`",
        ),
    ],
)
def test_a_row_of_no_site_is_refused(
    site: str, sites: list[str] | None, message: str, tmp_path: Path
) -> None:
    rows = read_csv(write(tmp_path, LINES))
    rows[0]["hospital"] = site
    with pytest.raises(DataError, match=message):
        TableAdapter(rows, spec(lambda o: o.update(sites=sites)))


def test_an_unknown_site_is_refused(tmp_path: Path) -> None:
    adapter = TableAdapter(read_csv(write(tmp_path, LINES)), spec())
    with pytest.raises(DataError, match=r"`site` must be .*got 'Nroth'; did you mean `North`\?"):
        adapter.load("Nroth")


@pytest.mark.parametrize("column", HEADER.split(",")[:-1])
def test_a_missing_column_is_refused(column: str, tmp_path: Path) -> None:
    header = HEADER.replace(column, column + "x")
    with pytest.raises(
        DataError, match=f"`{column}` must be a column of the table; did you mean `{column}x`"
    ):
        TableAdapter(read_csv(write(tmp_path, LINES, header)), spec())


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="at least one row"):
        TableAdapter([], spec())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"`data.path` '.*bad.csv' must be a readable file: No such file"),
        (b"", "header and at least one row, got 0 lines"),
        (b"a,b\n", "header and at least one row, got 1 line"),
        (b"a,b\n1\n", "must have 2 cells in row 1, got 1"),
        (b"a,b\n1,2\n1,2,secret\n", "must have 2 cells in row 2, got 3"),
        (
            b"secret,a,secret\n1,2,3\n",
            r"must name each column once, got columns \[1, 3\] with a name in common",
        ),
        (b"a,b\n\xe9,2\n", "must be a CSV file in UTF-8: invalid continuation byte$"),
        (b'a,b\n"1,2\n', "must be a CSV file in UTF-8"),
    ],
)
def test_a_bad_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_csv(path)
    assert_one_sentence(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a readable file"):
        read_csv(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o: o.update(modality={}),
            r"`data.options.modality` is not a known key; did you mean `modalities`",
        ),
        (lambda o: o.pop("label"), r"`data.options.label` must be given"),
        (lambda o: o.pop("site"), r"`data.options.sites` must name the sites"),
        (lambda o: o.update(sites=["A", "A"]), r"`data.options.sites` must not repeat"),
        (lambda o: o.update(sites="North"), r"`data.options.sites` must be a list"),
        (
            lambda o: o.update(sites=[]),
            r"`data.options.sites` must be a list with at least one item, got \[\]",
        ),
        (lambda o: o.update(site=["x"]), r"`data.options.site` must be text"),
        (lambda o: o.update(label="outcome"), r"`data.options.label` must be a mapping, got 'outcome'"),
        (
            lambda o: o["label"].pop("values"),
            r"`data.options.label` must hold `values`, or `edges` and `names`",
        ),
        (
            lambda o: o["label"].update(edges=[1]),
            r"`data.options.label` must hold `values`, or `edges` and `names`",
        ),
        (
            lambda o: o["label"].update(values={"healthy": [0], "ill": [0, 1]}),
            r"each raw value once, got '0' twice",
        ),
        (
            lambda o: o["label"].update(values={True: [0], "ill": [1]}),
            r"names as keys, got True; put it in quotes",
        ),
        (
            lambda o: o["label"].update(values={"no": [False], "yes": [1]}),
            r"must be text or a number, got False",
        ),
        (
            lambda o: o["attributes"]["sex"]["values"].update(male=["NA"]),
            r"must be text or a number, got 'NA'",
        ),
        (
            lambda o: o["attributes"]["age"].update(edges=[60, 50]),
            r"`data.options.attributes.age.edges` must ascend",
        ),
        (lambda o: o["attributes"]["age"].update(edges=[50]), r"one fewer than `names`"),
        (lambda o: o["attributes"]["age"].update(edges=[50, "60"]), r"must be a finite number in .*got '60'"),
        (
            lambda o: o["modalities"].update(empty={}),
            r"`data.options.modalities.empty` must list at least one",
        ),
        (
            lambda o: o["modalities"]["rest"].update(columns=[]),
            r"`data.options.modalities.rest.columns` is not a known",
        ),
        (
            lambda o: o["modalities"]["rest"].update(categorical={"pain": []}),
            r"rest.categorical.pain` must be a list",
        ),
        (
            lambda o: o["modalities"]["rest"].update(numeric=["chol", "age"]),
            r"each column one role .*\['age'\]",
        ),
        (
            lambda o: o["modalities"]["rest"].update(numeric=["outcome"]),
            r"each column one role .*\['outcome'\]",
        ),
        (
            lambda o: o["modalities"]["rest"].update(numeric=["hospital"]),
            r"each column one role .*\['hospital'\]",
        ),
        (lambda o: o["modalities"]["rest"].update(numeric=["rate"]), r"each column one role .*\['rate'\]"),
    ],
)
def test_bad_options_are_refused(change: Callable[[Options], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        spec(change)
    assert_one_sentence(caught.value)


def test_two_attributes_may_share_a_column(tmp_path: Path) -> None:
    coarse = {"column": "age", "edges": [60], "names": ["younger", "older"]}
    adapter = TableAdapter(
        read_csv(write(tmp_path, LINES)), spec(lambda o: o["attributes"].update(coarse=coarse))
    )
    assert adapter.load("South").attributes["coarse"].tolist() == [0, 0]
    assert adapter.load("North").attributes["coarse"].tolist() == [1]


def test_one_class_is_refused(tmp_path: Path) -> None:
    label = {"column": "outcome", "values": {"any": [0, 1, 2]}}
    with pytest.raises(DataError, match="two classes"):
        TableAdapter(read_csv(write(tmp_path, LINES)), spec(lambda o: o.update(label=label)))

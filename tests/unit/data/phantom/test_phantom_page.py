"""The page on the phantom names every attribute with its groups and every key of a site, as the code does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from fedfair.data.phantom import PRESETS, PhantomAdapter, SiteSpec
from fedfair.data.phantom.adapter import ATTRIBUTES
from fedfair.data.phantom.spec import DEVICES, MODALITIES, RACES

PAGE = Path(__file__).parents[4] / "docs" / "phantom.md"


def table(head: str) -> list[list[str]]:
    """Return the cells of the table whose first column is called so, names without their backticks."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"| {head} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def test_the_page_names_every_attribute_with_its_groups() -> None:
    told = {name: tuple(groups.split(", ")) for name, groups in table("attribute")}
    assert told == dict(ATTRIBUTES)
    assert PhantomAdapter({"attributes": list(told)}, 0).schema.attributes == told


def test_the_page_names_every_key_of_a_site_with_its_default_and_range() -> None:
    knobs = {field.name: field for field in dataclasses.fields(SiteSpec)}
    rows = table("`sites.NAME`")
    assert [row[0] for row in rows] == list(knobs)
    for name, default, limits, _ in rows:
        own, told = knobs[name].default, yaml.safe_load(default)
        assert (list(own) if isinstance(own, tuple) else own) == told, name
        low, high = knobs[name].metadata["range"]
        if name == "device":
            assert limits.split(", ") == list(DEVICES)
        else:
            upper = "and more" if high == float("inf") else f"to {high:g}"
            assert limits.replace("1e9", "1e+09") == f"{low:g} {upper}", name


def test_the_page_says_whose_rate_each_of_three_is() -> None:
    order = {"race": RACES, "missing": MODALITIES, "label_noise": RACES}
    triples = [field.name for field in dataclasses.fields(SiteSpec) if isinstance(field.default, tuple)]
    assert triples == list(order)
    for name, _, _, meaning in table("`sites.NAME`"):
        if name in order:
            assert ", ".join(order[name]) in meaning, name


def test_the_page_names_every_preset() -> None:
    assert [row[0] for row in table("preset")] == list(PRESETS)

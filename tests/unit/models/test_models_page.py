"""docs/models.md says what the code takes: encoders, options with their defaults, examples."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedfair.models import late_fusion
from fedfair.models.encoders import ENCODERS
from fedfair.models.encoders._weights import Pretrained

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
OPTIONS = {field.name: field.default for field in dataclasses.fields(Pretrained)}


def table(first: str) -> dict[str, list[str]]:
    """Return the rows of the table whose first column has this heading, by the name in backticks."""
    (body,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]
    return {row[0].strip("`"): row for row in cells}


def examples() -> Iterator[Mapping[str, Any]]:
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        yield yaml.safe_load(block)["model"]["options"]


def test_every_encoder_has_a_row_in_the_order_in_which_they_are_tried() -> None:
    assert list(table("encoder")) == list(ENCODERS)


def test_every_option_has_a_row_with_its_default() -> None:
    shown = {None: "null"}
    wanted = {name: f"`{shown.get(value, value)}`" for name, value in OPTIONS.items()}
    assert {name: row[1] for name, row in table("option").items()} == wanted


def test_examples_name_what_there_is() -> None:
    found = list(examples())
    assert found
    for options in found:
        assert options.keys() <= inspect.signature(late_fusion).parameters.keys()
        for choice in options["encoders"].values():
            known = {"name", *OPTIONS} if choice.get("name") in ("vit", "bert") else {"name", "hidden"}
            assert choice.keys() <= known
            assert choice.get("name", "cnn") in ENCODERS

"""The pages say what the code does: parameters, keys, defaults, fields, files and links."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.config import Config
from fedfair.modulation import METHODS
from fedfair.signals import Signals

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

TYPES = {
    "str": "text",
    "int": "integer",
    "float": "number",
    "bool": "true/false",
    "Mapping[str, Any]": "mapping",
    "Method": "mapping",
    "str | None": "text or null",
    "bool | None": "true/false or null",
    "str | Sequence[str]": "text or list",
    "Sequence[str]": "list",
    "float | None": "number or null",
    "int | None": "integer or null",
    "float | Mapping[str, Any] | None": "number, mapping or null",
}


def page_of(method: str) -> str:
    return (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of each table row that starts with a name in backticks, by that name."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in cells}


def shown(value: object) -> str:
    """Return a default as YAML writes it, in backticks."""
    names: dict[object, str] = {None: "null", True: "true", False: "false"}
    text = names[value] if value is None or isinstance(value, bool) else str(value)
    return f"`{text}`"


def parameters() -> Iterator[tuple[str, str, object]]:
    for name, method in METHODS.items():
        for field in dataclasses.fields(typing.cast(Any, method)):
            yield name, field.name, field.default


@pytest.mark.parametrize(("method", "parameter", "default"), list(parameters()))
def test_a_parameter_stands_on_its_page_with_its_default(
    method: str, parameter: str, default: object
) -> None:
    assert rows(page_of(method))[parameter][1] == shown(default)


def test_every_method_has_a_page_and_every_page_a_method() -> None:
    in_the_model = {"fairlora"}
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == set(METHODS) | in_the_model


@pytest.mark.parametrize("method", METHODS)
def test_diagnostics_stand_on_the_page(method: str) -> None:
    rng = np.random.default_rng(0)
    histograms = rng.integers(1, 9, size=(3, 2, 1, 2, 16)).astype(float)
    counts = histograms[:, :, 0].sum(-1)
    signals = Signals(counts, counts.sum(-1), histograms, rng.normal(size=(3, 2, 5)))
    rule = METHODS[method]()
    found = rule.modulate(signals, rule.modulate(signals, {}).memory).diagnostics
    assert [key for key in found if f"`{key}`" not in page_of(method)] == []


def keys(kind: type[Any] = Config, prefix: str = "") -> Iterator[tuple[str, str, object]]:
    """Yield every key of a configuration with its annotation and default; `method` is one key."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys(typing.cast(type[Any], hints[field.name]), f"{prefix}{field.name}.")
            continue
        made = field.default_factory is not dataclasses.MISSING
        yield f"{prefix}{field.name}", str(field.type), field.default_factory() if made else field.default


@pytest.mark.parametrize(("key", "annotation", "default"), list(keys()))
def test_a_configuration_key_is_documented(key: str, annotation: str, default: object) -> None:
    _, kind, value, meaning = rows((DOCS / "configuration.md").read_text(encoding="utf-8"))[key]
    assert kind == TYPES[annotation]
    assert value == ("`{name: fedavg}`" if key == "method" else shown(default))
    assert meaning


def test_no_documented_key_is_unknown() -> None:
    documented = rows((DOCS / "configuration.md").read_text(encoding="utf-8"))
    assert documented.keys() == {key for key, _, _ in keys()}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [x for x in re.findall(r"\]\(([^)\s]+)\)", text) if not x.startswith("http")]
    lost = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_named_file_exists(page: Path) -> None:
    folders = "fedfair|server|client|simulations|configs|examples|tests|docs"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_index_lists_every_page() -> None:
    listed = re.findall(r"^\| \[([^]]+)\]", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {page.relative_to(DOCS).as_posix() for page in PAGES} - set(listed) == {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_tables_are_whole(page: Path) -> None:
    """A stray vertical bar, in mathematics say, would shift the cells of its row."""
    widths: list[int] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        widths = [*widths, line.count("|") - line.count("\\|")] if line.startswith("|") else []
        assert len(set(widths)) < 2, line

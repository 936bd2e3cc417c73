"""TableSpec: which columns of a table are the site, the label, the modalities and the attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from fedfair.data.options import (
    KEEP,
    REFUSE,
    as_items,
    as_mapping,
    as_number,
    as_one_of,
    as_text,
    as_texts,
    entries,
)
from fedfair.data.schema import UNKNOWN, Column, Schema, TableModality
from fedfair.errors import ConfigError


@dataclass(frozen=True)
class Grouping:
    """How the raw values of one column become classes or groups: listed, or cut at edges.

    Attributes
    ----------
    column : str
        The column's name.
    names : tuple[str, ...]
        Names of the classes or groups; a record's index points into it.
    values : Mapping[str, int]
        Index of each raw value. Empty when `edges` are used.
    edges : tuple[float, ...]
        Ascending cuts, one fewer than `names` that they divide; the index is the number of edges <= value.
    missing : int | None
        Index of a missing value; None refuses it.
    """

    column: str
    names: tuple[str, ...]
    values: Mapping[str, int] = field(default_factory=dict)
    edges: tuple[float, ...] = ()
    missing: int | None = None

    def keeping_unknown(self) -> Self:
        """Return the grouping with a last group `UNKNOWN`, where missing values belong."""
        names = self.names if UNKNOWN in self.names else (*self.names, UNKNOWN)
        return replace(self, names=names, missing=names.index(UNKNOWN))

    @classmethod
    def from_options(cls, options: object, where: str) -> Grouping:
        """Read ``{column, values: {name: [raw, ...]}}`` or ``{column, edges: [...], names: [...]}``.

        Raises
        ------
        ConfigError
            If keys or values are unknown, repeated or inconsistent.
        """
        found = entries(options, where, ["column"], ["values", "edges", "names"])
        column = as_text(found["column"], f"{where}.column")
        if set(found) == {"column", "values"}:
            return cls(column, *_listed(found["values"], f"{where}.values"))
        if set(found) == {"column", "edges", "names"}:
            return cls(column, *_cut(found["edges"], found["names"], where))
        raise ConfigError(f"`{where}` must hold `values`, or `edges` and `names`, got {sorted(found)}")


def _listed(options: object, where: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names and the index of each raw value."""
    groups = as_mapping(options, where)
    values: dict[str, int] = {}
    for index, (name, raw) in enumerate(groups.items()):
        for text in as_texts(raw, f"{where}.{name}"):
            if text in values:
                raise ConfigError(f"`{where}` must list each raw value once, got {text!r} twice")
            values[text] = index
    return tuple(groups), values


def _cut(
    edges: object, names: object, where: str
) -> tuple[tuple[str, ...], dict[str, int], tuple[float, ...]]:
    """Return the names, no listed values, and the edges."""
    cuts = tuple(as_number(edge, f"{where}.edges") for edge in as_items(edges, f"{where}.edges"))
    texts = as_texts(names, f"{where}.names")
    if list(cuts) != sorted(set(cuts)) or len(texts) != len(cuts) + 1:
        raise ConfigError(
            f"`{where}.edges` must ascend and be one fewer than `names`, got {list(cuts)} and {list(texts)}"
        )
    return texts, {}, cuts


@dataclass(frozen=True)
class TableSpec:
    """What each column of a table is for; other columns are ignored.

    Attributes
    ----------
    label : Grouping
        The label's column and the C classes.
    modalities : Mapping[str, TableModality]
        M modalities, each with its columns: the numeric ones first, then the categorical ones.
    attributes : Mapping[str, Grouping]
        Each attribute's column and groups; they are inputs of no modality.
    site : str | None
        The column that names the site, or None when all rows belong to the requested site.
    sites : tuple[str, ...]
        The sites. May be empty when `site` is a column: then they are its values, sorted.
    """

    label: Grouping
    modalities: Mapping[str, TableModality]
    attributes: Mapping[str, Grouping] = field(default_factory=dict)
    site: str | None = None
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a column with two roles and sites that nothing names.

        Raises
        ------
        ConfigError
            If the label, the site or an attribute is also a model input, or an input is listed twice.
        """
        if self.site is None and not self.sites:
            raise ConfigError("`data.options.sites` must name the sites, because `site` names no column")
        uses = Counter(column.name for modality in self.modalities.values() for column in modality.columns)
        uses.update({self.label.column, *(group.column for group in self.attributes.values())})
        if self.site is not None:
            uses[self.site] += 1
        twice = sorted(name for name, count in uses.items() if count > 1)
        if twice:
            raise ConfigError(
                "`data.options` must give each column one role (site, label, attribute or one modality), "
                f"got {twice} in more"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column the spec names."""
        inputs = [column.name for modality in self.modalities.values() for column in modality.columns]
        groupings = [grouping.column for grouping in (self.label, *self.attributes.values())]
        return (*([] if self.site is None else [self.site]), *groupings, *inputs)

    def schema(self, found: Iterable[str] = ()) -> Schema:
        """Return the schema; a table's own sites, `found`, stand in it if `sites` names none.

        Raises
        ------
        DataError
            If there are fewer than two classes, or no site.
        """
        return Schema(
            self.modalities,
            self.label.names,
            {name: grouping.names for name, grouping in self.attributes.items()},
            self.sites or tuple(sorted(found)),
        )

    @classmethod
    def from_options(cls, options: object) -> TableSpec:
        """Read the spec from a plain mapping, as `data.options` holds it in a configuration file.

        ::

            site: hospital                 # a column; null: every row is the requested site's
            sites: [North, South]          # required when `site` is null
            label: {column: outcome, values: {healthy: [0], ill: [1, 2]}}
            modalities:
              rest: {numeric: [chol], categorical: {cp: [typical, atypical]}}
            attributes: {sex: {column: sex, values: {female: [F], male: [M]}},
                         age: {column: age, edges: [50, 60], names: ["<50", "50-59", "60+"]}}
            unknown: refuse                # a record without an attribute; keep: in its group `unknown`

        Raises
        ------
        ConfigError
            If a key or value is unknown, absent or inconsistent.
        """
        where = "data.options"
        found = entries(options, where, ["label", "modalities"], ["attributes", "unknown", "site", "sites"])
        modalities = as_mapping(found["modalities"], f"{where}.modalities")
        attributes = {
            name: Grouping.from_options(value, f"{where}.attributes.{name}")
            for name, value in as_mapping(found.get("attributes", {}), f"{where}.attributes").items()
        }
        if as_one_of(found.get("unknown", REFUSE), f"{where}.unknown", (REFUSE, KEEP)) == KEEP:
            attributes = {name: grouping.keeping_unknown() for name, grouping in attributes.items()}
        site, sites = found.get("site"), found.get("sites")
        return cls(
            Grouping.from_options(found["label"], f"{where}.label"),
            {name: _modality(value, f"{where}.modalities.{name}") for name, value in modalities.items()},
            attributes,
            None if site is None else as_text(site, f"{where}.site"),
            () if sites is None else as_texts(sites, f"{where}.sites"),
        )


def _modality(options: object, where: str) -> TableModality:
    """Return a modality's columns from ``{numeric: [column], categorical: {column: [value]}}``."""
    found = entries(options, where, optional=["numeric", "categorical"])
    if not any(found.values()):
        raise ConfigError(
            f"`{where}` must list at least one numeric or categorical column, got {dict(found)}"
        )
    numeric = as_texts(found["numeric"], f"{where}.numeric") if found.get("numeric") else ()
    categorical = as_mapping(found.get("categorical", {}), f"{where}.categorical")
    return TableModality(
        (
            *(Column(name) for name in numeric),
            *(
                Column(name, as_texts(raw, f"{where}.categorical.{name}"))
                for name, raw in categorical.items()
            ),
        )
    )

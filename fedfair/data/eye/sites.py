"""Which site a record belongs to: by the data set's own tables, by a table of the user's, or all to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fedfair.data.eye.aliases import split_of
from fedfair.data.eye.layout import Layout
from fedfair.data.eye.records import Problem, by_name
from fedfair.errors import DataError


class Place(NamedTuple):
    """A record's site, and its side of the official split if the site's table says it."""

    site: str
    split: int | None


def families(layout: Layout) -> tuple[str, ...]:
    """Return the attributes after which the data set's tables of sites are named."""
    return tuple(dict.fromkeys(table.family for table in layout.sites))


def places_by_tables(layout: Layout, family: str) -> tuple[dict[str, Place], list[Problem]]:
    """Return each record's place by the data set's own tables of one family, and records with two places.

    The split differs from family to family, so one must be chosen. A site's tables by side are read, or
    else its table without a side.

    Raises
    ------
    DataError
        If there is no such table, or one cannot be read.
    """
    own = [table for table in layout.sites if table.family == family]
    if not own:
        raise DataError(
            f"`data.path` must hold tables such as meta_site1_{family}_train.csv, got those of "
            f"{list(families(layout)) or 'no attribute'}; see `data.options.site_tables`"
        )
    sided = {table.site for table in own if table.side}
    places: dict[str, Place] = {}
    problems: list[Problem] = []
    for table in own:
        if table.side is None and table.site in sided:
            continue
        rows, found = by_name(layout, table.path)
        problems += found
        place = Place(table.site, None if table.side is None else split_of(table.side))
        for name in rows:
            if places.setdefault(name, place) != place:
                problems.append(Problem("each record must be at one site and in one split", name))
    return places, problems


def sites_by_file(layout: Layout, table: str) -> tuple[dict[str, Place], list[Problem]]:
    """Return each record's site by a user's table with the columns `filename` and `site`.

    Raises
    ------
    DataError
        If it cannot be read, lacks a column, or a row names no site.
    """
    rows, problems = by_name(layout, table)
    if any(not row.get("site") for row in rows.values()):
        raise DataError(f"`{table}` must have a column `site` that names a site in every row")
    return {name: Place(row["site"], None) for name, row in rows.items()}, problems


def named_sites(places: Mapping[str, Place]) -> tuple[str, ...]:
    """Return the sites that records are at, sorted."""
    return tuple(sorted({place.site for place in places.values()}))

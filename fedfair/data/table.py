"""A table with one row per record, for example a hospital's own CSV file, as a data set."""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfair.data.checks import check_site
from fedfair.data.options import is_missing
from fedfair.data.schema import Column, Schema, SiteRecords, TableModality
from fedfair.data.spec import Grouping, TableSpec
from fedfair.errors import DataError, counted, nearest

Row = Mapping[str, str]
NumberedRow = tuple[int, Row]
"""A row and its number, which counts from 1 after the header."""

_LARGEST = float(np.finfo(np.float32).max)


def read_csv(path: str | Path, called: str | None = None) -> list[dict[str, str]]:
    """Return the rows of a UTF-8 CSV file whose first line names the columns.

    Parameters
    ----------
    path : str | Path
        The file; a byte order mark and blank lines are skipped, cells are stripped.
    called : str | None
        What messages call the file; null: `data.path` with the path.

    Raises
    ------
    DataError
        If it cannot be read, has no rows, repeats a column name, or a row has too many or too few cells.
        No cell is shown, not even of the header: without one the first line is a record.
    """
    file_name = called or f"`data.path` {str(path)!r}"
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, strict=True) if line]
    except OSError as error:
        raise DataError(f"{file_name} must be a readable file: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        # The whole text of a decoding error shows a byte.
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise DataError(f"{file_name} must be a CSV file in UTF-8: {reason}") from error
    if len(lines) < 2:
        raise DataError(
            f"{file_name} must hold a header and at least one row, got {counted(len(lines), 'line')}"
        )
    header, *rows = lines
    if twice := [place for place, name in enumerate(header, start=1) if header.count(name) > 1]:
        raise DataError(f"{file_name} must name each column once, got columns {twice} with a name in common")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(
                f"{file_name} must have {counted(len(header), 'cell')} in row {number}, got {len(row)}"
            )
    return [dict(zip(header, row, strict=True)) for row in rows]


class TableAdapter:
    """The sites of one table.

    Missing cells (empty, ``NA``, ``NaN``, ``?``) become NaN in a modality. A missing label or
    attribute, or a record without any modality, is refused: what such a record should count for
    is the hospital's decision, not the reader's. The spec may keep records without an attribute.

    Parameters
    ----------
    rows : Sequence[Mapping[str, str]]
        One mapping from column to cell per record, all with the same columns.
    spec : TableSpec
        What the columns are for.
    owner : str | None
        The site whose own table this is: all rows are its, and a column of sites may be left out.

    Raises
    ------
    DataError
        If there are no rows, a column is not in the table, or a row names no site, an unknown one or,
        in an owner's table, another one.
    """

    def __init__(self, rows: Sequence[Row], spec: TableSpec, owner: str | None = None) -> None:
        if not rows:
            raise DataError("the table must have at least one row, got none")
        _check_columns(rows[0], spec, owner)
        self.spec = spec
        self._members = _rows_by_site(rows, spec) if owner is None else _own_rows(rows, spec, owner)
        self._schema = spec.schema(self._members)

    @property
    def schema(self) -> Schema:
        """The schema shared by all sites."""
        return self._schema

    def load(self, site: str) -> SiteRecords:
        """Return the records of `site`, in the table's order.

        Raises
        ------
        DataError
            If the site is unknown or has no rows, a cell is not what its column holds, or records
            lack the label, an attribute or every modality.
        """
        check_site(site, self._schema.sites)
        rows = self._members[site]
        if not rows:
            raise DataError(
                f"`{site}` must have records in the table, got none; drop it from `data.options.sites`"
            )
        modalities = {name: _raw(rows, modality) for name, modality in self.spec.modalities.items()}
        _check_modalities(modalities, site)
        return SiteRecords(
            modalities,
            _indices(rows, self.spec.label, "label", site),
            {name: _indices(rows, group, name, site) for name, group in self.spec.attributes.items()},
        )


def _check_columns(row: Row, spec: TableSpec, owner: str | None) -> None:
    """Refuse a table without a column that is needed."""
    for column in spec.columns:
        if column not in row and (owner is None or column != spec.site):
            # An owner's errors travel, and without a header these names would be a record's values.
            hint = nearest(column, row) if owner is None else ""
            raise DataError(f"`{column}` must be a column of the table{hint}")


def _own_rows(rows: Sequence[Row], spec: TableSpec, owner: str) -> dict[str, list[NumberedRow]]:
    """Return all rows as the owner's; one that names another site is refused, by its number alone."""
    numbered = list(enumerate(rows, start=1))
    for number, row in numbered:
        if spec.site is not None and row.get(spec.site, owner) != owner:
            raise DataError(
                f"`{spec.site}` must be {owner!r} in every row of that site's own file, got another value "
                f"in row {number}"
            )
    return {**{site: [] for site in spec.sites}, owner: numbered}


def _rows_by_site(rows: Sequence[Row], spec: TableSpec) -> dict[str, list[NumberedRow]]:
    """Return the rows of each site, in order; a row that would belong to none is refused."""
    numbered = list(enumerate(rows, start=1))
    if spec.site is None:
        return dict.fromkeys(spec.sites, numbered)
    members: dict[str, list[NumberedRow]] = {site: [] for site in spec.sites}
    for number, row in numbered:
        site = row[spec.site]
        if is_missing(site) or (spec.sites and site not in members):
            raise DataError(
                f"`{spec.site}` must be one of the sites, got {site!r} in row {number}"
                f"{nearest(site, spec.sites)}"
            )
        members.setdefault(site, []).append((number, row))
    return members


def _cell_error(column: str, must: str, number: int) -> DataError:
    """Return the error for one cell; it may travel to the server, so it does not show the value."""
    return DataError(f"`{column}` must be {must}, got another value in row {number}")


def _number(text: str, column: str, number: int) -> float:
    """Return the cell as a number that float32 can hold, or NaN when it is missing."""
    if is_missing(text):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Python reads 1_5 as 15; in a table it is a slip.
    if "_" in text or not abs(value) <= _LARGEST:
        raise _cell_error(column, "a finite number", number)
    return value


def _code(text: str, column: str, codes: Mapping[str, int], number: int) -> float:
    """Return the index that `codes` gives the cell, or NaN when it is missing."""
    if is_missing(text):
        return math.nan
    if text not in codes:
        listed = ", ".join(map(repr, codes))
        raise _cell_error(column, f"one of {listed}", number)
    return codes[text]


def _reader(column: Column) -> Callable[[str, int], float]:
    """Return the function from (cell, row number) to the raw value of a modality's column."""
    if not column.categories:
        return lambda text, number: _number(text, column.name, number)
    codes = {value: index for index, value in enumerate(column.categories)}
    return lambda text, number: _code(text, column.name, codes, number)


def _raw(rows: Sequence[NumberedRow], modality: TableModality) -> NDArray[np.float32]:
    """Return a modality's raw values [n, columns]."""
    readers = [(column.name, _reader(column)) for column in modality.columns]
    return np.array([[read(row[name], number) for name, read in readers] for number, row in rows], np.float32)


def _check_modalities(modalities: Mapping[str, NDArray[np.float32]], site: str) -> None:
    """Refuse records without any modality."""
    observed = np.any([np.isfinite(raw).any(axis=1) for raw in modalities.values()], axis=0)
    lacking = int((~observed).sum())
    if lacking:
        raise DataError(
            f"`{site}` must have a value in some modality for every record, got {lacking} without; drop them"
        )


def _indices(rows: Sequence[NumberedRow], grouping: Grouping, what: str, site: str) -> NDArray[np.int64]:
    """Return the class or group index [n] of each row."""
    index = np.array([_index(row[grouping.column], grouping, number) for number, row in rows])
    if grouping.missing is not None:
        index[np.isnan(index)] = grouping.missing
    if lacking := int(np.isnan(index).sum()):
        raise DataError(
            f"`{what}` must be known for every record of {site}, got {lacking} without a value in "
            f"`{grouping.column}`; drop them from the table or add the value"
        )
    return index.astype(np.int64)


def _index(text: str, grouping: Grouping, number: int) -> float:
    """Return one cell's class or group index, or NaN when the cell is missing."""
    if not grouping.edges:
        return _code(text, grouping.column, grouping.values, number)
    value = _number(text, grouping.column, number)
    return value if math.isnan(value) else bisect_right(grouping.edges, value)

"""A hospital's own file, as a deployment has it: each site reads its own, and the server none."""

from __future__ import annotations

from fedfair.data.checks import check_site
from fedfair.data.schema import Schema, SiteRecords
from fedfair.data.spec import TableSpec
from fedfair.data.table import TableAdapter, read_csv
from fedfair.errors import ConfigError, DataError

SITE_FILE = "`data` of the site's settings"
"""What messages call a site's own file: where it lies is not for others to know."""


class OwnTable:
    """The sites of a data set of which this machine holds one site's file, or none.

    The schema follows from the spec alone. The file is read when records are asked for.

    Parameters
    ----------
    path : str | None
        The file; None where there is none, as at the server.
    spec : TableSpec
        What the columns are for; it names the sites.
    owner : str | None
        The site whose file it is.

    Raises
    ------
    ConfigError
        If the spec names no sites.
    """

    def __init__(self, path: str | None, spec: TableSpec, owner: str | None) -> None:
        if not spec.sites:
            raise ConfigError(
                "`data.path` must name the file for csv, or `data.options.sites` the sites that have a file "
                "each, got no sites"
            )
        self._path, self._spec, self._owner = path, spec, owner
        self._schema = spec.schema()

    @property
    def schema(self) -> Schema:
        """The schema shared by all sites."""
        return self._schema

    def load(self, site: str) -> SiteRecords:
        """Return the records of `site`, in the file's order.

        Raises
        ------
        DataError
            If the site is unknown or not the owner, there is no file, or the file cannot be used.
        """
        check_site(site, self._schema.sites)
        if self._path is None:
            raise DataError("no file: `data` of the site's settings or `data.path` must name it")
        return TableAdapter(read_csv(self._path, SITE_FILE), self._spec, self._owner).load(site)

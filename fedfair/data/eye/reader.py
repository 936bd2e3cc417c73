"""The adapter of the access-controlled eye data sets: their schema, and the records of one site."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfair.data.checks import check_site
from fedfair.data.eye.ages import AGE_GROUP
from fedfair.data.eye.choice import MAY_MISS, check_texts, group_of, reason_against, refuse
from fedfair.data.eye.contents import modality_values
from fedfair.data.eye.index import default_cache, facts_of
from fedfair.data.eye.layout import Layout, find_layout, scan
from fedfair.data.eye.notes import texts_by_table
from fedfair.data.eye.profiles import profile_named
from fedfair.data.eye.records import Entry, Joined, Problem, Wanted, join, read_tables
from fedfair.data.eye.settings import Settings, read_settings
from fedfair.data.eye.sites import Place, named_sites, places_by_tables, sites_by_file
from fedfair.data.schema import Schema, SiteRecords
from fedfair.data.split import NOT_SAID
from fedfair.errors import ConfigError, DataError

_ONE_SITE = "site1"


class _Chosen(NamedTuple):
    """The records of a site that can be used, and how many cannot, by reason."""

    entries: tuple[Entry, ...]
    left_out: Mapping[str, int]


class EyeAdapter:
    """The sites of one access-controlled eye data set, for those who hold its licence.

    Parameters
    ----------
    profile : str
        ``fairvision``, ``fairvlmed`` or ``fairfedmed``; see `profiles`.
    path : str | None
        The data set's folder, which is only read; None at a server, which needs the schema alone.
    options : object
        See `settings`; every one may be left out.
    seed : int
        The run's seed; nothing here is drawn.
    owner : str | None
        The site whose own folder `path` is: all its records are that site's.

    Raises
    ------
    ConfigError
        If the profile or an option is unknown, or there is no telling whose records are whose.
    DataError
        If a table of sites is needed for their names and cannot be read.
    """

    def __init__(
        self, profile: str, path: str | None, options: object, seed: int, owner: str | None = None
    ) -> None:
        del seed
        self.settings: Settings = read_settings(profile_named(profile), options)
        self._path, self._owner = path, owner
        self._kept: dict[str, _Chosen] = {}
        self._schema = Schema(
            self.settings.modalities, self.settings.label.groups, self.settings.groups, self._sites()
        )

    @property
    def schema(self) -> Schema:
        """The schema shared by all sites."""
        return self._schema

    def load(self, site: str) -> SiteRecords:
        """Return the records of `site`, ordered by their files' paths.

        A record whose label nobody knows, or that has none of the chosen modalities, is left out, as is one
        whose chosen attribute nobody knows, unless the options keep it; see `left_out`.

        Raises
        ------
        DataError
            If the site is unknown or has no records, or anything in the files does not fit together.
        """
        with self._names_kept():
            entries = self._chosen(site).entries
            values = modality_values(self.settings, self._layout.root, entries, self._texts, site)
        return SiteRecords(
            values,
            np.array([entry.label for entry in entries], np.int64),
            {
                name: np.array([group_of(entry, name, self.settings) for entry in entries], np.int64)
                for name in self.settings.attributes
            },
            self.official_split(site),
        )

    def official_split(self, site: str) -> NDArray[np.int8] | None:
        """Return the split of each record of `load(site)`: 0 train, 1 validation, 2 test.

        `NOT_SAID` where no folder or table says it, or two say otherwise: only who asks for the split needs
        it. None with ``split: none``.

        Raises
        ------
        DataError
            As for `load`.
        """
        if not self.settings.official:
            return None
        with self._names_kept():
            said = [self._said(entry) for entry in self._chosen(site).entries]
        return np.array([splits[0] if len(splits) == 1 else NOT_SAID for splits in said], np.int8)

    def left_out(self, site: str) -> Mapping[str, int]:
        """Return how many records of `site` are left out, by the first reason that holds.

        Raises
        ------
        DataError
            As for `load`.
        """
        with self._names_kept():
            return self._chosen(site).left_out

    @contextlib.contextmanager
    def _names_kept(self) -> Iterator[None]:
        """Cut paths and names of files off errors at a site of a deployment, from where they travel."""
        try:
            yield
        except DataError as error:
            if self._owner is None:
                raise
            told = str(error).partition(", got ")[0]
            raise DataError(f"{told}; `fedfair data check` says at the site which file it is") from None

    def _sites(self) -> tuple[str, ...]:
        """Return the names of the sites, from the options, the tables or the profile."""
        chosen = self.settings
        parted = chosen.site_file is not None or bool(chosen.profile.sites)
        if chosen.sites is None:
            if chosen.site_file is None:
                return chosen.profile.sites or (self._owner or _ONE_SITE,)
            if self._path is None:
                raise ConfigError("`data.options.sites` must name the sites of `site_file` here, got none")
            with self._names_kept():
                return named_sites(self._places)
        if len(chosen.sites) > 1 and not (parted or self._owner or self._path is None):
            raise ConfigError(
                f"`data.options.site_file` must say which record is whose for {len(chosen.sites)} sites of "
                "one folder, got none; name a table with the columns `filename` and `site`"
            )
        return chosen.sites

    @cached_property
    def _layout(self) -> Layout:
        if self._path is None:
            raise DataError("no folder: `data` of the site's settings or `data.path` must name it")
        return find_layout(scan(self._path), self.settings.profile, self.settings.label.name)

    @cached_property
    def _joined(self) -> Joined:
        """Return all records, refused if anything does not fit."""
        layout, chosen = self._layout, self.settings
        if layout.sites and not chosen.profile.sites:
            raise DataError(
                f"`data.path` must be a folder of {chosen.profile.name}, got one with tables of "
                "FairFedMed's sites; set `data.name: fairfedmed`"
            )
        cache = default_cache(layout.root) if chosen.cache else None
        facts = facts_of(layout.root, layout.files, cache)
        wanted = Wanted(
            chosen.label, chosen.fields, chosen.arrays, AGE_GROUP in chosen.attributes, chosen.official
        )
        joined = join(layout, read_tables(layout), facts, wanted)
        refuse(joined.problems)
        if not chosen.allow_missing:
            lost = [Problem("each row must have its .npz file", name) for name in joined.no_file]
            lost += [Problem("each .npz file must have its row in a table", path) for path in joined.no_row]
            refuse(lost, MAY_MISS)
        check_texts(joined.entries, chosen, self._texts)
        return joined

    @cached_property
    def _places(self) -> Mapping[str, Place]:
        """Return each record's site by name; empty where all records are of one."""
        chosen = self.settings
        if chosen.site_file is not None:
            places, problems = sites_by_file(self._layout, chosen.site_file)
        elif chosen.profile.sites and (self._layout.sites or self._owner is None):
            places, problems = places_by_tables(self._layout, chosen.site_tables)
        else:
            return {}
        refuse(problems)
        return places

    @cached_property
    def _texts(self) -> Mapping[str, str]:
        return texts_by_table(self._layout, self.settings.text_field)

    def _said(self, entry: Entry) -> Sequence[int]:
        """Return the splits that a record is said to be of: one, if its folder and tables agree."""
        place = self._places.get(entry.file.name)
        return [split for split in {entry.split, place.split if place else None} if split is not None]

    def _chosen(self, site: str) -> _Chosen:
        """Return the usable records of a site."""
        check_site(site, self._schema.sites)
        if site not in self._kept:
            reasons = [
                (entry, reason_against(entry, self.settings, self._texts)) for entry in self._members(site)
            ]
            usable = tuple(entry for entry, reason in reasons if reason is None)
            self._kept[site] = _Chosen(usable, Counter(reason for _, reason in reasons if reason))
        kept = self._kept[site]
        if not kept.entries:
            why = ", ".join(kept.left_out) or "no file is its"
            raise DataError(f"`{site}` must have records that can be used, got none: {why}")
        return kept

    def _members(self, site: str) -> Sequence[Entry]:
        """Return the records at a site."""
        if self._owner is not None and site != self._owner:
            raise DataError(f"`data` of the site's settings must hold the records of {site!r}, got another's")
        entries, places = self._joined.entries, self._places
        if not places:
            return entries
        if not self.settings.allow_missing and self._owner is None:
            names = {file.name for file in self._layout.files}
            lost = [
                Problem("each record of a site must have its .npz file", n) for n in places if n not in names
            ]
            lost += [Problem("each .npz file must be at a site", n) for n in sorted(names - set(places))]
            refuse(lost, MAY_MISS)
        return [e for e in entries if (place := places.get(e.file.name)) and place.site == site]

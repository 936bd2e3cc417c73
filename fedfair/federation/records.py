"""Whether a site's records can be read, and how many there are, in numbers that single nobody out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from fedfair.data import open_dataset
from fedfair.data.schema import Schema, SiteRecords
from fedfair.errors import ConfigError, FedfairError, PrivacyError
from fedfair.federation.finding import Finding
from fedfair.federation.folder import SiteFolder
from fedfair.privacy.policy import Policy

SMALLEST = 10
"""Fewer people than this are not counted out."""

_SET_PATH = "set the path of the records: fedfair site join FOLDER --data PATH"
# What someone else's reader may raise; its text may hold a cell, so its kind alone is told.
_SURPRISES = (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError)


def check_records(folder: SiteFolder, policy: Policy) -> Iterator[Finding]:
    """Read the site's records as `schema` of its settings says, and yield what was found."""
    form = folder.settings.get("schema")
    if not isinstance(form, Mapping) or not form.get("name"):
        yield Finding(None, "records", "not checked: site.yaml does not say their format in `schema`")
        return
    try:
        schema, records = _read(folder, policy, form)
    except FedfairError as error:
        # What follows ", got" or a hint may come from the file, whose first line may be a record.
        told = re.split(r", got |; did you mean ", str(error))[0]
        yield Finding(False, "records", told, f"mend the file, or {_SET_PATH}")
        return
    except _SURPRISES as error:
        yield Finding(
            False, "records", f"the reader of {form['name']} failed ({type(error).__name__})", _SET_PATH
        )
        return
    yield _enough(len(records), policy)
    yield _vocabulary(schema, policy)
    for attribute, groups in schema.attributes.items():
        count = np.bincount(records.attributes[attribute], minlength=len(groups))
        shown = suppressed(dict(zip(groups, map(int, count), strict=True)))
        told = ", ".join(f"{group} {number}" for group, number in shown.items())
        yield Finding(True, f"groups of {attribute}", told)


def suppressed(counts: Mapping[str, int]) -> dict[str, str]:
    """Return counts of disjoint groups, none below 10 told nor to be had from the total.

    The total is taken as known. Beside a small count the others are told as "10 or more" only, and
    where even that would narrow a small one down (with so few people), nothing is told.

    Parameters
    ----------
    counts : Mapping[str, int]
        People per group, each in one.
    """
    small = [name for name, count in counts.items() if count < SMALLEST]
    if not small:
        return {name: str(count) for name, count in counts.items()}
    large, total = len(counts) - len(small), sum(counts.values())
    # A small count can then be anything from 0 to 9, whatever the others are.
    if not large or total < SMALLEST * large + SMALLEST - 1:
        return dict.fromkeys(counts, "withheld")
    return {name: f"<{SMALLEST}" if name in small else f"{SMALLEST} or more" for name in counts}


def _read(folder: SiteFolder, policy: Policy, form: Mapping[str, object]) -> tuple[Schema, SiteRecords]:
    name, options = str(form["name"]), form.get("options") or {}
    if ":" in name and name not in policy.allow:
        raise ConfigError(f"`schema.name` must be built in or listed in `allow` of site.yaml, got {name!r}")
    if not isinstance(options, Mapping):
        raise ConfigError("`schema.options` must be a mapping, got another value")
    path = None if policy.data is None else str(policy.data)
    adapter = open_dataset(name, path, options, 0, None if path is None else folder.name)
    return adapter.schema, adapter.load(folder.name)


def _enough(count: int, policy: Policy) -> Finding:
    told = str(count) if count >= SMALLEST else f"fewer than {SMALLEST}"
    where = "" if policy.data else " (shipped with fedfair: `data` is not set)"
    if count >= policy.min_records:
        return Finding(True, "records", f"{told}{where}")
    return Finding(
        False,
        "records",
        f"{told}, where `min-records` asks for {policy.min_records}",
        "name the whole file, or lower min-records in site.yaml",
    )


def _vocabulary(schema: Schema, policy: Policy) -> Finding:
    try:
        policy.check_schema(schema)
    except PrivacyError as error:
        fix = "bring `schema` and `attributes` in site.yaml into line; ask the centre which one is right"
        return Finding(False, "vocabulary", str(error), fix)
    return Finding(True, "vocabulary", ", ".join(schema.attributes) or "no attributes")

"""Whether a site's records can be read, and how many there are, in numbers that single nobody out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from fedfair.data import open_dataset
from fedfair.data.schema import Schema, SiteRecords
from fedfair.data.suppression import SMALLEST, told
from fedfair.errors import ConfigError, FedfairError, PrivacyError
from fedfair.federation.finding import Finding
from fedfair.federation.folder import SiteFolder
from fedfair.privacy.policy import Policy

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
        cause = re.split(r", got |; did you mean ", str(error))[0]
        yield Finding(False, "records", cause, f"mend the file, or {_SET_PATH}")
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
        shown = told(dict(zip(groups, map(int, count), strict=True)))
        numbers = ", ".join(f"{group} {number}" for group, number in shown.items())
        yield Finding(True, f"groups of {attribute}", numbers)


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
    number = str(count) if count >= SMALLEST else f"fewer than {SMALLEST}"
    where = "" if policy.data else " (shipped with fedfair: `data` is not set)"
    if count >= policy.min_records:
        return Finding(True, "records", f"{number}{where}")
    return Finding(
        False,
        "records",
        f"{number}, where `min-records` asks for {policy.min_records}",
        "name the whole file, or lower min-records in site.yaml",
    )


def _vocabulary(schema: Schema, policy: Policy) -> Finding:
    try:
        policy.check_schema(schema)
    except PrivacyError as error:
        fix = "bring `schema` and `attributes` in site.yaml into line; ask the centre which one is right"
        return Finding(False, "vocabulary", str(error), fix)
    return Finding(True, "vocabulary", ", ".join(schema.attributes) or "no attributes")

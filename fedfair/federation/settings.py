"""A site's own settings, as its bundle starts with them; from then on the file is the hospital's."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from fedfair.federation.consortium import Consortium, slug
from fedfair.privacy.policy import FEWEST

__all__ = ["KEYS", "slug", "write_settings"]

_HEAD = """\
# Settings of this site. They are the hospital's: they bind every run here, whatever the centre sends.
# The file is read at each start. Paths are relative to this file.
"""
_MEANING = {
    "site": "Name of this site in the consortium; the centre knows it by its key, node.key.",
    "consortium": "Name of the consortium.",
    "centre": "Where the centre listens. This is the only address that the site dials.",
    "data": "Path of the records; `fedfair site join --data PATH` sets it. They are only read.",
    "weights": "Folder of stored networks (ViT, BERT), one folder each; a run may name these; null: none.",
    "dataset": "Name of these records in the privacy ledger; all runs on them share one budget.",
    "ledger": "Folder of the privacy ledgers: what was spent. Losing it is losing count; back it up.",
    "audit": "File of what was asked and what was answered, one line each, chained by hashes.",
    "max-epsilon": "Cap on epsilon over all runs on these records; null: no cap.",
    "max-delta": "Largest delta at which a run may state its epsilon; null: any.",
    "min-noise": "Smallest noise multiplier of training that is accepted; null: any.",
    "min-records": "Fewest training records with which this site takes part; 0: any number.",
    "public-test": "true: the test records may be shown exactly, without noise.",
    "secure-only": "true: take part only where the centre sees sums alone, over `min-sites` sites or more.",
    "min-sites": "Fewest sites in such a sum, at least 3; of two, each learns the other's part.",
    "key": "Private key of this site's node; it also signs what secure sums need.",
    "roster": "All sites' public keys, one a line; add one when a site joins the consortium later.",
    "attributes": "The attributes, with their groups, by which this site reports; null: any.",
    "allow": "Own models, data sets and methods that a run may name, as package.module:factory.",
    "schema": "The only format in which a run may read the records; null: any, by which it could probe them.",
}
KEYS = tuple(_MEANING)
"""The keys of site.yaml, in their order."""


def write_settings(consortium: Consortium, site: str) -> str:
    """Return the text of a new site.yaml: each key of `KEYS` once, under a line that says what it means.

    Parameters
    ----------
    consortium : Consortium
        Gives the address, the vocabulary, the floors and the format of the data.
    site : str
        One of its sites.
    """
    values = _values(consortium, site)
    return "\n".join([_HEAD, *(f"# {_MEANING[key]}\n{_entry(key, values[key])}" for key in KEYS)])


def _values(consortium: Consortium, site: str) -> Mapping[str, object]:
    data, floor = consortium.data, consortium.privacy
    return {
        "site": site,
        "consortium": consortium.name,
        "centre": consortium.centre.address,
        "data": None,
        "weights": None,
        "dataset": None,
        "ledger": "ledgers",
        "audit": "audit.jsonl",
        "max-epsilon": floor.max_epsilon,
        "max-delta": floor.max_delta,
        "min-noise": floor.min_noise,
        "min-records": consortium.min_records,
        "public-test": False,
        "secure-only": False,
        "min-sites": FEWEST,
        "key": "node.key",
        "roster": "roster.txt",
        "attributes": dict(consortium.attributes),
        "allow": [],
        "schema": None if data.name is None else {"name": data.name, "options": dict(data.options)},
    }


def _entry(key: str, value: object) -> str:
    # A section's lists of words stay on one line each.
    flow = None if isinstance(value, dict) else False
    return yaml.safe_dump(
        {key: value}, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=110
    )

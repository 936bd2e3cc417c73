"""What the centre decides for a federation, in one YAML: addresses, sites, vocabulary, floors."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfair.data import open_dataset
from fedfair.errors import ConfigError
from fedfair.plain import build, read_yaml

LONGEST_VALIDITY = 3650
# Fields whose names in the file have a hyphen, like the keys of site.yaml.
_HYPHENED = ("max_epsilon", "max_delta", "min_noise", "min_records", "valid_days")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# The last label holds a letter: 10.0.0 is a mistyped address, not a name.
_DNS = re.compile(rf"(?=.{{1,253}}\Z)({_LABEL}\.)*(?=[^.]*[A-Za-z]){_LABEL}")


@dataclass(frozen=True)
class Centre:
    """Where sites reach the centre.

    `host` and `port` are what sites dial, `names` further names of the same machine for its
    certificate. `inner_port` is the SuperLink's, on the loopback behind the proxy.
    """

    host: str = ""
    port: int = 8443
    inner_port: int = 9443
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the names and the ports."""
        _require_host("centre.host", self.host)
        for name in self.names:
            _require_host("centre.names", name)
        for key in ("port", "inner_port"):
            port = getattr(self, key)
            _require(1 <= port <= 65535, f"centre.{key}", "a port from 1 to 65535", port)
        _require(
            self.port != self.inner_port,
            "centre.inner_port",
            "another port than `centre.port`",
            self.inner_port,
        )

    @property
    def address(self) -> str:
        """What a SuperNode dials: ``host:port``, with brackets round an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Floor:
    """What every bundle asks of a run at first; a hospital may ask for more, or less, in its site.yaml."""

    max_epsilon: float | None = None
    max_delta: float | None = None
    min_noise: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for key in ("max_epsilon", "min_noise"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"privacy.{_written(key)}", "above 0 or null", value)
        delta = self.max_delta
        _require(delta is None or 0 < delta < 1, "privacy.max-delta", "in (0, 1) or null", delta)


@dataclass(frozen=True)
class DataFormat:
    """What the sites' records look like: `data.name` and `data.options` of a configuration."""

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Consortium:
    """One federation.

    Attributes
    ----------
    name : str
        Letters, digits and hyphens; names folders and files.
    centre : Centre
        Where sites reach the centre.
    sites : Sequence[str]
        The hospitals; no two alike in their slugs.
    attributes : Mapping[str, list[str]]
        The attributes by which sites may report, with their groups in order.
    data : DataFormat
        What the records look like, for the check before a site joins.
    privacy : Floor
        What each bundle starts with.
    min_records : int
        Fewest training records with which a site takes part.
    valid_days : int
        Of certificates.
    """

    name: str = ""
    centre: Centre = field(default_factory=Centre)
    sites: Sequence[str] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    data: DataFormat = field(default_factory=DataFormat)
    privacy: Floor = field(default_factory=Floor)
    min_records: int = 0
    valid_days: int = 825

    def __post_init__(self) -> None:
        """Check names, sites and vocabulary; with `data`, that its schema agrees."""
        named = _NAME.fullmatch(self.name) is not None
        _require(named, "name", "letters, digits and -, at most 32, not starting with -", self.name)
        _require(self.min_records >= 0, "min-records", "at least 0", self.min_records)
        valid = 1 <= self.valid_days <= LONGEST_VALIDITY
        _require(valid, "valid-days", f"from 1 to {LONGEST_VALIDITY}", self.valid_days)
        _check_sites(self.sites)
        _check_vocabulary(self.attributes)
        if self.data.name is not None:
            _check_schema(self, self.data.name)


def slug(name: str) -> str:
    """Return a site's name as files have it: ``VA Long Beach`` is ``va-long-beach``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def load_consortium(path: Path) -> Consortium:
    """Read a consortium.yaml.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is wrong; with the key as the file has it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`consortium` must be a readable YAML file, got {path}: {error}") from error
    return parse_consortium(read_yaml(text, str(path)))


def parse_consortium(plain: object) -> Consortium:
    """Return the consortium of plain data.

    Raises
    ------
    ConfigError
        Naming the key, what it must be and the nearest known key.
    """
    fields = _as_fields(plain, "")
    try:
        made: Consortium = build(Consortium, fields, "")
    except ConfigError as error:
        raise ConfigError(_written(str(error))) from error
    return made


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address rather than a name; one of a single network card is none."""
    if "%" in host:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _as_fields(plain: object, prefix: str) -> object:
    """Return the mapping with the names of fields for keys; `max_epsilon` itself is no key of the file."""
    if not isinstance(plain, Mapping):
        return plain
    fields: dict[object, object] = {}
    for key, value in plain.items():
        if key in _HYPHENED:
            raise ConfigError(f"`{prefix}{key}` is not a known key; did you mean `{_written(key)}`?")
        hyphened = isinstance(key, str) and key.replace("-", "_") in _HYPHENED
        name = key.replace("-", "_") if hyphened else key
        fields[name] = _as_fields(value, "privacy.") if key == "privacy" else value
    return fields


def _written(text: str) -> str:
    for name in _HYPHENED:
        text = text.replace(name, name.replace("_", "-"))
    return text


def _check_sites(sites: Sequence[str]) -> None:
    _require(len(sites) > 0, "sites", "a list of at least one name", list(sites))
    for site in sites:
        # The name stands in quotes in the node's configuration.
        fine = isinstance(site, str) and re.search("[a-z0-9]", slug(site)) is not None
        fine = fine and site.isprintable() and not set(site) & {'"', "\\"} and len(site) <= 64
        _require(fine, "sites", 'names with a letter or digit, without " and \\, at most 64 long', site)
    count = Counter(map(slug, sites))
    alike = [site for site in sites if count[slug(site)] > 1]
    _require(not alike, "sites", "names that differ in more than case and punctuation", alike)


def _check_vocabulary(attributes: Mapping[str, Any]) -> None:
    _require(len(attributes) > 0, "attributes", "at least one attribute with its groups", dict(attributes))
    for name, groups in attributes.items():
        key = f"attributes.{name}"
        fine = isinstance(groups, list) and groups and all(isinstance(g, str) and g for g in groups)
        _require(bool(fine), key, "a list of at least one group name (a number in quotes)", groups)
        _require(len(set(groups)) == len(groups), key, "groups that differ", groups)


def _check_schema(consortium: Consortium, name: str) -> None:
    schema = open_dataset(name, None, consortium.data.options, 0).schema
    for attribute, groups in consortium.attributes.items():
        known = {key: list(value) for key, value in schema.attributes.items()}
        _require(
            known.get(attribute) == groups,
            f"attributes.{attribute}",
            f"what `data` has, {known.get(attribute, known)}, in this order",
            groups,
        )
    unknown = [site for site in consortium.sites if site not in schema.sites]
    _require(not unknown, "sites", f"sites of `data`, {list(schema.sites)}", unknown)


def _require_host(key: str, host: object) -> None:
    fine = isinstance(host, str) and (is_address(host) or _DNS.fullmatch(host) is not None)
    _require(fine, key, "a DNS name or an IP address, without scheme and port", host)


def _require(condition: bool, key: str, wanted: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"`{key}` must be {wanted}, got {value!r}")

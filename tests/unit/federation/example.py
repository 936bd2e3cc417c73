"""One consortium, as its file holds it, from which the tests of this folder start."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

PLAIN: dict[str, Any] = {
    "name": "heart",
    "centre": {"host": "fedfair.example.org", "port": 8443, "inner_port": 9443, "names": ["10.0.0.7"]},
    "sites": ["Cleveland", "Hungary", "VA Long Beach"],
    "attributes": {"sex": ["female", "male"], "age": ["<50", "50-59", "60+"]},
    "data": {"name": "heart", "options": {}},
    "privacy": {"max-epsilon": 8, "max-delta": 1e-5, "min-noise": None},
    "min-records": 20,
    "valid-days": 90,
}


def changed(key: str, value: object) -> dict[str, Any]:
    """Return the consortium with one dotted key set."""
    plain = copy.deepcopy(PLAIN)
    *parents, last = key.split(".")
    node = plain
    for parent in parents:
        node = node[parent]
    node[last] = value
    return plain


def written(folder: Path, plain: object = PLAIN) -> Path:
    """Return the path of a consortium.yaml with this content."""
    path = folder / "consortium.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return path

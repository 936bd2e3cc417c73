"""The code that a run sends to the sites, and the hash by which a site approves it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedfair.errors import RunError

FOLDERS = ("fedfair", "server", "client")
SUFFIXES = (".py", ".jsonl")
# Flower takes the app's name from its folder too, and a checkout may have any.
NAME = "fedfair"


def build_code(root: Path, into: Path) -> Path:
    """Copy what a run needs of the checkout `root` to the folder ``into/fedfair`` and return that.

    Only code is copied: a configuration travels in the messages, so a change to one, to the README or
    to a tool's settings in pyproject.toml asks no site for a new approval.

    Raises
    ------
    RunError
        If `root` is no checkout.
    """
    if missing := [name for name in (*FOLDERS, "pyproject.toml") if not (root / name).exists()]:
        raise RunError(f"`root` must be a checkout of fedfair, got {root} without {missing[0]}")
    target = into / NAME
    for source in _sources(root):
        copy = target / source.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    (target / "pyproject.toml").write_text(_manifest(root / "pyproject.toml"), encoding="utf-8")
    return target


def code_hash(root: Path) -> str:
    """Return the SHA-256, in hexadecimal digits, of the bundle that `flwr run` makes of the code.

    Equal sources give equal bytes wherever and whenever they were copied, with one version of Flower
    and of zlib; a site hashes the bytes that reach it and so depends on neither.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from flwr.cli.build import build_fab_from_disk

    with tempfile.TemporaryDirectory(prefix="fedfair-") as scratch:
        return hashlib.sha256(build_fab_from_disk(build_code(root, Path(scratch)))).hexdigest()


def _sources(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.suffix in SUFFIXES and path.is_file() and not hidden:
                yield path


def _manifest(pyproject: Path) -> str:
    """Return the part of pyproject.toml that Flower reads; what is sent is what lies in the folder."""
    given = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    project, app = given["project"], given["tool"]["flwr"]["app"]
    about = {key: project[key] for key in ("name", "version", "description", "license")}
    return "\n".join(
        [
            *_table("project", about),
            *_table("tool.flwr.app", {"publisher": app["publisher"]}),
            *_table("tool.flwr.app.components", app["components"]),
            *_table("tool.flwr.app.config", dict.fromkeys(app["config"], "")),
        ]
    )


def _table(name: str, values: Mapping[str, str]) -> list[str]:
    # A JSON string is a TOML string.
    return [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]

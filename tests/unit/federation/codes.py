"""Real bundles of Flower apps, too small to take time."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

PROJECT = """
[project]
name = "{name}"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "centre"
[tool.flwr.app.components]
serverapp = "client.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
seconds = 0
"""
APP = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
import fedfair
app = ClientApp()

@app.query()
def query(message, context):
    time.sleep(context.run_config["seconds"])
    said = ConfigRecord({{"said": "{said}", "fedfair": fedfair.__file__, "library": fedfair.MARK}})
    return Message(RecordDict({{"told": said}}), reply_to=message)
"""


def fab(folder: Path, said: str, name: str = "tiny") -> bytes:
    """Build a real bundle of an app that brings a fedfair of its own."""
    app = folder / f"{name}-{said}"
    for part in ("client", "fedfair"):
        (app / part).mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT.format(name=name))
    (app / "client" / "__init__.py").write_text("")
    (app / "client" / "app.py").write_text(APP.format(said=said))
    (app / "fedfair" / "__init__.py").write_text(f'MARK = "delivered with {said}"\n')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a library that Flower uses
        return build_fab_from_disk(app)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

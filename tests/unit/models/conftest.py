"""What the tests of stored networks share: no network connection, and a folder of weights."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.models.cases import BERT, VIT


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make every use of a network fail, and the test too where a library hides the failure."""
    asked: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        asked.append(args)
        raise OSError("there is no network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    yield
    assert asked == []


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], tuple[nn.Module, Path]]:
    """Return a function that stores a random network as its library does."""
    import transformers  # noqa: PLC0415 - not installed everywhere

    def save(kind: str, **changes: Any) -> tuple[nn.Module, Path]:
        torch.manual_seed(9)
        name, config = {"vit": ("ViT", VIT), "bert": ("Bert", BERT)}[kind]
        settings = getattr(transformers, f"{name}Config")(**{**config, **changes})
        network = getattr(transformers, f"{name}Model")(settings).eval()
        network.save_pretrained(tmp_path / kind)
        return network, tmp_path / kind

    return save

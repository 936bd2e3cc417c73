"""A stored network is named by the run; each machine finds it in its own folder."""

from __future__ import annotations

from pathlib import Path

from fedfair.config import Config, parse
from fedfair.networks import with_networks

FOLDER = Path("/networks")


def named(**encoders: object) -> Config:
    return parse({"model": {"options": {"encoders": encoders, "embedding_dim": 4}}})


def test_a_name_becomes_a_place_in_the_folder_and_all_else_stays() -> None:
    slo, note = {"name": "vit", "path": "vit-b16", "rank": 4}, {"hidden": [8]}
    found = with_networks(named(slo=slo, note=note), FOLDER)
    assert found == named(slo={**slo, "path": "/networks/vit-b16"}, note=note)


def test_an_absolute_path_stays_and_no_folder_changes_nothing() -> None:
    absolute, relative = (named(slo={"name": "vit", "path": path}) for path in ("/own/vit", "vit"))
    assert with_networks(absolute, FOLDER) == absolute
    assert with_networks(relative, None) == relative


def test_random_weights_have_no_place() -> None:
    config = named(slo={"name": "vit", "config": {"hidden_size": 8}}, note="words")
    assert with_networks(config, FOLDER) == config

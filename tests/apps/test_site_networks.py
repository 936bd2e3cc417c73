"""Stored networks at hospitals: a run names one, each site looks in its own folder and nowhere else."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedfair.errors import RunError
from tests.apps.runs import run, same_bits
from tests.apps.test_fair_lora_runs import EXPERIMENT, TINY
from tests.apps.test_site_settings import federate

transformers = pytest.importorskip("transformers")

SITES = ("site-1", "site-2", "site-3")
KEY = "`model.options.encoders.slo.path` must be"
SECRET = "kept-by-the-hospital"  # noqa: S105 - a folder's name


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Store a network in a folder of the centre, which is the working directory, and one at each site."""
    torch.manual_seed(0)
    centre = tmp_path / "centre"
    transformers.ViTModel(transformers.ViTConfig(**TINY)).save_pretrained(centre / "net")
    for site in SITES:
        shutil.copytree(centre, tmp_path / SECRET / site)
    monkeypatch.chdir(centre)
    return tmp_path


def config(folder: Path, path: str, **options: Any) -> Path:
    """Write the configuration of a run whose first encoder is stored."""
    slo = {"name": "vit", "path": path, **options}
    data = {**EXPERIMENT["data"]["options"], "modalities": ["slo"]}
    plain = {
        **EXPERIMENT,
        "rounds": 1,
        "data": {**EXPERIMENT["data"], "options": data},
        "model": {"name": "late_fusion", "options": {"encoders": {"slo": slo}}},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return file


def nodes(**first: Any) -> dict[str, dict[str, Any]]:
    """Return each site's settings; `first` are more of the first site."""
    found: dict[str, dict[str, Any]] = {site: {"weights": f"{SECRET}/{site}"} for site in SITES}
    found["site-1"].update(first)
    return found


def test_each_site_reads_its_own_copy(stored: Path) -> None:
    """The same bits as a simulation, where a relative path is one of the working directory."""
    file = config(stored, "net", tune="all")
    whole = run(stored / "whole", (), sites=3, config=file)
    shutil.move(stored / SECRET / "site-2" / "net", stored / "moved")
    with pytest.raises(RunError, match="got net without config.json"):
        federate(stored, nodes(), "server.min_sites=3", config=file, out="refused")
    shutil.move(stored / "moved", stored / SECRET / "site-2" / "net")
    assert same_bits(federate(stored, nodes(), config=file), whole)


def absolute(folder: Path) -> str:
    return str(folder / "centre" / "net")


@pytest.mark.parametrize(
    ("path", "first", "words"),
    [
        (absolute, {}, f"{KEY} a name in the site's folder `weights`, neither absolute nor with .., got"),
        (lambda _: "../centre/net", {}, f"{KEY} a name in the site's folder `weights`"),
        (lambda _: "net/../net", {}, f"{KEY} a name in the site's folder `weights`"),
        (lambda _: ".", {}, f"{KEY} a name in the site's folder `weights`"),
        (lambda _: "net", {"weights": None}, f"{KEY} left out, .*the site may set `weights`"),
    ],
    ids=["absolute", "above", "round about", "the folder itself", "no folder"],
)
def test_no_other_path_is_opened(
    path: Callable[[Path], str], first: dict[str, Any], words: str, stored: Path
) -> None:
    shutil.copytree(stored / "centre" / "net", stored / "centre", dirs_exist_ok=True)  # `.` is one, too
    named = path(stored)
    with pytest.raises(RunError, match=words) as refused:
        federate(stored, nodes(**first), "server.min_sites=3", config=config(stored, named))
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


def spoil(folder: Path, how: str) -> None:
    if how == "cut":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
    elif how == "no json":
        (folder / "config.json").write_text("{")
    elif how == "another file":
        (folder / "preprocessor_config.json").write_text('{"image_mean": [1]}')
    else:
        shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["cut", "no json", "another file", "gone"])
@pytest.mark.parametrize("checked", [False, True])
def test_what_is_wrong_at_a_site_is_told_without_its_folders(how: str, checked: bool, stored: Path) -> None:
    spoil(stored / SECRET / "site-1" / "net", how)
    options = {"sha256": digest_of(stored / "centre" / "net")} if checked else {}
    with pytest.raises(RunError, match=" is not: model.options.encoders.slo: ") as refused:
        federate(stored, nodes(), "server.min_sites=3", config=config(stored, "net", **options))
    assert SECRET not in str(refused.value)
    assert str(stored) not in str(refused.value)


def digest_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

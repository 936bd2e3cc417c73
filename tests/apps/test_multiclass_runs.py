"""Whole runs with four classes, three modalities and a crossing: every method, mode and kind of run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from fedfair.cli import main
from fedfair.data.options import as_integer
from fedfair.data.schema import (
    TEST,
    TRAIN,
    ArrayModality,
    Column,
    Schema,
    SiteRecords,
    TableModality,
    TextModality,
)
from fedfair.modulation import METHODS
from tests.apps.runs import rounds, run, weights
from tests.unit.data.eye.trees import npz, table

RECORDS, CELLS = 360, 6
CLASSES = ("healthy", "mild", "moderate", "severe")


class Grades:
    """One cohort at one site, or dealt out to four in an order that makes them unlike."""

    def __init__(self, sites: int) -> None:
        self.schema = Schema(
            {
                "vitals": TableModality((Column("pulse"), Column("cough", ("none", "dry")))),
                "image": ArrayModality((1, 8, 8)),
                "note": TextModality(length=4, vocabulary=12),
            },
            CLASSES,
            {"sex": ("female", "male"), "age": ("<50", "50-69", "70+"), "both": tuple("012345")},
            tuple(f"site {k}" for k in range(1, sites + 1)),
        )
        self._cohort = cohort()

    def load(self, site: str) -> SiteRecords:
        """Return a contiguous share."""
        sites = self.schema.sites
        return self._cohort.select(np.array_split(np.arange(RECORDS), len(sites))[sites.index(site)])


def cohort() -> SiteRecords:
    """Return all records, a third of them to test on; the first have no image and the last no note."""
    rng = np.random.default_rng(11)
    drawn = rng.integers(0, len(CLASSES), RECORDS)
    label = np.where(rng.random(RECORDS) < 0.5, np.sort(drawn), drawn)
    sex, age = rng.integers(0, 2, RECORDS), rng.integers(0, 3, RECORDS)
    attributes = {"sex": sex, "age": age, "both": 3 * sex + age}
    told = 1.0 - 0.4 * (sex == 0)
    pulse = rng.normal(70 + 8 * label * told, 6)
    image = rng.normal(size=(RECORDS, 1, 8, 8))
    image[np.arange(RECORDS), 0, label, :] += 2.5 * told[:, None]
    words = np.where(rng.random((RECORDS, 4)) < 0.5, 1 + label[:, None], rng.integers(1, 12, (RECORDS, 4)))
    note = words.astype(np.float32)
    image[:90], note[-60:] = np.nan, np.nan
    values = {
        "vitals": np.stack([pulse, rng.integers(0, 2, RECORDS)], 1).astype(np.float32),
        "image": image.astype(np.float32),
        "note": note,
    }
    sides = np.where(np.arange(RECORDS) % 3 == 0, TEST, TRAIN).astype(np.int8)
    return SiteRecords(values, label, attributes, sides)


def open_grades(path: str | None, options: Mapping[str, object], seed: int) -> Grades:
    del path, seed
    return Grades(as_integer(options["sites"], "data.options.sites", 1))


CONFIG = {
    "name": "grades",
    "rounds": 3,  # MultiFair rests in the first, and weights mode has coefficients of the round before
    "data": {
        "name": "tests.apps.test_multiclass_runs:open_grades",
        "attribute": "sex*age",
        "split": "given",
        "synthetic": True,
        "options": {"sites": 4},
    },
    "model": {"options": {"hidden": [4], "embedding_dim": 6}},
    "training": {"dtype": "float64", "learning_rate": 0.2},
    "report": {"resamples": 20, "group_min": 2, "bins": 32},
}
# So that each factor and term moves on 240 training records.
SETTINGS = {
    "fedavg": [],
    "mimo": ["method.mu=0.05"],
    "dual_mimo": ["method.mu=0.1", "method.shrinkage=5"],
    "multifair": ["method.gate=0", "method.group_min=2", "method.decay=0.5", "method.direction=0.5"],
}
MODES = ("gradient", "update", "weights")
PRIVATE = (
    "privacy.mode=sample",
    "privacy.target_epsilon=8",
    "privacy.target_delta=1e-3",
    "privacy.sample_rate=0.3",
    "privacy.local_steps=2",
    "privacy.expected_batch=20",
    "privacy.max_grad_norm=1",
    "data.split=hashed",
    "data.ranges={pulse: [40, 130]}",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grades") / "config.yaml"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


def trained(config: Path, folder: Path, method: str, *overrides: str, sites: int = 4) -> Path:
    chosen = [f"method.name={method}", *SETTINGS[method], f"data.options.sites={sites}", *overrides]
    return run(folder, chosen, sites, config=config)


def test_every_method_has_its_settings() -> None:
    assert SETTINGS.keys() == METHODS.keys()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_in_every_mode(config: Path, tmp_path: Path, method: str, mode: str) -> None:
    folder = trained(config, tmp_path / "run", method, f"training.mode={mode}")
    first, *_, last = rounds(folder)
    fused, unimodal = (np.array(last["coefficients"][name]) for name in ("fused", "unimodal"))
    assert fused.shape == (4, CELLS)
    assert unimodal.shape == (3, CELLS)
    assert np.isfinite(fused).all()
    assert (fused > 0).all()
    assert np.isfinite(unimodal).all()
    if method == "fedavg":
        assert (fused == 1).all()
    elif method == "mimo":  # it knows no groups: its weights differ between modalities alone
        assert (np.ptp(unimodal, axis=1) == 0).all()
        assert np.ptp(unimodal, axis=0).min() > 0.01
    else:
        assert np.ptp(fused[1:], axis=1).min() > 0.01
    assert all(torch.isfinite(value).all() for value in weights(folder).values())
    assert last["train_loss"] < first["train_loss"]
    assert len(last["test"]["group_counts"]) == CELLS
    assert all(len(counts) == len(CLASSES) for counts in last["test"]["group_counts"].values())
    # All test records are counted once, whichever site has them.
    assert sum(map(sum, last["test"]["group_counts"].values())) == RECORDS // 3


@pytest.mark.parametrize("method", METHODS)
def test_four_sites_train_the_model_of_one(config: Path, tmp_path: Path, method: str) -> None:
    """In gradient mode and float64: the same sums, in another order."""
    gradient = "training.mode=gradient"
    one = trained(config, tmp_path / "one", method, gradient, sites=1)
    four = trained(config, tmp_path / "four", method, gradient)
    left, right = weights(one), weights(four)
    assert max(float((left[k] - right[k]).abs().max()) for k in left) < 1e-10
    last = [rounds(folder)[-1] for folder in (one, four)]
    coefficients = [np.array(record["coefficients"]["fused"]) for record in last]
    np.testing.assert_allclose(*coefficients, rtol=0, atol=1e-10)
    assert last[0]["test"]["auc"] == pytest.approx(last[1]["test"]["auc"], abs=1e-10)
    if method != "fedavg":
        plain = weights(trained(config, tmp_path / "plain", "fedavg", gradient, sites=1))
        assert max(float((left[k] - plain[k]).abs().max()) for k in left) > 1e-4


@pytest.mark.parametrize("method", ["multifair", "dual_mimo"])
def test_a_crossing_is_an_attribute_of_its_own(config: Path, tmp_path: Path, method: str) -> None:
    crossed = trained(config, tmp_path / "crossed", method)
    own = trained(config, tmp_path / "own", method, "data.attribute=both")
    left, right = weights(crossed), weights(own)
    assert all(torch.equal(left[k], right[k]) for k in left)
    alone = weights(trained(config, tmp_path / "sex", method, "data.attribute=sex"))
    assert not all(torch.equal(left[k], alone[k]) for k in left)


@pytest.mark.parametrize("mode", MODES)
def test_secure_sums_give_the_open_run(config: Path, tmp_path: Path, mode: str) -> None:
    plain = trained(config, tmp_path / "open", "multifair", f"training.mode={mode}")
    secure = trained(config, tmp_path / "secure", "multifair", f"training.mode={mode}", "secure.enabled=true")
    left, right = weights(plain), weights(secure)
    # Sums of squares come in steps of 2^-20: see tests/apps/test_secure_runs.py.
    assert max(float((left[k] - right[k]).abs().max()) for k in left) < 1e-7
    assert rounds(plain)[-1]["test"]["group_counts"] == rounds(secure)[-1]["test"]["group_counts"]


@pytest.mark.parametrize(("method", "mode"), [*product(METHODS, ("update", "weights"))])
def test_a_private_round_of_every_method(config: Path, tmp_path: Path, method: str, mode: str) -> None:
    """Gradient mode is not offered under privacy; figures are released with noise."""
    folder = trained(config, tmp_path / "run", method, f"training.mode={mode}", "rounds=1", *PRIVATE)
    last = rounds(folder)[-1]
    account = json.loads((folder / "privacy.json").read_text(encoding="utf-8"))
    assert 0 < account["epsilon"] <= 8
    assert all(torch.isfinite(value).all() for value in weights(folder).values())
    assert np.isfinite(last["coefficients"]["fused"]).all()
    with np.load(folder / "evaluation.npz") as stored:
        assert stored["histograms"].shape[-3:] == (len(CLASSES), 2, 8)
        noise = stored["histograms"] - np.round(stored["histograms"])
        assert np.abs(noise).max() > 0.1


AMD = {
    "normal": "no.amd.diagnosis",
    "early amd": "early.dry",
    "intermediate amd": "intermediate.dry",
    "late amd": "wet.amd.inactive.scar",
}
RACES, SEXES = ("asian", "black", "white"), ("female", "male")
SIDES = {"Training": 4, "Validation": 1, "Test": 3}


def amd_records() -> Iterator[tuple[int, str, int, int, str]]:
    """Yield number, side, race, sex and disease: as many of each combination as `SIDES` says."""
    combinations = product(range(len(RACES)), range(len(SEXES)), AMD)
    places = [(side, *one) for one in combinations for side, number in SIDES.items() for _ in range(number)]
    yield from ((number, *place) for number, place in enumerate(places, start=1))


def amd_tree(root: Path) -> Path:
    """Write files of age-related macular degeneration as FairVision has them, darker with the disease."""
    rng, rows = np.random.default_rng(3), []
    for number, side, race, sex, disease in amd_records():
        images = {name: rng.integers(0, 200, (4, 8, 8)) for name in ("slo_fundus", "oct_bscans")}
        for image in images.values():
            image[:, list(AMD).index(disease) * 2 :][:, :2] += 55
        members = {
            "slo_fundus": images["slo_fundus"][0].astype(np.uint8),
            "oct_bscans": images["oct_bscans"].astype(np.uint8),
        }
        name = f"data_{number:05d}.npz"
        npz(root / "AMD" / side / name, **members, race=race, male=sex, amd_condition=AMD[disease])
        rows.append({"filename": name, "race": RACES[race], "gender": SEXES[sex], "amd": disease})
    table(root / "data_summary_amd.csv", rows)
    return root


def test_amd_from_files_to_a_report_with_four_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = {
        "name": "amd",
        "rounds": 2,
        "data": {
            "name": "fairvision",
            "path": str(amd_tree(tmp_path / "FairVision")),
            "attribute": "race*sex",
            "split": "given",
            "synthetic": True,
            "options": {"disease": "amd", "size": 8, "slices": 2},
            "partition": {"sites": 2},
        },
        "model": {"options": {"hidden": [4]}},
        "method": {"name": "multifair", "group_min": 2},
        "report": {"resamples": 20, "group_min": 3},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    assert main(["simulate", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "out")]) == 0
    expected = Counter(
        (f"{RACES[r]} & {SEXES[s]}", d) for _, side, r, s, d in amd_records() if side == "Test"
    )
    for arm in ("fedavg", "multifair"):
        test = rounds(tmp_path / "out" / "seed-0" / arm)[-1]["test"]
        found = {
            (group, disease): count
            for group, counts in test["group_counts"].items()
            for disease, count in zip(AMD, counts, strict=True)
        }
        assert found == expected
        assert test["auc"] is not None
        assert all(auc is not None for auc in test["group_auc"].values())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "predict normal, early amd, intermediate amd or late amd." in text
    assert "With 4 classes" in text
    assert text.count(" 3 / 3 / 3 / 3 ") == len(RACES) * len(SEXES)

"""Crossed attributes against a loop over records, and a run that modulates one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fedfair.assessment import marginal
from fedfair.data import open_dataset
from fedfair.data.crossing import axes, group_names, known, memberships, pairs
from fedfair.data.encode import cells, num_cells
from fedfair.data.schema import ArrayModality, Schema
from fedfair.errors import ConfigError, DataError, ShapeError
from fedfair.signals import Signals
from tests.apps.runs import rounds, run

ATTRIBUTES = {"race": ("a", "b", "w"), "sex": ("f", "m"), "age": ("y", "o")}
SYNTHETIC = open_dataset("synthetic", None, {"sites": 1, "records": 300}, 3)


def test_the_last_attribute_of_a_name_varies_fastest() -> None:
    assert group_names(ATTRIBUTES, "sex * race") == ("f & a", "f & b", "f & w", "m & a", "m & b", "m & w")
    assert group_names(ATTRIBUTES, "age") == ("y", "o")
    assert axes(ATTRIBUTES, "age*race") == (2, 0)
    assert pairs(ATTRIBUTES) == ("race*sex", "race*age", "sex*age")


@pytest.mark.parametrize("name", ["sex", "age", "sex*age", "age*sex"])
def test_a_record_is_in_the_group_that_names_its_parts(name: str) -> None:
    records, schema = SYNTHETIC.load("site-0001"), SYNTHETIC.schema
    groups = group_names(schema.attributes, name)
    for i, group in enumerate(memberships(records, schema.attributes, name)):
        parts = [schema.attributes[own][records.attributes[own][i]] for own in name.split("*")]
        assert groups[group] == " & ".join(parts)


@pytest.mark.parametrize("name", ["age", "sex*age", "age*sex"])
def test_signals_by_cell_sum_up_to_those_by_group(name: str) -> None:
    """Both orders: the cells' is sex before age."""
    records, schema = SYNTHETIC.load("site-0001"), SYNTHETIC.schema
    sizes = tuple(map(len, schema.attributes.values()))
    cell = cells(records, schema)
    histograms = np.random.default_rng(0).random((1, num_cells(schema), 1, 2, 4))
    counts = np.stack(
        [np.bincount(cell[records.labels == c], minlength=num_cells(schema)) for c in (0, 1)], -1
    )
    kept = marginal(
        Signals(counts[None] * 1.0, counts.sum(-1)[None] * 1.0, histograms),
        sizes,
        axes(schema.attributes, name),
    )
    group = memberships(records, schema.attributes, name)
    assert kept.num_groups == math.prod(len(schema.attributes[own]) for own in name.split("*"))
    for g in range(kept.num_groups):
        own = [np.sum((group == g) & (records.labels == c)) for c in (0, 1)]
        assert kept.counts[0, g].tolist() == own
    assert kept.histograms.sum() == pytest.approx(histograms.sum(), rel=1e-12)  # some tens of summands


def test_a_crossing_is_known_if_all_its_parts_are() -> None:
    attributes = {"sex": ("f", "m", "unknown"), "race": ("a", "unknown"), "age": ("y", "o")}
    assert known(attributes, "sex").tolist() == [True, True, False]
    assert known(attributes, "age").tolist() == [True, True]
    for name in ("sex*race", "race*sex", "age*race", "sex * age * race"):
        wanted = ["unknown" not in group for group in group_names(attributes, name)]
        assert known(attributes, name).tolist() == wanted
        assert 0 < sum(wanted) < len(wanted)


@pytest.mark.parametrize("groups", [("unknown", "f"), ("f", "unknown", "m"), ("unknown",), ("unknown",) * 2])
def test_only_the_last_group_of_several_is_the_unknown_one(groups: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="`unknown` must be the last group of `sex`, after one that is known"):
        Schema({"a": ArrayModality((1,))}, ("no", "yes"), {"age": ("y", "unknown"), "sex": groups}, ("x",))


@pytest.mark.parametrize("name", ["sexx", "sex*ageing", "sex*", ""])
def test_an_unknown_attribute_is_refused_and_the_nearest_named(name: str) -> None:
    with pytest.raises(ConfigError, match="`data.attribute` must be one of .*joined by"):
        axes(ATTRIBUTES, name, "data.attribute")


def test_an_attribute_is_not_crossed_with_itself() -> None:
    with pytest.raises(ConfigError, match="must cross different attributes, got 'sex\\*sex'"):
        axes(ATTRIBUTES, "sex*sex")
    with pytest.raises(ShapeError, match="must multiply to 6 groups"):
        marginal(Signals(np.zeros((1, 6, 2)), np.zeros((1, 6)), np.zeros((1, 6, 1, 2, 4))), (2, 3), (0, 2))


def test_a_crossing_is_modulated_like_an_attribute(tmp_path: Path) -> None:
    method = ("method.name=dual_mimo", "method.mu=0.5")
    overrides = ("rounds=2", "report.resamples=20", "data.attribute=sex*age", *method)
    last = rounds(run(tmp_path / "out", overrides))[-1]
    groups = group_names({"sex": ("female", "male"), "age": ("<50", "50-59", "60+")}, "sex*age")
    assert list(last["test"]["group_auc"]) == list(groups)
    assert np.shape(last["coefficients"]["fused"]) == (4, 6)
    # A mild tilt stays within its limits, so that no two groups are alike.
    assert len(set(np.ravel(last["coefficients"]["fused"]).round(6))) == len(groups)

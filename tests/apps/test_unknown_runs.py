"""Whole runs that keep patients of unknown groups, from the reader to the report; all synthetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from fedfair.bootstrap import metric_intervals
from fedfair.cli import main
from fedfair.data.phantom import PhantomAdapter
from fedfair.report import write_report
from fedfair.report._load import Experiment, load
from fedfair.report._privacy import released_tables
from fedfair.report._results import headline
from fedfair.report._tables import group_tables
from fedfair.seeding import numpy_generator
from tests.apps.runs import rounds, run, weights

OPTIONS: dict[str, Any] = {
    **{"preset": "fairvision", "patients": 150, "size": 16, "modalities": ["slo"], "unknown": "keep"},
    "attributes": ["sex", "ethnicity"],
    # The cohort lacks the ethnicity of one in twenty; here another tenth is lost.
    "sites": {site: {"unknown": 0.1} for site in "abcd"},
}
PRIVACY = {
    **{"mode": "sample", "noise_multiplier": 0.5, "target_delta": 1e-5, "sample_rate": 0.2, "local_steps": 2},
    **{"expected_batch": 20, "max_grad_norm": 1.0, "evaluation": "exact"},
    "statistics": {"noise_multiplier": 1.0, "every": 1, "bins": 8},
}


def written(folder: Path, options: dict[str, Any] | None = None, **changes: Any) -> Path:
    plain = {
        "name": "unknowns",
        "rounds": 2,
        "data": {
            **{"name": "phantom", "attribute": "ethnicity", "split": "stratified"},
            "options": {**OPTIONS, **(options or {})},
        },
        "model": {"options": {"hidden": [4], "embedding_dim": 4}},
        "method": {"name": "dual_mimo", "mu": 0.02, "shrinkage": 10.0},
        "training": {"mode": "update", "batch_size": 32, "learning_rate": 0.2, "dtype": "float64"},
        "report": {"resamples": 20, "group_min": 1},
    }
    file = folder / "unknowns.yaml"
    file.write_text(yaml.safe_dump({**plain, **changes}), encoding="utf-8")
    return file


def finished(folder: Path, *sets: str, **changes: Any) -> Experiment:
    arguments = [part for each in sets for part in ("--set", each)]
    config = str(written(folder, **changes))
    assert main(["simulate", config, "--output", str(folder / "out"), *arguments]) == 0
    return load(folder / "out")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return finished(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def left_out(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return finished(tmp_path_factory.mktemp("left-out"), "data.options.unknown=leave_out")


def records(experiment: Experiment, part: str) -> np.ndarray:
    """Return the records [sex, ethnicity] of all sites and classes."""
    counts = getattr(experiment.evaluations["dual_mimo"], part)[:, 0].sum((0, 2))
    return np.asarray(counts.reshape(experiment.cells))


def test_kept_patients_train_and_are_assessed(kept: Experiment, left_out: Experiment) -> None:
    assert kept.attributes == {
        "sex": ["female", "male", "unknown"],
        "ethnicity": ["non-hispanic", "hispanic", "unknown"],
    }
    everyone = sum(len(PhantomAdapter(OPTIONS, 0).load(site)) for site in "abcd")
    parts = ("train_counts", "counts")
    found = sum(records(kept, part) for part in parts)
    assert found.sum() == everyone == 600
    # About one in ten has no sex and one in seven no ethnicity; none of them is there otherwise.
    assert 30 < found[2].sum() < 90
    assert 50 < found[:, 2].sum() < 130
    np.testing.assert_array_equal(sum(records(left_out, part) for part in parts), found[:2, :2])


def test_an_attribute_is_reported_over_all_of_whom_it_is_known(kept: Experiment) -> None:
    table = next(each for each in group_tables(kept) if each.attribute == "sex")
    wanted = records(kept, "counts")
    assert [sum(row.counts) for row in table.rows] == wanted.sum(1).tolist()
    assert wanted[:2, 2].sum() > 0
    histograms = kept.evaluations["dual_mimo"].pooled.histograms[0, :, 0]
    by_sex = histograms.reshape(3, 3, 2, -1).sum(1).astype(int)
    for row, (others, members) in zip(table.rows, by_sex, strict=True):
        bins = np.arange(len(others))
        scores = np.concatenate([np.repeat(bins, others), np.repeat(bins, members)])
        labels = np.repeat([0, 1], [others.sum(), members.sum()])
        # A handful of sums of whole numbers.
        assert row.arms[1].auc.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert [row.name for row in table.rows] == ["female", "male", "unknown"]


def test_a_round_compares_known_groups(kept: Experiment) -> None:
    for arm in kept.arms:
        last = kept.runs[0, arm].records[-1]
        test, aucs = last["test"], last["test"]["group_auc"]
        apart = sum(abs(aucs[name] - test["auc"]) for name in ("non-hispanic", "hispanic"))
        assert list(aucs) == ["non-hispanic", "hispanic", "unknown"]
        assert aucs["unknown"] is not None
        assert test["es_auc"] == pytest.approx(test["auc"] / (1 + apart), abs=1e-12)
        assert sum(map(sum, test["group_counts"].values())) == records(kept, "counts").sum()
        fused = np.array(last["coefficients"]["fused"])
        np.testing.assert_array_equal(fused[:, 2], 1.0)
        assert (arm == "fedavg") == (fused == 1.0).all()
        for name, value in last["diagnostics"].items():
            assert np.shape(value)[-1] == 2, name


def test_the_intervals_of_the_headline_are_of_known_groups(kept: Experiment) -> None:
    """The same resamples, with and without the mask; `metric_intervals` has oracles of its own."""
    pooled, found = kept.evaluations["dual_mimo"].pooled, headline(kept)["dual_mimo"]
    masked, plain = (
        metric_intervals(
            *(pooled, kept.cells, 1, kept.resamples),
            numpy_generator(0, "report", "ethnicity", "dual_mimo"),
            known=known,
        )
        for known in (np.array([True, True, False]), None)
    )
    for key, interval in masked.items():
        if not key.startswith("group"):
            assert (found[key].low, found[key].high) == (interval.low, interval.high)
    assert masked["es_auc"] != plain["es_auc"]


def test_the_report_says_what_an_unknown_group_is(kept: Experiment, left_out: Experiment) -> None:
    sentence = "they count in every figure over all"
    pages = [write_report(each.runs[0, "fedavg"].folder.parents[1]).read_text() for each in (kept, left_out)]
    assert [page.count(sentence) for page in pages] == [1, 0]
    assert '<th scope="row">male &amp; unknown</th>' in pages[0]
    assert "ethnicity</b> (non-hispanic, hispanic, unknown)" in pages[0]


def test_sums_under_masks_give_the_same(kept: Experiment, tmp_path: Path) -> None:
    config = written(tmp_path)
    summed = run(tmp_path / "summed", ("secure.enabled=true",), config=config)
    own = kept.runs[0, "dual_mimo"].folder
    for name, value in weights(own).items():
        # Updates are summed in steps of 2^-36.
        np.testing.assert_allclose(weights(summed)[name], value, rtol=0, atol=1e-7)
    last = rounds(summed)[-1]["coefficients"]
    np.testing.assert_allclose(last["fused"], rounds(own)[-1]["coefficients"]["fused"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("exchanges", [1, 2])
@pytest.mark.parametrize("mode", ["gradient", "weights"])
def test_every_way_of_training_takes_them(tmp_path: Path, mode: str, exchanges: int) -> None:
    sets = (f"training.mode={mode}", f"training.exchanges={exchanges}", "method={name: multifair, gate: 0}")
    done = rounds(run(tmp_path / "run", sets, config=written(tmp_path)))[-1]
    np.testing.assert_array_equal(np.array(done["coefficients"]["fused"])[:, 2], 1.0)
    assert np.shape(done["diagnostics"]["group_auc"]) == (1, 2)


def test_released_statistics_are_those_of_known_groups(tmp_path: Path) -> None:
    data = {"name": "phantom", "attribute": "ethnicity", "options": OPTIONS}
    done = finished(tmp_path, data=data, privacy=PRIVACY, training={"mode": "weights", "learning_rate": 0.2})
    (table, *_) = [each for each in released_tables(done) if each.arm == "dual_mimo"]
    assert [(row.head, row.group) for row in table.rows] == [
        (head, group) for head in ("all together (fused)", "slo") for group in ("non-hispanic", "hispanic")
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    # A line under each head, and none within.
    body = page[page.index("Released group statistics: dual_mimo") :]
    body = body[body.index("<tbody>") : body.index("</tbody>")]
    assert [row.startswith(' class="inner"') for row in body.split("<tr")[1:]] == [True, False] * 2
    assert body.count('<th scope="row">slo</th>') == 1

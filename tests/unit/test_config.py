"""One YAML per experiment: what is written is read back, and what is wrong is refused by its key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfair.config import (
    Config,
    DataConfig,
    ReportConfig,
    TrainingConfig,
    apply,
    load,
    parse,
    parse_json,
)
from fedfair.errors import ConfigError
from fedfair.modulation import METHODS, DualMimo, FedAvg, Mimo, MultiFair
from fedfair.plain import first_difference

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    if path.read_text().startswith("# fedfair simulate ")
]


def test_nothing_written_is_the_default() -> None:
    assert parse({}) == Config()
    assert Config().method == FedAvg()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_files_are_read(path: Path) -> None:
    config = load(path)
    assert parse(config.to_dict()) == config


def test_there_are_shipped_files() -> None:
    assert CONFIGS


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_survives_plain_data(method: type) -> None:
    config = Config(
        method=method(), training=TrainingConfig(group_rows=["fusion"]), data=DataConfig(options={"a": [1]})
    )
    assert parse(config.to_dict()) == config
    assert parse_json(config.to_json()) == config
    assert parse(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_values_reach_their_places() -> None:
    config = parse(
        {
            "name": "try-1",
            "rounds": 7,
            "data": {"attribute": "age", "options": {"sites": 3}},
            "method": {"name": "multifair", "form": "scalar", "gamma": 1},
            "training": {"group_rows": ["fusion"], "split_rows": None, "learning_rate": 1},
        }
    )
    assert (config.name, config.rounds, config.data.attribute) == ("try-1", 7, "age")
    assert config.data.options == {"sites": 3}
    assert config.method == MultiFair(form="scalar", gamma=1.0)
    assert config.training.group_rows == ["fusion"]
    # An integer is a valid float and becomes one, so that equal configurations have equal text.
    assert isinstance(config.training.learning_rate, float)


@pytest.mark.parametrize("section", ["data", "training", "server", "report", "model"])
def test_an_empty_section_is_the_default(section: str) -> None:
    assert parse({section: None}) == Config()


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"round": 3}, "`round` is not a known key; did you mean `rounds`"),
        ({"training": {"recombination": 2}}, "it belongs elsewhere, did you mean `server.recombination`\\?$"),
        ({"training": {"rounds": 2}}, "`training.rounds` .* elsewhere, did you mean `rounds`\\?$"),
        ({"report": {"mu": 2}}, "`report.mu` is not .* elsewhere, did you mean `method.mu`\\?$"),
        ({"patience": 2}, "`patience` is not a known key; it .* did you mean `server.patience`\\?$"),
        ({"method": {"name": "mimo", "seed": 1}}, "`method.seed` is not .*, did you mean `seed`\\?$"),
        (
            {"report": {"noise_multiplier": 2}},
            "did you mean `privacy.noise_multiplier` or `privacy.statistics.noise_multiplier`\\?$",
        ),
        ({"training": {"learning_rat": 1.0}}, "`training.learning_rat`.*did you mean `learning_rate`"),
        ({"method": {"name": "mimo", "penalti": 1.0}}, "`method.penalti`.*did you mean `penalty`"),
        ({"method": {"name": "fedavg", "mu": 1.0}}, "`method.mu` is not a known key; known here are no keys"),
        ({"method": {"name": "dual_mim"}}, "`method.name`.*did you mean `dual_mimo`"),
        ({"method": {"mu": 1.0}}, "`method` must be a section with a `name`"),
        ({"method": "mimo"}, "`method` must be a section with a `name`"),
        ({"rounds": 2.5}, "`rounds` must be int, got 2.5"),
        ({"rounds": True}, "`rounds` must be int, got True"),
        ({"rounds": "many"}, "`rounds` must be int, got 'many'"),
        ({"rounds": 0}, "`rounds` must be at least 1"),
        ({"name": "a/b"}, "`name` must be letters"),
        ({"name": ""}, "`name` must be letters"),
        ({"name": "..", "rounds": 1}, "`name` must be letters"),
        ({"training": 3}, "`training` must be a section"),
        ({"training": {"learning_rate": True}}, "`training.learning_rate` must be float"),
        ({"training": {"learning_rate": "fast"}}, "`training.learning_rate` must be float"),
        ({"training": {"learning_rate": 0}}, "`training.learning_rate` must be positive"),
        ({"training": {"learning_rate": float("nan")}}, "`training.learning_rate` must be positive"),
        ({"training": {"momentum": 1.0}}, "`training.momentum`"),
        ({"training": {"mode": "updat"}}, "`training.mode` must be one of"),
        ({"training": {"local_epochs": 0}}, "`training.local_epochs`"),
        ({"training": {"batch_size": 0}}, "`training.batch_size`"),
        ({"training": {"chunk_size": 0}}, "`training.chunk_size`"),
        ({"training": {"exchanges": 3}}, "`training.exchanges`"),
        ({"training": {"dtype": "float16"}}, "`training.dtype`"),
        ({"training": {"group_rows": "some"}}, "`training.group_rows`"),
        ({"training": {"group_rows": 3}}, "`training.group_rows` must be str or Sequence"),
        ({"training": {"split_rows": 1}}, "`training.split_rows` must be bool or NoneType"),
        ({"server": {"learning_rate": -1.0}}, "`server.learning_rate`"),
        ({"server": {"momentum": -0.1}}, "`server.momentum`"),
        ({"server": {"min_sites": 0}}, "`server.min_sites`"),
        ({"server": {"round_timeout": 0}}, "`server.round_timeout`"),
        ({"server": {"min_group_records": -1}}, "`server.min_group_records` must be at least 0"),
        ({"server": {"attempts": 0}}, "`server.attempts` must be at least 1"),
        ({"server": {"keep": 1}}, "`server.keep` must be at least 2"),
        ({"server": {"monitor": "es_au"}}, "`server.monitor` must be one of.*did you mean `es_auc`"),
        ({"server": {"monitor": "site_auc"}}, "`server.monitor` must be one of"),
        ({"server": {"monitor_mode": "up"}}, "`server.monitor_mode` must be max or min"),
        ({"server": {"patience": 3}}, "`server.monitor` must be given where `server.patience` is"),
        (
            {"server": {"monitor": "train_loss", "patience": 0}},
            "`server.patience` must be at least 1",
        ),
        (
            {"server": {"monitor": "auc"}},
            "`data.validation_fraction` must be above 0 .*choosing by test records would flatter",
        ),
        ({"server": {"monitor": "train_loss", "patience": 1}}, "`data.validation_fraction` must be above 0"),
        ({"data": {"test_fraction": 1.0}}, "`data.test_fraction`"),
        ({"data": {"validation_fraction": 1.0}}, r"`data.validation_fraction` must be in \[0, 1\)"),
        ({"data": {"validation_fraction": -0.1}}, r"`data.validation_fraction` must be in \[0, 1\)"),
        ({"data": {"options": [1]}}, "`data.options` must be Mapping"),
        ({"report": {"bins": 7}}, "`report.bins` must be even"),
        ({"report": {"group_min": 0}}, "`report.group_min`"),
        ({"report": {"resamples": 0}}, "`report.resamples`"),
        ({"report": {"baseline": "sgd"}}, "`report.baseline`"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(plain: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(plain)


@pytest.mark.parametrize(
    ("method", "name", "bad"),
    [
        *[(Mimo, name, bad) for name, bad in [("penalty", -0.1), ("mu", 0.0), ("mu", float("nan"))]],
        *[
            (DualMimo, name, bad)
            for name, bad in [
                *[("penalty", -1.0), ("mu", 0.0), ("shrinkage", -1.0), ("unimodal_max", 0.0)],
                *[("coefficient_min", 0.0), ("coefficient_min", 1.1), ("coefficient_max", 0.9)],
            ]
        ],
        *[
            (MultiFair, name, bad)
            for name, bad in [
                *[("rho", -1.0), ("gamma", -1.0), ("gate", -1.0), ("direction", -1.0), ("fairness", -1.0)],
                *[("tau", 0.0), ("temperature", 0.0), ("decay", 1.0), ("progress", "fast"), ("form", "both")],
                *[("balance_min", 0.0), ("balance_max", 0.5), ("group_factor_min", 2.0)],
                *[("group_factor_max", 0.5), ("direction_max", -1.0)],
            ]
        ],
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(method: type, name: str, bad: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{name}"):
        method(**{name: bad})


def test_load_reads_a_file_and_its_overrides(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("rounds: 3\nmethod:\n  name: mimo\n  mu: 0.5\n")
    assert load(path).method == Mimo(mu=0.5)
    changed = load(path, ["rounds=4", "method.mu=0.25", "training.group_rows=[fusion]"])
    assert (changed.rounds, changed.method) == (4, Mimo(mu=0.25))
    assert changed.training.group_rows == ["fusion"]


def test_another_method_drops_the_parameters_of_the_file() -> None:
    plain = {"method": {"name": "mimo", "mu": 0.5}}
    # The order on the command line does not matter.
    for overrides in (
        ["method.name=dual_mimo", "method.shrinkage=5"],
        ["method.shrinkage=5", "method.name=dual_mimo"],
    ):
        assert apply(plain, overrides)["method"] == {"name": "dual_mimo", "shrinkage": 5}
    assert apply(plain, ["method.name=mimo"])["method"] == {"name": "mimo", "mu": 0.5}
    assert plain == {"method": {"name": "mimo", "mu": 0.5}}, "the input must not change"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds", "must be key=value"),
        ("=3", "must be key=value"),
        ("rounds.more=3", "must lie in a section"),
        ("rounds=[", "must be valid YAML"),
    ],
)
def test_a_wrong_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply({"rounds": 3}, [override])


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "heart.yaml").write_text("rounds: 3\n")
    with pytest.raises(ConfigError, match="did you mean `heart.yaml`"):
        load(tmp_path / "hart.yaml")
    with pytest.raises(ConfigError, match="must be an existing file"):
        load(tmp_path / "nowhere" / "hart.yaml")


def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("rounds: [\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml must be valid YAML"):
        load(path)


def test_a_run_is_chosen_by_what_it_can_know() -> None:
    """Under privacy a figure must be released, too."""
    private = load(Path(__file__).parents[2] / "configs" / "heart_private.yaml").to_dict()
    private["data"]["validation_fraction"] = 0.2
    for evaluation, monitor in (("released", "auc"), ("exact", "auc"), ("none", "train_loss")):
        private["server"]["monitor"], private["privacy"]["evaluation"] = monitor, evaluation
        assert parse(private).server.monitor == monitor
    private["server"]["monitor"] = "auc"
    with pytest.raises(ConfigError, match="must be train_loss where `privacy.evaluation` is none"):
        parse(private)


def test_counts_that_nobody_may_know_decide_nothing() -> None:
    private = load(Path(__file__).parents[2] / "configs" / "heart_private.yaml").to_dict()
    private["server"]["min_group_records"] = 5
    with pytest.raises(ConfigError, match="`server.min_group_records` must be 0: nobody may know"):
        parse(private)


def test_a_digest_tells_configurations_apart() -> None:
    digests = [
        parse(plain).digest()
        for plain in (
            {},
            {"rounds": 60},
            {"server": {"keep": 3}},
            {"data": {"options": {"a": 1, "b": 2}}},
            {"data": {"options": {"b": 2, "a": 1}}},
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    assert all(len(digest) == 64 for digest in digests)


def test_json_is_one_text_for_equal_configurations() -> None:
    a = parse({"rounds": 3, "training": {"learning_rate": 1}})
    b = parse({"training": {"learning_rate": 1.0}, "rounds": 3})
    assert a.to_json() == b.to_json()
    assert json.loads(a.to_json())["method"] == {"name": "fedavg"}


def test_the_first_difference_is_named() -> None:
    one = Config()
    other = dataclasses.replace(one, report=ReportConfig(bins=64), seed=2)
    assert first_difference(one.to_dict(), one.to_dict()) is None
    assert first_difference(one.to_dict(), other.to_dict()) == "report.bins"
    assert first_difference({"a": 1}, {"b": 1}) == "a"

"""The same apps on every engine give the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfair.errors import RunError
from simulations.flower_engine import run_on_flower
from tests.apps.runs import PRIVATE, SHORT, rounds, run, same_bits, weights

METHODS = ("fedavg", "multifair", "mimo", "dual_mimo")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["gradient", "update", "weights"])
def test_every_method_runs_in_every_mode(tmp_path: Path, method: str, mode: str) -> None:
    overrides = ["rounds=3", f"method.name={method}", f"training.mode={mode}"]
    folder = run(tmp_path / "run", overrides)
    records = rounds(folder)
    assert [r["round"] for r in records] == [0, 1, 2, 3]
    assert records[0]["coefficients"] is None
    assert len(records[3]["coefficients"]["fused"]) == 4
    assert sorted(records[3]["sites"]) == ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert same_bits(first, second)
    assert not same_bits(first, run(tmp_path / "c", [*SHORT, "seed=1"]))


def test_worker_processes_do_not_change_a_bit(tmp_path: Path) -> None:
    assert same_bits(run(tmp_path / "here"), run(tmp_path / "pool", workers=2))


def private(ledgers: Path) -> list[str]:
    """Return the overrides of a short private run whose noise can be drawn again."""
    constants = ["privacy.target_epsilon=null", "privacy.noise_multiplier=1.5"]
    constants += [
        "privacy.statistics.noise_multiplier=20",
        "privacy.noise_seed=1",
        f"privacy.ledger={ledgers}",
    ]
    return [*SHORT, *constants]


@pytest.mark.parametrize("method", METHODS)
def test_worker_processes_do_not_change_a_bit_of_a_private_run(tmp_path: Path, method: str) -> None:
    overrides = [f"method.name={method}", "training.mode=update", "privacy.evaluation=released"]
    here, pool = (
        run(tmp_path / name, [*private(tmp_path / f"{name}-ledgers"), *overrides], workers=n, config=PRIVATE)
        for name, n in (("here", 0), ("pool", 2))
    )
    assert same_bits(here, pool)


def test_noise_of_the_operating_system_is_not_repeated(tmp_path: Path) -> None:
    secret = [x for x in private(tmp_path / "ledgers") if not x.startswith("privacy.noise_seed")]
    assert not same_bits(*(run(tmp_path / name, secret, config=PRIVATE) for name in ("a", "b")))


@pytest.mark.parametrize("method", ["multifair", "dual_mimo"])
def test_two_exchanges_in_gradient_mode_equal_recombined_rows(tmp_path: Path, method: str) -> None:
    """With fresh coefficients a site's own weighting and the server's recombination are one thing.

    Only float32 rounding is left: 3 rounds of sums over 600 records, hence 1e-5.
    """
    base = ["rounds=3", f"method.name={method}", "training.mode=gradient", "training.exchanges=2"]
    if method == "multifair":
        base += ["method.gate=0", "method.warmup=0"]
    grouped = weights(run(tmp_path / "rows", base))
    alone = weights(run(tmp_path / "weights", [*base, "training.group_rows=[]"]))
    assert max(float((grouped[k] - alone[k]).abs().max()) for k in grouped) < 1e-5
    plain = weights(run(tmp_path / "plain", [*base[:1], "method.name=fedavg", *base[2:4]]))
    assert max(float((grouped[k] - plain[k]).abs().max()) for k in grouped) > 1e-4


@pytest.mark.slow
def test_flower_simulation_gives_the_same_numbers(tmp_path: Path) -> None:
    """`flwr run` on Ray against the in-process grid: 1e-6 is promised, equal bits are observed."""
    config = {
        "config": "configs/heart.yaml",
        "overrides": ";".join(SHORT),
        "output": str(tmp_path / "flower"),
    }
    run_on_flower(config, 4)
    here, there = weights(run(tmp_path / "here")), weights(tmp_path / "flower")
    assert max(float((here[k] - there[k]).abs().max()) for k in here) <= 1e-6
    assert rounds(tmp_path / "flower")[-1]["test"]["auc"] == pytest.approx(
        rounds(tmp_path / "here")[-1]["test"]["auc"], abs=1e-6
    )


@pytest.mark.slow
def test_a_failed_flower_run_is_an_error(tmp_path: Path) -> None:
    """`flwr run --stream` exits 0 on a failed run; ours must not."""
    config = {"config": "configs/heart.yaml", "overrides": "rounds=1", "output": str(tmp_path / "run")}
    with pytest.raises(RunError, match="num-supernodes"):
        run_on_flower(config, 3)

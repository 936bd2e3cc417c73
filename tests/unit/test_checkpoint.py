"""A checkpoint gives back every bit, is whole or not there, and a damaged one is neither used nor lost."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfair.checkpoint import CheckpointStore, Made
from fedfair.coefficients import Coefficients, FairnessTerm, LossTerms
from fedfair.config import Config, apply, parse
from fedfair.coordinator import Coordinator
from fedfair.data.schema import ArrayModality, Schema
from fedfair.errors import RunError
from fedfair.record import RoundRecord
from fedfair.signals import Signals, Variance

SCHEMA = Schema(
    {"a": ArrayModality((3,)), "b": ArrayModality((2,))},
    ("no", "yes"),
    {"sex": ("female", "male"), "age": ("young", "old")},
    ("north", "south"),
)
SIZES = {"fusion": 7, "encoder/a": 4, "encoder/b": 3, "head/a": 2, "head/b": 0}


def configured(*overrides: str) -> Config:
    return parse(apply({"name": "kept"}, overrides))


def coordinator_of(config: Config, sizes: Mapping[str, int] = SIZES) -> Coordinator:
    dtype = np.float32 if config.training.dtype == "float32" else np.float64
    return Coordinator(config, SCHEMA, {name: np.zeros(size, dtype) for name, size in sizes.items()})


def any_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
    """Return floats of any bits: infinities, NaNs with payloads, denormal numbers, both zeros."""
    kind = np.dtype(dtype)
    values = np.frombuffer(rng.bytes(int(np.prod(shape)) * kind.itemsize), kind).copy()
    values[rng.random(values.size) < 0.3] = rng.choice([0.0, -0.0, np.nan, np.inf, 5e-324, 1.0])
    values = values.reshape(shape)
    return np.asfortranarray(values) if rng.random() < 0.3 else values


def some_signals(rng: np.random.Generator, full: bool) -> Signals:
    return Signals(
        any_bits(rng, (3, 2, 2)),
        any_bits(rng, (3, 2)),
        any_bits(rng, (3, 2, 1, 2, 4)),
        any_bits(rng, (3, 2, 5)) if full else None,
        Variance(*rng.lognormal(size=3).tolist()) if rng.random() < 0.5 else None,
    )


def fill(coordinator: Coordinator, seed: int) -> Coordinator:
    """Put a random state into a coordinator; each optional part is there or not."""
    rng = np.random.default_rng(seed)
    there = rng.random(7) < 0.5
    coordinator.round = int(rng.integers(0, 9999))
    model = coordinator.model
    coordinator.model = {name: any_bits(rng, v.shape, v.dtype.type) for name, v in model.items()}
    if coordinator.velocity is not None:
        coordinator.velocity = {n: any_bits(rng, v.shape, v.dtype.type) for n, v in model.items() if there[0]}
    coordinator.memory = {"progress/a": any_bits(rng, (2,)), "old": any_bits(rng, ())} if there[1] else {}
    coordinator.moments = {"a": any_bits(rng, (2, 3))} if there[2] else {}
    coordinator.coefficients = Coefficients(
        rng.lognormal(size=(3, 2)), rng.lognormal(size=(2, 2)), bool(rng.random() < 0.5)
    )
    fairness = FairnessTerm(any_bits(rng, (2, 2)), any_bits(rng, (2, 2, 1, 2, 4)), float(rng.lognormal()))
    coordinator.terms = LossTerms(any_bits(rng, (2, 5)) if there[3] else None, fairness if there[4] else None)
    coordinator.released = some_signals(rng, bool(rng.random() < 0.5)) if there[5] else None
    coordinator.surveyed = {"north": "0123", "south": "é"} if there[6] else {}
    return coordinator


def bits(value: Any) -> Any:
    """Return a value in which only what is the same bit for bit is equal, the order of names included."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value):
        return [(field.name, bits(getattr(value, field.name))) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [(name, bits(inner)) for name, inner in value.items()]
    return type(value), repr(value)


def state(coordinator: Coordinator) -> Any:
    """Return all that a coordinator holds but for what the configuration gives."""
    given_by_config = {"config", "schema", "modalities", "plan", "ledger"}
    return [(n, bits(v)) for n, v in vars(coordinator).items() if n not in given_by_config]


def made(seed: int) -> Made:
    rng = np.random.default_rng(seed)
    return Made(
        {"fused": rng.normal(size=(3, 2)).tolist()}, {"gate": any_bits(rng, (2, 2))}, ["n"], {"s": "late"}, 2
    )


states = st.builds(
    lambda dtype, momentum, seed: fill(
        coordinator_of(configured(f"training.dtype={dtype}", f"server.momentum={momentum}")), seed
    ),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 2**32),
)
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(states, st.integers(0, 2**32), st.dictionaries(st.text(max_size=5), plain_json, max_size=3))
def test_every_bit_comes_back_and_nothing_else_is_left(
    saved: Coordinator, seed: int, extra: Mapping[str, Any]
) -> None:
    with TemporaryDirectory() as folder:
        store, again = CheckpointStore(Path(folder) / "a", 2), CheckpointStore(Path(folder) / "b", 2)
        path = store.save(saved, made(seed), extra)
        # Whatever the coordinator holds before.
        other = fill(coordinator_of(saved.config), seed)
        loaded = store.load(other)
        assert loaded is not None
        assert state(other) == state(saved)
        assert bits(loaded.extra) == bits(extra)
        assert loaded.notices == ()
        written = [RoundRecord(1, 0.5, {}, m, 1.0).to_json() for m in (made(seed), loaded.made)]
        assert written[0] == written[1]
        assert again.save(other, loaded.made, loaded.extra).read_bytes() == path.read_bytes()


@given(states, st.integers(0, 2**32))
def test_the_best_state_replaces_a_later_one_whole(saved: Coordinator, seed: int) -> None:
    with TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), 2)
        store.save(saved, Made(), {"a": 1})
        store.mark_best(saved.round)
        later = fill(coordinator_of(saved.config), seed)
        assert store.load_best(later, saved.round).extra == {"a": 1}
        assert state(later) == state(saved)


def test_the_file_says_which_configuration_it_is_of(tmp_path: Path) -> None:
    config = configured("data.options.sites=3")
    raw = CheckpointStore(tmp_path, 2).save(coordinator_of(config), Made(), {}).read_bytes()
    assert hashlib.sha256(raw[32:]).digest() == raw[:32]
    with np.load(io.BytesIO(raw[32:])) as stored:
        meta = json.loads(bytes(stored["meta"]))
    assert meta["config_digest"] == hashlib.sha256(config.to_json().encode()).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", 2)


def save_rounds(store: CheckpointStore, numbers: range) -> dict[int, Any]:
    """Save a state of its own for each round; return the states."""
    found = {}
    for number in numbers:
        coordinator = fill(coordinator_of(configured()), number)
        coordinator.round = number
        store.save(coordinator, Made(), {"number": number})
        found[number] = state(coordinator)
    return found


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_nothing_saved_is_nothing_loaded(store: CheckpointStore) -> None:
    assert store.load(coordinator_of(configured())) is None


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int) -> None:
    store = CheckpointStore(tmp_path, keep)
    found = save_rounds(store, range(9995, 9998))
    store.mark_best(9996)
    found |= save_rounds(store, range(9998, 10002))
    # By number: in the alphabet round 10000 would be the oldest.
    assert names(store) == sorted(["best-9996.npz", *(f"round-{n}.npz" for n in range(10002 - keep, 10002))])
    newest, best = coordinator_of(configured()), coordinator_of(configured())
    assert store.load(newest) is not None
    store.load_best(best, 9996)
    assert (state(newest), state(best)) == (found[10001], found[9996])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_archive(path: Path) -> None:
    path.write_bytes(hashlib.sha256(b"PK no archive").digest() + b"PK no archive")


DAMAGES = [flip, truncate, empty, no_archive]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(
    store: CheckpointStore, damage: Callable[[Path], None]
) -> None:
    found = save_rounds(store, range(3, 5))
    damage(store.folder / "round-0004.npz")
    broken = (store.folder / "round-0004.npz").read_bytes()
    coordinator = coordinator_of(configured())
    loaded = store.load(coordinator)
    assert loaded is not None
    assert state(coordinator) == found[3]
    assert loaded.extra == {"number": 3}
    (notice,) = loaded.notices
    assert notice.index("round-0004.npz is damaged") < notice.index("round-0003.npz is used instead")
    assert names(store) == ["round-0003.npz", "round-0004.npz.damaged"]
    assert (store.folder / "round-0004.npz.damaged").read_bytes() == broken
    again = store.load(coordinator_of(configured()))
    assert again is not None
    assert again.notices == ()


@pytest.mark.parametrize("damage", DAMAGES)
def test_all_damaged_is_refused_and_never_taken_for_a_new_run(
    store: CheckpointStore, damage: Callable[[Path], None]
) -> None:
    save_rounds(store, range(3, 5))
    for path in store.folder.iterdir():
        damage(path)
    coordinator = coordinator_of(configured())
    before = state(coordinator)
    for _ in range(2):
        with pytest.raises(RunError, match=r"all are damaged \(round-0004.npz, round-0003.npz\)"):
            store.load(coordinator)
    assert state(coordinator) == before


def test_another_configuration_is_refused_by_its_key_and_moves_no_file(store: CheckpointStore) -> None:
    save_rounds(store, range(3, 5))
    flip(store.folder / "round-0004.npz")
    for key, value in (("server.keep", 3), ("training.learning_rate", 0.2), ("name", "other")):
        with pytest.raises(RunError, match=f"`{key}` must be as in the run to resume, it differs"):
            store.load(coordinator_of(configured(f"{key}={value}")))
    assert names(store) == ["round-0003.npz", "round-0004.npz"]


def test_an_order_of_options_is_part_of_the_configuration(store: CheckpointStore) -> None:
    store.save(coordinator_of(configured("data.options={a: 1, b: 2}")), Made(), {})
    with pytest.raises(RunError, match=r"`data.options.\(order of keys\)`"):
        store.load(coordinator_of(configured("data.options={b: 2, a: 1}")))


def test_another_model_is_refused(store: CheckpointStore) -> None:
    save_rounds(store, range(1, 2))
    with pytest.raises(RunError, match="the model must be as in the run to resume"):
        store.load(coordinator_of(configured(), {**SIZES, "fusion": 8}))


def test_a_folder_of_the_old_layout_is_refused(store: CheckpointStore) -> None:
    (store.folder.parent / "checkpoint.npz").write_bytes(b"x")
    with pytest.raises(RunError, match=r"checkpoint\.npz is of version 0\.1.*start a new run"):
        store.load(coordinator_of(configured()))


def test_what_cannot_be_kept_as_the_best_is_refused(store: CheckpointStore) -> None:
    save_rounds(store, range(1, 3))
    with pytest.raises(RunError, match=r"best-0001\.npz must be an intact checkpoint"):
        store.load_best(coordinator_of(configured()), 1)
    store.mark_best(1)
    kept = (store.folder / "best-0001.npz").read_bytes()
    flip(store.folder / "round-0002.npz")
    for number in (2, 7):
        with pytest.raises(RunError, match=rf"round-000{number}\.npz must be an intact checkpoint"):
            store.mark_best(number)
    assert (store.folder / "best-0001.npz").read_bytes() == kept
    with pytest.raises(RunError, match="`rounds` must be as in the run to resume"):
        store.load_best(coordinator_of(configured("rounds=3")), 1)


def test_the_best_is_a_copy_that_damage_does_not_reach(store: CheckpointStore) -> None:
    found = save_rounds(store, range(1, 2))
    store.mark_best(1)
    with (store.folder / "round-0001.npz").open("r+b") as file:  # in place
        file.write(b"\0" * 99)
    coordinator = coordinator_of(configured())
    store.load_best(coordinator, 1)
    assert state(coordinator) == found[1]


def test_the_best_before_stays_until_a_state_that_knows_the_new_one_is_saved(store: CheckpointStore) -> None:
    """A crash between the two goes back to a state whose best is the one before."""
    save_rounds(store, range(1, 3))
    store.mark_best(1)
    store.mark_best(2)
    assert {"best-0001.npz", "best-0002.npz"} <= set(names(store))
    coordinator = coordinator_of(configured())
    store.load(coordinator)
    store.save(coordinator, Made(), {}, 2)
    assert [name for name in names(store) if name.startswith("best")] == ["best-0002.npz"]


@pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
def test_a_crash_while_saving_leaves_the_one_before(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    found = save_rounds(store, range(1, 3))

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    later = fill(coordinator_of(configured()), 3)
    later.round = 2  # the name of one that is there
    with monkeypatch.context() as patch:
        patch.setattr(*((os, moment) if moment == "fsync" else (Path, moment)), crash)
        with pytest.raises(KeyboardInterrupt):
            store.save(later, Made(), {})
    coordinator = coordinator_of(configured())
    loaded = store.load(coordinator)
    assert loaded is not None
    assert loaded.notices == ()
    assert state(coordinator) == found[2]


def test_a_file_is_on_the_disk_before_its_name_and_both_before_old_ones_go(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_rounds(store, range(1, 3))
    calls: list[str] = []

    def noted(owner: Any, name: str, said: Callable[..., str]) -> None:
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (calls.append(said(*a)), own(*a, **k))[1])

    noted(os, "fsync", lambda handle: f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")
    noted(Path, "replace", lambda _, target: f"name {target.name}")
    noted(Path, "unlink", lambda path: f"remove {path.name}")
    save_rounds(store, range(3, 4))
    assert calls == [
        *("sync round-0003.npz.partial", "name round-0003.npz", "sync checkpoints"),
        "remove round-0001.npz",
    ]

"""Masks are uniform over the ring, differ for each pair and round, and hide what they cover."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from Crypto.Cipher import ChaCha20
from scipy import stats

from fedfair.secagg import Field, Layout, Roll, Rule
from fedfair.secagg._codec import decode
from fedfair.secagg._state import State
from fedfair.secagg.circle import Circle
from fedfair.secagg.masks import PIECE, add_mask
from tests.unit.secagg.federation import Federation, Round, names

# Keys are fixed, so outcomes repeat; a correct mask fails one two-sided test with probability ALPHA.
ALPHA = 1e-4
N = 200_000
DTYPES = (np.uint32, np.uint64)


def is_uniform(words: np.ndarray) -> bool:
    """Return whether each byte of the words is uniform over its 256 values, the last included."""
    places = words.view(np.uint8).reshape(len(words), -1)
    p = [stats.chisquare(np.bincount(places[:, i], minlength=256)).pvalue for i in range(places.shape[1])]
    return min(p) > ALPHA / len(p)


def seeded(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr("fedfair.secagg.site.new_secret", lambda: rng.bytes(32))


def mask(key: bytes, n: int = N, dtype: type = np.uint64) -> np.ndarray:
    words = np.zeros(n, dtype)
    add_mask(words, key, 1)
    return words


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 1000, PIECE // 8, PIECE // 8 + 1, PIECE // 4 + 3, N])
def test_a_mask_is_the_keystream_of_chacha20(n: int, dtype: type) -> None:
    key = bytes(range(32))
    stream = ChaCha20.new(key=key, nonce=bytes(8)).encrypt(bytes(n * np.dtype(dtype).itemsize))
    np.testing.assert_array_equal(
        mask(key, n, dtype), np.frombuffer(stream, np.dtype(dtype).newbyteorder("<"))
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_is_uniform_over_the_ring(dtype: type) -> None:
    words = mask(b"k" * 32, dtype=dtype)
    assert is_uniform(words)
    # A generator that never draws the last value, or one that leaves out the lowest bit, is caught.
    assert not is_uniform(np.where(words.view(np.uint8) == 255, 0, words.view(np.uint8)).view(dtype))
    assert not is_uniform(words & ~dtype(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_is_taken_away_by_its_opposite(dtype: type) -> None:
    words = np.arange(N, dtype=dtype)
    add_mask(words, b"k" * 32, 1)
    add_mask(words, b"k" * 32, -1)
    np.testing.assert_array_equal(words, np.arange(N, dtype=dtype))


def circle_of(federation: Federation, number: int) -> tuple[Circle, dict[str, bytes]]:
    """Return a circle and the private mask keys of its sites."""
    announcements = tuple(federation.ask(site, "advertise", number) for site in federation.states)
    secrets = {}
    for site, data in federation.states.items():
        assert data is not None
        last = decode(State, data).rounds[-1]
        assert last.secrets is not None
        secrets[site] = last.secrets.mask_key
    return Circle.of(Roll(announcements), Rule()), secrets


def test_pairs_and_rounds_have_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded(monkeypatch, 5)
    federation = Federation(names(5), Rule())
    keys = []
    for number in (1, 2):
        circle, secrets = circle_of(federation, number)
        for a, b in itertools.combinations(names(5), 2):
            (key, sign), (same, opposite) = (
                circle.pair_mask(secrets[a], a, b),
                circle.pair_mask(secrets[b], b, a),
            )
            assert key == same
            assert (sign, opposite) == (1, -1)
            third = next(site for site in names(5) if site not in (a, b))
            assert circle.pair_mask(secrets[third], a, b)[0] != key  # what is public does not give it
            keys.append(key)
    assert len(set(keys)) == 2 * 10
    first, second = mask(keys[0]), mask(keys[1])
    # Under independence, equal words have probability 2^-64 each.
    assert not (first == second).any()
    # The correlation of N independent pairs is normal with deviation 1 / sqrt(N).
    assert (
        abs(np.corrcoef(first.astype(float), second.astype(float))[0, 1]) < stats.norm.isf(ALPHA / 2) / N**0.5
    )


def test_the_keys_of_parcels_and_of_own_masks_are_secret_too() -> None:
    circle, secrets = circle_of(Federation(names(3), Rule()), 1)
    a, b, c = names(3)
    keys = {circle.parcel_key(secrets[site], a, b, sender=sender)[0] for site in (a, c) for sender in (a, b)}
    assert len(keys) == 4  # and each direction has its own
    assert circle.own_mask(secrets[a]) != circle.own_mask(secrets[b])


def test_the_same_keys_in_another_circle_give_other_masks() -> None:
    federation = Federation(names(4), Rule())
    circle, secrets = circle_of(federation, 1)
    a, b, *_ = names(4)
    fewer = Circle.of(Roll(tuple(circle.announcements[s] for s in names(3))), Rule())
    assert fewer.pair_mask(secrets[a], a, b) != circle.pair_mask(secrets[a], a, b)
    assert fewer.own_mask(b"s" * 32) != circle.own_mask(b"s" * 32)


@pytest.mark.parametrize("bits", [32, 64])
def test_what_the_server_sees_of_a_site_tells_nothing_of_its_input(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout([Field("x", (N,), 1.0)], 4, bits)
    ramp = np.linspace(-1, 1, N)
    for seed, x in enumerate((np.zeros(N), np.ones(N), ramp)):
        seeded(monkeypatch, seed)
        round_ = Round(Federation(names(4), Rule()), 1, layout)
        round_.advertise()
        round_.share()
        for site, delivery in round_.server.deliveries().items():
            words = round_.federation.ask(site, "mask", 1, delivery, layout, {"x": x}).words
            assert is_uniform(words)
            correlation = np.corrcoef(words[:-1].astype(float), ramp)[0, 1]
            assert abs(correlation) < stats.norm.isf(ALPHA / 2) / N**0.5


def test_the_missing_mask_of_one_site_leaves_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but one site's secrets opened: what remains is as uniform as a mask."""
    seeded(monkeypatch, 9)
    layout = Layout([Field("x", (N,), 1.0)], 3)
    federation = Federation(names(3), Rule())
    round_ = Round(federation, 1, layout)
    circle, secrets = circle_of(federation, 1)
    for announcement in circle.announcements.values():
        round_.server.announce(announcement)
    round_.share()
    deliveries = round_.server.deliveries()
    victim, *others = names(3)
    words = federation.ask(victim, "mask", 1, deliveries[victim], layout, {"x": np.ones(N)}).words
    for other in others:  # the server knows every mask key but not the victim's own mask
        add_mask(words, *circle.pair_mask(secrets[other], other, victim))
    assert is_uniform(words)

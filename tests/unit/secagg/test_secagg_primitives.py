"""Shares, boxes, keys and the encoding, against Flower's shares and by what they must refuse."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from Crypto.Protocol.SecretSharing import Shamir
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedfair.errors import PrivacyError
from fedfair.secagg import Request
from fedfair.secagg._codec import decode, encode
from fedfair.secagg.primitives import (
    agree,
    combine,
    derive,
    new_secret,
    public_key,
    seal,
    share_index,
    split,
    unseal,
)

ALPHA = 1e-4


@settings(max_examples=30)
@given(secret=st.binary(min_size=1, max_size=70), holders=st.integers(2, 9), data=st.data())
def test_shares_are_those_of_flower(secret: bytes, holders: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(2, holders))
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    ours, theirs = split(secret, threshold, holders), create_shares(secret, threshold, holders)
    assert [len(s) for s in ours] == [len(s) for s in theirs]
    assert [share_index(s) for s in ours] == list(range(1, holders + 1))
    assert combine_shares([ours[i] for i in chosen]) == secret
    assert combine([theirs[i] for i in chosen]) == secret


def test_too_few_shares_give_no_secret() -> None:
    secret = bytes(range(32))
    shares = split(secret, 3, 5)
    for few in itertools.combinations(shares, 2):
        try:
            assert combine(list(few)) != secret
        except PrivacyError:
            continue  # what comes out is not even padded


def test_too_few_shares_fit_every_secret() -> None:
    """With t - 1 shares known, each value of the missing one gives a secret of its own: none is ruled out."""
    (first, second, third), rng = split(bytes(16), 3, 3), np.random.default_rng(0)
    seen = set()
    for _ in range(500):
        forged = third[:4] + rng.bytes(16) + third[20:]
        parts = [s[:20] for s in (first, second, forged)]
        seen.add(Shamir.combine([(share_index(p), p[4:]) for p in parts], False))
    assert len(seen) == 500


@pytest.mark.parametrize("secret", [bytes(32), bytes([255]) * 32])
def test_a_single_share_is_uniform_whatever_the_secret(secret: bytes) -> None:
    shares = np.frombuffer(b"".join(split(secret, 2, 2)[0][4:36] for _ in range(400)), np.uint8)
    # Randomness is the system's: a correct sharing fails once in 1 / 1e-9 runs.
    assert stats.chisquare(np.bincount(shares, minlength=256)).pvalue > 1e-9


def test_shares_that_do_not_belong_together_are_refused() -> None:
    shares, longer = split(b"a" * 32, 2, 3), split(b"b" * 48, 2, 3)
    for wrong in (
        [shares[0], shares[0]],
        [shares[0], longer[1]],
        [shares[0], b""],
        [shares[0], shares[1][:-1]],
    ):
        with pytest.raises(PrivacyError):
            combine(wrong)


def test_two_sites_agree_and_a_third_does_not() -> None:
    a, b, c = new_secret(), new_secret(), new_secret()
    assert agree(a, public_key(b)) == agree(b, public_key(a)) != agree(c, public_key(a))


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"", b"x" * 31])
def test_a_public_key_that_leads_to_a_known_secret_is_refused(public: bytes) -> None:
    with pytest.raises(PrivacyError, match="public key"):
        agree(new_secret(), public)


def test_each_use_has_a_key_of_its_own() -> None:
    uses = itertools.product((b"s" * 32, b"t" * 32), ("own mask", "pair mask", "parcel"), (b"1", b"2"))
    assert len({derive(*use) for use in uses}) == 12


def test_a_box_opens_only_unchanged_and_where_it_belongs() -> None:
    key, sealed = b"k" * 32, seal(b"k" * 32, b"share", b"to B")
    assert unseal(key, sealed, b"to B") == b"share"
    flipped = [sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :] for i in range(len(sealed))]
    for wrong in (*flipped, sealed[:-1], sealed[:5], b""):
        with pytest.raises(PrivacyError, match="sealed share"):
            unseal(key, wrong, b"to B")
    for other, associated in ((b"l" * 32, b"to B"), (key, b"to C")):
        with pytest.raises(PrivacyError, match="sealed share"):
            unseal(other, sealed, associated)


def test_the_same_share_sealed_twice_looks_different() -> None:
    assert seal(b"k" * 32, b"share", b"") != seal(b"k" * 32, b"share", b"")


@dataclass(frozen=True)
class Inner:
    number: int
    key: bytes | None


@dataclass(frozen=True)
class Outer:
    name: str
    parts: tuple[Inner, ...]
    by_name: dict[str, bytes]


VALUE = Outer("Zürich", (Inner(1, b"\x00\xff"), Inner(-2, None)), {"b": b"", "a": b"x"})


def test_an_encoded_dataclass_comes_back() -> None:
    assert decode(Outer, encode(VALUE)) == VALUE
    assert encode(VALUE) == encode(Outer(VALUE.name, VALUE.parts, dict(reversed(VALUE.by_name.items()))))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"name":"x","parts":[]}',
        b'{"name":"x","parts":[],"by_name":{},"more":1}',
        b'{"name":1,"parts":[],"by_name":{}}',
        b'{"name":"x","parts":{},"by_name":{}}',
        b'{"name":"x","parts":[],"by_name":[]}',
        b'{"name":"x","parts":[],"by_name":{"a":"no hex"}}',
        b'{"name":"x","parts":[],"by_name":{"a":1}}',
        b'{"name":"x","parts":[{"number":true,"key":null}],"by_name":{}}',
        b'{"name":"x","parts":[{"number":1.0,"key":null}],"by_name":{}}',
        b"[" * 100_000,
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(PrivacyError, match="must be a `Outer`"):
        decode(Outer, data)


@pytest.mark.parametrize("data", ['{"survivors":{}}', 3, None, ["a"]])
def test_what_came_in_place_of_bytes_is_refused(data: object) -> None:
    """A record of Flower's may hold other kinds; text would be read like bytes."""
    assert Request.from_bytes(b'{"survivors":{}}') == Request({})
    with pytest.raises(PrivacyError, match="must be a `Request` of this version, got a .* instead of bytes"):
        Request.from_bytes(data)

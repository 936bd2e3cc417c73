"""The rule against independent probabilities, and what a server that lies about survivors can open."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedfair.errors import ConfigError, PrivacyError
from fedfair.secagg import CannotUnmask, Identity, Plan, Request, Roll, Rule
from fedfair.secagg.circle import Circle
from tests.unit.secagg.federation import Federation, masked_round, names


@given(n=st.integers(2, 64), collusion=st.floats(0, 0.98), dropout=st.floats(0, 0.49))
def test_a_complete_graph_stands_what_was_stated(n: int, collusion: float, dropout: float) -> None:
    if collusion + 2 * dropout >= 1:
        return
    plan = Rule(collusion, dropout).plan(n)
    assert (plan.degree, plan.holders, plan.complete) == (n - 1, n, True)
    assert 2 * plan.threshold > n + math.floor(collusion * n)
    assert 2 * (plan.threshold - 1) <= n + math.floor(collusion * n + 1e-9)  # no larger than it must be
    assert plan.threshold <= n - math.floor(dropout * n)


def test_the_thresholds_in_the_docs() -> None:
    page = Path(__file__).parents[3] / "docs" / "secure-aggregation.md"
    table = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(table) == 9
    for n, c, t, missing in (map(int, row) for row in table):
        assert (math.floor(0.25 * n), Rule().plan(n).threshold, n - t) == (c, t, missing)


@pytest.mark.parametrize(("n", "share"), [(40, 0.1), (100, 0.1), (200, 0.2), (300, 0.25)])
def test_a_sparse_graph_fails_as_rarely_as_stated(n: int, share: float) -> None:
    plan = Rule(share, share, sparse_above=16).plan(n)
    assert not plan.complete
    assert plan.degree % 2 == 0
    marked, k, t = math.floor(share * n + 1e-9), plan.degree, plan.threshold
    # 2 t > h + c fails from this many colluders among k neighbours on.
    assert n * stats.hypergeom.sf(2 * t - (k + 1) - 1, n - 1, marked, k) <= 2**-40 * (1 + 1e-9)
    # Fewer than t of the k neighbours are there.
    assert n * stats.hypergeom.sf(k - t, n - 1, marked, k) <= 2**-20 * (1 + 1e-9)
    # k / 2 in a row are all among the 2 `marked` that are removed.
    assert n * stats.hypergeom.pmf(k // 2, n, 2 * marked, k // 2) <= 2**-40 * (1 + 1e-9)


def circle(n: int, rule: Rule) -> Circle:
    federation = Federation(names(n), rule)
    return Circle.of(Roll(tuple(federation.at(s).advertise(1) for s in names(n))), rule)


def test_a_sparse_graph_is_regular_mutual_and_hangs_together() -> None:
    rule = Rule(0.1, 0.1, sparse_above=16)
    found, rng = circle(40, rule), np.random.default_rng(0)
    for site, near in found.neighbours.items():
        assert len(near) == found.plan.degree == len(set(near) - {site})
        assert all(site in found.neighbours[other] for other in near)
        assert [found.share_index(site, holder) for holder in found.holders(site)] == list(
            range(1, found.plan.holders + 1)
        )
    for _ in range(200):  # 4 colluding and 4 missing of 40: here the bound is 0, so it never falls apart
        left = set(rng.permutation(names(40))[8:].tolist())
        reached, new = set(), {min(left)}
        while new:
            reached |= new
            new = {other for site in new for other in found.neighbours[site]} & left - reached
        assert reached == left


def test_the_graph_follows_from_the_announcements_alone() -> None:
    rule = Rule(0.1, 0.1, sparse_above=16)
    one = circle(40, rule)
    same = Circle.of(Roll(tuple(reversed(list(one.announcements.values())))), rule)
    assert same == one
    assert circle(40, rule).neighbours != one.neighbours


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_sites_have_no_plan(n: int) -> None:
    with pytest.raises(CannotUnmask, match=f"got {n}"):
        Rule().plan(n)


@pytest.mark.parametrize(
    "values",
    [
        {"collusion": -0.1},
        {"collusion": 1.0, "dropout": 0.0},
        {"dropout": float("nan")},
        {"collusion": 0.5, "dropout": 0.25},
        {"fewest": 1},
        {"sparse_above": 1},
    ],
)
def test_a_rule_without_a_threshold_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Rule(**values)  # type: ignore[arg-type]


def views(n: int, rule: Rule) -> dict[str, list[tuple[frozenset[str], frozenset[str]]]]:
    """Return by site what it opens, seeds and keys, for each list of survivors that it accepts."""
    round_, found = masked_round(n, rule, signed=False), {}
    for site in names(n):
        found[site] = []
        for size in range(n + 1):
            for survivors in itertools.combinations(names(n), size):
                try:  # a fresh session each: the state of the site stays as it was
                    answer = round_.federation.at(site).reveal(1, Request(dict.fromkeys(survivors, b"")))
                except PrivacyError:
                    continue
                found[site].append((frozenset(answer.seeds), frozenset(answer.keys)))
    return found


def smallest_sum(honest: tuple[str, ...], colluders: int, threshold: int, found: dict) -> int:
    """Return the fewest honest sites in a sum that any choice of lies opens; -1 if both secrets of one."""
    least = len(honest)
    for told in itertools.product(*(found[site] for site in honest)):
        seeds, keys = (
            {o for o in honest if sum(o in view[kind] for view in told) + colluders >= threshold}
            for kind in (0, 1)
        )
        if seeds & keys:
            return -1
        # A sum of the inputs in `seeds` is laid open if all masks with other sites are.
        if seeds and seeds | keys == set(honest):
            least = min(least, len(seeds))
    return least


@pytest.mark.parametrize(
    ("n", "rule", "fewest"),
    [
        (3, Rule(), 2),
        (4, Rule(), 2),
        (5, Rule(), 3),
        (5, Rule(collusion=0), 2),
        (4, Rule(collusion=0, dropout=0.4), 3),
    ],
)
def test_no_lies_about_survivors_open_the_input_of_one_site(n: int, rule: Rule, fewest: int) -> None:
    """All combinations of lists that a server could show, with the stated colluders helping it."""
    colluders, threshold = math.floor(rule.collusion * n), rule.plan(n).threshold
    assert smallest_sum(names(n)[colluders:], colluders, threshold, views(n, rule)) == fewest


def test_a_threshold_of_half_would_open_both_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: with 2 t = h, two sites each are told of different survivors."""
    monkeypatch.setattr(Rule, "plan", lambda _, n: Plan(n, n - 1, n // 2))
    assert smallest_sum(names(4), 0, 2, views(4, Rule())) == -1


def ssh(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> tuple[bytes, bytes]:
    encoding, plain = serialization.Encoding, serialization.NoEncryption()
    private = key.private_bytes(encoding.PEM, serialization.PrivateFormat.OpenSSH, plain)
    public = key.public_key().public_bytes(encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public


def test_an_identity_is_read_from_key_files() -> None:
    keys = {site: ssh(ec.generate_private_key(ec.SECP384R1())) for site in names(2)}
    a, b = names(2)
    roster = {site: public for site, (_, public) in keys.items()}
    one, two = (Identity.load(site, keys[site][0], roster) for site in (a, b))
    two.check(a, b"message", one.sign(b"message"))
    for site, message, signature in (
        (b, b"message", one.sign(b"message")),
        (a, b"other", one.sign(b"message")),
    ):
        with pytest.raises(PrivacyError, match="must be signed by it"):
            two.check(site, message, signature)
    with pytest.raises(PrivacyError, match="in the roster"):
        two.check("site 99", b"message", one.sign(b"message"))
    unsigned = Identity.load(a, None, None)
    assert unsigned.sign(b"message") == b""
    unsigned.check(b, b"message", b"")


def test_keys_that_do_not_fit_are_refused() -> None:
    (private, public), other = (
        ssh(ec.generate_private_key(ec.SECP384R1())),
        ssh(ed25519.Ed25519PrivateKey.generate()),
    )
    a, b = names(2)
    for key, roster in (
        (private, {}),
        (private, {b: public}),
        (private, {a: ssh(ec.generate_private_key(ec.SECP384R1()))[1]}),
        (None, {a: public}),
        (other[0], {a: public}),
        (private, {a: public, b: other[1]}),
        (b"no key", None),
        (private, {a: b"no key"}),
    ):
        with pytest.raises(ConfigError):
            Identity.load(a, key, roster)

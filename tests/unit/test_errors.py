"""Words that errors share."""

from __future__ import annotations

import pytest

from fedfair.errors import counted, likely, nearest


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 sites"), (1, "1 site"), (2, "2 sites"), (21, "21 sites")]
)
def test_a_noun_is_singular_for_one_alone(number: int, words: str) -> None:
    assert counted(number, "site") == words


def test_a_plural_of_its_own() -> None:
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]


@pytest.mark.parametrize(("name", "hint"), [("roundz", "; did you mean `rounds`?"), ("xyz", "")])
def test_the_nearest_name_is_offered_or_none(name: str, hint: str) -> None:
    assert nearest(name, ["rounds", "seed"]) == hint


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("roundz", ["rounds", "seed"], "; did you mean `rounds`?"),
        ("xyz", ["rounds", "seed"], "; known here are rounds, seed"),
        ("xyz", [], "; known here are no keys"),
    ],
)
def test_where_no_name_is_near_all_are_offered(name: str, known: list[str], hint: str) -> None:
    assert likely(name, iter(known)) == hint

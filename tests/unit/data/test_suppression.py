"""What `check` tells is turned into equations, and a solver tries to compute the small counts from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from fedfair.data.eye.aliases import ATTRIBUTES, GLAUCOMA
from fedfair.data.eye.index import Facts
from fedfair.data.eye.layout import NpzFile
from fedfair.data.eye.overview import Record, overview
from fedfair.data.eye.records import Entry
from fedfair.data.suppression import FEW, MANY, WITHHELD, all_large, may_band, told

NAMES = ("race", "sex", "ethnicity")
AXES = {name: (*ATTRIBUTES[name].groups, "unknown") for name in NAMES} | {
    "glaucoma": (*GLAUCOMA.groups, "unknown")
}
KEYS = tuple(AXES)
ATOMS = list(product(*AXES.values()))
Cell = dict[str, str]


def population(seed: int) -> list[tuple[str, ...]]:
    """Return people, some groups of them rare, with nobody in many."""
    rng = np.random.default_rng(seed)
    people = int(rng.choice([11, 19, 30, 60, 150, 400, 900]))
    columns = []
    for groups in AXES.values():
        shares = rng.dirichlet(np.full(len(groups), rng.choice([0.3, 1.0, 5.0])))
        if rng.random() < 0.6:
            shares[-1] = rng.choice([0, 0.01])
        columns.append(rng.choice(groups, people, p=shares / shares.sum()))
    return [tuple(map(str, person)) for person in zip(*columns, strict=True)]


def printed(people: Sequence[tuple[str, ...]]) -> list[str]:
    """Return what is told of them."""
    fields = [ATTRIBUTES[name] for name in NAMES]
    records = []
    for person in people:
        codes = [
            field.groups.index(value) if value in field.groups else None
            for field, value in zip([*fields, GLAUCOMA], person, strict=True)
        ]
        attributes = dict(zip(NAMES, codes, strict=False))
        file = NpzFile("a.npz", "a", 1, 1)
        entry = Entry(file, 0, codes[-1], attributes, 50.0, frozenset(), (), Facts({}, {}, [], ""))
        records.append(Record(entry, 0, {}))
    return list(overview(records, GLAUCOMA, fields, {}))


class World:
    """Equations and bounds on the counts of all atoms, read off the printed lines alone."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.rows: list[np.ndarray] = []
        self.low: list[float] = []
        self.high: list[float] = []
        for line in lines:
            self.read(line.strip())

    def say(self, cell: Cell, low: float, high: float) -> None:
        self.rows.append(indicator(cell))
        self.low.append(low)
        self.high.append(high)

    def read(self, line: str) -> None:
        what, _, rest = line.partition(": ")
        if "withheld" in rest or what in {"split", "age"}:
            return
        if match := re.fullmatch(r"([\d,]+) records without a problem", line):
            self.say({}, number(match[1]), number(match[1]))
        elif what in AXES:
            for group, shown in re.findall(r"(?:^|, )(.+?) (<10|10 or more|[\d,]*\d)(?=, |$)", rest):
                self.say({what: group}, *limits(shown, 1))
        elif match := re.fullmatch(r"glaucoma by (\w+)", what):
            self.shares(match[1], rest)
        elif what == "race and sex":
            for race, sex, shown in re.findall(r"(\w+) (\w+) (<10|10 or more|[\d,]*\d)(?=, |$)", rest):
                self.say({"race": race, "sex": sex}, *limits(shown, 0))
        else:
            raise AssertionError(f"a line that the reader does not know: {line}")

    def shares(self, name: str, rest: str) -> None:
        for group, said, total in re.findall(r"(?:^|, )([\w-]+) (.+?) of ([\d,]*\d)(?=, |$)", rest):
            self.say({name: group}, number(total), number(total))
            for part in said.split(" + "):
                match = re.fullmatch(r"(?:(.+) )?([\d.]+) %", part)
                assert match is not None
                count = round(float(match[2]) * number(total) / 100)
                self.say({name: group, "glaucoma": match[1] or "glaucoma"}, count, count)

    def range(self, cell: Cell) -> tuple[int, int]:
        """Return the fewest and the most people of a cell over all worlds."""
        rule = LinearConstraint(np.array(self.rows), self.low, self.high)
        ends = []
        for sign in (1, -1):
            found = milp(sign * indicator(cell), constraints=rule, integrality=1, bounds=Bounds(0))
            assert found.success, found.message
            ends.append(round(sign * found.fun))
        return ends[0], ends[1]


def indicator(cell: Cell) -> np.ndarray:
    return np.array(
        [float(all(atom[KEYS.index(key)] == value for key, value in cell.items())) for atom in ATOMS]
    )


def number(text: str) -> int:
    return int(text.replace(",", ""))


def limits(shown: str, fewest: int) -> tuple[float, float]:
    return {FEW: (fewest, 9), MANY: (10, np.inf)}.get(shown) or (number(shown), number(shown))


def cells() -> list[Cell]:
    """Return every cell that a table could tell."""
    pairs = [("race", "sex"), *((name, "glaucoma") for name in NAMES)]
    single = [{name: group} for name, groups in AXES.items() for group in groups]
    return single + [{a: x, b: y} for a, b in pairs for x in AXES[a] for y in AXES[b]]


def free(cell: Cell, low: int, high: int) -> bool:
    """Return whether a small count stays open: a group's over 1 to 9, an intersection's over ten values."""
    return (low <= 1 and high >= 9) or (len(cell) == 2 and high - low >= 9)


SEEDS = range(24)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_small_count_can_be_computed(seed: int) -> None:
    people = population(seed)
    lines = printed(people)
    assert not re.search(
        r"(?<![\d,.])[1-9](?![\d,.%])(?! %)", re.sub(r"<10|10 or more", "", "".join(lines[1:]))
    )
    world = World(lines)
    true = np.array([sum(person == atom for person in people) for atom in ATOMS])
    rows = np.array(world.rows) @ true
    assert ((rows >= world.low) & (rows <= world.high)).all()  # what is told is true
    small = [cell for cell in cells() if 0 < indicator(cell) @ true < 10]
    for cell in small[:: max(1, len(small) // 8)]:
        assert free(cell, *world.range(cell)), (cell, world.range(cell))


def test_the_populations_try_every_rule() -> None:
    text = "\n".join(line for seed in SEEDS for line in printed(population(seed)))
    for rule in (r"race: .*<10", r"race: withheld", r"by sex: female \d", r"by race: withheld"):
        assert re.search(rule, text), rule
    for rule in (r"race and sex: .*<10", r"race and sex: withheld", r"race and sex: asian female \d"):
        assert re.search(rule, text), rule


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": 10, "b": 250, "c": 0}, {"a": "10", "b": "250", "c": "0"}),
        ({"a": 1234, "b": 10}, {"a": "1,234", "b": "10"}),
        ({"a": 9, "b": 250, "c": 0}, {"a": FEW, "b": MANY, "c": "0"}),
        ({"a": 3, "b": 4, "c": 250}, {"a": FEW, "b": FEW, "c": MANY}),
        ({"a": 9, "b": 10}, {"a": FEW, "b": MANY}),  # 19 in all: 9 is what 10 leaves
        ({"a": 8, "b": 10}, dict.fromkeys("ab", WITHHELD)),  # 18 in all: b is at least 10, so a at most 8
        ({"a": 9, "b": 9}, dict.fromkeys("ab", WITHHELD)),
    ],
)
def test_one_table(counts: dict[str, int], expected: dict[str, str]) -> None:
    assert told(counts) == expected


def test_tables_of_two() -> None:
    assert all_large(np.array([[10, 10], [10, 99]]))
    assert not all_large(np.array([[10, 9], [10, 99]]))
    wide = np.array([[[2, 1], [20, 20]], [[20, 20], [20, 20]]])
    assert may_band(wide)
    assert not may_band(np.array([[[2, 1], [9, 9]], [[20, 20], [20, 20]]]))
    # Nobody to trade with: the two others share no class.
    assert not may_band(np.array([[[3, 0], [40, 0]], [[0, 40], [40, 40]]]))


def within(total: int, shown: dict[str, str]) -> Iterator[dict[str, int]]:
    """Yield all counts that agree with what was told and with their total: what a reader can infer."""
    ranges = []
    for text in shown.values():
        if text == WITHHELD:
            ranges.append(range(total + 1))
        elif text == FEW:
            ranges.append(range(1, 10))
        elif text == MANY:
            ranges.append(range(10, total + 1))
        else:
            ranges.append(range(int(text), int(text) + 1))
    for counts in product(*ranges):
        if sum(counts) == total:
            yield dict(zip(shown, counts, strict=True))


@given(st.lists(st.integers(0, 24), min_size=1, max_size=3))
def test_a_small_count_cannot_be_inferred(counts: list[int]) -> None:
    """One group is the total itself, which is not told below 10; nobody is told as 0."""
    true = {f"g{k}": count for k, count in enumerate(counts)}
    shown = told(true)
    candidates = [found for found in within(sum(counts), shown) if told(found) == shown]
    assert true in candidates
    for name, count in true.items():
        if 0 < count < 10 and len(counts) > 1:
            assert len({found[name] for found in candidates}) > 1, (true, shown)


def test_large_counts_are_told() -> None:
    assert told({"a": 10, "b": 293}) == {"a": "10", "b": "293"}
    assert told({"a": 9, "b": 293, "c": 40}) == {"a": FEW, "b": MANY, "c": MANY}

"""Whatever one site answers, it alone has failed, in one sentence; an honest answer is always taken."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Error, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.app import app as client_app
from client.records import brought, wrapped
from fedfair.audit import entries
from fedfair.config import parse_json
from fedfair.data import open_dataset
from fedfair.errors import InconsistentUpdates
from fedfair.privacy.policy import Policy
from fedfair.secagg import Field
from fedfair.signals import Signals, Variance
from fedfair.site import Workbench
from fedfair.uploads import Uploads
from fedfair.wire import from_bytes, to_bytes, unpack_signals
from server import replies
from server.app import app as server_app
from server.exchange import Answers, Sites
from server.journal import Journal
from server.roster import Roster
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, PRIVATE

Change = Callable[[RecordDict], object]
COUNTS, LOSSES, ROWS = "train/counts", "train/losses", "rows/encoder/a:fused"
FIELDS = (
    Field(COUNTS, (2, 3), 8, exact=True),
    Field(LOSSES, (2,), 8),
    Field(ROWS, (3, 4), 8, optional=True),
)
ROUND = 4


def honest(site: str) -> RecordDict:
    """Return an answer as it is asked for."""
    arrays = {COUNTS: np.ones((2, 3)), LOSSES: np.zeros(2), ROWS: np.ones((3, 4), np.float32)}
    told = {"name": site, "schema": "abc", "audit-n": 3, "audit-hash": 64 * "0"}
    return RecordDict({"arrays": wrapped({**arrays}), "site": ConfigRecord({**told})})


class Hostile(InProcessGrid):
    """A grid of two sites, of which south sends what it likes."""

    def __init__(self, change: Change | None = None, error: Error | None = None) -> None:
        def answer(message: Message, context: Context) -> Message:
            south = context.node_config["partition-id"] == 1
            if south and error is not None:
                return Message(error, reply_to=message)
            content = honest("south" if south else "north")
            if south and change is not None:
                change(content)
            return Message(content, reply_to=message)

        super().__init__(answer, 2)  # type: ignore[arg-type]


def ask(
    grid: Hostile,
    folder: Path,
    privacy: str = "off",
    fields: Sequence[Field] | None = FIELDS,
    journal: Journal | None = None,
) -> Answers:
    sites = Sites(
        *(grid, "abc", ("north", "south"), 1.0, folder, Roster(None), journal or Journal(None, "r"), privacy)
    )
    content = RecordDict({"run": ConfigRecord({"round": ROUND})})
    return sites.ask(sorted(grid.get_node_ids()), "train", content, ROUND, fields)


def only_failure(answers: Answers) -> str:
    """Return why south has failed, once north has not, and that it fits a log."""
    assert answers.sites == ["north"]
    assert list(answers.arrays) == ["north"]
    (reason,) = answers.failed.values()
    assert len(reason) <= 500
    assert reason.isprintable()
    return reason


def put(name: str, value: np.ndarray) -> Change:
    return lambda content: content.array_records["arrays"].update({name: Array(value)})


def declared(name: str, shape: tuple[int, ...], dtype: str = "float64", data: bytes = b"") -> Change:
    array = Array(dtype, shape, "numpy.ndarray", data)
    return lambda content: content.array_records["arrays"].update({name: array})


def say(**told: Any) -> Change:
    said = {key.replace("_", "-"): value for key, value in told.items()}
    return lambda content: content.config_records["site"].update(said)


def without(record: str, name: str) -> Change:
    return lambda content: content[record].pop(name)  # type: ignore[union-attr]


COUNTED = f"`{COUNTS}` of site south must hold counts"
HOSTILE: Mapping[str, tuple[Change, str]] = {
    "missing": (without("arrays", COUNTS), f"the answer of site south must hold `{COUNTS}`"),
    "one too many": (put("train/variance", np.ones(3)), "for alone, got `train/variance` too"),
    "a name that steers a terminal": (put("\x1b[2J\n" + 9999 * "a", np.ones(3)), "got ` [2J aaa"),
    "another shape": (put(COUNTS, np.ones((2, 4))), f"`{COUNTS}` of site south must be (2, 3), got (2, 4)"),
    "no axes": (put(LOSSES, np.array(1.0)), f"`{LOSSES}` of site south must be (2,), got ()"),
    "a hundred axes": (declared(LOSSES, 100 * (1,)), "must be (2,), got 100 axes"),
    "30000 axes": (declared(LOSSES, 30000 * (1,)), "must be (2,), got 30000 axes"),
    "negative axes": (declared(LOSSES, (-1, -1)), "must be (2,), got (-1, -1)"),
    "integers": (put(LOSSES, np.ones(2, np.int64)), f"`{LOSSES}` of site south cannot be read"),
    "objects": (declared(LOSSES, (2,), "object", b"cos\nsystem\n"), "must be in NumPy's file format"),
    "another length": (declared(LOSSES, (2,), data=to_bytes(np.ones(3))), "must be in NumPy's file format"),
    "words for rows": (put(ROWS, np.ones((3, 4), np.uint32)), f"`{ROWS}` of site south cannot be read"),
    "NaN": (put(LOSSES, np.array([0, np.nan])), f"`{LOSSES}` of site south must be finite"),
    "infinity": (put(ROWS, np.full((3, 4), np.inf, np.float32)), f"`{ROWS}` of site south must be finite"),
    "negative counts": (put(COUNTS, -np.ones((2, 3))), COUNTED),
    "half a count": (put(COUNTS, np.full((2, 3), 0.5)), COUNTED),
    "counts beyond all": (put(COUNTS, np.full((2, 3), 1e300)), COUNTED),
    "no arrays": (lambda content: content.pop("arrays"), "site south must hold `arrays`, got none"),
    "no name": (without("site", "name"), "it lacks ['name']"),
    "nothing": (lambda content: content.clear(), "it lacks ['name', 'schema']"),
    "another name": (say(name=9999 * "x\n"), "'x\\nx\\n"),
    "a name of bytes": (say(name=b"south"), "is no site of the data"),
    "a list of names": (say(name=["south", "north"]), "is no site of the data"),
    "the other's name": (say(name="north"), "site north must be one node, got two"),
    "another schema": (say(schema=9999 * "\r"), "must have the server's schema (abc), got"),
    "no budget where none is": (say(exhausted="no\nmore"), "no budget in a run without sample-level privacy"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_only_the_site_that_sent_it_fails(case: str, tmp_path: Path) -> None:
    change, words = HOSTILE[case]
    assert words in only_failure(ask(Hostile(change), tmp_path))


@pytest.mark.parametrize(
    "told",
    [
        {"audit_n": "x"},
        {"audit_n": -1},
        {"audit_n": 1.5},
        {"audit_n": [1]},
        {"audit_hash": "no hash"},
        {"audit_hash": 64 * b"0"},
    ],
)
def test_a_head_that_is_none_is_refused(told: dict[str, Any], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl", "r")
    reason = only_failure(ask(Hostile(say(**told)), tmp_path, journal=journal))
    assert "`audit-n` and `audit-hash` of south must be the number and the hash" in reason
    assert [e["event"] for e in entries(tmp_path / "log.jsonl")[1:]] == ["asked", "answered", "refused"]


@pytest.mark.parametrize("name", ["audit-n", "audit-hash"])
def test_half_a_head_is_refused(name: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl", "r")
    assert "`audit-n`" in only_failure(ask(Hostile(without("site", name)), tmp_path, journal=journal))


class Relabelled(Hostile):
    """A grid whose replies say that they are of another round and kind."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            reply.metadata.__dict__.update({"_group_id": "x", "_message_type": "evaluate"})
            yield reply


def test_the_log_says_what_was_asked_not_what_a_reply_says_of_itself(tmp_path: Path) -> None:
    answers = ask(Relabelled(), tmp_path, journal=Journal(tmp_path / "log.jsonl", "r"))
    assert answers.sites == ["north", "south"]
    came = [e for e in entries(tmp_path / "log.jsonl") if e["event"] == "answered"]
    assert [(e["round"], e["kind"], e["site"]) for e in came] == [
        (ROUND, "train", "north"),
        (ROUND, "train", "south"),
    ]


def test_an_error_is_told_in_a_line(tmp_path: Path) -> None:
    assert only_failure(ask(Hostile(error=Error(2, "\x1b]0;\n" + 9999 * "a")), tmp_path)).startswith(
        " ]0; aa"
    )


def test_rows_of_a_modality_that_a_site_does_not_have_may_be_left_out(tmp_path: Path) -> None:
    answers = ask(Hostile(without("arrays", ROWS)), tmp_path)
    assert not answers.failed
    assert set(answers.arrays["south"]) == {COUNTS, LOSSES}


def test_a_budget_can_be_spent_where_there_is_one(tmp_path: Path) -> None:
    answers = ask(Hostile(say(exhausted="no\nmore")), tmp_path, privacy="sample")
    assert (answers.exhausted, answers.failed) == ({"south": "no more"}, {})


def test_where_whole_sites_are_protected_no_value_fails_a_site(tmp_path: Path) -> None:
    answers = ask(Hostile(put(LOSSES, np.array([0, np.nan]))), tmp_path, privacy="site")
    assert (answers.sites, answers.failed) == (["north", "south"], {})
    only_failure(ask(Hostile(put(LOSSES, np.zeros(3))), tmp_path, privacy="site"))


def test_nothing_of_an_answer_with_a_wrong_array_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled: list[np.ndarray] = []
    monkeypatch.setattr(replies, "spooled", lambda array, _: spooled.append(array) or array)
    for change in (put("big", np.zeros(1 << 20)), put(LOSSES, np.zeros(1 << 20)), without("arrays", COUNTS)):
        content = honest("south")
        change(content)
        message = Message(content, dst_node_id=1, message_type="train")
        with pytest.raises(InconsistentUpdates):
            replies.read("south", message, FIELDS, tmp_path)
    assert not spooled


class Lossy(Hostile):
    """A grid that cannot pass south's message on, or not read its answer."""

    number: str | None = ""
    raised: Exception | None = None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        first, second = super().push_messages(messages)
        self.second = second
        return [first, second if self.raised is not None else self.number]  # type: ignore[list-item]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = list(message_ids)
        if self.raised is not None and self.second in wanted:
            raise self.raised
        return super().pull_messages(wanted)


@pytest.mark.parametrize("number", ["", None])
def test_a_node_that_is_gone_is_told_so_at_once(number: str | None, tmp_path: Path) -> None:
    grid = Lossy()
    grid.number = number
    assert only_failure(ask(grid, tmp_path)) == "its node is not registered any more"


def test_all_nodes_may_be_gone(tmp_path: Path) -> None:
    grid = Lossy()
    grid.push_messages = lambda messages: ["" for _ in messages]  # type: ignore[method-assign]
    answers = ask(grid, tmp_path)
    assert (len(answers.failed), answers.sites) == (2, [])


@pytest.mark.parametrize("raised", [ValueError("a"), KeyError("b"), TypeError("c"), RecursionError("d")])
def test_an_answer_that_flower_cannot_read_fails_its_site(raised: Exception, tmp_path: Path) -> None:
    grid = Lossy()
    grid.raised = raised
    assert only_failure(ask(grid, tmp_path)) == f"its answer cannot be read ({type(raised).__name__})"


DIMENSION = st.integers(-2, 4) | st.sampled_from([2**31, 2**63, 10**40])


@given(
    shape=st.lists(DIMENSION, max_size=12).map(tuple),
    dtype=st.sampled_from(["float32", "float64", "uint64", "object", "", "no type"]),
    data=st.binary(max_size=200) | st.just(to_bytes(np.ones(3))),
)
def test_no_declared_array_raises_anything_else(shape: tuple[int, ...], dtype: str, data: bytes) -> None:
    with contextlib.suppress(InconsistentUpdates):
        assert from_bytes(data, dtype, shape).shape == shape


@pytest.mark.parametrize("shape", [(-1, -1), (0, 2**31, 2**31, 2**31), 65 * (1,), 30000 * (1,)])
def test_a_shape_that_numpy_cannot_make_is_refused(shape: tuple[int, ...]) -> None:
    """Although the bytes are as the shape says: the header of it, and one value or none."""
    header = to_bytes(np.zeros((7, 8))).replace(b"(7, 8)", str(shape).encode())[: -7 * 8 * 8]
    for data in (header, header + bytes(8), to_bytes(np.zeros(1))):
        with pytest.raises(InconsistentUpdates, match="at most 8 axes and 2\\^40 values"):
            from_bytes(data, "float64", shape)


def signals(**changed: Any) -> Signals:
    """Return signals of two heads, three groups and two classes, one of these arrays another."""
    counts = np.ones((2, 3, 2))
    good = {"counts": counts, "losses": np.ones((2, 3)), "histograms": np.ones((2, 3, 1, 2, 1))}
    return Signals(**{**good, **changed})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("histograms", np.array(1.0)),
        ("histograms", np.ones((2, 3, 1, 1, 1))),
        ("histograms", np.ones((2, 3, 2, 2, 1))),
        ("counts", np.ones(3)),
        ("losses", np.ones((3, 2))),
        ("head_gradients", np.ones(3)),
        ("head_gradients", np.ones((2, 3, 4))),
    ],
)
def test_signals_that_do_not_fit_together_are_refused(name: str, value: np.ndarray) -> None:
    signals().check("site south")
    with pytest.raises(InconsistentUpdates, match="of site south must"):
        signals(**{name: value}).check("site south")


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_variance_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(InconsistentUpdates, match="`variance` of site south must be finite"):
        signals(variance=Variance(1.0, value)).check("site south")


@pytest.mark.parametrize("values", [np.ones(5), np.ones(2), np.ones((3, 1)), np.array(1.0)])
def test_a_variance_of_other_arrays_is_refused(values: np.ndarray) -> None:
    arrays = {f"train/{name}": value for name, value in signals()._arrays().items()}
    with pytest.raises(InconsistentUpdates, match="`train/variance` must be"):
        unpack_signals("train", arrays | {"train/variance": values})


class Tapped(InProcessGrid):
    """A grid that keeps what was asked beside what was answered."""

    def _prepare(self, message: Message) -> Message:
        asked = super()._prepare(message)
        self.asked = getattr(self, "asked", {}) | {asked.metadata.message_id: asked}
        return asked

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        answered = list(super().pull_messages(message_ids))
        pairs = [(self.asked[reply.metadata.reply_to_message_id], reply) for reply in answered]
        self.heard = [*getattr(self, "heard", []), *pairs]
        return answered


def whole_run(folder: Path, config: Path, *overrides: str) -> Tapped:
    values = {
        "config": str(config),
        "overrides": ";".join(["report.resamples=20", *overrides]),
        "output": str(folder),
    }
    grid = Tapped(client_app, 4)
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values))
    return grid


SITE_LEVEL = (
    "privacy={mode: site, noise_multiplier: 2.0, target_delta: 1e-5, clipping_norm: 0.05, evaluation: %s, "
    "statistics: {every: 2, bins: 8, noise_multiplier: 5.0}}"
)
RUNS: Mapping[str, tuple[Path, tuple[str, ...]]] = {
    "gradient": (HEART, ("method.name=multifair", "training.mode=gradient")),
    "update": (HEART, ("method.name=dual_mimo", "training.mode=update")),
    "two exchanges": (HEART, ("method.name=dual_mimo", "training.exchanges=2")),
    "weights": (HEART, ("training.mode=weights", "data.validation_fraction=0.2", "server.monitor=auc")),
    "some released": (PRIVATE, ("method.name=dual_mimo", "privacy.statistics.every=2")),
    "gradients of heads released": (PRIVATE, ("method.name=multifair",)),
    "exact tests": (PRIVATE, ("privacy.evaluation=exact", "privacy.statistics.every=2")),
    "no tests": (PRIVATE, ("method.name=fedavg", "privacy.evaluation=none")),
    "sites, exact tests": (PRIVATE, ("method.name=mimo", SITE_LEVEL % "exact")),
    "sites, no tests": (PRIVATE, ("method.name=fedavg", SITE_LEVEL % "none")),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_honest_answer_of_a_run_is_what_the_fields_say(name: str, tmp_path: Path) -> None:
    config, overrides = RUNS[name]
    grid = whole_run(tmp_path / "run", config, "rounds=3", *overrides)
    settings = parse_json(str(grid.heard[0][0].content.config_records["run"]["config"]))
    schema = open_dataset(settings.data.name, Policy.of({}).path(settings), settings.data.options, 0).schema
    uploads = Uploads(settings, schema, Workbench(settings, schema))
    kinds, sizes = set(), [0]
    for asked, reply in grid.heard:
        kind, number = asked.metadata.message_type, int(asked.metadata.group_id)
        fields = uploads.fields(kind, number, brought(asked.content))
        found = replies.read("any", reply, fields, tmp_path)
        left_out = {field.name for field in fields} - found.keys()
        # Switzerland's lab is never empty here, but a site of other data may lack one.
        assert all(name.startswith("rows/") for name in left_out)
        kinds.add(kind)
        sizes.append(sum(value.nbytes for name, value in found.items() if name.startswith("rows/")))
    # The room that the centre asks for: no answer is larger; in gradient mode one may be asked for that is.
    assert max(sizes) <= uploads.largest <= (1.4 if name == "gradient" else 1.0) * max(sizes)
    assert {"query", "train", "evaluate"} <= kinds
    if settings.training.exchanges == 2:
        assert "train.signals" in kinds


def test_rows_are_required_where_a_missing_modality_is_a_secret(tmp_path: Path) -> None:
    grid = whole_run(tmp_path / "run", PRIVATE, "rounds=1")
    settings = parse_json(str(grid.heard[0][0].content.config_records["run"]["config"]))
    schema = open_dataset(settings.data.name, Policy.of({}).path(settings), settings.data.options, 0).schema
    uploads = Uploads(settings, schema, Workbench(settings, schema))
    (asked, reply) = next(pair for pair in grid.heard if pair[0].metadata.message_type == "train")
    fields = uploads.fields("train", 1, brought(asked.content))
    arrays = reply.content.array_records["arrays"]
    first = next(name for name in arrays if name.startswith("rows/"))
    del arrays[first]
    with pytest.raises(InconsistentUpdates, match=f"must hold `{first}`"):
        replies.read("any", reply, fields, tmp_path)
    with pytest.raises(InconsistentUpdates, match="`kind` must be query, train"):
        uploads.fields("train", 1, None)
    with pytest.raises(InconsistentUpdates, match="got 'evaluate.other'"):
        uploads.layout("evaluate.other", 1, None)
    assert json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1])["failed"] == {}

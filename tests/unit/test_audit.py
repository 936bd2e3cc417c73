from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfair.audit import EVENTS, AuditLog, digest, entries, render, summary, verify
from fedfair.errors import AuditError

HASH = "ab" * 32


def exchange(folder: Path, rounds: int = 6) -> tuple[Path, Path]:
    """Write the logs of a site and of its centre, who note each other's head with every message."""
    site, centre = AuditLog(folder / "site.jsonl"), AuditLog(folder / "centre.jsonl")
    site.append("code-approved", code=HASH, by="A. Müller")
    centre.append("run-started", run="heart/1", config_hash=HASH, code_hash=HASH, config={"rounds": rounds})
    for number in range(1, rounds + 1):
        told = {"run": "heart/1", "round": number, "kind": "train"}
        centre.append("asked", **told, site="Cleveland")
        n, value = centre.head()
        site.append("code-run", run="heart/1", code=HASH)
        site.append(
            "left-site", **told, leaves={"rows/fusion": [2, 3]}, digest=HASH, bytes=1200,
            epsilon=0.5 * number, delta=1e-5, peer="centre", peer_n=n, peer_hash=value,
        )  # fmt: skip
        n, value = site.head()
        centre.append("answered", **told, site="Cleveland", peer="Cleveland", peer_n=n, peer_hash=value)
        # Another site, whose log is not at hand.
        centre.append("answered", **told, site="Hungary", peer="Hungary", peer_n=number, peer_hash="cd" * 32)
    centre.append("run-ended", run="heart/1", status="complete", rounds=rounds)
    return site.path, centre.path


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, Path]:
    return exchange(tmp_path)


def rewrite(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(lines))


def forged(line: bytes, **changes: Any) -> bytes:
    """Return a line with other values and a hash that fits them."""
    entry = {k: v for k, v in (json.loads(line) | changes).items() if k != "hash"}
    plain = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    whole = entry | {"hash": hashlib.sha256(plain.encode()).hexdigest()}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def rechained(lines: list[bytes], start: int) -> list[bytes]:
    """Return the lines with numbers and hashes made right from line `start` on."""
    lines = list(lines)
    for n in range(start, len(lines)):
        lines[n] = forged(lines[n], n=n, previous=json.loads(lines[n - 1])["hash"])
    return lines


def test_lines_hold_the_hashes_that_their_definition_gives(logs: tuple[Path, Path]) -> None:
    previous = "0" * 64
    for n, line in enumerate(logs[0].read_text().splitlines()):
        entry = json.loads(line)
        stated = entry.pop("hash")
        plain = json.dumps(entry, sort_keys=True, separators=(",", ":"))
        assert (entry["n"], entry["previous"]) == (n, previous)
        assert stated == hashlib.sha256(plain.encode()).hexdigest()
        assert abs(datetime.now(UTC) - datetime.fromisoformat(entry["time"])).total_seconds() < 300
        previous = stated
    assert AuditLog(logs[0]).head() == (n, previous)
    found = verify(logs[0]).entries
    assert [entry["event"] for entry in found[:4]] == ["begin", "code-approved", "code-run", "left-site"]
    assert found[1]["by"] == "A. Müller"
    assert logs[0].stat().st_mode & 0o777 == 0o600


def test_no_two_logs_are_equal(tmp_path: Path) -> None:
    begun = [entries(AuditLog(tmp_path / name).path)[0]["log"] for name in ("a", "b")]
    assert begun[0] != begun[1]
    assert AuditLog(tmp_path / "a").head()[0] == 0  # opened again, not begun again


def test_every_changed_byte_is_seen(logs: tuple[Path, Path]) -> None:
    whole = logs[1].read_bytes()
    assert whole.count(b"\n") == 21
    for place, byte in enumerate(whole):
        other = (byte + 1 if chr(byte).isdigit() else byte ^ 0x20) % 256  # another digit, the other case
        logs[1].write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
        with pytest.raises(AuditError, match=r"centre.jsonl`, line \d+, must"):
            verify(logs[1])


def test_every_removed_or_added_byte_is_seen(tmp_path: Path) -> None:
    site, _ = exchange(tmp_path, 1)
    whole = site.read_bytes()
    for place in range(len(whole)):
        for changed in (whole[:place] + whole[place + 1 :], whole[:place] + b" " + whole[place:]):
            site.write_bytes(changed)
            with pytest.raises(AuditError, match="site.jsonl"):
                verify(site)


def test_a_removed_inserted_or_moved_line_is_named(logs: tuple[Path, Path]) -> None:
    site = logs[0]
    lines = site.read_bytes().splitlines(keepends=True)
    for n in range(len(lines) - 1):
        rewrite(site, lines[:n] + lines[n + 1 :])
        with pytest.raises(AuditError, match=f"line {n + 1}, must be entry {n}, .* an entry was removed"):
            verify(site)
        rewrite(site, [*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]])
        with pytest.raises(AuditError, match=f"line {n + 1}, must be entry {n}, .* entries were moved"):
            verify(site)
        for k in range(len(lines)):
            rewrite(site, [*lines[: n + 1], lines[k], *lines[n + 1 :]])
            with pytest.raises(AuditError, match=f"line ({n + 2}|{n + 3}), must be .* an entry was inserted"):
                verify(site)
        rewrite(site, [*lines[: n + 1], forged(lines[n], n=n + 1), *lines[n + 1 :]])
        with pytest.raises(AuditError, match="follow from the line before"):
            verify(site)


def test_an_entry_altered_with_its_hash_breaks_the_chain(logs: tuple[Path, Path]) -> None:
    lines = logs[0].read_bytes().splitlines(keepends=True)
    for n in range(len(lines) - 1):
        rewrite(logs[0], [*lines[:n], forged(lines[n], time="2020-01-01T00:00:00+00:00"), *lines[n + 1 :]])
        with pytest.raises(AuditError, match=f"line {n + 2}, must follow from the line before"):
            verify(logs[0])


def test_each_is_whole_against_the_other(logs: tuple[Path, Path]) -> None:
    site, centre = logs
    assert verify(site, against=[centre]).witnessed == 6
    assert verify(centre, against=[site]).witnessed == 6
    assert verify(site).witnessed == 0


def test_a_cut_end_shows_in_the_other_log(logs: tuple[Path, Path]) -> None:
    site, centre = logs
    lines = site.read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        rewrite(site, lines[:kept])
        assert len(verify(site).entries) == kept  # the chain alone shows nothing
        with pytest.raises(AuditError, match="its end was cut off|written anew, or these two have never"):
            verify(site, against=[centre])


def test_a_log_written_anew_shows_in_the_other_log(logs: tuple[Path, Path]) -> None:
    site, centre = logs
    lines = site.read_bytes().splitlines(keepends=True)
    for start in range(1, len(lines)):
        changed = [
            *lines[:start],
            forged(lines[start], time="2020-01-01T00:00:00+00:00"),
            *lines[start + 1 :],
        ]
        rewrite(site, rechained(changed, start))
        verify(site)
        with pytest.raises(AuditError, match="written anew"):
            verify(site, against=[centre])


def test_an_anchor_noted_by_hand_is_held_to(logs: tuple[Path, Path]) -> None:
    n, value = AuditLog(logs[0]).head()
    assert verify(logs[0], anchors={n: value}).witnessed == 1
    with pytest.raises(AuditError, match=f"line {n}, must have the hash that was noted by hand"):
        verify(logs[0], anchors={n - 1: value})
    for beyond in (n + 1, -1):
        with pytest.raises(AuditError, match=f"must hold entry {beyond}, .* it ends with entry {n}"):
            verify(logs[0], anchors={beyond: value})


def test_the_other_log_must_be_whole_itself(logs: tuple[Path, Path]) -> None:
    lines = logs[1].read_bytes().splitlines(keepends=True)
    rewrite(logs[1], lines[:5] + lines[6:])
    with pytest.raises(AuditError, match="centre.jsonl`, line 6"):
        verify(logs[0], against=[logs[1]])


def test_a_log_that_noted_no_head_proves_nothing_and_says_so(logs: tuple[Path, Path], tmp_path: Path) -> None:
    alone = AuditLog(tmp_path / "alone.jsonl")
    alone.append("asked", run="heart/1", round=1, peer="Cleveland", peer_n=None, peer_hash=None)
    found = verify(logs[0], against=[alone.path])
    assert found.witnessed == 0
    assert found.notes == [f"`{alone.path}` notes no head of another log"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"event": "begin"}, "only the first `begin`"),
        ({"event": "peeked"}, "must be one of"),
        ({"patients": ["A. Müller"]}, r"only, got \['patients'\]"),
        ({"n": "1"}, "altered"),
        ({"n": True}, "altered"),
        ({"event": ["begin"]}, "altered"),
        ({"time": "yesterday"}, "JSON"),
        ({"time": 7}, "JSON"),
    ],
)
def test_what_the_log_would_not_have_written_is_refused(
    logs: tuple[Path, Path], changes: dict[str, Any], words: str
) -> None:
    lines = logs[0].read_bytes().splitlines(keepends=True)[:2]
    rewrite(logs[0], [lines[0], forged(lines[1], **changes)])
    with pytest.raises(AuditError, match=f"line 2, .*{words}"):
        verify(logs[0])


@pytest.mark.parametrize(
    "content",
    [b"\n", b"[]\n", b"{}\n", b"null\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"n":1e999}\n', b"\0" * 9],
)
def test_other_files_are_no_logs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(AuditError, match="line 1, must"):
        entries(path)


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="must be readable, got No such file"):
        verify(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(AuditError, match="empty file"):
        verify(tmp_path / "empty")
    with pytest.raises(AuditError, match="must be writable, got Is a directory"):
        AuditLog(tmp_path)


def test_a_first_entry_of_another_kind_is_refused(logs: tuple[Path, Path]) -> None:
    line = logs[0].read_bytes().splitlines(keepends=True)[1]
    rewrite(logs[0], [forged(line, n=0, previous="0" * 64)])
    with pytest.raises(AuditError, match="only the first `begin`, got 'code-approved'"):
        verify(logs[0])


def test_a_clock_set_back_is_noted_and_no_error(logs: tuple[Path, Path]) -> None:
    lines = logs[0].read_bytes().splitlines(keepends=True)[:4]
    times = ("10:00:00+00:00", "10:00:00+00:00", "09:59:59+00:00", "11:00:00+01:00")
    for n, text in enumerate(times):
        lines[n] = forged(lines[n], time=f"2026-01-01T{text}")
    rewrite(logs[0], rechained(lines, 1))
    assert verify(logs[0]).notes == []  # a second back, then the same moment elsewhere
    lines[3] = forged(lines[3], time="2026-01-01T09:58:00+00:00")
    rewrite(logs[0], rechained(lines, 1))
    assert verify(logs[0]).notes == ["entry 3 is 119 s older than the one before: a clock went back"]


@pytest.mark.parametrize(
    ("event", "fields", "words"),
    [
        ("code-aproved", {}, "did you mean `code-approved`"),
        ("code-approved", {"patient": "A. Müller"}, r"must have fields of \['code', 'by'\] only"),
        ("code-approved", {"hash": HASH}, "only"),
        ("asked", {"n": 3}, "only"),
        ("asked", {"round": float("nan")}, "finite"),
        ("asked", {"round": np.int64(3)}, "JSON"),
        ("asked", {"round": (1, 2)}, "tuples"),
        ("run-started", {"config": {1: "x"}}, "no text"),
        ("asked", {"run": b"x"}, "JSON"),
    ],
)
def test_what_is_not_declared_does_not_get_in(
    tmp_path: Path, event: str, fields: dict[str, Any], words: str
) -> None:
    log = AuditLog(tmp_path / "log")
    before = log.path.read_bytes()
    with pytest.raises(AuditError, match=words):
        log.append(event, **fields)
    assert log.path.read_bytes() == before


def test_no_event_has_a_field_that_the_log_writes_itself() -> None:
    own = {"n", "time", "event", "previous", "hash"}
    assert not [event for event, fields in EVENTS.items() if own & set(fields)]


def test_the_page_lists_every_event_with_its_fields() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit-log.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    listed = {event.strip(" `"): re.findall(r"`(\w+)`", fields) for event, fields in rows}
    assert listed == {event: list(fields) for event, fields in EVENTS.items()}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.sampled_from(sorted(EVENTS.keys() - {"begin", "torn"})).flatmap(
    lambda event: st.tuples(st.just(event), st.dictionaries(st.sampled_from(EVENTS[event]), VALUES))
)


@given(st.lists(ENTRIES, max_size=4))
def test_any_value_is_read_back_as_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, given_entries: list[tuple[str, dict[str, Any]]]
) -> None:
    log = AuditLog(tmp_path_factory.mktemp("any") / "log")
    heads = [log.append(event, **fields) for event, fields in given_entries]
    found = verify(log.path).entries[1:]
    assert [entry["hash"] for entry in found] == heads
    for entry, (event, fields) in zip(found, given_entries, strict=True):
        assert {key: entry[key] for key in fields} == fields
        assert (entry["event"], len(entry)) == (event, 5 + len(fields))
    render(found)


@pytest.mark.parametrize("cut", [1, 2, 100, 10**6])
def test_a_write_that_was_cut_off_is_set_aside(tmp_path: Path, cut: int) -> None:
    log = AuditLog(tmp_path / "log")
    for number in range(3):
        log.append("asked", run="heart/1", round=number)
    whole = log.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = lines[3][: min(cut, len(lines[3]) - 1)]
    for k in (1, 2):
        before = log.path.read_bytes()
        log.path.write_bytes(before + torn)
        with pytest.raises(AuditError, match="was cut off"):
            verify(log.path)
        log.append("asked", run="heart/1", round=9)
        assert log.path.read_bytes().startswith(before)
        aside = tmp_path / f"log.torn-{k}"
        assert aside.read_bytes() == torn
        told = verify(log.path).entries[-2]
        assert told["event"] == "torn"
        assert (told["file"], told["bytes"]) == (aside.name, len(torn))
        assert told["sha256"] == hashlib.sha256(torn).hexdigest()
    assert [entry["event"] for entry in entries(log.path)].count("asked") == 5


def test_a_torn_beginning_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"event":"beg')
    assert AuditLog(path).head()[0] == 1
    assert [entry["event"] for entry in verify(path).entries] == ["begin", "torn"]


def test_entries_longer_than_a_block_are_found(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    for size in (10, 4096, 5000, 20_000, 10):
        log.append("stopped", reason="x" * size)
        log.path.write_bytes(log.path.read_bytes() + b"y" * 9000)
    log.append("stopped", reason="end")
    found = verify(log.path).entries
    assert [entry["event"] for entry in found] == ["begin", *["stopped", "torn"] * 5, "stopped"]


def test_nothing_is_added_behind_an_altered_entry(logs: tuple[Path, Path]) -> None:
    changed = logs[0].read_bytes().replace(b'"round":6', b'"round":7')
    logs[0].write_bytes(changed)
    with pytest.raises(AuditError, match="last entry, must be as it was written"):
        AuditLog(logs[0])
    assert logs[0].read_bytes() == changed


def test_a_full_disk_is_refused_and_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "log")
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr("os.write", lambda file, content: write(file, content[:50]))
        with pytest.raises(AuditError, match="No space left on device; nothing is done unlogged"):
            log.append("stopped", reason="x")
    log.append("stopped", reason="y")
    assert [entry["event"] for entry in verify(log.path).entries] == ["begin", "torn", "stopped"]


WRITER = """
import sys
from pathlib import Path
from fedfair.audit import AuditLog
path, name, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
for number in range(times):
    AuditLog(path).append("asked", run=name, round=number)
    print(number, flush=True)
"""


def start_writer(path: Path, name: str, times: int) -> subprocess.Popen[str]:
    """Return a process that appends as soon as it reads a line."""
    command = [sys.executable, "-c", WRITER, str(path), name, str(times)]
    root, pipe = Path(__file__).parents[2], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root)


def test_many_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writers = [start_writer(path, f"run-{k}", 150) for k in range(4)]
    time.sleep(0.5)  # all have been started, so that they write at the same time
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    found = verify(path).entries
    assert len(found) == 601
    for k in range(4):
        assert [e["round"] for e in found if e.get("run") == f"run-{k}"] == list(range(150))


def test_a_killed_writer_loses_nothing_that_it_was_told_was_written(tmp_path: Path) -> None:
    path, draw = tmp_path / "log", random.Random(0)
    for k in range(5):
        writer = start_writer(path, f"run-{k}", 10**6)
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
        told = [writer.stdout.readline() for _ in range(5)]
        time.sleep(draw.random() / 50)
        os.kill(writer.pid, signal.SIGKILL)
        told += writer.communicate()[0].splitlines(keepends=True)
        AuditLog(path)
        rounds = [entry["round"] for entry in verify(path).entries if entry.get("run") == f"run-{k}"]
        last = int([line for line in told if line.endswith("\n")][-1])
        assert rounds == list(range(len(rounds)))
        assert len(rounds) in (last + 1, last + 2)  # an entry may be written and not yet told


def test_a_digest_is_of_names_types_shapes_and_values() -> None:
    rng = np.random.default_rng(0)
    arrays = {"b": rng.normal(size=(2, 3)), "a": np.arange(4, dtype=np.float32), "ä": np.array(1.0)}
    own = digest(arrays)
    assert digest(dict(reversed(arrays.items()))) == own
    assert digest(arrays | {"b": np.asfortranarray(arrays["b"])}) == own
    changed = arrays["b"].copy()
    changed[1, 2] = np.nextafter(changed[1, 2], 9)
    others = (
        {"b": changed},
        {"b": arrays["b"].reshape(3, 2)},
        {"b": arrays["b"].astype(">f8")},
        {"a": arrays["a"].view(np.int32)},
        {"c": arrays["b"]},
    )
    assert len({own, digest({}), *(digest(arrays | other) for other in others)}) == 7
    assert digest({"a": arrays["a"], "b": arrays["b"]}) != digest({"a": arrays["b"], "b": arrays["a"]})


def test_the_table_is_aligned_and_no_text_steers_the_terminal(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    log.append("refused", run="heart/1", round=12, site="Zürich", reason="\x1b[2Jgone\nrow \u202e" + "x" * 99)
    log.append("left-site", digest=HASH, leaves={"rows/fusion": [2], "train/counts": [3]}, epsilon=None)
    lines = render(entries(log.path)).splitlines()
    assert len(lines) == 4
    assert "".join(lines).isprintable()
    assert "site Zürich" in lines[2]
    assert "\\u001b[2Jgone\\nrow" in lines[2]
    assert lines[2].endswith("…")
    assert "leaves rows/fusion, train/counts  digest abababababab  epsilon null" in lines[3]
    start = lines[0].index("event")
    assert [line[start:].split()[0] for line in lines] == ["event", "begin", "refused", "left-site"]


def test_the_summary_counts_by_run(logs: tuple[Path, Path]) -> None:
    AuditLog(logs[0]).append("refused", run="other", round=1, reason="no")
    lines = summary(logs[0], [logs[1]]).splitlines()
    assert lines[0].startswith("site.jsonl: 15 entries, ")
    assert lines[1] == f"head: entry 14, {AuditLog(logs[0]).head()[1]}"
    assert lines[2] == "witnesses: 6 of its heads stand in other logs"
    assert lines[3] == "run heart/1: code-run 6, left-site 6, 7,200 bytes, epsilon 3 at delta 1e-05"
    assert lines[4] == "run other: refused 1"
    assert "a cut end would not show" in summary(logs[0]).splitlines()[2]
    logs[0].write_bytes(logs[0].read_bytes()[:-1])
    with pytest.raises(AuditError, match="cut off"):
        summary(logs[0])

"""Each bad input gets one sentence on stderr, a non-zero exit and nothing lost; odd sites still work."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Context, Message

from client.app import app as client_app
from fedfair.cli import main
from fedfair.config import load
from fedfair.errors import DataError, RunError
from tests.apps.runs import HEART, rounds, run

Row = dict[str, Any]
OPTIONS = {
    "site": "hospital",
    "label": {"column": "ill", "values": {"no": ["0"], "yes": ["1"]}},
    "modalities": {"lab": {"numeric": ["sodium", "iron"]}, "ecg": {"numeric": ["rate"]}},
    "attributes": {"sex": {"column": "sex", "values": {"female": ["F"], "male": ["M"]}}},
}


def table(n: int = 120) -> list[Row]:
    """Return made-up records of three hospitals."""
    rng = np.random.default_rng(0)
    return [
        {
            "hospital": "ABC"[i % 3],
            "ill": int(rng.random() < 0.5),
            "sex": "FM"[int(rng.random() < 0.6)],
            "sodium": round(float(rng.normal(140, 3)), 1),
            "iron": round(float(rng.normal(15, 4)), 1),
            "rate": round(float(rng.normal(70, 9)), 1),
        }
        for i in range(n)
    ]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(rows: list[Row], **options: Any) -> Path:
    """Write a table and a configuration for it; return the configuration's path."""
    with Path("table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = {
        "name": "own",
        "rounds": 2,
        "data": {"name": "csv", "path": "table.csv", "options": {**OPTIONS, **options}},
        "method": {"name": "dual_mimo"},
        "report": {"resamples": 20},
    }
    path = Path("own.yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one sentence that `fedfair simulate` refuses its input with."""
    assert main(["simulate", *map(str, arguments)]) == 1
    err = [x for x in capsys.readouterr().err.splitlines() if x]
    assert len(err) == 1, err
    assert err[0].startswith("fedfair: ")
    return err[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("round=3", "`round` is not a known key; did you mean `rounds`?"),
        ("training.lerning_rate=3", "did you mean `learning_rate`?"),
        (
            "training.recombination=2",
            "`training.recombination` is not a known key; it belongs elsewhere, did you mean "
            "`server.recombination`?",
        ),
        ("model.options.hiden=[3]", "did you mean `hidden`?"),
        ("method.name=dualmimo", "did you mean `dual_mimo`?"),
        ("method.muu=1", "`method.muu` is not a known key; did you mean `mu`?"),
        ("rounds=many", "`rounds` must be int, got 'many'"),
        ("training.mode=fast", "`training.mode` must be one of"),
        ("data.attribute=gender", "one of ['sex', 'age'], or several joined by *, got 'gender'"),
        ("data.test_fraction=1.5", "`data.test_fraction` must be in (0, 1), got 1.5"),
        ("data.name=hart", "did you mean `heart`?"),
        ("data.name=nowhere:make", "`data.name` must name an importable module"),
        ("training.group_rows=[encoder/ecg]", "`training.group_rows` must name blocks"),
        ("report.bins=7", "`report.bins` must be even"),
        ("server.min_sites=5", "`server.min_sites` must be at most 4"),
        ("training.device=gpu", "`training.device` must be auto, cpu or a device"),
        ("training.group_rows=[1]", "`training.group_rows` must name blocks of the model, got 1"),
        ("model.options={hidden: 16}", "`model.options.hidden` must be a list of integers"),
        ("model.options={embedding_dim: 0}", "`model.options.hidden` must be a list of integers"),
        ("rounds", "`--set` must be key=value"),
        ("data=[]", "`data` must be a section of keys"),
        ("method={name: [a]}", "`method.name` must be one of"),
        ("training.learning_rate=2026-01-01", "`training.learning_rate` must be float"),
    ],
)
def test_a_wrong_key_or_value(capsys: pytest.CaptureFixture[str], override: str, words: str) -> None:
    assert words in refused(capsys, HEART, "--set", override)
    assert not Path("runs").exists()


def test_a_missing_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean `heart.yaml`?" in refused(capsys, HEART.with_name("hart.yaml"))


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "rounds"])
def test_a_file_that_is_no_configuration(capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("odd.yaml").write_text(text)
    assert "odd.yaml must" in refused(capsys, "odd.yaml")


def test_numbers_may_be_written_with_an_exponent() -> None:
    assert load(HEART, ["training.learning_rate=1e-3"]).training.learning_rate == 0.001


def test_a_missing_table(capsys: pytest.CaptureFixture[str]) -> None:
    config = write(table())
    Path("table.csv").unlink()
    assert "table.csv" in refused(capsys, config)


def change(key: str, value: object, where: Callable[[Row], bool] = lambda _: True) -> list[Row]:
    """Return the table with one column changed where a condition holds."""
    return [{**row, key: value} if where(row) else row for row in table()]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{k: v for k, v in r.items() if k != "iron"} for r in table()], "`iron`"),
        (change("ill", 2, lambda r: r["iron"] > 20), "ill"),
        (change("iron", "high", lambda r: r["iron"] > 20), "iron"),
        (change("iron", "inf", lambda r: r["iron"] > 20), "iron"),
        (change("sex", "X", lambda r: r["iron"] > 20), "sex"),
        (change("rate", "nan"), "modality `ecg` must be observed at some site"),
        (change("sex", "M"), "group `female` of attribute `sex` must have a training record"),
        (change("ill", 0), "class `yes` must have a training record at some site"),
    ],
    ids=["column", "label", "text", "inf", "group", "no modality", "no group", "no class"],
)
def test_a_table_that_cannot_be_used(capsys: pytest.CaptureFixture[str], rows: list[Row], words: str) -> None:
    assert words in refused(capsys, write(rows))


@pytest.mark.parametrize(
    "rows",
    [
        change("rate", "", lambda r: r["hospital"] == "A"),
        change("rate", "nan", lambda r: r["iron"] > 15),
        change("sex", "M", lambda r: r["hospital"] == "A"),
        change("ill", 1, lambda r: r["hospital"] == "A"),
        change("hospital", "A"),
    ],
    ids=["modality absent at a site", "modality absent for records", "group absent", "one class", "one site"],
)
@pytest.mark.parametrize("method", ["dual_mimo", "multifair"])
def test_odd_sites_take_part(rows: list[Row], method: str) -> None:
    config = write(rows)
    arguments = ["simulate", str(config), "--output", "out", "--set", f"method.name={method}"]
    assert main([*arguments, "--set", "rounds=3"]) == 0
    assert len(rounds(Path("out/seed-0") / method)) == 4


def test_the_site_with_the_bad_record_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The number of a node would say nothing: it is Flower's own, and drawn at random in its engine."""
    config = write(change("sex", "X", lambda r: r["hospital"] == "B"))
    told = refused(capsys, config)
    assert told.endswith("ready, B is not: `sex` must be one of 'F', 'M', got another value in row 2")


def test_so_is_one_that_fails_in_a_secure_sum(capsys: pytest.CaptureFixture[str]) -> None:
    config = write(change("sex", "X", lambda r: r["hospital"] == "B"))
    assert main(["simulate", str(config), "--set", "secure.enabled=true"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "the first failure: B: site B failed with DataError" in told


def test_a_hospitals_node_tells_the_text_of_its_error_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with a name of its own raises, as every node did before virtual ones said who they are."""
    raised: list[str] = []

    def hospital(message: Message, context: Context) -> Message:
        context.node_config = {"site": "ABC"[context.node_id - 2]}
        try:
            return client_app(message, context)
        except DataError as error:
            raised.append(str(error))
            raise

    monkeypatch.setattr("tests.apps.runs.client_app", hospital)
    config = write(change("sex", "X", lambda r: r["hospital"] == "B"))
    with pytest.raises(RunError, match=r"ready, node 3 is not: `sex` must be one of 'F', 'M', got another"):
        run(tmp_path / "out", (), sites=3, config=config.resolve())
    assert len(raised) == 1


ONE_SENTENCE: list[tuple[str, str]] = [
    (
        "simulate c.yaml --seeds 0",
        "fedfair simulate: `--seeds` must be a whole number of at least 1, got '0' "
        "(see `fedfair simulate --help`)",
    ),
    ("simulate c.yaml --seeds two", "`--seeds` must be a whole number of at least 1, got 'two'"),
    ("simulate c.yaml --workers -1", "`--workers` must be a whole number of at least 0, got '-1'"),
    ("data phantom --ceiling --seed 1.5", "fedfair data phantom: `--seed` must be a whole number, got '1.5'"),
    (
        "simulate c.yaml --sedes 2",
        "fedfair simulate: `--sedes` is not a known option (see `fedfair simulate --help`); "
        "did you mean `--seeds`?",
    ),
    ("--zzz simulate c.yaml", "fedfair: `--zzz` is not a known option (see `fedfair --help`)"),
    ("simulate c.yaml d.yaml", "fedfair simulate: 'd.yaml' is one argument too many"),
    ("simulate c.yaml --seeds", "`--seeds` must be followed by a value, got none"),
    ("simulate c.yaml --seed 1", "did you mean `--seeds`?"),
    ("simulate c.yaml --resume=1", "`--resume` takes no value, got '1'"),
    ("simulate", "fedfair simulate: config must be given (see `fedfair simulate --help`)"),
    ("submit c.yaml", "fedfair submit: --federation must be given"),
    ("simulate c.yaml --engine flow", "`--engine` must be one of ['in-process', 'flower'], got 'flow'"),
    ("simulat c.yaml", "; did you mean `simulate`?"),
    ("audit veryfy", "fedfair audit: `COMMAND` must be one of ['verify', 'show'], got 'veryfy'"),
    ("", "fedfair: COMMAND must be given (see `fedfair --help`)"),
    ("data phantom", "one of --out --ceiling must be given"),
    ("data phantom --out a --ceiling", "`--ceiling` must not stand beside `--out`"),
]


@pytest.mark.parametrize(("line", "words"), ONE_SENTENCE, ids=[line or "nothing" for line, _ in ONE_SENTENCE])
def test_arguments_are_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("fedfair")
    assert words in told.err


def test_one_file_for_all_sites_is_not_split_by_guessing(capsys: pytest.CaptureFixture[str]) -> None:
    config = write(table(), site=None, sites=["A", "B"])
    assert "`data.options.site` must name the column" in refused(capsys, config)


def test_an_existing_output_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/precious").write_text("x")
    assert "`--output` must not exist yet" in refused(capsys, HEART, "--output", "out")
    assert [p.name for p in Path("out").iterdir()] == ["precious"]


def test_a_second_run_gets_a_folder_of_its_own() -> None:
    for _ in range(2):
        assert main(["simulate", str(HEART), "--set", "rounds=1", "--set", "report.resamples=20"]) == 0
    assert sorted(p.name for p in Path("runs/heart").iterdir()) == ["001", "002"]


def test_resume_goes_on_with_the_seeds_it_began_with(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [HEART, "--output", "out", "--set", "rounds=1", "--set", "report.resamples=20"]
    assert main(["simulate", *map(str, arguments), "--seeds", "2"]) == 0
    before = json.loads(Path("out/experiment.json").read_text())
    Path("out/seed-1/dual_mimo/model.pt").unlink()
    capsys.readouterr()
    assert "`seeds` must be as in the run to resume" in refused(capsys, *arguments, "--resume", "--seeds", 3)
    assert main(["simulate", *map(str, arguments), "--resume"]) == 0
    after = json.loads(Path("out/experiment.json").read_text())
    assert after["seeds"] == [0, 1]
    assert (after["status"], after["created"]) == ("complete", before["created"])
    assert Path("out/seed-1/dual_mimo/model.pt").is_file()


def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("x")
    assert "`--output` must be a folder that can be made" in refused(capsys, HEART, "--output", "file/out")


def test_a_configuration_that_is_not_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.yaml").write_bytes("# Hôpital\nname: x\n".encode("latin-1"))
    assert "odd.yaml must be UTF-8" in refused(capsys, "odd.yaml")


def test_nothing_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert "`--resume` must find a run" in refused(capsys, HEART, "--resume")


def test_a_report_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nowhere"]) == 1
    assert "`folder` must be a run" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_done_and_resume_completes_it(tmp_path: Path) -> None:
    """The interrupt arrives in the middle of the first of two arms; 40 rounds leave time for it."""
    command = [sys.executable, "-m", "fedfair", "simulate", str(HEART), "--output", "out"]
    command += ["--set", "rounds=40", "--set", "report.resamples=20"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    log = tmp_path / "out" / "seed-0" / "fedavg" / "rounds.jsonl"
    end = time.monotonic() + 60
    while not (log.is_file() and log.read_text().count("\n") >= 3) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--seeds 1 --resume --output out" in err
    assert "Traceback" not in err
    assert json.loads(Path("out/experiment.json").read_text())["status"] == "interrupted"
    assert "interrupted" in Path("out/report.html").read_text()
    assert subprocess.run([*command, "--resume"], check=False, capture_output=True).returncode == 0
    assert [r["round"] for r in rounds(Path("out/seed-0/fedavg"))] == list(range(41))
    assert json.loads(Path("out/experiment.json").read_text())["status"] == "complete"


def test_the_order_of_classes_and_groups_is_that_of_the_configuration() -> None:
    """Sorted options would have swapped `yes` and `no`, `male` and `female`, at the sites only."""
    config = write(
        table(),
        label={"column": "ill", "values": {"yes": ["1"], "no": ["0"]}},
        attributes={"sex": {"column": "sex", "values": {"male": ["M"], "female": ["F"]}}},
    )
    assert main(["simulate", str(config), "--output", "out"]) == 0
    schema = json.loads(Path("out/experiment.json").read_text())["schema"]
    assert schema["classes"] == ["yes", "no"]
    assert schema["attributes"] == {"sex": ["male", "female"]}
    counts = np.load("out/seed-0/fedavg/evaluation.npz")
    found = (counts["counts"] + counts["train_counts"])[:, 0].sum(0)
    expected = [[sum(r["sex"] == s and r["ill"] == y for r in table()) for y in (1, 0)] for s in "MF"]
    assert found.tolist() == expected


def test_a_refused_run_leaves_no_folder_in_the_way_of_the_mended_one() -> None:
    bad, good = write(change("rate", "nan")), ["--output", "out", "--set", "rounds=1"]
    assert main(["simulate", str(bad), *good]) == 1
    assert not Path("out").exists()
    assert main(["simulate", str(write(table())), *good]) == 0


def test_what_the_system_refuses_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "runs/model.pt")

    monkeypatch.setattr("simulations.run.run_experiment", full)
    monkeypatch.setattr("fedfair.cli._experiments.run_experiment", full, raising=False)
    assert main(["simulate", str(HEART)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "No space left on device (runs/model.pt)" in told


def test_a_group_without_records_is_refused_where_it_is_modulated_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = ["patients=60", "size=16", "slices=1", "attributes=[race, maritalstatus]"]
    arguments = ["simulate", str(HEART.parent / "phantom_noisy_group.yaml"), "--output", "out"]
    for value in ("rounds=1", "report.resamples=5", *(f"data.options.{each}" for each in small)):
        arguments += ["--set", value]
    assert main([*arguments, "--set", "data.attribute=maritalstatus"]) == 1
    assert "modulate another attribute" in capsys.readouterr().err
    assert main(arguments) == 0

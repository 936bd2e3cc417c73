"""consortium.yaml: what is written is read, and what is wrong is refused by its key, in the file's words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fedfair.data import open_dataset
from fedfair.errors import ConfigError
from fedfair.federation.consortium import Centre, Floor, load_consortium, parse_consortium, slug
from fedfair.federation.settings import KEYS, write_settings
from fedfair.plain import read_yaml
from tests.unit.federation.example import PLAIN, changed, written


def test_what_is_written_is_read(tmp_path: Path) -> None:
    read = load_consortium(written(tmp_path))
    assert read.centre == Centre("fedfair.example.org", 8443, 9443, ["10.0.0.7"])
    assert read.privacy == Floor(8, 1e-5, None)
    assert (read.name, read.min_records, read.valid_days) == ("heart", 20, 90)
    assert list(read.sites) == PLAIN["sites"]
    assert read.attributes == PLAIN["attributes"]
    assert (read.data.name, read.data.options) == ("heart", {})


def test_only_name_host_sites_and_vocabulary_are_needed() -> None:
    plain = {"name": "x", "centre": {"host": "::1"}, "sites": ["A"], "attributes": {"sex": ["f", "m"]}}
    read = parse_consortium(plain)
    assert (read.centre.port, read.centre.inner_port, read.valid_days) == (8443, 9443, 825)
    assert read.data.name is None
    assert read.centre.address == "[::1]:8443"
    for key in plain:
        with pytest.raises(ConfigError):
            parse_consortium({k: v for k, v in plain.items() if k != key})


@pytest.mark.parametrize(
    "host", ["h", "a-b.example.org", "xn--mnchen-3ya.de", "3com.com", "10.0.0.7", "fe80::1"]
)
def test_a_name_or_an_address_is_a_host(host: str) -> None:
    assert parse_consortium(changed("centre.host", host)).centre.host == host


WRONG = [
    *(
        (
            "centre.host",
            host,
            "`centre.host` must be a DNS name or an IP address, without scheme and port, got",
        )
        for host in (
            *("", "https://example.org", "example.org:8443", "a_b.org", "-a.org", "a..org", "a.org.", "a b"),
            *(
                "10.0.0",
                "10.0.0.256",
                "*.example.org",
                "münchen.de",
                "a" * 64,
                "a." * 127 + "aa",
                "fe80::1%eth0",
            ),
        )
    ),
    ("centre.host", None, "`centre.host` must be str, got None"),
    ("centre.names", ["ok.org", "a b"], "`centre.names` must be a DNS name or an IP address"),
    ("centre.names", [7], "`centre.names` must be a DNS name or an IP address"),
    ("centre.port", 0, "`centre.port` must be a port from 1 to 65535, got 0"),
    ("centre.inner_port", 65536, "`centre.inner_port` must be a port from 1 to 65535, got 65536"),
    ("centre.inner_port", 8443, "`centre.inner_port` must be another port than `centre.port`, got 8443"),
    ("centre.port", "8443", "`centre.port` must be int, got '8443'"),
    ("centre.prot", 1, "`centre.prot` is not a known key; did you mean `port`?"),
    ("name", "he art", "`name` must be letters, digits and -, at most 32, not starting with -, got 'he art'"),
    ("name", "-heart", "`name` must be letters"),
    ("name", "h" * 33, "`name` must be letters"),
    ("name", "../heart", "`name` must be letters"),
    ("sites", [], "`sites` must be a list of at least one name, got []"),
    ("sites", ["VA Long Beach", "va-long beach"], "`sites` must be names that differ in more than case and "),
    ("sites", ['A "B"'], "`sites` must be names with a letter or digit, without"),
    ("sites", ["A\nB"], "`sites` must be names with a letter or digit, without"),
    ("sites", ["---"], "`sites` must be names with a letter or digit, without"),
    ("sites", [3], "`sites` must be names with a letter or digit, without"),
    ("attributes", {}, "`attributes` must be at least one attribute with its groups, got {}"),
    ("attributes.sex", [], "`attributes.sex` must be a list of at least one group name"),
    (
        "attributes.sex",
        [0, 1],
        "`attributes.sex` must be a list of at least one group name (a number in quotes)",
    ),
    ("attributes.sex", "male", "`attributes.sex` must be a list of at least one group name"),
    ("attributes.sex", ["male", "male"], "`attributes.sex` must be groups that differ, got ['male', 'male']"),
    ("privacy.max-epsilon", 0, "`privacy.max-epsilon` must be above 0 or null, got 0"),
    ("privacy.max-delta", 1, "`privacy.max-delta` must be in (0, 1) or null, got 1"),
    ("privacy.min-noise", -1.0, "`privacy.min-noise` must be above 0 or null, got -1.0"),
    ("privacy.max-epsilon", "much", "`privacy.max-epsilon` must be float or NoneType, got 'much'"),
    ("privacy.max_epsilon", 1, "`privacy.max_epsilon` is not a known key; did you mean `max-epsilon`?"),
    ("privacy.max-epsilom", 1, "`privacy.max-epsilom` is not a known key; did you mean `max-epsilon`?"),
    ("privacy.zzz", 1, "`privacy.zzz` is not a known key; known here are max-epsilon, max-delta, min-noise"),
    ("min-records", -1, "`min-records` must be at least 0, got -1"),
    ("min-recrods", 1, "`min-recrods` is not a known key; did you mean `min-records`?"),
    ("valid-days", 0, "`valid-days` must be from 1 to 3650, got 0"),
    ("valid-days", 3651, "`valid-days` must be from 1 to 3650, got 3651"),
    ("site", ["A"], "`site` is not a known key; did you mean `sites`?"),
    (
        "attributes.age",
        ["<50", "60+", "50-59"],
        "`attributes.age` must be what `data` has, ['<50', '50-59', '60+']",
    ),
    (
        "attributes.race",
        ["a", "b"],
        "`attributes.race` must be what `data` has, {'sex': ['female', 'male'], ",
    ),
    ("sites", ["Cleveland", "Boston"], "`sites` must be sites of `data`, ['Cleveland', "),
    ("data.name", "hart", "`data.name` must be one of"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_what_is_wrong_is_refused_by_its_key(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        parse_consortium(changed(key, value))


def test_sites_may_report_by_fewer_attributes_than_the_data_have() -> None:
    assert list(parse_consortium(changed("attributes", {"sex": ["female", "male"]})).attributes) == ["sex"]


@pytest.mark.parametrize("content", [b"", b"- a", b"name: [", b"\xff\xfe\x00"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "consortium.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_consortium(path)
    with pytest.raises(ConfigError, match="must be a readable YAML file"):
        load_consortium(tmp_path / "none.yaml")


def test_slugs() -> None:
    names = {"Cleveland": "cleveland", "VA Long Beach": "va-long-beach", "St. Mary's (2)": "st-mary-s-2-"}
    assert {name: slug(name) for name in names} == names


@pytest.mark.parametrize("read", [yaml.safe_load, lambda text: read_yaml(text, "site.yaml")])
def test_settings_are_read_back(read) -> None:
    plain = {
        **changed("sites", ["Köln: Süd", "no", "# 1"]),
        "attributes": {"sex": ["no", "yes", "1", "null", "a: b", "Äö", " "]},
        "data": None,
    }
    for site in plain["sites"]:
        text = write_settings(parse_consortium(plain), site)
        found = read(text)
        assert tuple(found) == KEYS
        assert found == {
            "site": site,
            "consortium": "heart",
            "centre": "fedfair.example.org:8443",
            "data": None,
            "weights": None,
            "dataset": None,
            "ledger": "ledgers",
            "audit": "audit.jsonl",
            "max-epsilon": 8,
            "max-delta": 1e-5,
            "min-noise": None,
            "min-records": 20,
            "public-test": False,
            "secure-only": False,
            "min-sites": 3,
            "key": "node.key",
            "roster": "roster.txt",
            "attributes": plain["attributes"],
            "allow": [],
            "schema": None,
        }


def test_settings_explain_each_key_and_carry_the_format_of_the_data() -> None:
    text = write_settings(parse_consortium(PLAIN), "Cleveland")
    schema = yaml.safe_load(text)["schema"]
    assert set(open_dataset(schema["name"], None, schema["options"], 0).schema.attributes) == {"sex", "age"}
    for key in KEYS:
        (line,) = re.findall(rf"^(.*)\n{key}:", text, flags=re.MULTILINE)
        assert line.startswith("# ")
        assert len(line) <= 110

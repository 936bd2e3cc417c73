"""What a hospital's node asks of a run binds, whatever the server sends."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from client.app import app as client_app
from fedfair.budget import charges, round_events
from fedfair.config import Config, load
from fedfair.data.heart import heart
from fedfair.errors import (
    AuditError,
    ConfigError,
    DataError,
    FedfairError,
    MissingDependency,
    PrivacyBudgetExhausted,
    PrivacyError,
    RunError,
    ShapeError,
)
from fedfair.privacy.floor import LEAST_RANGE
from fedfair.privacy.node_settings import KEYS
from fedfair.privacy.policy import Policy
from fedfair.secagg import Field, Layout
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, PRIVATE, SHORT

RELEASED = "privacy.evaluation=released"
NOISE_2 = (
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=2",
    "privacy.statistics.noise_multiplier=9",
)
OWN = "own_package.records:factory"
SAMPLE_KEYS = ("sample_rate", "local_steps", "expected_batch", "max_grad_norm")


def private(*overrides: str) -> Config:
    return load(PRIVATE, [RELEASED, *overrides])


def settled(folder: Path, text: str = "{}", **node: object) -> Policy:
    """Return the policy of a node with a settings file of this text."""
    path = folder / "site.yaml"
    path.write_text(text)
    return Policy.of({"settings": str(path), **node})


def test_a_node_that_says_nothing_takes_every_run() -> None:
    policy = Policy.of({"site": "Cleveland", "partition-id": 0, "data-path": "x.csv"})
    assert not policy.binds
    policy.check(load(HEART))


@pytest.mark.parametrize(
    "node", [{"max-epsilon": 3}, {"max-delta": "1e-5"}, {"ledger": "/x"}, {"dataset": "registry"}]
)
def test_a_private_run_passes_and_an_open_one_does_not(node: dict[str, object]) -> None:
    policy = Policy.of(node)
    policy.check(private())
    with pytest.raises(PrivacyError, match=r"`privacy.mode` must be sample, as this site asks, got 'off'"):
        policy.check(load(HEART))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["privacy.noise_seed=1"], "noise_seed"),
        (["privacy.exact=[statistics]"], "exact"),
        (["privacy.target_delta=0.001"], "target_delta"),
        (["privacy.evaluation=exact"], "evaluation"),
    ],
)
def test_a_run_that_protects_less_is_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(PrivacyError, match=key):
        Policy.of({"max-epsilon": 3.0, "max-delta": 1e-5}).check(private(*overrides))


def test_test_records_are_shown_where_the_site_says_so() -> None:
    Policy.of({"max-epsilon": 3.0, "public-test": "true"}).check(load(PRIVATE))


@pytest.mark.parametrize("key", ["max_epsilon", "max-epsilom", "Max-Delta", "public_test"])
def test_a_misspelt_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` of the node is not a known key; did you mean"):
        Policy.of({key: 1.0})


@pytest.mark.parametrize("value", ["three", 0, -1, "nan"])
def test_a_cap_must_be_a_positive_number(value: object) -> None:
    with pytest.raises(ConfigError, match="`max-epsilon` of the node must be a number above 0"):
        Policy.of({"max-epsilon": value})


def test_a_site_names_its_own_data_and_place(tmp_path: Path) -> None:
    policy = Policy.of({"ledger": str(tmp_path), "dataset": "registry"})
    assert (policy.ledger, policy.dataset) == (tmp_path, "registry")


def test_a_settings_file_is_read_from_its_own_folder(tmp_path: Path) -> None:
    text = """
    site: Cleveland
    consortium: heart
    centre: fedfair.example.org:8443
    schema: {name: heart, options: {}}
    data: records/heart.csv
    dataset: registry
    ledger: null
    audit: audit.jsonl
    max-epsilon: 3
    max-delta: 1e-5
    min-noise: null
    min-records: 20
    public-test: true
    min-sites: 5
    attributes: {sex: [female, male]}
    allow: [a.b:c]
    """
    assert settled(tmp_path, text) == Policy(
        site="Cleveland",
        settings=tmp_path / "site.yaml",
        data=tmp_path / "records/heart.csv",
        ledger=tmp_path / "ledgers",
        dataset="registry",
        audit=tmp_path / "audit.jsonl",
        max_epsilon=3.0,
        max_delta=1e-5,
        min_records=20,
        public_test=True,
        min_sites=5,
        schema='["heart", {}]',
        attributes=(("sex", ("female", "male")),),
        allow=("a.b:c",),
        binds=True,
    )


def test_the_nodes_own_keys_come_before_the_files(tmp_path: Path) -> None:
    text = "{site: Cleveland, data: a.csv, max-epsilon: 3, min-noise: 1}"
    policy = settled(tmp_path, text, data="b.csv", **{"max-epsilon": 2})
    assert (policy.site, policy.data) == ("Cleveland", Path("b.csv"))
    assert (policy.max_epsilon, policy.min_noise) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("text", "binds"),
    [
        ("{ledger: ledgers, dataset: registry, min-records: 5, attributes: {sex: [f, m]}}", False),
        ("{max-epsilon: null, max-delta: null, min-noise: null}", False),
        ("max-epsilon: 3", True),
        ("max-delta: 1e-5", True),
        ("min-noise: 0.5", True),
    ],
)
def test_what_a_file_names_binds_only_as_a_floor(text: str, binds: bool, tmp_path: Path) -> None:
    """Every hospital's file names its ledger; that alone does not make each run a private one."""
    assert settled(tmp_path, text).binds is binds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "max-epsilom: 3",
            "`max-epsilom` of the site's settings is not a known key; did you mean `max-epsilon`",
        ),
        ("max_epsilon: 3", "did you mean `max-epsilon`"),
        ("settings: other.yaml", "`settings` of the site's settings is not a known key"),
        ("x: 3", "`x` of the site's settings is not a known key; known here are site, data"),
        ("max-epsilon: none", "`max-epsilon` of the node must be a number above 0, got 'none'"),
        ("min-noise: 0", "`min-noise` of the node must be a number above 0, got 0"),
        ("min-records: -1", "`min-records` of the node must be a whole number of at least 0, got -1"),
        ("min-records: 2.5", "`min-records` of the node must be a whole number"),
        ("min-sites: 2", "`min-sites` of the node must be a whole number of at least 3, got 2"),
        ("public-test: 1", "`public-test` of the node must be true or false, got 1"),
        ("secure-only: yes", "`secure-only` of the node must be true or false, got 'yes'"),
        ("secure-only: true", "`secure-only` .* must stand beside `key` and `roster`"),
        ("{secure-only: true, key: node.key}", "`secure-only` .* must stand beside `key` and `roster`"),
        ("schema: heart", "`schema` must be a mapping"),
        ("schema: {options: {}}", "`schema` must hold a `name`"),
        ("schema: {name: heart, path: x}", "`schema` must hold a `name`, and `options` if any"),
        ("attributes: [sex]", "`attributes` must be a mapping"),
        ("attributes: {sex: female}", "`attributes.sex` must be a list"),
        ("allow: a.b:c", "`allow` must be a list"),
        ("data: x.csv", "`site` of the node must name the hospital whose `data` these are, got none"),
        ("", "`settings` must be a mapping, got None"),
        ("[1]", "`settings` must be a mapping"),
        ("a: [", "`settings` of the node must be valid YAML"),
    ],
)
def test_a_settings_file_that_cannot_be_meant(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        settled(tmp_path, text)
    assert str(tmp_path) not in str(caught.value)


def test_a_settings_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    with pytest.raises(ConfigError, match="`settings` of the node must name a readable file: No such file"):
        Policy.of({"settings": str(path)})
    path.write_bytes("site: Zürich".encode("latin-1"))
    with pytest.raises(ConfigError, match="`settings` of the node must be UTF-8 text"):
        Policy.of({"settings": str(path)})


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_node_is_known_and_near_misses_are_not(key: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean `{key}`"):
        Policy.of({key.upper(): 1})


def test_less_noise_than_the_site_asks_for_is_refused() -> None:
    config = private(*NOISE_2)
    Policy.of({"min-noise": 2}).check(config)
    with pytest.raises(PrivacyError, match="`privacy.noise_multiplier` must be 2.5 at least, .* got 2$"):
        Policy.of({"min-noise": 2.5}).check(config)
    with pytest.raises(PrivacyError, match="`privacy.mode` must be sample"):
        Policy.of({"min-noise": 2.5}).check(load(HEART))
    with pytest.raises(PrivacyError, match="`privacy.noise_multiplier` must be 0.1 at least, .* got 0.0"):
        Policy.of({"min-noise": 0.1}).check(private())  # not resolved: no noise stands in it


def test_the_path_is_the_sites_to_choose(tmp_path: Path) -> None:
    named = load(HEART, ["data.path=/srv/records.csv"])
    with pytest.raises(PrivacyError, match="`data.path` must be left out, .* got '/srv/records.csv'"):
        settled(tmp_path).check(named)
    own = settled(tmp_path, "{site: Cleveland, data: own.csv}")
    own.check(named)
    assert own.path(named) == str(tmp_path / "own.csv")
    without = Policy.of({})
    without.check(named)
    assert without.path(named) == "/srv/records.csv"


@pytest.mark.parametrize("key", ["data.name", "model.name"])
def test_a_plug_in_must_be_allowed(key: str, tmp_path: Path) -> None:
    config = load(HEART, [f"{key}={OWN}"])
    Policy.of({}).check(config)
    settled(tmp_path, f"allow: [{OWN}]").check(config)
    for text in ("{}", "allow: []", f"allow: [{OWN}s]"):
        with pytest.raises(PrivacyError, match=f"`{key}` must be built in or listed in `allow` .* '{OWN}'"):
            settled(tmp_path, text).check(config)
    settled(tmp_path).check(load(HEART))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sex: [female, male]", r"attribute `age` must be one of \['sex'\]"),
        ('{Sex: [female, male], age: ["<50", "50-59", "60+"]}', "`sex` must be one of .*did you mean `Sex`"),
        ('{sex: [female, male], age: ["<50", "50+"]}', r"groups of `age` must be \['<50', '50\+'\]"),
        ('{sex: [female, male, other], age: ["<50", "50-59", "60+"]}', "groups of `sex` must be"),
        ('{sex: [female], age: ["<50", "50-59", "60+"]}', "groups of `sex` must be"),
        ("{}", "attribute `sex` must be one of"),
    ],
)
def test_attributes_outside_the_vocabulary_are_refused(text: str, words: str, tmp_path: Path) -> None:
    policy = settled(tmp_path, f"attributes: {text if text[0] == '{' else '{' + text + '}'}")
    with pytest.raises(PrivacyError, match=words):
        policy.check_schema(heart().schema)


def test_attributes_of_the_vocabulary_pass(tmp_path: Path) -> None:
    text = 'attributes: {age: ["<50", "50-59", "60+"], race: [a, b], sex: [male, female]}'
    settled(tmp_path, text).check_schema(heart().schema)
    settled(tmp_path, "attributes: null").check_schema(heart().schema)


def test_a_site_with_too_few_records_says_so_only_in_the_open() -> None:
    policy = Policy.of({"min-records": "40"})
    policy.check_records("Cleveland", 40, private=True)
    with pytest.raises(PrivacyError, match="Cleveland must have 40 training records to take part, got 39"):
        policy.check_records("Cleveland", 39, private=False)
    with pytest.raises(PrivacyError, match="^site Cleveland does not take part in this run$"):
        policy.check_records("Cleveland", 39, private=True)


def test_a_site_with_settings_keeps_one_account_of_its_own(tmp_path: Path) -> None:
    """What the run calls the data, where it wants the ledger and where the file lies do not act."""
    renamed = private("privacy.dataset=other", "privacy.ledger=/srv/ledgers", "data.path=/srv/x.csv")
    own = settled(tmp_path, "{site: A, data: a.csv}")
    assert own.account(renamed) == own.account(private()) == (tmp_path / "ledgers", "the site's records")
    assert settled(tmp_path, "{site: A, data: b.csv}").account(private()) == own.account(private())
    assert settled(tmp_path, "{dataset: registry}").account(renamed) == (tmp_path / "ledgers", "registry")
    assert Policy.of({}).account(renamed) == (Path("/srv/ledgers"), "other")
    assert Policy.of({"site": "A", "data": "a.csv"}).account(renamed)[1] == "the site's records"


@pytest.mark.parametrize("node", [{"site": "A", "data": "a.csv"}, {"max-epsilon": 1.0}, {"min-noise": 1}])
def test_the_run_cannot_move_the_account_of_a_node_with_data_or_a_floor(node: dict[str, object]) -> None:
    """Each new folder, or name of the data, would open an account with nothing spent."""
    policy = Policy.of(node)
    moved = private("privacy.ledger=/srv/other", "privacy.dataset=other")
    assert policy.account(moved) == policy.account(private("privacy.ledger=/srv/one"))
    assert policy.account(moved)[0] == Path.home() / ".fedfair" / "ledgers"


SECURE_ONLY = "{secure-only: true, key: node.key, roster: roster.txt}"


def test_a_site_that_takes_part_in_secure_sums_alone(tmp_path: Path) -> None:
    policy = settled(tmp_path, SECURE_ONLY)
    policy.check(load(HEART, ["secure.enabled=true"]))
    with pytest.raises(PrivacyError, match="`secure.enabled` must be true, as this site asks"):
        policy.check(load(HEART))
    with pytest.raises(PrivacyError, match="`secure.fewest` must be at least 3, as this site asks, got 2"):
        policy.check(load(HEART, ["secure.enabled=true", "secure.fewest=2"]))
    more = settled(tmp_path, SECURE_ONLY.replace("{", "{min-sites: 4, "))
    with pytest.raises(PrivacyError, match="`secure.fewest` must be at least 4, as this site asks, got 3"):
        more.check(load(HEART, ["secure.enabled=true"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("secure.bound=1048575", "`secure.bound` must be at least 1048576"),
        ("secure.max_records=1048575", "`secure.max_records` must be at least 1048576"),
        ("data.test_fraction=0.91", "`data.test_fraction` must be at most 0.9"),
        ("data.validation_fraction=0.91", "`data.validation_fraction` must be at most 0.9"),
    ],
)
def test_no_number_of_a_secure_run_asks_for_a_count(override: str, words: str, tmp_path: Path) -> None:
    """By bisection of the number at which a site refuses, its largest count would come out."""
    with pytest.raises(PrivacyError, match=words):
        settled(tmp_path).check(load(HEART, ["secure.enabled=true", override]))
    settled(tmp_path).check(load(HEART, [override]))
    Policy.of({}).check(load(HEART, ["secure.enabled=true", override]))


@pytest.mark.parametrize("bits", [32, 64])
def test_the_smallest_range_is_fit_for_use(bits: int, tmp_path: Path) -> None:
    """A thousand sites' counts fit, and four sites' updates come in steps of 2^-8 at the coarsest."""
    overrides = ["secure.enabled=true", "secure.bound=1048576", "secure.max_records=1048576"]
    settled(tmp_path).check(load(HEART, [*overrides, f"secure.bits={bits}"]))
    counts = Layout((Field("counts", (1,), LEAST_RANGE, exact=True),), 1000, bits)
    assert counts.fraction_bits("counts") == 0
    assert Layout((Field("rows", (1,), LEAST_RANGE),), 4, bits).fraction_bits("rows") >= 8


def test_a_run_reads_the_records_in_the_sites_format_alone(tmp_path: Path) -> None:
    policy = settled(tmp_path, "schema: {name: heart}")
    policy.check(load(HEART))
    for override in ("data.name=synthetic", "data.options={a: 1}"):
        with pytest.raises(PrivacyError, match="must be those of `schema` in the site's settings"):
            policy.check(load(HEART, [override]))


@pytest.mark.parametrize("error", [AuditError, PrivacyError])
def test_where_a_site_keeps_things_stays_there(error: type[FedfairError], tmp_path: Path) -> None:
    text = f"privacy ledger `{tmp_path}/a b/c.json` must be readable"
    for policy, told in ((settled(tmp_path), "privacy ledger `c.json` must be readable"), (Policy(), text)):
        with pytest.raises(error) as caught, policy.pathless():
            raise error(text)
        assert str(caught.value) == told


@pytest.mark.parametrize(
    ("text", "overrides", "error", "passes"),
    [
        (None, None, ValueError("cell 412.625"), True),
        ("{}", None, ValueError("cell 412.625"), False),
        ("{}", None, DataError("row 3"), False),
        ("{}", None, ShapeError("of row 3"), False),
        ("{}", None, MissingDependency("opacus"), True),
        ("{}", None, PrivacyBudgetExhausted("cap"), True),
        ("{}", (), DataError("row 3"), False),
        (None, (), ValueError("cell 412.625"), False),
        ("{}", (), PrivacyError("refused"), True),
    ],
    ids=[
        "bare",
        "unexpected",
        "records",
        "shape",
        "refusal",
        "cap",
        "private data",
        "private bare",
        "private refusal",
    ],
)
def test_the_text_of_an_error_that_may_hold_a_record_stays(
    text: str | None, overrides: tuple[str, ...] | None, error: Exception, passes: bool, tmp_path: Path
) -> None:
    policy = Policy.of({}) if text is None else settled(tmp_path, text)
    config = load(HEART) if overrides is None else private(*overrides)
    words = str(error) if passes else f"^site A failed with {type(error).__name__}; its own log"
    with pytest.raises(type(error) if passes else RunError, match=words), policy.discretion(config, "A"):
        raise error


def test_nothing_goes_wrong_discreetly(tmp_path: Path) -> None:
    with settled(tmp_path).discretion(load(HEART), "A"):
        pass


def test_the_clients_of_a_run_ask_their_nodes(tmp_path: Path) -> None:
    """One node asks for privacy, and answers no run without it."""
    values = {"config": str(HEART), "overrides": ";".join(SHORT), "output": str(tmp_path / "out")}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with InProcessGrid(client_app, 4) as grid:
        grid._contexts[2].node_config["max-epsilon"] = 3.0
        with pytest.raises(RunError, match="`privacy.mode` must be sample, as this site asks, got 'off'"):
            server_app(grid, context)


@pytest.mark.parametrize("mode", ["sample", "site"])
def test_noise_that_can_be_drawn_again_is_charged_as_none(mode: str) -> None:
    constants = [*NOISE_2, RELEASED]
    if mode == "site":
        constants += [f"privacy.{key}=null" for key in SAMPLE_KEYS] + ["privacy.mode=site"]
        constants += ["privacy.clipping_norm=1", "privacy.evaluation=none"]
    config = load(PRIVATE, constants)
    assert charges(config, 1) == round_events(config, 1)
    repeatable = load(PRIVATE, [*constants, "privacy.noise_seed=1"])
    assert [event.noise_multiplier for event in charges(repeatable, 1)] == [0.0, 0.0]

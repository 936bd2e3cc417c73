"""A site's own settings: what it gives to a run and what it asks of any, whatever the server sends.

They stand in the configuration of the hospital's node (``--node-config`` of its SuperNode), or in a
YAML file that its key ``settings`` names. A node with such a file chooses its own data, ledger and
plug-ins; a floor binds wherever it stands, and a run that protects less is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfair.budget import dataset_identity, ledger_folder
from fedfair.config import Config
from fedfair.data.schema import Schema
from fedfair.errors import ConfigError, PrivacyError, counted, nearest
from fedfair.networks import check_networks, with_networks
from fedfair.privacy import floor
from fedfair.privacy import node_settings as read
from fedfair.privacy.edge import Discreet
from fedfair.privacy.reticence import Reticent, pathless

OWN_RECORDS = "the site's records"
FEWEST = 3  # the sum of two sites tells each the other's


@dataclass(frozen=True)
class Policy:
    """What a site gives and insists on.

    Attributes
    ----------
    site : str | None
        Its name; None in a simulation, where a node's number says it.
    settings : Path | None
        The file that settings come from.
    data : Path | None
        Its records; with them no other path is read.
    weights : Path | None
        Folder of its stored networks; the path of a run's encoder is a name in it.
    ledger : Path | None
        Folder of its ledgers.
    dataset : str | None
        Its name of its data in the ledger.
    audit : Path | None
        The file in which it notes what left it.
    max_epsilon, max_delta : float | None
        Cap over all runs on its data, and the largest delta at which a run may count.
    min_noise : float | None
        The smallest noise multiplier of training.
    min_records : int
        The fewest training records with which it takes part; under privacy, of all records.
    public_test : bool
        Whether its test records may be shown exactly (`privacy.evaluation: exact`).
    attributes : tuple[tuple[str, tuple[str, ...]], ...] | None
        The only attributes, with their groups, that it reports by; None for any.
    allow : tuple[str, ...]
        Each ``package.module:factory`` that a run may name, if there is a settings file.
    key, roster : Path | None
        Its node's private key, and the file of all sites' public keys, for secure sums that do not
        trust the server to pass keys on.
    secure_only : bool
        Whether it takes part in secure sums alone, and none of fewer than `min_sites`.
    min_sites : int
        The fewest sites of such a sum, at least three.
    schema : str | None
        The only format of its records that a run may name, as `node_settings.format_of` writes it.
    binds : bool
        Whether only private runs will do: a floor is given, or the node's own configuration, rather
        than the file, names `ledger` or `dataset`.
    """

    site: str | None = None
    settings: Path | None = None
    data: Path | None = None
    weights: Path | None = None
    ledger: Path | None = None
    dataset: str | None = None
    audit: Path | None = None
    max_epsilon: float | None = None
    max_delta: float | None = None
    min_noise: float | None = None
    min_records: int = 0
    public_test: bool = False
    attributes: read.Vocabulary | None = None
    allow: tuple[str, ...] = ()
    key: Path | None = None
    roster: Path | None = None
    secure_only: bool = False
    min_sites: int = FEWEST
    schema: str | None = None
    binds: bool = False

    @classmethod
    def of(cls, node: Mapping[str, object]) -> Policy:
        """Read the node's configuration, and below it the settings file that it names.

        Raises
        ------
        ConfigError
            If a key looks like one of these and is not, the file holds an unknown one or cannot be
            read, a value is not what its key takes, `data` stands without `site`, or `secure-only` in
            a file without `key` and `roster`.
        """
        read.refuse_misspelt(node)
        own = read.given(node)
        settings = read.place(own, "settings")
        found = own if settings is None else {**read.read_settings(settings), **own}
        if "data" in found and "site" not in found:
            raise ConfigError("`site` of the node must name the hospital whose `data` these are, got none")
        policy = cls(
            site=read.text(found, "site"),
            settings=settings,
            data=read.place(found, "data"),
            weights=read.place(found, "weights"),
            ledger=read.place(found, "ledger"),
            dataset=read.text(found, "dataset"),
            audit=read.place(found, "audit"),
            max_epsilon=read.positive(found, "max-epsilon"),
            max_delta=read.positive(found, "max-delta"),
            min_noise=read.positive(found, "min-noise"),
            min_records=read.count(found, "min-records"),
            public_test=read.flag(found, "public-test"),
            attributes=read.vocabulary(found, "attributes"),
            allow=read.texts(found, "allow"),
            key=read.place(found, "key"),
            roster=read.place(found, "roster"),
            secure_only=read.flag(found, "secure-only"),
            min_sites=read.count(found, "min-sites", FEWEST),
            schema=read.form(found, "schema"),
            binds=bool(found.keys() & {*read.FLOOR} or own.keys() & {"ledger", "dataset"}),
        )
        if policy.secure_only and settings is not None and not (policy.key and policy.roster):
            raise ConfigError(
                "`secure-only` of the site's settings must stand beside `key` and `roster`, got not both; "
                "without them the centre could be all the other sites"
            )
        return policy

    def check(self, config: Config) -> None:
        """Refuse a run that names what is the site's to choose, or protects less than it asks for.

        Parameters
        ----------
        config : Config
            As the server sends it: resolved, so that the noise multiplier stands in it.

        Raises
        ------
        PrivacyError
            Naming the key of the run.
        """
        if self.secure_only:
            floor.check_sums(config, self.min_sites)
        if self.settings is not None:
            floor.check_names(config, self.data, self.allow)
            floor.check_format(config, self.schema)
            floor.check_range(config)
        if self.settings or self.weights:
            check_networks(config, self.weights)
        if self.binds:
            floor.check_privacy(config, self.max_delta, self.min_noise, self.public_test)

    def path(self, config: Config) -> str | None:
        """Return where the records of this node are: its own `data`, else what the run says."""
        return config.data.path if self.data is None else str(self.data)

    def networks(self, config: Config) -> Config:
        """Return the run with its stored networks in this node's `weights`, if it has some."""
        return with_networks(config, self.weights)

    def account(self, config: Config) -> tuple[Path, str]:
        """Return the folder of the site's ledgers, and its data's name there.

        A site with data or settings of its own has one account unless it names its data: were that
        name the run's to choose, or the file's, each new one would open an account with nothing spent.
        So would another folder or name of the run's where the node gives a floor.
        """
        own = bool(self.settings or self.data)
        if own or self.binds:
            bare = dataclasses.replace(config.privacy, ledger=None, dataset=None)
            config = dataclasses.replace(config, privacy=bare)
        named = OWN_RECORDS if own else dataset_identity(config)
        return self.ledger or ledger_folder(config), self.dataset or named

    def check_schema(self, schema: Schema) -> None:
        """Refuse attributes, or groups of one, that are not exactly those of the site's vocabulary.

        Raises
        ------
        PrivacyError
            Naming the attribute.
        """
        if self.attributes is None:
            return
        known = dict(self.attributes)
        for name, groups in schema.attributes.items():
            if name not in known:
                raise PrivacyError(
                    f"attribute `{name}` must be one of {[*known]}, by which alone this site reports"
                    f"{nearest(name, known)}"
                )
            if {*groups} != {*known[name]}:
                raise PrivacyError(
                    f"groups of `{name}` must be {[*known[name]]}, by which alone this site reports, "
                    f"got {[*groups]}"
                )

    def check_records(self, site: str, count: int, private: bool) -> None:
        """Refuse to take part with fewer records than the site asks for.

        Parameters
        ----------
        site : str
            For the message.
        count : int
            Training records; if private all of its records, since the run chooses the split and
            could learn their number by asking again with another.
        private : bool
            Whether the number must not be told.

        Raises
        ------
        PrivacyError
            With the number, or if private with nothing but that the site does not take part.
        """
        if count >= self.min_records:
            return
        if private:
            raise PrivacyError(f"site {site} does not take part in this run")
        raise PrivacyError(
            f"site {site} must have {counted(self.min_records, 'training record')} to take part, got {count}"
        )

    def discretion(self, config: Config, site: str) -> contextlib.AbstractContextManager[object]:
        """Return what keeps the text of an error at `site`: of any under privacy, else of what it read.

        A node without a settings file, in a run without privacy or secure sums, tells all, as in a
        simulation.
        """
        if config.privacy.on:
            return Discreet(site)
        return Reticent(site) if self.settings or config.secure.enabled else contextlib.nullcontext()

    def pathless(self) -> contextlib.AbstractContextManager[None]:
        """Return what keeps folders of a site with such settings out of refusals: they are not for others."""
        return pathless(self.weights) if self.settings or self.weights else contextlib.nullcontext()

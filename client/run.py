"""What a process of a site keeps of a run: its data, the model, and the sites it plays."""

from __future__ import annotations

from functools import lru_cache

from fedfair.budget import site_ledger
from fedfair.config import Config, parse_json
from fedfair.data import DataAdapter, Schema, SiteRecords, open_dataset
from fedfair.privacy.policy import Policy
from fedfair.site import Site, Workbench
from fedfair.uploads import Uploads


class Run:
    """One run in this process: the data, the model that is trained, the sites that were played."""

    def __init__(self, config: Config, run: str, policy: Policy) -> None:
        self.config, self.run, self.policy = config, run, policy
        # Only a file of the site's own belongs to it alone.
        owner = policy.site if policy.data else None
        self.adapter = open_dataset(
            config.data.name,
            policy.path(config),
            config.data.options,
            config.seed,
            owner,
            config.data.partition,
        )
        policy.check_schema(self.adapter.schema)
        self.bench = Workbench(policy.networks(config), self.adapter.schema)
        self.layouts = Uploads(config, self.adapter.schema, self.bench)
        self._sites: dict[str, Site] = {}

    def site(self, name: str) -> Site:
        """Return a site, its records read once."""
        if name not in self._sites:
            self._sites[name] = self._open(name)
        return self._sites[name]

    def _open(self, name: str) -> Site:
        enough = Enough(self.adapter, self.policy)
        if self.config.privacy.on:
            return self._open_private(name, enough)
        if self.config.secure.enabled:
            return Site(name, self.config, enough)
        site = Site(name, self.config, self.adapter)
        if self.policy.min_records and (counts := site.survey.train_counts) is not None:
            self.policy.check_records(name, int(counts[0].sum()), private=False)
        return site

    def _open_private(self, name: str, adapter: DataAdapter) -> Site:
        if self.config.privacy.mode != "sample":
            return Site(name, self.config, adapter)
        from fedfair.privacy.site import PrivateSite

        folder, dataset = self.policy.account(self.config)
        ledger = site_ledger(self.config, folder, name, self.policy.max_epsilon, dataset)
        return PrivateSite(name, self.config, adapter, ledger, self.run)


class Enough:
    """Data of which a site gives nothing to a private or secure run unless all of it are enough."""

    def __init__(self, adapter: DataAdapter, policy: Policy) -> None:
        self._adapter, self._policy = adapter, policy

    @property
    def schema(self) -> Schema:
        """The schema shared by all sites."""
        return self._adapter.schema

    def load(self, site: str) -> SiteRecords:
        """Return the records of `site`; raise `PrivacyError` when they are too few."""
        records = self._adapter.load(site)
        self._policy.check_records(site, len(records), private=True)
        return records


@lru_cache(maxsize=1)
def run_of(run_id: int, config_json: str, run: str, policy: Policy) -> Run:
    """Return the run; its id keeps a later run from seeing files as they were before."""
    del run_id
    return Run(parse_json(config_json), run, policy)

"""A site's own settings: what it asks of any run, whatever the server sends.

They stand in the configuration of the hospital's node (``--node-config`` of its SuperNode). Each
key that is given binds; with any of them, a run that protects less is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfair.config import Config
from fedfair.errors import ConfigError, PrivacyError

KEYS = ("ledger", "dataset", "max-epsilon", "max-delta", "public-test")


@dataclass(frozen=True)
class Policy:
    """What a site insists on.

    Attributes
    ----------
    ledger : Path | None
        Folder of its ledgers.
    dataset : str | None
        Its name of its data in the ledger.
    max_epsilon, max_delta : float | None
        Cap over all runs on its data, and the largest delta at which a run may count.
    public_test : bool
        Whether its test records may be shown exactly (`privacy.evaluation: exact`).
    """

    ledger: Path | None = None
    dataset: str | None = None
    max_epsilon: float | None = None
    max_delta: float | None = None
    public_test: bool = False

    @classmethod
    def of(cls, node: Mapping[str, object]) -> Policy:
        """Read the node's configuration.

        Raises
        ------
        ConfigError
            If a key looks like one of these and is not, or a value is no number above 0.
        """
        for key in node.keys() - {*KEYS}:
            # A misspelt cap must not be no cap; other keys are other people's.
            if meant := difflib.get_close_matches(key.lower().replace("_", "-"), KEYS, n=1, cutoff=0.85):
                raise ConfigError(f"`{key}` of the node is not a known key; did you mean `{meant[0]}`?")
        return cls(
            Path(str(node["ledger"])) if "ledger" in node else None,
            str(node["dataset"]) if "dataset" in node else None,
            _positive(node, "max-epsilon"),
            _positive(node, "max-delta"),
            str(node.get("public-test", False)).lower() == "true",
        )

    @property
    def binds(self) -> bool:
        """Whether the site asks for anything."""
        return any(x is not None for x in (self.ledger, self.dataset, self.max_epsilon, self.max_delta))

    def check(self, config: Config) -> None:
        """Refuse a run that protects less than the site asks for.

        Raises
        ------
        PrivacyError
            Naming the key of the run.
        """
        if not self.binds:
            return
        privacy = config.privacy
        delta = privacy.target_delta or 0.0
        for fine, key, wanted, value in (
            (privacy.mode == "sample", "mode", "sample", privacy.mode),
            (privacy.not_private is None, "exact and `privacy.noise_seed`", "unset", privacy.not_private),
            (
                self.max_delta is None or delta <= self.max_delta,
                "target_delta",
                f"{self.max_delta} at most",
                delta,
            ),
            (
                self.public_test or privacy.evaluation != "exact",
                "evaluation",
                "released or none (the node does not say `public-test`)",
                privacy.evaluation,
            ),
        ):
            if not fine:
                raise PrivacyError(f"`privacy.{key}` must be {wanted}, as this site asks, got {value!r}")


def _positive(node: Mapping[str, object], key: str) -> float | None:
    if key not in node:
        return None
    try:
        value = float(str(node[key]))
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"`{key}` of the node must be a number above 0, got {node[key]!r}")
    return value

"""The server's part of privacy: what modulation and aggregation may see of the sites' updates.

Under sample-level privacy sites have added their noise, and all that happens here is
post-processing. Under site-level privacy the server is trusted, and adds the noise itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedfair.aggregation import pool
from fedfair.budget import charges, releases_statistics
from fedfair.config import Config
from fedfair.data.crossing import group_names
from fedfair.data.schema import Schema
from fedfair.errors import PrivacyError
from fedfair.local import SiteUpdate
from fedfair.paths import Path
from fedfair.privacy.gate import settle
from fedfair.privacy.ledger import Ledger
from fedfair.privacy.noise import Noise
from fedfair.privacy.release import Layout
from fedfair.privacy.settings import StatisticsConfig, statistics_event, training_event
from fedfair.privacy.site_level import noised_signals, noised_sum
from fedfair.signals import Array, Signals


@dataclass(frozen=True)
class Protected:
    """What is left of a round's updates.

    Attributes
    ----------
    updates : Sequence[SiteUpdate]
        To be combined.
    train, test : Signals | None
        Pooled; None if nothing was released.
    denominators : Mapping[str, float] | None
        N_b by block; None to count records.
    """

    updates: Sequence[SiteUpdate]
    train: Signals | None
    test: Signals | None
    denominators: Mapping[str, float] | None


def protect(
    config: Config,
    schema: Schema,
    number: int,
    updates: Sequence[SiteUpdate],
    paths: Sequence[Path],
    lengths: Mapping[str, int],
    ledger: Ledger | None,
) -> Protected:
    """Return what may be seen of the checked updates of round `number`.

    Parameters
    ----------
    config, schema, number, updates, paths
        Of this round.
    lengths : Mapping[str, int]
        P_b by block.
    ledger : Ledger | None
        The server's own; charged before anything is computed in mode site.

    Raises
    ------
    PrivacyBudgetExhausted
        If the round would exceed the cap of mode site.
    """
    train, test = pool(updates)
    mode = config.privacy.mode
    if mode == "off":
        return Protected(updates, train, test, None)
    if mode == "sample":
        # Who took part is public, what they hold is not.
        sites = sum(update.sites for update in updates)
        return Protected(updates, train, test, dict.fromkeys(lengths, float(sites)))
    if ledger is None:
        raise PrivacyError("`ledger` must be given for site-level privacy, got None")
    ledger.charge(config.name, charges(config, number), charges(config, config.rounds + 1))
    joined = _all_sites(config, schema, number, updates, paths, lengths)
    return Protected([joined], joined.train, test, dict.fromkeys(lengths, float(len(schema.sites))))


def _all_sites(
    config: Config,
    schema: Schema,
    number: int,
    updates: Sequence[SiteUpdate],
    paths: Sequence[Path],
    lengths: Mapping[str, int],
) -> SiteUpdate:
    privacy, modalities = config.privacy, tuple(schema.modalities)
    seed = privacy.noise_seed
    noise = Noise.from_os() if seed is None else Noise.fixed(seed, config.seed, "server", number)
    groups = len(group_names(schema.attributes, config.data.attribute))
    shapes = {p.key: (groups if p.grouped else 1, lengths[p.block]) for p in paths}
    clip, sigma = float(privacy.clipping_norm or 0.0), training_event(privacy).noise_multiplier
    rows = noised_sum(updates, shapes, paths, modalities, clip, sigma, noise)
    signals = None
    if releases_statistics(config, number):
        layout = statistics_layout(config, schema)
        signals = noised_signals(updates, layout, statistics_event(privacy).noise_multiplier, noise)
    return SiteUpdate("all sites", rows, signals, None)


def statistics_layout(config: Config, schema: Schema) -> Layout:
    """Return what one unit may add to a release of statistics."""
    statistics, classes = config.privacy.statistics, len(schema.classes)
    return Layout(
        len(schema.modalities) + 1,
        1 if classes == 2 else classes,
        statistics.loss_bound,
        statistics.gradient_norm if config.method.needs_head_gradients else None,
    )


def usable(
    earlier: Signals | None, released: Signals, statistics: StatisticsConfig
) -> tuple[Signals, Signals, Mapping[str, Array]]:
    """Return the releases blended over rounds, what methods may react to, and what was seen.

    Parameters
    ----------
    earlier : Signals | None
        The blend of earlier releases.
    released : Signals
        This round's, pooled over sites.
    statistics : StatisticsConfig
        Memory, and whether to gate.
    """
    if earlier is not None:
        released = earlier.blend(released, statistics.memory)
    settled, seen = settle(released)
    if not statistics.gate:
        settled = dataclasses.replace(released, variance=None)
    return released, settled, seen

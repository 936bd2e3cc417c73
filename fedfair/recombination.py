"""How far from last round's coefficients fresh ones may act on what sites sent.

After local epochs a row is no gradient but a way that a site went along the coefficients it had. Going some
rows several times as far, and others not at all, leaves the region in which the way led downhill.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedfair.coefficients import Coefficients
from fedfair.config import Config
from fedfair.local import SiteUpdate
from fedfair.signals import Signals


def applied(
    config: Config,
    fresh: Coefficients,
    sent: Coefficients,
    updates: Sequence[SiteUpdate],
    train: Signals | None,
) -> Coefficients:
    """Return the coefficients that move the model by group rows.

    Parameters
    ----------
    config : Config
        The run's.
    fresh, sent : Coefficients
        This round's, and those that the sites trained along.
    updates : Sequence[SiteUpdate]
        What the sites sent.
    train : Signals | None
        Their signals, for the number of records; None where nothing was released.

    Returns
    -------
    Coefficients
        `fresh` in mode gradient, and after single steps; else within `server.recombination` of `sent`.
    """
    if config.training.mode == "gradient":
        return fresh
    limit = config.server.recombination or step_limit(_steps(config, updates, train))
    return fresh if math.isinf(limit) else fresh.near(sent, limit)


def step_limit(steps: int) -> float:
    """Return 1 + 1 / (steps - 1): the way may be corrected by as much as one of its steps.

    Infinity for one step, which is a gradient; 1, which changes nothing, for a number that is not known (0).
    """
    if steps == 0:
        return 1.0
    return math.inf if steps == 1 else 1 + 1 / (steps - 1)


def _steps(config: Config, updates: Sequence[SiteUpdate], train: Signals | None) -> int:
    """Return the local steps of a site with the mean number of records; 0 where privacy hides it.

    The mean, because it is one of sums, which is all that the server sees of a secure run.
    """
    if config.privacy.on:
        return config.privacy.local_steps or 0
    if train is None:
        return 0
    records, training = float(train.counts[0].sum()), config.training
    mean = records / sum(update.sites for update in updates)
    steps = training.local_epochs * math.ceil(mean / training.batch_size)
    # With a mean of one step some site may have gone further, unless all records fit into a batch.
    return 2 if steps == 1 and records > training.batch_size else steps

"""What a site refuses in a run, whatever the server sends: each check names the key of the run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fedfair.config import Config
from fedfair.errors import PrivacyError
from fedfair.privacy.node_settings import format_of

LEAST_RANGE = 2**20
"""Smallest `secure.bound` and `secure.max_records` at a site with settings: a site that refuses to send
what is beyond them tells that it has it. Sums of losses and counts of any hospital are below."""
LARGEST_HELD_OUT = 0.9
"""Largest fraction that a secure run may hold out: whether any record is left would tell their number."""


def check_sums(config: Config, min_sites: int) -> None:
    """Refuse all but secure sums of at least `min_sites` sites.

    Raises
    ------
    PrivacyError
        Naming the key of the run.
    """
    if not config.secure.enabled:
        raise PrivacyError("`secure.enabled` must be true, as this site asks, got False")
    if config.secure.fewest < min_sites:
        raise PrivacyError(
            f"`secure.fewest` must be at least {min_sites}, as this site asks, got {config.secure.fewest}"
        )


def check_names(config: Config, data: Path | None, allow: Collection[str]) -> None:
    """Refuse a path where the site has none of its own, and factories that it does not allow.

    Raises
    ------
    PrivacyError
        Naming the key of the run.
    """
    if data is None and config.data.path is not None:
        raise PrivacyError(
            f"`data.path` must be left out, the path is the site's to choose, got {config.data.path!r}"
        )
    named = {"data": config.data.name, "model": config.model.name, "method": config.method.name}
    for section, name in named.items():
        if ":" in name and name not in allow:
            raise PrivacyError(
                f"`{section}.name` must be built in or listed in `allow` of the site's settings, got {name!r}"
            )


def check_format(config: Config, schema: str | None) -> None:
    """Refuse another reading of the site's file: by which ones fail, a server could read its cells.

    Raises
    ------
    PrivacyError
        Without the reading that was asked for.
    """
    if schema is not None and format_of(config.data.name, config.data.options) != schema:
        raise PrivacyError(
            "`data.name` and `data.options` must be those of `schema` in the site's settings, got others"
        )


def check_privacy(
    config: Config, max_delta: float | None, min_noise: float | None, public_test: bool
) -> None:
    """Refuse a run that protects single records less than the site asks for.

    Raises
    ------
    PrivacyError
        Naming the key of the run.
    """
    privacy = config.privacy
    delta, noise = privacy.target_delta or 0.0, privacy.noise_multiplier or 0.0
    for fine, key, wanted, value in (
        (privacy.mode == "sample", "mode", "sample", privacy.mode),
        (privacy.not_private is None, "exact and `privacy.noise_seed`", "unset", privacy.not_private),
        (max_delta is None or delta <= max_delta, "target_delta", f"{max_delta} at most", delta),
        (min_noise is None or noise >= min_noise, "noise_multiplier", f"{min_noise} at least", noise),
        (
            public_test or privacy.evaluation != "exact",
            "evaluation",
            "released or none (the node does not say `public-test`)",
            privacy.evaluation,
        ),
    ):
        if not fine:
            raise PrivacyError(f"`privacy.{key}` must be {wanted}, as this site asks, got {value!r}")


def check_range(config: Config) -> None:
    """Refuse numbers by which a site could be asked for its counts: whether it refuses would tell.

    Raises
    ------
    PrivacyError
        Naming the key of the run.
    """
    secure, data = config.secure, config.data
    if not secure.enabled:
        return
    for key, value in (("bound", secure.bound), ("max_records", secure.max_records)):
        if value < LEAST_RANGE:
            raise PrivacyError(
                f"`secure.{key}` must be at least {LEAST_RANGE} at a site with settings, got {value:g}"
            )
    held_out = {"test_fraction": data.test_fraction, "validation_fraction": data.validation_fraction}
    for key, value in held_out.items():
        if value > LARGEST_HELD_OUT:
            raise PrivacyError(
                f"`data.{key}` must be at most {LARGEST_HELD_OUT} where sums are secure, got {value:g}"
            )

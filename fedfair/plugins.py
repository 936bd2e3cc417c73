"""A user's own data set, model or method, named as ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from fedfair.errors import ConfigError, nearest


def import_factory(key: str, target: str) -> Callable[..., Any]:
    """Return the callable that ``package.module:factory`` names.

    Parameters
    ----------
    key : str
        The configuration key, for the message.
    target : str
        ``package.module:factory``.

    Raises
    ------
    ConfigError
        If the module cannot be imported or has no such callable.
    """
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"`{key}` must name an importable module, got {target!r} ({error})") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ConfigError(
            f"`{key}` must name a function of {module_name}, got {attribute!r}{nearest(attribute, vars(module))}"
        )
    return factory  # type: ignore[no-any-return]


def call_factory(key: str, factory: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call `factory`, turning an option it does not take into a `ConfigError`."""
    try:
        inspect.signature(factory).bind(*args, **options)
    except TypeError as error:
        known = [p for p in inspect.signature(factory).parameters][len(args) :]
        wrong = next((o for o in options if o not in known), "")
        raise ConfigError(
            f"`{key}` must fit {factory.__name__}({', '.join(known)}), got {sorted(options)} "
            f"({error}){nearest(wrong, known)}"
        ) from error
    return factory(*args, **options)

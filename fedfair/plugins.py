"""A user's own data set, model or method, named as ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

from fedfair.errors import ConfigError, nearest


def import_factory(key: str, target: str) -> Callable[..., object]:
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
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ConfigError(f"`{key}` must look like package.module:factory, got {target!r}")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"`{key}` must name an importable module, got {target!r} ({error})") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ConfigError(
            f"`{key}` must name a function of {module_name}, got {attribute!r}"
            f"{nearest(attribute, vars(module))}"
        )
    found: Callable[..., object] = factory
    return found


def call_factory(key: str, factory: Callable[..., object], *args: object, **options: object) -> object:
    """Call `factory`, turning an option it does not take into a `ConfigError`."""
    try:
        inspect.signature(factory).bind(*args, **options)
    except TypeError as error:
        known = list(inspect.signature(factory).parameters)[len(args) :]
        wrong = next((o for o in options if o not in known), "")
        raise ConfigError(
            f"`{key}` must fit {factory.__name__}({', '.join(known)}), got {sorted(options)} "
            f"({error}){nearest(wrong, known)}"
        ) from error
    return factory(*args, **options)

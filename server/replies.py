"""What is taken from a reply: exactly the arrays that were asked for, and texts that fit a log.

Whatever a site sends, reading it raises `InconsistentUpdates` at most: it then has failed, alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message
from numpy.typing import NDArray

from fedfair import wire
from fedfair.errors import FedfairError, InconsistentUpdates
from fedfair.secagg import Field
from server.spool import spooled

Arrays = Mapping[str, NDArray[np.generic]]
LONGEST = 500  # characters of any text that a site sends
# Flower's codes; a message that nobody fetched in time is an error of its own.
_WORDS = {3: "no answer before the message expired", 5: "the node went offline", 8: "its program ended"}
_RAISED = re.compile(r"<class '(?P<kind>[\w.]+)'>:<'(?P<text>.*)'>", re.DOTALL)
_MOST_COUNTED = 2.0**53  # float64 holds no larger count exactly


def printable(text: str) -> str:
    """Return at most 500 characters, a space for each line break and whatever else steers a terminal.

    Of a longer text the beginning and the end: a traceback says last what went wrong.
    """
    if len(text) > LONGEST:
        text = f"{text[:100]} ... {text[105 - LONGEST :]}"
    return "".join(c if c.isprintable() else " " for c in text)


def in_words(error: Error) -> str:
    """Return what went wrong in the site's own words, without Flower's wrapping."""
    reason = error.reason or ""
    if raised := _RAISED.fullmatch(reason):
        kind = raised["kind"].rpartition(".")[2]
        own = raised["kind"].startswith(FedfairError.__module__)
        return printable(raised["text"] if own else f"{kind}: {raised['text']}")
    if error.code in _WORDS:
        return printable(_WORDS[error.code] + (f" ({reason})" if reason else ""))
    return printable(reason or f"code {error.code}")


def introduced(reply: Message) -> tuple[str, str, ConfigRecord]:
    """Return the site's name, the digest of its schema, and all that it says beside its arrays.

    Raises
    ------
    InconsistentUpdates
        If it does not say who it is.
    """
    told = reply.content.config_records.get("site", ConfigRecord())
    if missing := sorted({"name", "schema"} - told.keys()):
        raise InconsistentUpdates(f"an answer must tell its site's name and schema, it lacks {missing}")
    return str(told["name"]), str(told["schema"]), told


def read(
    site: str, reply: Message, fields: Sequence[Field] | None, folder: Path, values: bool = True
) -> Arrays:
    """Return the arrays of a reply, the large ones spooled.

    Parameters
    ----------
    site : str
        Who answered.
    reply : Message
        Its answer.
    fields : Sequence[Field] | None
        What it must hold; None for anything. Nothing of a larger answer is read.
    folder : Path
        Where large arrays lie.
    values : bool
        Whether to refuse values that are not finite, or no counts where counts are meant.

    Raises
    ------
    InconsistentUpdates
        Naming the site, the array and what was expected.
    """
    record = reply.content.array_records.get("arrays")
    if record is None:
        raise InconsistentUpdates(f"the answer of site {site} must hold `arrays`, got none")
    wanted = None if fields is None else {field.name: field for field in fields}
    if wanted is not None:
        _check_names(site, record, wanted)
    found = {name: _array(site, name, array, wanted) for name, array in record.items()}
    if wanted is not None and values:
        for name, value in found.items():
            _check_values(site, value, wanted[name])
    return {name: spooled(value, folder) for name, value in found.items()}


def _check_names(site: str, record: ArrayRecord, wanted: Mapping[str, Field]) -> None:
    for name, field in wanted.items():
        if name not in record and not field.optional:
            raise InconsistentUpdates(f"the answer of site {site} must hold `{name}`, it does not")
    for name in record:
        if name not in wanted:
            raise InconsistentUpdates(
                f"the answer of site {site} must hold what was asked for alone, got `{printable(name)}` too"
            )


def _array(site: str, name: str, array: Array, wanted: Mapping[str, Field] | None) -> NDArray[np.generic]:
    if wanted is not None and array.shape != wanted[name].shape:
        got = array.shape if len(array.shape) <= wire.MOST_AXES else f"{len(array.shape)} axes"
        raise InconsistentUpdates(f"`{name}` of site {site} must be {wanted[name].shape}, got {got}")
    dtypes = wire.WORDS if name == "words" else wire.DTYPES
    try:
        return wire.from_bytes(array.data, array.dtype, array.shape, dtypes)
    except InconsistentUpdates as error:
        raise InconsistentUpdates(f"`{printable(name)}` of site {site} cannot be read: {error}") from error


def _check_values(site: str, value: NDArray[np.generic], field: Field) -> None:
    if not value.size:
        return
    # NaN and infinity show in these, and no array as large as the update is made.
    low, high = float(np.min(value)), float(np.max(value))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InconsistentUpdates(
            f"`{field.name}` of site {site} must be finite, got NaN or infinity; "
            "a lower `training.learning_rate` may help"
        )
    if field.exact and not (low >= 0 and high <= _MOST_COUNTED and np.array_equal(value, np.rint(value))):
        raise InconsistentUpdates(
            f"`{field.name}` of site {site} must hold counts, whole and not negative, it does not"
        )

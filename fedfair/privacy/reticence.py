"""What a refusal at a site does not tell: a text that may hold a cell, and where things lie."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from fedfair.errors import DataError, FedfairError, ShapeError
from fedfair.privacy.edge import Discreet

_PATH = re.compile(r"`/(?:[^`]*/)?([^`/]*)`")


class Reticent(Discreet):
    """Keep the text of an error at the site where it may tell of a table's cell; refusals pass.

    That is any that fedfair did not raise on purpose, and what is wrong with the records: which row,
    or which value, a server could choose the format to find out.
    """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Replace an error that is about records, or that fedfair did not raise on purpose."""
        if not isinstance(error, FedfairError) or isinstance(error, DataError | ShapeError):
            super().__exit__(kind, error, trace)


@contextlib.contextmanager
def pathless(folder: Path | None = None) -> Iterator[None]:
    """Keep folders out of refusals.

    Parameters
    ----------
    folder : Path | None
        What lies in it is told by its name there.

    Raises
    ------
    FedfairError
        As it was, each path in backticks cut to its last name.
    """
    try:
        yield
    except FedfairError as error:
        told = str(error) if folder is None else str(error).replace(f"{folder}/", "")
        told = _PATH.sub(r"`\1`", told)
        if told == str(error):
            raise
        raise type(error)(told) from None

"""What every upload of a run holds; it follows from public settings, so that all sides know it before.

The server refuses an answer that holds anything else. Where it sees sums alone, a site without a modality
sends zeros for its blocks, so that nobody sees that it lacks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fedfair.budget import releases_statistics
from fedfair.config import Config
from fedfair.data.crossing import group_names
from fedfair.data.encode import num_cells
from fedfair.data.schema import Schema, TableModality
from fedfair.errors import InconsistentUpdates
from fedfair.local import block_records
from fedfair.plan import row_plan
from fedfair.secagg import Field, Layout, Rule
from fedfair.signals import signal_shapes
from fedfair.site import Workbench
from fedfair.wire import Arrays, Download, unpack_signals

ALL = "all sites"
MEASURED = ("evaluate", "evaluate.validation")
FEATURE_BOUND = 2.0**40
"""Largest sum of a column's values or squares at one site; steps of 2^-20 for four sites."""


def rule(config: Config) -> Rule:
    """Return the rule that sites and server take from the configuration."""
    secure = config.secure
    return Rule(secure.collusion, secure.dropout, secure.fewest)


class Uploads:
    """The arrays of each kind of upload of one run.

    Parameters
    ----------
    config : Config
        The run's.
    schema : Schema
        The data's.
    bench : Workbench
        Its model gives the sizes; no value of it is used.
    """

    def __init__(self, config: Config, schema: Schema, bench: Workbench) -> None:
        self._config, self._schema = config, schema
        self._lengths = {name: len(value) for name, value in bench.blocks.vectors.items()}
        self._width = bench.model.fusion.classifier.in_features + 1

    def fields(self, kind: str, number: int, download: Download | None) -> tuple[Field, ...]:
        """Return the arrays that an upload holds, in wire order.

        A site of an open run, or of one that protects whole sites, leaves out the rows of modalities that
        it does not have; these fields are optional.

        Parameters
        ----------
        kind : str
            Flower's message type.
        number : int
            The round.
        download : Download | None
            What the message brought; None for the survey.

        Raises
        ------
        InconsistentUpdates
            If there is no such kind, or one that trains brought no download.
        """
        if kind == "query":
            return tuple(self._survey())
        if kind == "train.signals":
            return tuple(self._signals("train"))
        if kind == "train" and download is not None:
            return tuple(self._update(number, download.coefficients.live, bool(download.terms)))
        if kind in MEASURED:
            return tuple(self._measured(self._config.rounds + 1))
        raise InconsistentUpdates(
            f"`kind` must be query, train (with a download), train.signals or one of {MEASURED}, got {kind!r}"
        )

    def layout(self, kind: str, number: int, download: Download | None) -> Layout:
        """Return the same as numbers that can be summed under masks."""
        # The survey is sent once and small, and its sums of squares are far larger than any update.
        bits = {} if kind == "query" else {"bits": self._config.secure.bits}
        return Layout(self.fields(kind, number, download), len(self._schema.sites), **bits)

    def _survey(self) -> Iterator[Field]:
        if self._config.privacy.on:
            return
        for name, modality in self._schema.modalities.items():
            if isinstance(modality, TableModality):
                numeric = sum(not column.categories for column in modality.columns)
                yield Field(f"features/{name}", (3, numeric), FEATURE_BOUND)
        shape = (len(self._schema.modalities) + 1, num_cells(self._schema), len(self._schema.classes))
        for part in ("train", "test"):
            yield Field(f"{part}/counts", shape, self._config.secure.max_records, exact=True)

    @property
    def largest(self) -> int:
        """Bytes of the model's rows in the largest answer that a round may ask for."""
        asked = [(live, terms) for live in (False, True) for terms in (False, True)]
        values = max(sum(field.size for field in self._rows(*each)) for each in asked)
        bits = (
            self._config.secure.bits if self._config.secure.enabled else int(self._config.training.dtype[5:])
        )
        return values * bits // 8

    def _update(self, number: int, live: bool, terms: bool) -> Iterator[Field]:
        yield from self._rows(live, terms)
        yield from self._measured(number)

    def _rows(self, live: bool, terms: bool) -> Iterator[Field]:
        groups = len(group_names(self._schema.attributes, self._config.data.attribute))
        plan, modalities = row_plan(self._config, self._schema), tuple(self._schema.modalities)
        for path in plan.paths(modalities, live, terms):
            shape = (groups if path.grouped else 1, self._lengths[path.block])
            # Whether a private site has a modality is a secret of its records.
            optional = self._config.privacy.mode != "sample"
            yield Field(f"rows/{path.key}", shape, self._config.secure.bound, optional=optional)

    def _measured(self, number: int) -> Iterator[Field]:
        privacy = self._config.privacy
        released = privacy.mode != "sample" or releases_statistics(self._config, number)
        if released:
            yield from self._signals("train")
        if not privacy.on or privacy.evaluation == "exact" or (released and privacy.evaluation == "released"):
            yield from self._signals("test")

    def _signals(self, part: str) -> Iterator[Field]:
        config, training = self._config, part == "train"
        # Under site-level privacy the noise is the server's.
        noisy = config.privacy.mode == "sample" and (training or config.privacy.evaluation == "released")
        shapes = signal_shapes(
            len(self._schema.modalities) + 1,
            len(group_names(self._schema.attributes, config.data.attribute))
            if training
            else num_cells(self._schema),
            len(self._schema.classes),
            config.train_bins if training else config.test_bins,
            self._width if training and config.method.needs_head_gradients else None,
        )
        for name, shape in shapes.items():
            exact = not noisy and name in ("counts", "histograms")
            bound = config.secure.max_records if exact else config.secure.bound
            yield Field(f"{part}/{name}", shape, bound, exact)
        if noisy:
            yield Field(f"{part}/variance", (3,), config.secure.bound)


def without_absent(sums: Mapping[str, NDArray[np.generic]], modalities: tuple[str, ...]) -> Arrays:
    """Return the sums without the rows of blocks whose modality nobody has: those are no update."""
    arrays: Arrays = dict(sums)
    if "train/losses" not in sums:
        return arrays
    train = unpack_signals("train", sums)
    for name in [name for name in arrays if name.startswith("rows/")]:
        block = name.removeprefix("rows/").partition(":")[0]
        if train.variance is None and block_records(train, modalities, block) == 0:
            del arrays[name]
    return arrays

"""The Flower strategy: messages out, replies in; every decision is the coordinator's."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import reduce

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedfair import wire
from fedfair.aggregation import pool
from fedfair.coordinator import Coordinator
from fedfair.errors import PrivacyBudgetExhausted, RunError
from fedfair.record import Made, RoundRecord, RunFolder, coefficient_table, test_metrics, train_loss
from fedfair.signals import Signals
from fedfair.wire import Survey

logger = logging.getLogger("fedfair.rounds")
Arrays = Mapping[str, NDArray[np.generic]]
Replies = dict[str, Arrays]


class ModulatedAggregation(Strategy):
    """One exchange per round: signals and training together; the model moves when all is checked.

    Parameters
    ----------
    coordinator : Coordinator
        The state of the run.
    folder : RunFolder
        Where records and checkpoints go.
    source : str
        Digest of the server's code, which sites compare with theirs.
    run : str
        What the sites' ledgers call this run.
    """

    def __init__(self, coordinator: Coordinator, folder: RunFolder, source: str, run: str) -> None:
        self.coordinator, self.folder, self.source, self.run = coordinator, folder, source, run
        self.config = coordinator.config
        self.schema = coordinator.schema.digest()
        self.surveys: dict[str, Survey] = {}
        self._failed: dict[str, str] = {}
        self._exhausted: dict[str, str] = {}
        self.made: Made = Made()
        self._clock = time.perf_counter()
        self._nodes: list[int] = []

    def survey(self, grid: Grid) -> None:
        """Ask every site once for what standardisation needs, and check that the data can be used.

        Raises
        ------
        RunError
            If a site reports a failure, or fewer answer than `server.min_sites`.
        """
        self._nodes = _wait_for_nodes(grid, self.config.server.min_sites, self.config.server.round_timeout)
        replies = self._ask(grid, "query", RecordDict({"run": self._run_record(0)}))
        # A site that fails before it has trained is misconfigured, and would go on failing.
        for reason in self._failed.values():
            raise RunError(f"every connected site must be ready, one is not: {reason}")
        self.surveys = {site: wire.unpack_survey(arrays) for site, arrays in replies.items()}
        self.coordinator.standardise(self.surveys)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message per site: model, moments, coefficients and terms."""
        del server_round, arrays, config
        if self.config.training.exchanges == 2:
            replies = self._ask(grid, "train.signals", self._content())
            signals = {site: wire.unpack_signals("train", replies[site]) for site in sorted(replies)}
            self.coordinator.refresh(_total(signals))
        self.folder.note_asked(self.coordinator.round + 1)
        return self._messages(MessageType.TRAIN, self._content())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Commit the round: write the record of the model it started from, then checkpoint."""
        del server_round
        received = self._collect(replies)
        for node, reason in self._failed.items():
            logger.warning("node %s failed: %s", node, reason)
        if self._exhausted:
            if not received:
                self.folder.note_refused(self.coordinator.round + 1)
            others = f" (and {len(self._exhausted) - 1} more sites)" if len(self._exhausted) > 1 else ""
            raise PrivacyBudgetExhausted(self._exhausted[min(self._exhausted)] + others)
        try:
            committed = self.coordinator.commit([wire.unpack_update(s, a) for s, a in received.items()])
        except PrivacyBudgetExhausted:
            self.folder.note_refused(self.coordinator.round + 1)
            raise
        self._record(self.coordinator.round - 1, committed.train, committed.test, committed.test_by_site)
        self.made = Made(
            coefficient_table(committed.applied),
            committed.modulation.diagnostics,
            sorted(received),
            dict(self._failed),
        )
        self.folder.save_checkpoint(self.coordinator, self.made)
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no message: a model is measured by the sites that train it next."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: `configure_evaluate` asks for nothing."""
        del server_round, replies
        return None

    def finish(self, grid: Grid) -> None:
        """Have the final model measured and save what the report needs."""
        self.folder.note_asked(self.config.rounds + 1)
        received = self._ask(grid, MessageType.EVALUATE, self._content())
        if not received:
            self.folder.note_refused(self.config.rounds + 1)
        told = [wire.unpack_update(site, received[site]) for site in sorted(received)]
        for update in told:
            for signals in (update.train, update.test):
                if signals is not None:
                    signals.check(f"site {update.site}")
        train, test = pool(told) if told else (None, None)
        by_site = {update.site: update.test for update in told if update.test is not None}
        self._record(
            self.coordinator.round, None if self.config.privacy.mode == "site" else train, test, by_site
        )
        counts = {site: survey.train_counts for site, survey in self.surveys.items()}
        self.folder.save_evaluation(self.coordinator.schema, counts, by_site)

    def summary(self) -> None:
        """Log what is about to run."""
        logger.info(
            "%s: method %s, mode %s, %d sites",
            self.config.name,
            self.config.method.name,
            self.config.training.mode,
            len(self.surveys),
        )

    def _record(
        self, number: int, train: Signals | None, test: Signals | None, by_site: Mapping[str, Signals]
    ) -> None:
        now = time.perf_counter()
        record = RoundRecord(
            number,
            train_loss(train),
            {} if test is None else test_metrics(self.config, self.coordinator.schema, test, by_site),
            self.made,
            now - self._clock,
        )
        self._clock = now
        self.folder.append(record)
        auc = record.test.get("auc", math.nan)
        logger.info("round %d/%d  AUC %s", number, self.config.rounds, auc, extra={"round_record": record})

    def _content(self) -> RecordDict:
        arrays = wire.pack_download(self.coordinator.download())
        wrapped = ArrayRecord(
            {
                name: Array(value.dtype.name, value.shape, "numpy.ndarray", wire.to_bytes(value))
                for name, value in arrays.items()
            }
        )
        return RecordDict({"arrays": wrapped, "run": self._run_record(self.coordinator.round + 1)})

    def _run_record(self, number: int) -> ConfigRecord:
        told: dict[str, str | int] = {
            "config": self.config.to_json(),
            "round": number,
            "source": self.source,
            "run": self.run,
        }
        return ConfigRecord({**told})

    def _messages(self, kind: str, content: RecordDict) -> list[Message]:
        group = str(self.coordinator.round + 1)
        return [Message(content, dst_node_id=n, message_type=kind, group_id=group) for n in self._nodes]

    def _ask(self, grid: Grid, kind: str, content: RecordDict) -> Replies:
        replies = grid.send_and_receive(
            self._messages(kind, content), timeout=self.config.server.round_timeout
        )
        return self._collect(replies)

    def _collect(self, replies: Iterable[Message]) -> Replies:
        """Return the arrays of the sites that answered; the order of arrival does not matter.

        Raises
        ------
        RunError
            If fewer than `server.min_sites` answered, with the first failed site's own words.
        """
        received: Replies = {}
        self._failed, self._exhausted = {}, {}
        for reply in replies:
            if reply.has_error():
                node = str(reply.metadata.src_node_id)
                self._failed[node] = reply.error.reason or f"error code {reply.error.code}"
                continue
            site = str(reply.content.config_records["site"]["name"])
            if site in received:
                raise RunError(
                    f"site {site} must be one node, got two; correct the `site` of one node's config"
                )
            if (schema := str(reply.content.config_records["site"]["schema"])) != self.schema:
                raise RunError(
                    f"the data of site {site} must have the server's schema ({self.schema}), got {schema}: "
                    "names, shapes or their order differ"
                )
            if "exhausted" in reply.content.config_records["site"]:
                self._exhausted[site] = str(reply.content.config_records["site"]["exhausted"])
                continue
            record = reply.content.array_records["arrays"]
            received[site] = {n: wire.from_bytes(a.data, a.dtype, a.shape) for n, a in record.items()}
        if not self._exhausted and len(received) < self.config.server.min_sites:
            why = next(iter(self._failed.values()), "no answer before `server.round_timeout`")
            raise RunError(
                f"at least {self.config.server.min_sites} sites must answer, got {len(received)} "
                f"in round {self.coordinator.round + 1}; the first failure: {why}"
            )
        return received


def _total(signals: Mapping[str, Signals]) -> Signals:
    return reduce(Signals.__add__, signals.values())


def _wait_for_nodes(
    grid: Grid, minimum: int, timeout: float, sleep: Callable[[float], None] = time.sleep
) -> list[int]:
    end = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < minimum:
        if time.monotonic() > end:
            raise RunError(f"at least {minimum} sites must be connected, got {len(nodes)}")
        sleep(0.5)
    return nodes

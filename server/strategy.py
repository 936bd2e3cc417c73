"""The rounds of a run: messages out, answers in, a round committed or not; decisions are the coordinator's.

Flower's own `Strategy.start` counts rounds from one and asks for each once. Here a run goes on from
its checkpoint, repeats a round that too few sites answered, and ends early when it is told to.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from functools import reduce

from flwr.app import MessageType

from fedfair import wire
from fedfair.aggregation import pool
from fedfair.coordinator import Coordinator
from fedfair.errors import InconsistentUpdates, PrivacyBudgetExhausted, counted
from fedfair.local import SiteUpdate
from fedfair.monitor import Monitor
from fedfair.record import Made, RoundRecord, RunFolder, coefficient_table, test_metrics, train_loss
from fedfair.signals import Signals
from server.crew import Crew
from server.exchange import Answers

logger = logging.getLogger("fedfair.rounds")


class ModulatedAggregation:
    """Signals and training in one exchange; the model moves when all is checked.

    Parameters
    ----------
    coordinator : Coordinator
        The state of the run.
    crew : Crew
        The sites that train.
    folder : RunFolder
        Where records and checkpoints go.

    Attributes
    ----------
    monitor : Monitor
        Which model is the best so far.
    made : Made
        What made the current model.
    capped : str | None
        Why the privacy budget ended the training, if it did.
    """

    def __init__(self, coordinator: Coordinator, crew: Crew, folder: RunFolder) -> None:
        self.coordinator, self.crew, self.folder = coordinator, crew, folder
        self.config = coordinator.config
        self.monitor = Monitor(self.config)
        self.made = Made()
        self.capped: str | None = None
        self._clock = time.perf_counter()
        self._attempts = 0

    def train(self) -> str | None:
        """Train the rounds that are left; return why it ended before the last one, or None.

        Raises
        ------
        RunError
            If a round was tried `server.attempts` times and could not be committed.
        PrivacyBudgetExhausted
            If not even the first round was affordable.
        """
        if self.config.server.monitor and self.coordinator.round == 0:
            self._save()  # the initial model may turn out to be the best
        while self.coordinator.round < self.config.rounds:
            if self.monitor.exhausted:
                server = self.config.server
                return f"`{server.monitor}` did not improve for {counted(server.patience or 0, 'round')}"
            self._attempts = 0
            try:
                self.crew.tried(self._round, f"round {self.coordinator.round + 1}")
            except PrivacyBudgetExhausted as stop:
                if self.coordinator.round == 0:
                    raise
                self.capped = str(stop)
                return self.capped
        return None

    def finish(self) -> None:
        """Have the final model, or the best one, measured on the test records."""
        number = self.coordinator.round
        if self.config.data.validation_fraction and not self.config.privacy.on:
            self._measure("evaluate.validation", number)
        if (best := self.monitor.best_round) is not None and best != number:
            logger.info("the model of round %d is the best by `%s`", best, self.config.server.monitor)
            self.made = self.folder.checkpoints.load_best(self.coordinator, best).made
            # The run has gone on to its last round, whichever model it ends with.
            self.coordinator.round = number
        told = self._measure(MessageType.EVALUATE, None if self.config.data.validation_fraction else number)
        counts = {site: survey.train_counts for site, survey in self.crew.surveys.items()}
        tests = {update.site: update.test for update in told if update.test is not None}
        self.folder.save_evaluation(self.coordinator.schema, counts, tests)

    def _round(self) -> None:
        """Try to commit a round: record the model that it started from, then save the new one.

        Raises
        ------
        RoundRefused
            If too few sites, or too few records of a group, answered.
        """
        self._attempts += 1
        nodes = self.crew.nodes()
        number = self.coordinator.round + 1
        if self.config.training.exchanges == 2:
            self._refresh(self.crew.ask(nodes, "train.signals"))
        self.folder.note_asked(number)
        answers = self.crew.ask(nodes, MessageType.TRAIN)
        if answers.exhausted:
            if not answers.sites:
                self.folder.note_refused(number)
            raise _exhausted(answers)
        updates = self.crew.updates(answers, self.coordinator.check)
        self.crew.note_absent(answers, nodes)
        self.crew.enough(answers)
        try:
            committed = self.coordinator.commit(updates)
        except PrivacyBudgetExhausted:
            self.folder.note_refused(number)
            raise
        record = self._record(number - 1, committed.train, committed.test, committed.test_by_site)
        if self.monitor.see(number - 1, record):
            self.folder.checkpoints.mark_best(number - 1)
        self.made = Made(
            coefficient_table(committed.applied),
            committed.modulation.diagnostics,
            sorted(answers.sites),
            dict(answers.failed),
            self._attempts,
        )
        self._save()

    def _refresh(self, answers: Answers) -> None:
        """Choose this round's coefficients from signals that can be summed."""
        usable: dict[str, Signals] = {}
        for site in sorted(answers.arrays):
            try:
                signals = wire.unpack_signals("train", answers.arrays[site])
                signals.check(f"site {site}")
                usable[site] = signals
            except InconsistentUpdates as error:
                answers.leave_out(site, str(error))
        self.crew.enough(answers)
        self.coordinator.refresh(reduce(Signals.__add__, usable.values()))

    def _measure(self, kind: str, number: int | None) -> list[SiteUpdate]:
        """Have the current model measured; with a round's number, record it as that round's model."""
        answers, told = self.crew.tried(lambda: self._measured(kind), "the final evaluation")
        if answers.exhausted and not told:
            self.folder.note_refused(self.config.rounds + 1)
            logger.warning("the final model is not measured: %s", _exhausted(answers))
        if number is not None:
            train, test = pool(told) if told else (None, None)
            by_site = {update.site: update.test for update in told if update.test is not None}
            shown = None if self.config.privacy.mode == "site" else train
            if self.monitor.see(number, self._record(number, shown, test, by_site)):
                self.folder.checkpoints.mark_best(number)
        return told

    def _measured(self, kind: str) -> tuple[Answers, list[SiteUpdate]]:
        nodes = self.crew.nodes()
        if kind == MessageType.EVALUATE:
            self.folder.note_asked(self.config.rounds + 1)
        answers = self.crew.ask(nodes, kind)
        if answers.exhausted and self.config.secure.enabled:
            answers.arrays, answers.sites = {}, []  # no sum was opened
        told = self.crew.updates(answers, _check_signals)
        self.crew.note_absent(answers, nodes)
        if not answers.exhausted:
            self.crew.enough(answers)
        return answers, told

    def _record(
        self, number: int, train: Signals | None, test: Signals | None, by_site: Mapping[str, Signals]
    ) -> RoundRecord:
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
        return record

    def _save(self) -> None:
        state = {"monitor": self.monitor.state()}
        self.folder.checkpoints.save(self.coordinator, self.made, state, self.monitor.best_round)


def _check_signals(update: SiteUpdate) -> None:
    for signals in (update.train, update.test):
        if signals is not None:
            signals.check(f"site {update.site}")


def _exhausted(answers: Answers) -> PrivacyBudgetExhausted:
    more = len(answers.exhausted) - 1
    others = f" (and {counted(more, 'more site')})" if more else ""
    return PrivacyBudgetExhausted(answers.exhausted[min(answers.exhausted)] + others)

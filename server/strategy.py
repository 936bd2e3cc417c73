"""The rounds of a run: messages out, answers in, a round committed or not; decisions are the coordinator's.

Flower's own `Strategy.start` counts rounds from one and asks for each once. Here a run goes on from
its checkpoint, repeats a round that too few sites answered, and ends early when it is told to.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import reduce

from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, RecordDict

from fedfair import wire
from fedfair.aggregation import pool
from fedfair.coordinator import Coordinator
from fedfair.errors import DataError, InconsistentUpdates, PrivacyBudgetExhausted, RoundRefused, RunError
from fedfair.local import SiteUpdate
from fedfair.monitor import Monitor
from fedfair.record import Made, RoundRecord, RunFolder, coefficient_table, test_metrics, train_loss
from fedfair.secure import ALL, SecureLayouts, without_absent
from fedfair.signals import Signals
from fedfair.wire import Survey
from server.exchange import Answers, Sites
from server.secure import SecureSums

logger = logging.getLogger("fedfair.rounds")
GATHER_SECONDS = 30.0


class ModulatedAggregation:
    """One exchange per round: signals and training together; the model moves when all is checked.

    Parameters
    ----------
    coordinator : Coordinator
        The state of the run.
    sites : Sites
        The nodes that train.
    folder : RunFolder
        Where records and checkpoints go.
    source : str
        Digest of the server's code, which sites compare with theirs.
    run : str
        What the sites' ledgers call this run.
    layouts : SecureLayouts
        What sites send where the server sees sums alone.

    Attributes
    ----------
    capped : str | None
        Why the privacy budget ended the training, if it did.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        sites: Sites,
        folder: RunFolder,
        source: str,
        run: str,
        layouts: SecureLayouts,
    ) -> None:
        self.coordinator, self.sites, self.folder = coordinator, sites, folder
        self.source, self.run = source, run
        self.config = coordinator.config
        self.secure = (
            SecureSums(sites, self.config, run, sites.journal) if self.config.secure.enabled else None
        )
        self._layouts = layouts
        self.monitor = Monitor(self.config)
        self.surveys: dict[str, Survey] = {}
        self.made = Made()
        self.capped: str | None = None
        self._clock = time.perf_counter()
        self._turned_away: dict[int, str] = {}

    def survey(self) -> None:
        """Ask every site once for what standardisation needs, and check that the data can be used.

        Raises
        ------
        RunError
            If a site reports a failure, or fewer answer than `server.min_sites`.
        """
        wanted = len(self.coordinator.schema.sites)
        nodes = self.sites.connected(self.config.server.min_sites, wanted, GATHER_SECONDS)
        answers = self._ask(nodes, "query", self._asked(0), 0)
        # A site that fails before it has trained is misconfigured, and would go on failing.
        for site, reason in (answers.failed | answers.exhausted).items():
            raise RunError(f"every connected site must be ready, {site} is not: {reason}")
        self.surveys = {site: wire.unpack_survey(arrays) for site, arrays in answers.arrays.items()}
        self.coordinator.standardise(self.surveys)
        logger.info(
            "%s: method %s, mode %s, %d sites",
            self.config.name,
            self.config.method.name,
            self.config.training.mode,
            len(answers.sites),
        )

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
                return (
                    f"`{self.config.server.monitor}` did not improve for {self.config.server.patience} rounds"
                )
            try:
                self._round()
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
            self.made = self.folder.checkpoints.load_best(self.coordinator).made
            # The run has gone on to its last round, whichever model it ends with.
            self.coordinator.round = number
        self.folder.note_asked(self.config.rounds + 1)
        told = self._measure(MessageType.EVALUATE, None if self.config.data.validation_fraction else number)
        if not told:
            self.folder.note_refused(self.config.rounds + 1)
        counts = {site: survey.train_counts for site, survey in self.surveys.items()}
        tests = {update.site: update.test for update in told if update.test is not None}
        self.folder.save_evaluation(self.coordinator.schema, counts, tests)

    def _round(self) -> None:
        """Try a round until it is committed.

        Raises
        ------
        RunError
            After the last attempt, with the sites' own words.
        """
        attempts, number = self.config.server.attempts, self.coordinator.round + 1
        for attempt in range(1, attempts + 1):
            try:
                return self._attempt(attempt)
            except RoundRefused as refusal:
                logger.warning("round %d, attempt %d of %d: %s", number, attempt, attempts, refusal)
                last = refusal
        raise RunError(f"round {number} could not be committed in {attempts} attempts: {last}")

    def _attempt(self, attempt: int) -> None:
        """Commit the round: write the record of the model it started from, then checkpoint."""
        nodes = self._connected()
        number = self.coordinator.round + 1
        if self.config.training.exchanges == 2:
            first = self._enough(self._ask(nodes, "train.signals", self._content(), number))
            signals = {site: wire.unpack_signals("train", arrays) for site, arrays in first.arrays.items()}
            for site, own in signals.items():
                own.check(f"site {site}")
            self.coordinator.refresh(_total(signals))
        self.folder.note_asked(number)
        answers = self._ask(nodes, MessageType.TRAIN, self._content(), number)
        if answers.exhausted:
            if not answers.sites:
                self.folder.note_refused(number)
            others = f" (and {len(answers.exhausted) - 1} more sites)" if len(answers.exhausted) > 1 else ""
            raise PrivacyBudgetExhausted(answers.exhausted[min(answers.exhausted)] + others)
        updates = self._checked(answers)
        self._tell(answers, nodes)
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
            attempt,
        )
        self._save()

    def _connected(self) -> list[int]:
        """Return the nodes to train with; one that the run does not know yet is surveyed first."""
        nodes = self.sites.connected(self.config.server.min_sites, self.config.server.min_sites, 0.0)
        new = [n for n in nodes if n not in self.sites.names and n not in self._turned_away]
        # Of a site that only shows in sums, there is nothing to compare.
        if new and self.secure is None:
            answers = self.sites.ask(new, "query", self._asked(0), self.coordinator.round + 1)
            for site, arrays in list(answers.arrays.items()):
                try:
                    survey = wire.unpack_survey(arrays)
                    self.coordinator.welcome(site, survey)
                except (DataError, InconsistentUpdates) as error:
                    answers.failed[site] = str(error)
                else:
                    self.surveys[site] = survey
                    logger.info("site %s takes part from round %d", site, self.coordinator.round + 1)
            for site, reason in answers.failed.items():
                logger.warning("%s stays out of this run: %s", site, reason)
            known = {n for n in new if self.sites.names.get(n) in self.surveys}
            self._turned_away |= {n: "not ready" for n in new if n not in known}
        return [n for n in nodes if n not in self._turned_away]

    def _checked(self, answers: Answers) -> list[SiteUpdate]:
        """Return the updates that can be summed; whoever sent another one has failed.

        Under site-level privacy a site that failed for its data would tell of them: its update
        then counts as no change.
        """
        updates = []
        for site in sorted(answers.arrays):
            try:
                update = self._update(site, answers)
                self.coordinator.check(update)
                updates.append(update)
            except InconsistentUpdates as error:
                if self.config.privacy.mode == "site":
                    logger.warning("the update of site %s counts as no change: %s", site, error)
                    continue
                answers.leave_out(site, str(error))
        self._enough(answers)
        return updates

    def _enough(self, answers: Answers) -> Answers:
        """Return the answers, if there are enough for a round.

        Raises
        ------
        RoundRefused
            With the first failed site's own words.
        """
        minimum = self.config.server.min_sites
        if len(answers.sites) < minimum:
            raise RoundRefused(
                f"at least {minimum} sites must answer, got {len(answers.sites)}; "
                f"the first failure: {answers.why()}"
            )
        return answers

    def _tell(self, answers: Answers, nodes: Sequence[int]) -> None:
        """Note the sites that take part in this run and were not there, and log all that failed."""
        present = {self.sites.names.get(n) for n in nodes}
        for site in set(self.surveys) | set(self.sites.names.values()):
            if site not in present and site not in answers.sites and site != ALL:
                answers.failed[site] = "not connected"
        for site, reason in answers.failed.items():
            logger.warning("round %d: site %s failed: %s", self.coordinator.round + 1, site, reason)

    def _measure(self, kind: str, number: int | None) -> list[SiteUpdate]:
        """Have the current model measured; with a round's number, record it as that round's model."""
        nodes = self._connected()
        answers = self._ask(nodes, kind, self._content(), self.coordinator.round + 1)
        told = []
        for site in sorted(answers.arrays):
            try:
                update = self._update(site, answers)
                for signals in (update.train, update.test):
                    if signals is not None:
                        signals.check(f"site {site}")
                told.append(update)
            except InconsistentUpdates as error:
                answers.leave_out(site, str(error))
        self._tell(answers, nodes)
        if not answers.exhausted and len(answers.sites) < self.config.server.min_sites:
            raise RunError(
                f"at least {self.config.server.min_sites} sites must measure the final model, got "
                f"{len(answers.sites)}; the first failure: {answers.why()}"
            )
        if number is not None:
            train, test = pool(told) if told else (None, None)
            by_site = {update.site: update.test for update in told if update.test is not None}
            shown = None if self.config.privacy.mode == "site" else train
            if self.monitor.see(number, self._record(number, shown, test, by_site)):
                self.folder.checkpoints.mark_best(number)
        return told

    def _update(self, site: str, answers: Answers) -> SiteUpdate:
        update = wire.unpack_update(site, answers.arrays[site])
        return dataclasses.replace(update, sites=len(answers.sites)) if site == ALL else update

    def _ask(self, nodes: Sequence[int], kind: str, content: RecordDict, number: int) -> Answers:
        """Send the same to each node; where the server sees sums alone, all answers are one."""
        if self.secure is None:
            return self.sites.ask(nodes, kind, content, number)
        about = self._asked(number)
        if kind == "query" and self.config.privacy.on:
            failed = self.secure.prepare(nodes, about, number)  # private sites only tell that they are there
            return Answers(failed=failed, sites=sorted(self.sites.names.values()))
        layout = self._layouts.of(kind, number, None if kind == "query" else self.coordinator.download())
        answers = self.secure.ask(nodes, kind, content, layout, number, about)
        modalities = self.coordinator.modalities
        answers.arrays = {site: without_absent(sums, modalities) for site, sums in answers.arrays.items()}
        return answers

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
        self.folder.checkpoints.save(self.coordinator, self.made, {"monitor": self.monitor.state()})

    def _content(self) -> RecordDict:
        arrays = wire.pack_download(self.coordinator.download())
        wrapped = ArrayRecord(
            {
                name: Array(value.dtype.name, value.shape, "numpy.ndarray", wire.to_bytes(value))
                for name, value in arrays.items()
            }
        )
        content = self._asked(self.coordinator.round + 1)
        content["arrays"] = wrapped
        return content

    def _asked(self, number: int) -> RecordDict:
        told: dict[str, str | int] = {
            "config": self.config.to_json(),
            "round": number,
            "source": self.source,
            "run": self.run,
        }
        return RecordDict({"run": ConfigRecord({**told})})


def _total(signals: Mapping[str, Signals]) -> Signals:
    return reduce(Signals.__add__, (signals[site] for site in sorted(signals)))

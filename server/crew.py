"""The sites of a run: who is there, who may take part, and what they are asked."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedfair import wire
from fedfair.coordinator import Coordinator
from fedfair.data.moments import moments
from fedfair.errors import DataError, InconsistentUpdates, RoundRefused, RunError, counted
from fedfair.local import SiteUpdate
from fedfair.uploads import ALL, Uploads, without_absent
from fedfair.wire import Download, Survey
from server.exchange import Answers, Sites
from server.secure import SecureSums

logger = logging.getLogger("fedfair.rounds")
GATHER_SECONDS = 30.0
Result = TypeVar("Result")


class Crew:
    """Asks the sites of a run, one by one or for their sum alone.

    Parameters
    ----------
    coordinator : Coordinator
        The state of the run.
    sites : Sites
        The nodes.
    source : str
        Digest of the server's code, which sites compare with theirs.
    run : str
        What the sites' ledgers call this run.
    uploads : Uploads
        What each kind of answer holds.

    Attributes
    ----------
    surveys : dict[str, Survey]
        What sites told before they trained; of all together, where the server sees sums alone.
    """

    def __init__(
        self, coordinator: Coordinator, sites: Sites, source: str, run: str, uploads: Uploads
    ) -> None:
        self._coordinator, self._sites, self._uploads = coordinator, sites, uploads
        self._config = coordinator.config
        self._secure = (
            SecureSums(sites, self._config, run, sites.journal) if self._config.secure.enabled else None
        )
        self._told = {"config": self._config.to_json(), "source": source, "run": run}
        self.surveys: dict[str, Survey] = {}
        self._refused: set[int] = set()
        self._failures: dict[int, int] = {}
        self._again: dict[int, int] = {}

    def survey(self) -> None:
        """Ask every site once for what standardisation needs, and check that the data can be used.

        Raises
        ------
        RunError
            If a site reports a failure, or fewer answer than the run needs.
        """
        nodes = self._sites.connected(self._fewest, len(self._coordinator.schema.sites), GATHER_SECONDS)
        answers = self.tried(lambda: self.ask(nodes, "query"), "the survey")
        # A site that fails before it has trained is misconfigured, and would go on failing.
        for site, reason in (answers.failed | answers.exhausted).items():
            raise RunError(f"every connected site must be ready, {site} is not: {reason}")
        self.surveys = {site: _survey(site, arrays) for site, arrays in answers.arrays.items()}
        self._coordinator.standardise(self.surveys)
        logger.info(
            "%s: method %s, mode %s, %s",
            self._config.name,
            self._config.method.name,
            self._config.training.mode,
            counted(len(answers.sites), "site"),
        )

    def nodes(self) -> list[int]:
        """Return the nodes to work with; one that the run does not know yet is surveyed first.

        Raises
        ------
        RunError
            If fewer are connected than the run needs.
        """
        minimum, number = self._fewest, self._coordinator.round
        waiting = {node for node, due in self._again.items() if due > number}
        nodes = self._sites.connected(minimum, minimum, 0.0, self._refused | waiting)
        # Of a site that only shows in sums, there is nothing to compare.
        if self._secure is not None:
            return nodes
        if new := [n for n in nodes if self._sites.names.get(n) not in self.surveys]:
            self._welcome(new)
        return [n for n in nodes if self._sites.names.get(n) in self.surveys]

    def ask(self, nodes: Sequence[int], kind: str) -> Answers:
        """Ask each node for the same; where the server sees sums alone, all answers are one."""
        number, download = 0, None
        content = self._about(number)
        if kind != "query":
            number, download = self._coordinator.round + 1, self._coordinator.download()
            content = self._with_model(number, download)
        if self._secure is None:
            return self._sites.ask(nodes, kind, content, number, self._uploads.fields(kind, number, download))
        about = self._about(number)
        if kind == "query" and self._config.privacy.on:
            failed = self._secure.prepare(nodes, about, number)  # private sites only tell that they are there
            return Answers(failed=failed, sites=sorted(self._sites.names.values()))
        layout = self._uploads.layout(kind, number, download)
        answers = self._secure.ask(nodes, kind, content, layout, number, about)
        modalities = self._coordinator.modalities
        answers.arrays = {site: without_absent(sums, modalities) for site, sums in answers.arrays.items()}
        return answers

    def updates(self, answers: Answers, check: Callable[[SiteUpdate], None]) -> list[SiteUpdate]:
        """Return the updates that pass the check, in the order of the sites' names; others have failed.

        Under site-level privacy a site that failed for its data would tell of them: its update
        then counts as no change.
        """
        updates = []
        for site in sorted(answers.arrays):
            try:
                update = wire.unpack_update(site, answers.arrays[site])
                if site == ALL:
                    update = dataclasses.replace(update, sites=len(answers.sites))
                check(update)
                updates.append(update)
            except InconsistentUpdates as error:
                if self._config.privacy.mode == "site":
                    logger.warning("the update of site %s counts as no change: %s", site, error)
                    continue
                answers.leave_out(site, str(error))
        return updates

    def enough(self, answers: Answers) -> Answers:
        """Return the answers, if there are enough.

        Raises
        ------
        RoundRefused
            With the first failed site's own words.
        """
        minimum = self._config.server.min_sites
        if len(answers.sites) < minimum:
            raise RoundRefused(
                f"at least {counted(minimum, 'site')} must answer, got {len(answers.sites)}; "
                f"the first failure: {answers.why()}"
            )
        return answers

    def tried(self, step: Callable[[], Result], name: str) -> Result:
        """Return what a step gives, tried `server.attempts` times.

        Raises
        ------
        RunError
            After the last attempt, with the sites' own words.
        """
        attempts = self._config.server.attempts
        for attempt in range(1, attempts + 1):
            try:
                return step()
            except RoundRefused as refusal:
                logger.warning("%s, attempt %d of %d: %s", name, attempt, attempts, refusal)
                last = refusal
        raise RunError(f"{name} could not be committed in {counted(attempts, 'attempt')}: {last}")

    def note_absent(self, answers: Answers, nodes: Sequence[int]) -> None:
        """Add the sites of this run that are not there to the failures, and log them all."""
        present = {self._sites.names.get(n) for n in nodes}
        for site in set(self.surveys) | set(self._sites.names.values()):
            if site not in present and site not in answers.sites and site != ALL:
                answers.failed.setdefault(site, "not connected")
        for site, reason in answers.failed.items():
            logger.warning("round %d: site %s failed: %s", self._coordinator.round + 1, site, reason)

    @property
    def _fewest(self) -> int:
        secure = self._config.secure
        return max(self._config.server.min_sites, secure.fewest if secure.enabled else 1)

    def _welcome(self, nodes: Sequence[int]) -> None:
        """Survey nodes that are new; one with other records than before stays out, others may try again."""
        number = self._coordinator.round
        answers = self._sites.ask(
            nodes, "query", self._about(0), number + 1, self._uploads.fields("query", 0, None)
        )
        for site, arrays in list(answers.arrays.items()):
            try:
                survey = wire.unpack_survey(arrays)
                self._coordinator.welcome(site, survey)
            except (DataError, InconsistentUpdates) as error:
                answers.leave_out(site, str(error))
                self._refused |= {n for n in nodes if self._sites.names.get(n) == site}
            else:
                self.surveys[site] = survey
                logger.info("site %s takes part from round %d", site, number + 1)
        for site, reason in answers.failed.items():
            logger.warning("%s does not take part yet: %s", site, reason)
        for node in nodes:
            if self._sites.names.get(node) not in self.surveys:
                # Each failure doubles the rounds until it is asked again: a question takes seconds of all.
                self._failures[node] = self._failures.get(node, 0) + 1
                self._again[node] = number + 2 ** self._failures[node]

    def _with_model(self, number: int, download: Download) -> RecordDict:
        arrays = wire.pack_download(download)
        content = self._about(number)
        content["arrays"] = ArrayRecord(
            {
                name: Array(value.dtype.name, value.shape, "numpy.ndarray", wire.to_bytes(value))
                for name, value in arrays.items()
            }
        )
        return content

    def _about(self, number: int) -> RecordDict:
        return RecordDict({"run": ConfigRecord({**self._told, "round": number})})


def _survey(site: str, arrays: Mapping[str, NDArray[np.generic]]) -> Survey:
    """Return what a site told, if its sums can be those of records."""
    try:
        survey = wire.unpack_survey(arrays)
        moments(survey.features)
    except InconsistentUpdates as error:
        raise RunError(f"every connected site must be ready, {site} is not: {error}") from error
    return survey

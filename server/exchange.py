"""One exchange with the sites: messages out, checked answers in, and in whose words the rest failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedfair.errors import InconsistentUpdates, RunError, counted
from fedfair.secagg import Field
from server.journal import Journal
from server.post import exchanged
from server.replies import Arrays, in_words, introduced, printable, read
from server.roster import Roster

logger = logging.getLogger("fedfair.rounds")


@dataclass
class Answers:
    """What came back from one exchange.

    Attributes
    ----------
    arrays : dict[str, Arrays]
        By site.
    failed : dict[str, str]
        By site (or node, where the site is not known), in its own words.
    exhausted : dict[str, str]
        Sites whose privacy budget does not allow an answer.
    secure : dict[str, ConfigRecord]
        What a site said for a secure sum.
    sites : list[str]
        Those whose answers are in `arrays`, alone or summed.
    """

    arrays: dict[str, Arrays] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    exhausted: dict[str, str] = field(default_factory=dict)
    secure: dict[str, ConfigRecord] = field(default_factory=dict)
    sites: list[str] = field(default_factory=list)

    def leave_out(self, site: str, reason: str) -> None:
        """Count an answer as a failure; with the sum of all, all of them."""
        del self.arrays[site]
        self.sites = [other for other in self.sites if other != site] if site in self.sites else []
        self.failed[site] = reason

    def why(self) -> str:
        """Return the first failure."""
        return next((f"{site}: {text}" for site, text in self.failed.items()), "none was connected")


class Sites:
    """The nodes behind the grid, and which site each one is.

    Parameters
    ----------
    grid : Grid
        Any of Flower's, or the one in process.
    schema : str
        Digest of the data's schema, which every site must share.
    names : Sequence[str]
        The sites that the data may have.
    timeout : float
        Seconds until a round closes.
    folder : Path
        Where large replies lie until they are used.
    roster : Roster
        Which node may be which site.
    journal : Journal
        Takes down every exchange.
    privacy : str
        The run's `privacy.mode`: only under sample-level privacy can a site's budget be spent, and under
        site-level privacy no answer is refused for its values, since a refusal would tell of them.
    """

    def __init__(
        self,
        grid: Grid,
        schema: str,
        names: Sequence[str],
        timeout: float,
        folder: Path,
        roster: Roster,
        journal: Journal,
        privacy: str = "off",
    ) -> None:
        self._grid, self._schema, self._timeout, self._folder = grid, schema, timeout, folder
        self.roster, self.journal, self._privacy = roster, journal, privacy
        self._allowed = frozenset(names)
        self.names: dict[int, str] = {}

    def connected(
        self, minimum: int, wanted: int, patience: float, without: Collection[int] = ()
    ) -> list[int]:
        """Return the nodes that are there, waiting for `minimum` of them, and a while for `wanted`.

        Parameters
        ----------
        minimum : int
            Fewer than these are waited for until the round would close.
        wanted : int
            With at least `minimum`, these are waited for during `patience` seconds.
        patience : float
            Seconds.
        without : Collection[int]
            Nodes that do not count.

        Raises
        ------
        RunError
            If fewer than `minimum` are connected in time.
        """
        begun, told = time.monotonic(), -1
        while True:
            nodes = sorted(set(self._grid.get_node_ids()) - set(without))
            waited = time.monotonic() - begun
            if len(nodes) >= wanted or (len(nodes) >= minimum and waited > patience):
                return nodes
            if waited > self._timeout:
                raise RunError(f"at least {counted(minimum, 'site')} must be connected, got {len(nodes)}")
            if len(nodes) != told and waited > 1:
                told = len(nodes)
                logger.info("waiting for sites: %d of %d connected", told, wanted)
            time.sleep(0.5)

    def ask(
        self,
        nodes: Sequence[int],
        kind: str,
        content: RecordDict,
        group: int,
        fields: Sequence[Field] | None = None,
    ) -> Answers:
        """Send the same to each node, as `send` does."""
        return self.send(dict.fromkeys(nodes, (kind, content)), group, fields)

    def send(
        self,
        messages: Mapping[int, tuple[str, RecordDict]],
        group: int,
        fields: Sequence[Field] | None = None,
    ) -> Answers:
        """Send each node its message and collect what comes back before the deadline.

        A site that answers with anything other than what the run expects has failed; it takes
        nobody else down with it.

        Parameters
        ----------
        messages : Mapping[int, tuple[str, RecordDict]]
            Type and content by node; the arrays are taken out once they are sent.
        group : int
            The round, for the logs of both sides.
        fields : Sequence[Field] | None
            The arrays of every answer; None where the caller checks them.

        Raises
        ------
        RunError, AuditError
            If the server itself cannot send, spool or log; never for what a site answers.
        """
        answers = Answers()
        for kind in sorted({kind for kind, _ in messages.values()}):
            asked = {node: content for node, (own, content) in messages.items() if own == kind}
            head = self.journal.asked(group, kind, [self._name(node) for node in asked])
            for content in asked.values():
                content.config_records["run"].update(head)
        for node, reply in exchanged(self._grid, messages, group, self._timeout):
            try:
                self._take(node, reply, answers, group, messages[node][0], fields)
            except InconsistentUpdates as error:
                answers.failed[self._name(node)] = printable(str(error))
            del reply  # before the next one comes
        answers.sites = sorted(answers.arrays)
        kinds = {self._name(node): kind for node, (kind, _) in messages.items()}
        for site, reason in (answers.failed | answers.exhausted).items():
            self.journal.refused(group, kinds.get(site, ""), site, reason)
        return answers

    def _name(self, node: int) -> str:
        return self.names.get(node, f"node {node}")

    def _take(
        self,
        node: int,
        reply: Message | str,
        answers: Answers,
        group: int,
        kind: str,
        fields: Sequence[Field] | None,
    ) -> None:
        """Put a reply where it belongs; whoever sent another one than was asked for has failed."""
        if isinstance(reply, str):
            raise InconsistentUpdates(reply)
        if reply.has_error():
            raise InconsistentUpdates(in_words(reply.error))
        site, schema, told = introduced(reply)
        self._know(node, site)
        if "failed" in told:
            raise InconsistentUpdates(str(told["failed"]))
        if schema != self._schema:
            raise InconsistentUpdates(
                f"the data of site {site} must have the server's schema ({self._schema}), got {schema}: "
                "names, shapes or their order differ"
            )
        if "exhausted" in told:
            if self._privacy != "sample":
                raise InconsistentUpdates(
                    f"site {site} must have no budget in a run without sample-level privacy, it says that "
                    f"it is spent: {told['exhausted']!s}"
                )
            answers.exhausted[site] = printable(str(told["exhausted"]))
            return
        arrays = read(site, reply, fields, self._folder, values=self._privacy != "site")
        self.journal.answered(group, kind, site, arrays, told)
        answers.arrays[site] = arrays
        if "secure" in reply.content.config_records:
            answers.secure[site] = reply.content.config_records["secure"]

    def _know(self, node: int, site: str) -> None:
        """Note which site a node is, if it may be that one."""
        if site not in self._allowed:
            raise InconsistentUpdates(f"{site!r} is no site of the data")
        if not self.roster.allows(node, site):
            raise InconsistentUpdates(f"it says that it is {site}, for which its key is not registered")
        if self.names.get(node, site) != site or self._taken(node, site):
            raise InconsistentUpdates(
                f"site {site} must be one node, got two; correct the `site` of one node's config"
            )
        self.names[node] = site

    def _taken(self, node: int, site: str) -> bool:
        """Whether another node that is still there answers for the site."""
        others = [n for n, name in self.names.items() if name == site and n != node]
        gone = [] if not others else [n for n in others if n not in set(self._grid.get_node_ids())]
        for n in gone:
            del self.names[n]
        return len(others) > len(gone)

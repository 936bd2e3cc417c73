"""One exchange with the sites: messages out, checked answers in, and in whose words the rest failed."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedfair import wire
from fedfair.errors import FedfairError, InconsistentUpdates, RunError
from server.journal import Journal
from server.roster import Roster
from server.spool import spooled

logger = logging.getLogger("fedfair.rounds")
Arrays = Mapping[str, NDArray[np.generic]]
LATE = "no answer before `server.round_timeout` ({:g} s)"
# Flower's codes; a message that nobody fetched in time is an error of its own.
_WORDS = {3: "no answer before the message expired", 5: "the node went offline", 8: "its program ended"}
_RAISED = re.compile(r"<class '(?P<kind>[\w.]+)'>:<'(?P<text>.*)'>", re.DOTALL)
# Flower's own loop looks every 3 seconds, which would be half of a small round.
_FIRST_LOOK, _LAST_LOOK = 0.02, 1.0


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
    ) -> None:
        self._grid, self._schema, self._timeout, self._folder = grid, schema, timeout, folder
        self._roster, self.journal = roster, journal
        self._allowed = frozenset(names)
        self.names: dict[int, str] = {}

    def connected(self, minimum: int, wanted: int, patience: float) -> list[int]:
        """Return the nodes that are there, waiting for `minimum` of them, and a while for `wanted`.

        Parameters
        ----------
        minimum : int
            Fewer than these are waited for until the round would close.
        wanted : int
            With at least `minimum`, these are waited for during `patience` seconds.
        patience : float
            Seconds.

        Raises
        ------
        RunError
            If fewer than `minimum` are connected in time.
        """
        begun, told = time.monotonic(), -1
        while True:
            nodes = sorted(self._grid.get_node_ids())
            waited = time.monotonic() - begun
            if len(nodes) >= wanted or (len(nodes) >= minimum and waited > patience):
                return nodes
            if waited > self._timeout:
                raise RunError(f"at least {minimum} sites must be connected, got {len(nodes)}")
            if len(nodes) != told and waited > 1:
                told = len(nodes)
                logger.info("waiting for sites: %d of %d connected", told, wanted)
            time.sleep(0.5)

    def ask(self, nodes: Sequence[int], kind: str, content: RecordDict, group: int) -> Answers:
        """Send the same to each node, as `send` does."""
        return self.send(dict.fromkeys(nodes, (kind, content)), group)

    def send(self, messages: Mapping[int, tuple[str, RecordDict]], group: int) -> Answers:
        """Send each node its message and collect what comes back before the deadline.

        A site that answers with anything other than what the run expects has failed; it takes
        nobody else down with it.

        Parameters
        ----------
        messages : Mapping[int, tuple[str, RecordDict]]
            Type and content by node.
        group : int
            The round, for the logs of both sides.
        """
        answers = Answers()
        for kind in sorted({kind for kind, _ in messages.values()}):
            asked = {node: content for node, (own, content) in messages.items() if own == kind}
            head = self.journal.asked(group, kind, [self._name(node) for node in asked])
            for content in asked.values():
                content.config_records["run"].update(head)
        for node, reply in self._exchange(messages, group):
            if reply is None:
                answers.failed[self._name(node)] = LATE.format(self._timeout)
            elif reply.has_error():
                answers.failed[self._name(node)] = in_words(reply.error)
            else:
                self._take(node, reply, answers)
        answers.sites = sorted(answers.arrays)
        kinds = {self._name(node): kind for node, (kind, _) in messages.items()}
        for site, reason in (answers.failed | answers.exhausted).items():
            self.journal.refused(group, kinds.get(site, ""), site, reason)
        return answers

    def _name(self, node: int) -> str:
        return self.names.get(node, f"node {node}")

    def _take(self, node: int, reply: Message, answers: Answers) -> None:
        try:
            told = reply.content.config_records["site"]
            site, schema = str(told["name"]), str(told["schema"])
        except KeyError as error:
            answers.failed[self._name(node)] = f"its answer lacks {error}"
            return
        if site not in self._allowed:
            answers.failed[f"node {node}"] = f"{site!r} is no site of the data"
            return
        if not self._roster.allows(node, site):
            answers.failed[f"node {node}"] = f"it says that it is {site}, for which its key is not registered"
            return
        if self.names.get(node, site) != site or self._taken(node, site):
            answers.failed[f"node {node}"] = (
                f"site {site} must be one node, got two; correct the `site` of one node's config"
            )
            return
        self.names[node] = site
        if schema != self._schema:
            answers.failed[site] = (
                f"the data of site {site} must have the server's schema ({self._schema}), got {schema}: "
                "names, shapes or their order differ"
            )
        elif "exhausted" in told:
            answers.exhausted[site] = str(told["exhausted"])
        else:
            try:
                arrays = _arrays(reply, self._folder)
                metadata = reply.metadata
                self.journal.answered(int(metadata.group_id), metadata.message_type, site, arrays, told)
                answers.arrays[site] = arrays
                if "secure" in reply.content.config_records:
                    answers.secure[site] = reply.content.config_records["secure"]
            except InconsistentUpdates as error:
                answers.failed[site] = str(error)

    def _taken(self, node: int, site: str) -> bool:
        """Whether another node that is still there answers for the site."""
        others = [n for n, name in self.names.items() if name == site and n != node]
        gone = [] if not others else [n for n in others if n not in set(self._grid.get_node_ids())]
        for n in gone:
            del self.names[n]
        return len(others) > len(gone)

    def _exchange(
        self, sent: Mapping[int, tuple[str, RecordDict]], group: int
    ) -> Iterator[tuple[int, Message | None]]:
        """Yield each node with its reply as it comes, and None for those that are late."""
        messages = [
            Message(content, dst_node_id=node, message_type=kind, group_id=str(group), ttl=self._timeout)
            for node, (kind, content) in sent.items()
        ]
        ids = list(self._grid.push_messages(messages))
        if len(ids) != len(sent):
            raise RunError(
                f"the message of round {group} must reach Flower's SuperLink, it refused it as too large; "
                "see `docs/deployment.md` for what fits"
            )
        pending = dict(zip(ids, sent, strict=True))
        end, pause = time.monotonic() + self._timeout, _FIRST_LOOK
        while pending:
            for message in list(pending):
                # One at a time: a reply may be as large as several models.
                for reply in self._grid.pull_messages([message]):
                    yield pending.pop(message), reply
            if time.monotonic() > end:
                break
            if pending:
                time.sleep(pause)
                pause = min(2 * pause, _LAST_LOOK)
        yield from ((node, None) for node in pending.values())


def in_words(error: Error) -> str:
    """Return what went wrong in the site's own words, without Flower's wrapping."""
    reason = error.reason or ""
    if raised := _RAISED.fullmatch(reason):
        kind = raised["kind"].rpartition(".")[2]
        own = raised["kind"].startswith(FedfairError.__module__)
        return raised["text"] if own else f"{kind}: {raised['text']}"
    return f"{_WORDS[error.code]} ({reason})" if error.code in _WORDS else reason or f"code {error.code}"


def _arrays(reply: Message, folder: Path) -> Arrays:
    records = reply.content.array_records
    if "arrays" not in records:
        raise InconsistentUpdates("an answer must hold `arrays`, got none")
    return {
        name: spooled(wire.from_bytes(array.data, array.dtype, array.shape, _dtypes(name)), folder)
        for name, array in records["arrays"].items()
    }


def _dtypes(name: str) -> tuple[str, ...]:
    return wire.WORDS if name == "words" else wire.DTYPES

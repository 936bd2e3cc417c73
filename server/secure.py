"""The server's part in secure aggregation: it learns one sum per exchange, in two messages to each site.

    E1(n): content and sealed shares -> masked input, and new keys for n + 1
    E2(n): survivors and all new keys -> shares that open the sum, and sealed shares for n + 1

Before the first sum, and after one that failed, keys and shares are exchanged on their own.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedfair.config import Config
from fedfair.errors import FedfairError, RoundRefused
from fedfair.secagg import (
    SECURE,
    Announcement,
    CannotUnmask,
    Field,
    Layout,
    MaskedInput,
    Parcels,
    Receipt,
    Roll,
    ServerSession,
    Shares,
)
from fedfair.uploads import ALL, rule
from server.exchange import Answers, Sites
from server.journal import Journal
from server.replies import printable

PREPARE = "query.secure"
Told = dict[str, str | int | bytes]
logger = logging.getLogger("fedfair.rounds")


class SecureSums:
    """Asks sites so that only the sum of their answers is seen.

    Parameters
    ----------
    sites : Sites
        The nodes.
    config : Config
        Of the run.
    run : str
        The run's name; each start of it is a session of its own.
    journal : Journal
        Takes down every sum that is opened.
    """

    def __init__(self, sites: Sites, config: Config, run: str, journal: Journal) -> None:
        self._sites, self._rule, self._journal = sites, rule(config), journal
        self._label = f"{run} {secrets.token_hex(8)}"
        self._number = 0
        self._ready: ServerSession | None = None

    def prepare(self, nodes: Sequence[int], about: RecordDict, group: int) -> dict[str, str]:
        """Have all nodes agree on masks for the next sum; nothing of their records is in it.

        Returns
        -------
        dict[str, str]
            Those that failed, by site, in their own words.

        Raises
        ------
        RoundRefused
            If too few agree.
        """
        coming = self._next()
        told: dict[int, Told] = {node: {"advertise": self._number} for node in nodes}
        first = self._sites.send(self._messages(told, about), group, ())
        self._take(first, coming.announce, Announcement, "announcement")
        with _refusing(first):
            called = self._calls(coming.roll())
        second = self._sites.send(self._messages(called, about), group, ())
        self._take(second, coming.share, Parcels, "parcels")
        self._ready = coming
        return first.failed | second.failed

    def ask(
        self,
        nodes: Sequence[int],
        kind: str,
        content: RecordDict,
        layout: Layout,
        group: int,
        about: RecordDict,
    ) -> Answers:
        """Return the sum of all answers, as one site's.

        Parameters
        ----------
        nodes, kind, content, group
            As for `Sites.ask`.
        layout : Layout
            What each site sends.
        about : RecordDict
            What every message says of the run.

        Raises
        ------
        RoundRefused
            If the sum cannot be opened: nobody then learns anything of it.
        """
        failed = self.prepare(nodes, about, group) if self._ready is None else {}
        summed, number, coming = self._taken_over()
        with _refusing(None):
            deliveries = summed.deliveries()
        by_name = {self._sites.names.get(node): node for node in nodes}
        told: dict[int, Told] = {node: {"advertise": self._number} for node in nodes}
        working = {by_name[site]: box for site, box in deliveries.items() if site in by_name}
        for node, box in working.items():
            told[node] |= {"mask-number": number, "delivery": box.to_bytes()}
        messages = {
            **self._messages(told, about),
            **{node: (kind, self._with(content, told[node])) for node in working},
        }
        masked = Field("words", (layout.words,), 1.0, optional=True)
        answers = self._sites.send(messages, group, (masked,))
        answers.failed = failed | answers.failed
        if answers.exhausted:
            return answers
        for site, record in answers.secure.items():
            if "receipt" in record:
                self._receive(summed, answers, site, record, layout)
        self._take(answers, coming.announce, Announcement, "announcement")
        answers.arrays, answers.sites = {}, list(summed.survivors)
        with _refusing(answers):
            opened = self._open(summed, number, coming, about, group)
        answers.arrays = {ALL: opened}
        self._journal.summed(group, answers.sites)
        for node in told.keys() - working.keys():
            if (name := self._sites.names.get(node)) is not None:
                answers.failed.setdefault(name, "had no keys for this sum; it takes part in the next one")
        return answers

    def _open(
        self,
        summed: ServerSession,
        number: int,
        coming: ServerSession,
        about: RecordDict,
        group: int,
    ) -> dict[str, NDArray[np.float64]]:
        """Have the survivors open the sum, and all that answered share for the next one."""
        request = summed.request().to_bytes()
        told: dict[int, Told] = {
            node: {"request": request, "request-number": number} for node in self._nodes(summed.survivors)
        }
        try:
            called = self._calls(coming.roll())
        except CannotUnmask:  # too few new keys: the next sum begins afresh
            called = {}
        for node, call in called.items():
            told[node] = {**told.get(node, {}), **call}
        shared = self._sites.send(self._messages(told, about), group, ())
        for site, reason in shared.failed.items():
            logger.warning("site %s did not help to open a secure sum: %s", site, reason)
        self._take(shared, summed.reveal, Shares, "shares")
        if called:
            self._take(shared, coming.share, Parcels, "parcels")
            self._ready = coming
        return summed.result()

    def _receive(
        self, summed: ServerSession, answers: Answers, site: str, record: ConfigRecord, layout: Layout
    ) -> None:
        try:
            words: NDArray[np.unsignedinteger] = np.asarray(answers.arrays[site]["words"])
            receipt = Receipt.from_bytes(record["receipt"])
            if receipt.site != site:
                raise RoundRefused(f"its input is said to be that of {receipt.site}")
            summed.receive(MaskedInput(receipt, words), layout)
        except (FedfairError, KeyError) as error:
            answers.failed[site] = printable(str(error))

    def _take(
        self,
        answers: Answers,
        take: Callable[..., None],
        kind: type[Announcement | Parcels | Shares],
        key: str,
    ) -> None:
        """Hand each site's message to the session; whoever sends another one has failed."""
        for site, record in answers.secure.items():
            if key not in record:
                continue
            try:
                message = kind.from_bytes(record[key])
                if message.site != site:
                    raise RoundRefused(f"its `{key}` is said to be that of {message.site}")
                take(message)
            except FedfairError as error:
                answers.failed[site] = printable(str(error))
                logger.warning("site %s failed to help with a secure sum: %s", site, answers.failed[site])

    def _next(self) -> ServerSession:
        self._number += 1
        return ServerSession(self._label, self._number, self._rule, self._sites.roster.keys())

    def _calls(self, roll: Roll) -> dict[int, Told]:
        """Return what each site of the roll is told; one whose keys were refused stays out."""
        told: Told = {"roll": roll.to_bytes(), "roll-number": self._number}
        return dict.fromkeys(self._nodes([a.site for a in roll.announcements]), told)

    def _taken_over(self) -> tuple[ServerSession, int, ServerSession]:
        """Return the sum that is prepared, its number, and the one to prepare beside it."""
        ready, number = self._ready, self._number
        self._ready = None
        if ready is None:
            raise RoundRefused("a secure sum must be prepared before it is asked for")
        return ready, number, self._next()

    def _nodes(self, sites: Mapping[str, object] | Sequence[str]) -> list[int]:
        wanted = set(sites)
        return sorted(node for node, site in self._sites.names.items() if site in wanted)

    def _messages(self, told: Mapping[int, Told], about: RecordDict) -> dict[int, tuple[str, RecordDict]]:
        return {node: (PREPARE, self._with(about, said)) for node, said in told.items()}

    def _with(self, content: RecordDict, told: Told) -> RecordDict:
        """Return the content with what one site is told; the rest is shared, not copied."""
        result = RecordDict({**content})
        result[SECURE] = ConfigRecord({"session": self._label, **told})
        return result


@contextmanager
def _refusing(answers: Answers | None) -> Iterator[None]:
    """Turn a sum that cannot be opened into a round that is not committed; name the first failure."""
    try:
        yield
    except CannotUnmask as error:
        why = f"; the first failure: {answers.why()}" if answers and answers.failed else ""
        raise RoundRefused(f"{error}{why}") from error

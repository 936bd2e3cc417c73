"""Messages out through Flower's grid, replies in as they come, and why there is none of some nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedfair.errors import RunError

LATE = "no answer before `server.round_timeout` ({:g} s)"
GONE = "its node is not registered any more"
# What Flower's own reading of a reply raises where a site did not send what Flower sends.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, DecodeError)
# Flower's own loop looks every 3 seconds, which would be half of a small round.
_FIRST_LOOK, _LAST_LOOK = 0.02, 1.0


def exchanged(
    grid: Grid, sent: Mapping[int, tuple[str, RecordDict]], group: int, timeout: float
) -> Iterator[tuple[int, Message | str]]:
    """Yield each node with its reply as it comes, or why there is none.

    Parameters
    ----------
    grid : Grid
        Any of Flower's, or the one in process.
    sent : Mapping[int, tuple[str, RecordDict]]
        Type and content by node; its arrays are taken out once they are sent.
    group : int
        The round.
    timeout : float
        Seconds to wait for replies.

    Raises
    ------
    RunError
        If Flower refuses the messages.
    """
    messages = [
        Message(
            RecordDict({**content}), dst_node_id=node, message_type=kind, group_id=str(group), ttl=timeout
        )
        for node, (kind, content) in sent.items()
    ]
    numbers = list(grid.push_messages(messages))
    if len(numbers) != len(sent):
        raise RunError(
            f"the message of round {group} must reach Flower's SuperLink, it refused it as too large; "
            "see `docs/deployment.md` for what fits"
        )
    # Some grids keep the messages. Where they are on their way, the model need not lie here a second time.
    del messages
    for _, content in sent.values():
        content.pop("arrays", None)
    # A message that Flower could not pass on has no number.
    yield from ((node, GONE) for number, node in zip(numbers, sent, strict=True) if not number)
    pending = {number: node for number, node in zip(numbers, sent, strict=True) if number}
    end, pause = time.monotonic() + timeout, _FIRST_LOOK
    while pending:
        for number in list(pending):
            # One at a time, and none kept: a reply may be as large as several models.
            reply = _pulled(grid, number)
            if reply is not None:
                yield pending.pop(number), reply
            del reply
        if time.monotonic() > end:
            break
        if pending:
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK)
    yield from ((node, LATE.format(timeout)) for node in pending.values())


def _pulled(grid: Grid, number: str) -> Message | str | None:
    """Return the reply to a message, why it cannot be read, or None if it is not there yet."""
    try:
        return next(iter(grid.pull_messages([number])), None)
    except _UNREADABLE as error:
        return f"its answer cannot be read ({type(error).__name__})"

"""What Flower's SuperNode says in its output that matters to a hospital, and what it means."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

CONNECTED = "SuperNode ID:"
"""Flower's word for a connection that stands."""


@dataclass(frozen=True)
class Refusal:
    """What a program says when it is refused.

    Attributes
    ----------
    sign : str
        Regular expression, found in a line of its output before it is connected.
    passes : bool
        Whether the refusal may pass by itself, so that it is worth some patience.
    advice : str
        What happened and what to do.
    """

    sign: str
    passes: bool
    advice: str


REFUSALS = (
    # Flower says the same of a key it does not know and of one that it still counts as online,
    # which it does for about a minute after a program was killed.
    Refusal(
        r"\[code: 2004\]",
        True,
        "the centre does not take this site's key: either another program is connected with it, or it is "
        "not registered; ask the centre to register node.pub, or to send a new bundle",
    ),
    Refusal(
        r"CERTIFICATE_VERIFY_FAILED.*(expired|not yet valid)",
        True,
        "the centre's certificate is not valid today; check this machine's clock, then ask the centre to "
        "renew it",
    ),
    Refusal(
        r"CERTIFICATE_VERIFY_FAILED",
        False,
        "what answers at the centre's address is not signed by the authority in ca.crt; ask the centre "
        "whether the bundle was replaced, and your network whether it opens TLS connections",
    ),
    Refusal(
        r"Exit Code: 302\b", False, "node.key cannot be read; unpack the bundle again or ask for a new one"
    ),
    Refusal(
        r"Exit Code: 606\b|RUNTIME_VERSION_INCOMPATIBLE",
        False,
        "Flower here and Flower at the centre do not fit together; install the version that the centre has",
    ),
    Refusal(
        r"Exit Code: (303|304|600|603|604)\b|^usage: ",
        False,
        "Flower does not take the way it was started; its log says why, `fedfair doctor` what to mend",
    ),
    Refusal(
        r"^fedfair: Flower must be", False, "Flower is of another version; pip install --upgrade fedfair"
    ),
)
UNSIGNED = Refusal(
    "",
    True,
    "the centre does not take this site's signature: its clock is wrong, or its key is no longer registered; "
    "`fedfair doctor` checks the clock",
)
"""A program that ends well although nobody told it to: Flower does so when its signature is refused."""


NEWS = (
    ("Connection attempt failed", "the centre cannot be reached; trying again"),
    ("Connection successful", "the centre is reached again"),
    (r"\[RUN \d{1,20}(, ROUND \w{1,20})?\]", None),
    (r"site .{1,80} has not approved the code .*", None),
    (r"^fedfair: .*", None),
)
"""What a person wants to know: its sign in a line, and the words for it, or None for the line's own."""


@dataclass
class Life:
    """What one run of the program told.

    Attributes
    ----------
    say : Callable[[str], None]
        Told the news, no item twice in a row.
    began : float
        When it was started.
    connected : bool
        Whether it has reached the centre.
    refusal : Refusal | None
        The first one that it met on the way there.
    """

    say: Callable[[str], None]
    began: float
    connected: bool = False
    refusal: Refusal | None = None
    _last: str = ""

    def hear(self, line: str) -> None:
        """Take in one line of output."""
        if CONNECTED in line and not self.connected:
            self.connected = True
            self.say("connected to the centre")
        elif not self.connected and self.refusal is None:
            # Once connected, lines hold text that the server chose.
            self.refusal = next((known for known in REFUSALS if re.search(known.sign, line)), None)
        for sign, words in NEWS:
            if (found := re.search(sign, line)) and (news := words or found.group()[:400]) != self._last:
                self._last = news
                self.say(news)

"""The key pair by which the SuperLink knows a site: ECDSA P-384, as OpenSSH writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fedfair.errors import ConfigError


@dataclass(frozen=True)
class NodeKey:
    """The two files of a site's key.

    Attributes
    ----------
    private : bytes
        Text of ``node.key``, without a passphrase: the SuperNode starts unattended.
    public : bytes
        Text of ``node.pub``, one line that ends with the comment.
    """

    private: bytes = field(repr=False)
    public: bytes


def make_node_key(comment: str) -> NodeKey:
    """Return a new key pair; `comment` says whose it is."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return NodeKey(
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        public + f" {comment}\n".encode(),
    )


def roster_text(publics: Mapping[str, bytes]) -> bytes:
    """Return the public keys of all sites, by slug, one a line: ``SLUG TYPE KEY``."""
    lines = {site: b" ".join(key.split()[:2]) for site, key in publics.items()}
    return b"".join(site.encode() + b" " + lines[site] + b"\n" for site in sorted(lines))


def read_roster(text: bytes) -> dict[str, bytes]:
    """Return what `roster_text` wrote: each site's public key by slug.

    Raises
    ------
    ConfigError
        If a line is none of it, or a site stands there twice.
    """
    found: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        site, _, key = line.strip().partition(b" ")
        if not site or site.startswith(b"#"):
            continue
        if len(key.split()) != 2 or site.decode() in found:
            raise ConfigError(
                f"line {number} of the roster must be a site that is new in it, a type and a key, it is not"
            )
        found[site.decode()] = key
    return found

"""Key agreement, key derivation, sealed boxes and secret sharing: one function for each, no choices.

X25519 for keys, HKDF-SHA256 with a label for each use, ChaCha20-Poly1305 for what only one site may
read, Shamir's sharing over GF(2^128) from pycryptodome. Shares have the form of Flower's own
``create_shares``: four bytes of index, then 16 bytes for each 16 bytes of the padded secret.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedfair.errors import PrivacyError

KEY_BYTES = 32
_INDEX, _BLOCK, _NONCE = 4, 16, 12


def new_secret() -> bytes:
    """Return 32 bytes from the operating system: a seed, or a private key for X25519."""
    return os.urandom(KEY_BYTES)


def public_key(secret: bytes) -> bytes:
    """Return the 32 bytes of the public key of a private one."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree(secret: bytes, public: bytes) -> bytes:
    """Return what two sites can compute and nobody else; to be passed through `derive`.

    Raises
    ------
    PrivacyError
        If `public` is no key, or one of the few that lead to a known result.
    """
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise PrivacyError(f"a public key must be one of X25519, got {public.hex()}: {error}") from error


def derive(secret: bytes, label: str, context: bytes) -> bytes:
    """Return a key for one use, 32 bytes.

    Parameters
    ----------
    secret : bytes
        A seed or the result of `agree`.
    label : str
        The use.
    context : bytes
        The round and the sites.
    """
    info = f"fedfair secagg 1 {label} ".encode() + context
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def digest(label: str, data: bytes) -> bytes:
    """Return a hash; of a seed it binds its owner and tells nothing, since a seed has 256 bits."""
    return hashlib.sha256(f"fedfair secagg 1 {label} ".encode() + data).digest()


def seal(key: bytes, plain: bytes, associated: bytes) -> bytes:
    """Return `plain` encrypted, readable and unchanged only with `key` and `associated`."""
    # The key is used once. A random nonce costs nothing and forgives a state that was restored.
    nonce = os.urandom(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Return what `seal` encrypted.

    Raises
    ------
    PrivacyError
        If a bit of it, the key or `associated` differs.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], associated)
    except (InvalidTag, ValueError) as error:
        raise PrivacyError("a sealed share must be for this site, sender and round, got another") from error


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Return shares of a secret with index 1 to `holders`; `threshold` of them give it back."""
    shares = [index.to_bytes(_INDEX, "little") for index in range(1, holders + 1)]
    for start in range(0, len(padded := _pad(secret)), _BLOCK):
        for index, part in Shamir.split(threshold, holders, padded[start : start + _BLOCK], False):
            shares[index - 1] += part
    return shares


def combine(shares: Sequence[bytes]) -> bytes:
    """Return the secret of shares, exactly as many as are needed.

    Raises
    ------
    PrivacyError
        If they are not shares of one secret.
    """
    if len({share_index(share) for share in shares}) < len(shares) or len({len(s) for s in shares}) != 1:
        raise PrivacyError("shares must have one length and different indices, they do not")
    padded = b"".join(
        Shamir.combine([(share_index(share), share[start : start + _BLOCK]) for share in shares], False)
        for start in range(_INDEX, len(shares[0]), _BLOCK)
    )
    return _unpad(padded)


def share_index(share: bytes) -> int:
    """Return the index of a share, from 1.

    Raises
    ------
    PrivacyError
        If it is no share.
    """
    if len(share) <= _INDEX or (len(share) - _INDEX) % _BLOCK:
        raise PrivacyError(f"a share must have 4 bytes and blocks of 16, got {len(share)} bytes")
    return int.from_bytes(share[:_INDEX], "little")


def _pad(secret: bytes) -> bytes:
    missing = _BLOCK - len(secret) % _BLOCK
    return secret + bytes([missing]) * missing


def _unpad(padded: bytes) -> bytes:
    missing = padded[-1]
    if not 1 <= missing <= _BLOCK or padded[-missing:] != bytes([missing]) * missing:
        raise PrivacyError("shares must be of one secret, these give none")
    return padded[:-missing]

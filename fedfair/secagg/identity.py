"""Identity: who a site is, and whose keys it believes.

With a roster, a server cannot put keys of its own in the place of a site's: announced keys are signed
by the key of the site's SuperNode (ECDSA P-384). Whoever made and kept that key can sign too.
Without a roster nothing is checked, and the server must be trusted to pass keys on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedfair.errors import ConfigError, PrivacyError

_SCHEME = ec.ECDSA(hashes.SHA384())
PublicKeys = Mapping[str, ec.EllipticCurvePublicKey]
"""Sites' public keys, by site."""

_OTHER_KIND = "keys of site {!r} must be of an elliptic curve, got others; use the bundle's"


@dataclass(frozen=True)
class Identity:
    """One site's name and keys.

    Attributes
    ----------
    site : str
        Its name.
    key : EllipticCurvePrivateKey | None
        Of its SuperNode, to sign with; None signs nothing.
    roster : PublicKeys | None
        All sites' public keys, its own among them; None checks nothing.

    Raises
    ------
    ConfigError
        If the roster does not hold the site's own key.
    """

    site: str
    key: ec.EllipticCurvePrivateKey | None = None
    roster: PublicKeys | None = None

    def __post_init__(self) -> None:
        """Refuse a roster in which the others would not find this site."""
        if self.roster is None:
            return
        if self.key is None or self.roster.get(self.site) != self.key.public_key():
            raise ConfigError(
                f"`roster` must hold the public key of site {self.site!r} itself, got other keys or no key to"
                " sign with; use the bundle's own"
            )

    @classmethod
    def load(cls, site: str, key: bytes | None, roster: Mapping[str, bytes] | None) -> Identity:
        """Return the identity of key files in OpenSSH's format.

        Parameters
        ----------
        site : str
            Its name.
        key : bytes | None
            Content of its private key file.
        roster : Mapping[str, bytes] | None
            Contents of the public key files by site.

        Raises
        ------
        ConfigError
            If a key is not of an elliptic curve, or `Identity` refuses it.
        """
        private = None if key is None else _loaded(site, key, partial(load_ssh_private_key, password=None))
        if not isinstance(private, ec.EllipticCurvePrivateKey | None):
            raise ConfigError(_OTHER_KIND.format(site))
        return cls(site, private, None if roster is None else load_public_keys(roster))

    def sign(self, message: bytes) -> bytes:
        """Return a signature, empty without a key."""
        return b"" if self.key is None else self.key.sign(message, _SCHEME)

    def check(self, site: str, message: bytes, signature: bytes) -> None:
        """Refuse what `site` did not sign; without a roster, nothing is refused.

        Raises
        ------
        PrivacyError
            If the site is not in the roster, or the signature is not its.
        """
        check_signature(self.roster, site, message, signature)


def check_signature(roster: PublicKeys | None, site: str, message: bytes, signature: bytes) -> None:
    """Refuse what `site` did not sign, as `Identity.check` does."""
    if roster is None:
        return
    if site not in roster:
        raise PrivacyError(f"every site must be in the roster, got {site!r}")
    try:
        roster[site].verify(signature, message, _SCHEME)
    except InvalidSignature as error:
        raise PrivacyError(f"what is said to come from site {site!r} must be signed by it") from error


def load_public_keys(texts: Mapping[str, bytes]) -> dict[str, ec.EllipticCurvePublicKey]:
    """Return the keys of public key files in OpenSSH's format, by site.

    Raises
    ------
    ConfigError
        If one is not of an elliptic curve.
    """
    found = {}
    for site, text in texts.items():
        key = _loaded(site, text, load_ssh_public_key)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigError(_OTHER_KIND.format(site))
        found[site] = key
    return found


def _loaded(site: str, text: bytes, load: Callable[[bytes], object]) -> object:
    try:
        return load(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"keys of site {site!r} must be in OpenSSH's format, got {error}") from error

"""The consortium's own authority and the certificates that it signs.

Sites trust this authority alone, for this connection alone, so no public one can let anybody else
pose as the centre.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedfair.errors import ConfigError
from fedfair.federation.consortium import LONGEST_VALIDITY, is_address

LINK_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names of the SuperLink, which the centre's own programs alone reach."""

# A hospital's clock may be behind ours; a certificate must not be from its future.
_SKEW = timedelta(hours=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM; the key unencrypted."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class Description:
    """What a certificate says: the names it stands for, and from when to when (UTC)."""

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime


def make_authority(name: str) -> Issued:
    """Return a new authority for the consortium `name`: ECDSA P-384, signs end certificates only."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(f"fedfair {name} authority")
    until = _now() + timedelta(days=LONGEST_VALIDITY)
    builder = (
        _builder(subject, subject, key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    return _signed(builder, key, key)


def issue(authority: Issued, names: Sequence[str], days: int) -> Issued:
    """Return a new server certificate.

    Parameters
    ----------
    authority : Issued
        Who signs.
    names : Sequence[str]
        DNS names and IP addresses; the first is the main one.
    days : int
        Its validity, cut at the authority's end.

    Raises
    ------
    ConfigError
        If the authority has expired.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    if issuer.not_valid_after_utc <= _now():
        raise ConfigError(
            f"the authority must still be valid, got one that ended {issuer.not_valid_after_utc:%Y-%m-%d}; "
            "make a new federation, whose bundles replace the old ones"
        )
    signer = load_pem_private_key(authority.key, None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"the authority's key must be an elliptic-curve key, got {type(signer).__name__}")
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(_now() + timedelta(days=days), issuer.not_valid_after_utc)
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = (
        _builder(_name("fedfair centre"), issuer.subject, key.public_key(), until)
        .add_extension(x509.SubjectAlternativeName([*map(_general, dict.fromkeys(names))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(server, critical=False)
        .add_extension(issuer_id, critical=False)
    )
    return _signed(builder, key, signer)


def describe(certificate: Path | bytes) -> Description:
    """Return names and validity of a certificate, given as a PEM file or its content.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    read = _read(certificate)
    names: list[str] = []
    try:
        found = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass  # an authority has none
    else:
        names += found.get_values_for_type(x509.DNSName)
        names += map(str, found.get_values_for_type(x509.IPAddress))
    return Description(tuple(names), read.not_valid_before_utc, read.not_valid_after_utc)


def check_chain(certificate: Path | bytes, authority: Path | bytes) -> None:
    """Refuse a certificate that `authority` has not signed, or that is not valid now.

    Raises
    ------
    ConfigError
        Saying which of it is the case.
    """
    read, issuer = _read(certificate), _read(authority)
    try:
        read.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError(
            f"the certificate must be signed by {issuer.subject.rfc4514_string()}, "
            f"got one of {read.issuer.rfc4514_string()} that it has not signed; was the bundle replaced?"
        ) from error
    for who, one in (("certificate", read), ("authority", issuer)):
        if not one.not_valid_before_utc <= _now() <= one.not_valid_after_utc:
            raise ConfigError(
                f"the {who} must be valid now, got {one.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{one.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; check this machine's clock, "
                "then ask the centre to renew it"
            )


def _read(certificate: Path | bytes) -> x509.Certificate:
    try:
        pem = certificate.read_bytes() if isinstance(certificate, Path) else certificate
        return x509.load_pem_x509_certificate(pem)
    except (OSError, ValueError) as error:
        shown = certificate if isinstance(certificate, Path) else "other bytes"
        raise ConfigError(f"a certificate must be a readable PEM file, got {shown}: {error}") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Issued:
    return Issued(
        builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    """Let an authority sign certificates and a server its handshakes; neither may do the other's."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if is_address(name) else x509.DNSName(name)


def _now() -> datetime:
    return datetime.now(UTC)

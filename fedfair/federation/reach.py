"""Whether a site reaches its centre: name, port, certificate, clock; also through a hospital's proxy."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cryptography import x509

from fedfair.federation.certificates import describe
from fedfair.federation.finding import Finding
from fedfair.federation.folder import SiteFolder

SECONDS = 10.0
WARN_DAYS = 30
AHEAD, BEHIND = 5.0, 60.0
"""Seconds by which this clock may differ: Flower refuses a signature from 5 s in its future, or 305 s old."""

_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64  # X509_V_ERR_...


def check_reach(folder: SiteFolder) -> Iterator[Finding]:
    """Connect to the centre as a SuperNode does, and yield what was found, up to the first failure."""
    host, port = folder.centre
    proxy = _proxy(host)
    if proxy is not None:
        yield Finding(True, "name of the centre", f"{host}, looked up by the proxy {proxy.hostname}")
    else:
        yield (named := _look_up(host, port))
        if not named.ok:
            return
    try:
        connection = _dial(host, port, proxy)
    except OSError as error:
        yield _closed(host, port, proxy, error)
        return
    yield Finding(True, "port", f"{port} of {host} answers")
    with connection:
        yield from _check_tls(folder, host, port, connection)


def days_left(name: str, until: datetime, fix: str) -> Finding:
    """Return whether something ends: a failure when over, a note in the last thirty days."""
    days = (until - datetime.now(UTC)).days
    if days < 0:
        return Finding(False, name, f"ended on {until:%Y-%m-%d}", fix)
    note = None if days < WARN_DAYS else True
    return Finding(note, name, f"valid until {until:%Y-%m-%d}, {days} days", "" if note else fix)


def skew(date: str | None, before: float, after: float) -> Finding:
    """Return how far this clock is from the centre's.

    Parameters
    ----------
    date : str | None
        The centre's ``Date`` header, cut to the second.
    before, after : float
        This machine's time (Unix, seconds) when it was asked for and when it came.
    """
    try:
        remote = parsedate_to_datetime(date or "").timestamp() + 0.5
    except ValueError:
        return Finding(None, "clock", "not checked: the centre did not tell the time")
    ahead = (before + after) / 2 - remote
    fine = -BEHIND <= ahead <= AHEAD
    told = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the centre's"
    fix = "set it by NTP (timedatectl set-ntp true): the centre refuses signatures from another time"
    return Finding(fine, "clock", told, "" if fine else fix)


def _look_up(host: str, port: int) -> Finding:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        fix = f"ask your network to resolve {host}, or correct `centre` in site.yaml"
        return Finding(False, "name of the centre", f"{host} is not found ({error})", fix)
    addresses = ", ".join(dict.fromkeys(str(entry[4][0]) for entry in found))
    return Finding(True, "name of the centre", addresses if addresses == host else f"{host} is {addresses}")


def _proxy(host: str) -> urllib.parse.SplitResult | None:
    """Return the proxy that Flower's programs would take, from the same variables."""
    set_here = urllib.request.getproxies()
    url = set_here.get("https") or set_here.get("all")
    if not url or urllib.request.proxy_bypass(host):
        return None
    return urllib.parse.urlsplit(url if "://" in url else f"http://{url}")


def _dial(host: str, port: int, proxy: urllib.parse.SplitResult | None) -> socket.socket:
    if proxy is None:
        return socket.create_connection((host, port), SECONDS)
    tunnel = http.client.HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=SECONDS)
    headers = {}
    if proxy.username:
        word = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(word.encode()).decode()}"
    tunnel.set_tunnel(host, port, headers)
    tunnel.connect()
    return tunnel.sock


def _closed(host: str, port: int, proxy: urllib.parse.SplitResult | None, error: OSError) -> Finding:
    way = f" through the proxy {proxy.hostname}" if proxy else ""
    fix = f"ask your network to let this machine connect out to {host}, TCP port {port}{way}"
    if isinstance(error, ConnectionRefusedError) and proxy is None:
        fix = "ask the centre whether it is running; nothing listens there"
    return Finding(False, "port", f"{port} of {host} does not answer{way} ({error})", fix)


def _check_tls(folder: SiteFolder, host: str, port: int, connection: socket.socket) -> Iterator[Finding]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(folder.root / "ca.crt")
        tls = context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        yield _untrusted(host, port, error)
        return
    except OSError as error:  # ssl.SSLError is one
        fix = f"ask the centre whether it is `centre` in site.yaml, {host}:{port}, that serves TLS"
        yield Finding(False, "certificate", f"no TLS connection ({error})", fix)
        return
    with tls:
        shown = describe(ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b"").encode())
        yield Finding(True, "certificate", f"signed by our authority for {', '.join(shown.names)}")
        yield days_left("certificate's time", shown.not_after, "ask the centre to renew its certificate")
        yield _check_clock(host, port, tls)


def _check_clock(host: str, port: int, tls: ssl.SSLSocket) -> Finding:
    asking = http.client.HTTPConnection(host, port, timeout=SECONDS)
    asking.sock = tls
    before = time.time()
    try:
        asking.request("HEAD", "/")
        date = asking.getresponse().getheader("Date")
    except (OSError, http.client.HTTPException):
        date = None
    return skew(date, before, time.time())


def _untrusted(host: str, port: int, error: ssl.SSLCertVerificationError) -> Finding:
    """Return why a certificate does not convince, in the words of a hospital."""
    name = "certificate"
    if error.verify_code in (_EXPIRED, _NOT_YET):
        state = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
        fix = "check this machine's clock, then ask the centre to renew the certificate"
        return Finding(False, name, f"the centre's {state} by this clock", fix)
    if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
        fix = f"ask the centre to certify {host}, or correct `centre` in site.yaml"
        return Finding(False, name, f"it is not for {host}: {error.verify_message}", fix)
    issuer = _issuer(host, port)
    fix = (
        f"ask your network not to open TLS connections to {host}; if {issuer} is the centre's, "
        "ask it for a new bundle"
    )
    return Finding(False, name, f"wrong authority: it is signed by {issuer}, not by ours in ca.crt", fix)


def _issuer(host: str, port: int) -> str:
    """Return who signed what answers there, without trusting it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        contextlib.suppress(OSError, ValueError),
        _dial(host, port, _proxy(host)) as connection,
        context.wrap_socket(connection, server_hostname=host) as tls,
    ):
        shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        return repr(shown.issuer.rfc4514_string())
    return "another authority"

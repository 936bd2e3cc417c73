"""A site's folder as a hospital has it: made by the centre, handed over, unpacked."""

from __future__ import annotations

import csv
import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fedfair.data.heart import heart_table
from fedfair.federation import centre
from fedfair.federation.bundle import open_bundle

NAME = "VA Long Beach"
HASH = "0123456789abcdef" * 4


def federation(folder: Path, **changes: Any) -> Path:
    """Make a federation on this machine's loopback and return its folder."""
    plain = {
        "name": "heart",
        "centre": {"host": "localhost", "port": 8443},
        "sites": [NAME, "Cleveland"],
        "attributes": {"sex": ["female", "male"], "age": ["<50", "50-59", "60+"]},
        "data": {"name": "heart"},
    }
    file = folder / "consortium.yaml"
    file.write_text(yaml.safe_dump(plain | changes))
    return centre.init(file, folder / "centre")


def unpacked(folder: Path, **changes: Any) -> Path:
    """Return a site's folder, unpacked from a new bundle."""
    return open_bundle(federation(folder, **changes) / "bundles" / "va-long-beach.tar.gz", folder)


def change(site: Path, **settings: object) -> None:
    """Change keys of site.yaml; `_` stands for `-`."""
    file = site / "site.yaml"
    new = {key.replace("_", "-"): value for key, value in settings.items()}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | new))


def own_table(file: Path, site: str = NAME) -> Path:
    """Write the records of one site as the hospital's own table has them."""
    rows = [row for row in heart_table()[0] if row["site"] == site]
    with file.open("w", newline="") as lines:
        table = csv.DictWriter(lines, rows[0])
        table.writeheader()
        table.writerows(rows)
    return file


class _Answer(http.server.BaseHTTPRequestHandler):
    """Answers as a proxy does that has nothing there: 404, with the time."""

    date: str | None = None

    def do_HEAD(self) -> None:
        self.send_response(404) if self.date is None else self.send_response_only(404)
        if self.date is not None:
            self.send_header("Date", self.date)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None: ...  # a refused handshake is what some tests want


@contextmanager
def served(certificate: Path, key: Path, date: str | None = None) -> Iterator[int]:
    """Serve TLS on a free port of the loopback, with a clock that says `date`; yield the port."""
    handler = type("Answer", (_Answer,), {"date": date})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with _Server(("127.0.0.1", 0), handler) as server:
        # The handshake belongs to the thread of its connection, so that one refusal stops no other.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()

"""What starts the centre and a site: shell, Docker, systemd; and a page for the hospital's IT."""

from __future__ import annotations

from collections.abc import Mapping

import fedfair
from fedfair.federation.consortium import Consortium, slug
from fedfair.federation.template import Text

_TORCH = """\
# PyTorch without CUDA, a tenth of the size. With a GPU leave out --index-url.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
"""

_HARDENED_SERVICE = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
LockPersonality=yes
SystemCallArchitectures=native
UMask=0077

[Install]
WantedBy=multi-user.target
"""

_HARDENED_CONTAINER = """\
    init: true
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    restart: unless-stopped
    stop_grace_period: 60s
"""

_SITE = {
    "start.sh": Text("""\
#!/bin/sh
# Connects this site to the centre and answers it until told to end. Other programs: compose.yaml, systemd.
set -eu
exec fedfair site join "$(dirname "$0")"
"""),
    "Dockerfile": Text(f"""\
FROM python:3.11-slim

{_TORCH}
# The same version as the centre's. A wheel that lies beside this file goes before an index.
ARG FEDFAIR="fedfair[privacy]==@{{version}}"
COPY Dockerfile *.whl /wheels/
RUN pip install --no-cache-dir --find-links /wheels "${{FEDFAIR}}"

# No home: what Flower keeps between runs is in /tmp, what must last is in /site.
ENV HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /site
"""),
    "compose.yaml": Text(f"""\
# FEDFAIR_DATA=/path/of/records docker compose up --detach
# Approve code: docker compose exec site fedfair site approve HASH
# It publishes no port: the site calls the centre, nobody calls the site.
name: fedfair-@{{project}}
services:
  site:
    build: .
    command: [fedfair, site, join, /site, --data, /data]
    user: "${{FEDFAIR_USER:-1000:1000}}"  # owner of this folder: $(id -u):$(id -g)
    volumes:
      - .:/site
      - "${{FEDFAIR_DATA:?must be the path of the records}}:/data:ro"
{_HARDENED_CONTAINER}"""),
    "fedfair-site.service": Text(f"""\
# Install: this folder as /srv/fedfair/@{{folder}}, owned by a user fedfair;
# fedfair itself in /srv/fedfair/venv; then copy this file to /etc/systemd/system and:
# systemctl enable --now fedfair-site
[Unit]
Description=fedfair site @{{folder}}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
User=fedfair
Environment=PATH=/srv/fedfair/venv/bin:/usr/local/bin:/usr/bin:/bin
WorkingDirectory=/srv/fedfair/@{{folder}}
ExecStart=/srv/fedfair/@{{folder}}/start.sh
ReadWritePaths=/srv/fedfair/@{{folder}}
Restart=always
# After a crash the centre takes this site for connected, and refuses it, for about a minute.
RestartSec=75
TimeoutStopSec=60
CapabilityBoundingSet=
{_HARDENED_SERVICE}"""),
    "README.txt": Text("""\
fedfair: the site @{site} of the consortium @{consortium}

What it is
  Hospitals train one diagnostic model together. Each trains on its own records, on its
  own machine; a coordinating centre adds up what they send. This folder connects one
  hospital. It holds this hospital's private key, node.key: keep it as you keep a password.

What it needs
  - A Linux machine that can read the records: Python 3.11 with fedfair @{version}, or Docker.
  - Outbound TCP to @{address}, encrypted with TLS, and nothing else. No inbound port,
    no proxy that opens TLS (the certificate is checked against ca.crt, not a public one).
  - A clock kept by NTP: one more than a few seconds fast is refused.

Three commands
  1  fedfair site join @{slug}.tar.gz --data /path/of/records.csv
       unpacks the bundle into @{folder}/, checks it, connects, and stays connected.
       Then read site.yaml there: it is yours, and it binds whatever the centre asks for.
  2  fedfair site approve HASH
       in that folder: lets the code with this hash run. The centre tells you the hash and
       shows you the code. Code that nobody here has approved does not run.
  3  ./start.sh
       connects again. For good: fedfair-site.service (systemd) or compose.yaml (Docker);
       each says in its first lines how it is installed.
  If something does not work: fedfair doctor @{folder}

What leaves the hospital
  - Changes of the model's numbers, learned from all training records together.
  - Sums over records: counts, losses and score histograms, also by the attributes and
    groups listed in site.yaml.
  - This site's name, the hash of the code, and one sentence when something was refused.
  audit.jsonl records each request and each answer.

What never leaves
  No record, no row of the table, no identifier, no image, no label of a patient, no file.
  The records are only read, and nobody from outside can log in.

What to decide
  Changes and sums can tell something about the records behind them. How much is bounded
  only with noise: max-epsilon, max-delta, min-noise in site.yaml. Where they are null,
  nothing bounds it. Let those who answer for the records decide this before you approve.
"""),
}

_CENTRE = {
    "start.sh": Text("""\
#!/bin/sh
# Runs the SuperLink and the proxy before it until told to end; with the fedfair of a checkout.
set -eu
exec fedfair federation start "$(dirname "$0")/.."
"""),
    "Dockerfile": Text(f"""\
FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends nginx && rm -rf /var/lib/apt/lists/*
{_TORCH}
# The centre runs from a checkout: the code that sites approve is built from it.
WORKDIR /opt/fedfair
COPY --from=checkout pyproject.toml README.md LICENSE NOTICES ./
COPY --from=checkout fedfair fedfair
COPY --from=checkout server server
COPY --from=checkout client client
COPY --from=checkout simulations simulations
COPY --from=checkout configs configs
RUN pip install --no-cache-dir --editable ".[privacy]"

ENV HOME=/tmp PYTHONUNBUFFERED=1
"""),
    "compose.yaml": Text(f"""\
# FEDFAIR_CHECKOUT=/path/of/checkout docker compose up --detach   (Compose 2.17 or newer)
# Experiments run inside, where alone the SuperLink can be reached, and write to the mounted folder:
# docker compose exec centre fedfair submit CONFIG --federation /federation --output /federation/run-1
name: fedfair-@{{project}}-centre
services:
  centre:
    build:
      context: .
      additional_contexts:
        checkout: "${{FEDFAIR_CHECKOUT:?must be the path of a checkout of fedfair}}"
    command: [fedfair, federation, start, /federation]
    user: "${{FEDFAIR_USER:-1000:1000}}"  # owner of this folder: $(id -u):$(id -g)
    ports: ["@{{port}}:@{{port}}"]
    volumes:
      - ..:/federation
{_HARDENED_CONTAINER}"""),
    "fedfair-centre.service": Text(f"""\
# Install: the federation's folder as /srv/fedfair/@{{consortium}}-federation, owned by a user fedfair;
# a checkout with its .venv, and in it a folder runs of that user's, as /srv/fedfair/checkout; then copy
# this file to /etc/systemd/system and: systemctl enable --now fedfair-centre
# Experiments: as that user, in the checkout; the service itself writes their results to runs/.
[Unit]
Description=fedfair centre of @{{consortium}}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
User=fedfair
Environment=PATH=/srv/fedfair/checkout/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin
WorkingDirectory=/srv/fedfair/@{{consortium}}-federation/centre
ExecStart=/srv/fedfair/@{{consortium}}-federation/centre/start.sh
ReadWritePaths=/srv/fedfair/@{{consortium}}-federation/centre/state /srv/fedfair/checkout/runs
Restart=always
RestartSec=5
TimeoutStopSec=60
@{{capabilities}}
{_HARDENED_SERVICE}"""),
}


def site_files(consortium: Consortium, site: str) -> Mapping[str, str]:
    """Return the text of each file that starts a site or explains it, by name."""
    places = {
        "site": site,
        "slug": slug(site),
        "consortium": consortium.name,
        "folder": f"{consortium.name}-{slug(site)}",
        "project": f"{slug(consortium.name)}-{slug(site)}",
        "address": consortium.centre.address,
        "version": fedfair.__version__,
    }
    return {name: text.substitute(places) for name, text in _SITE.items()}


def centre_files(consortium: Consortium) -> Mapping[str, str]:
    """Return the text of each file that starts the centre, by name."""
    port = consortium.centre.port
    low = "CAP_NET_BIND_SERVICE" if port < 1024 else ""
    capabilities = f"AmbientCapabilities={low}\nCapabilityBoundingSet={low}"
    places = {
        "consortium": consortium.name,
        "project": slug(consortium.name),
        "port": str(port),
        "capabilities": capabilities,
    }
    return {name: text.substitute(places) for name, text in _CENTRE.items()}

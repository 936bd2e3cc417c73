"""The one door from outside: nginx passes the sites' calls to the SuperLink, and nothing else.

The test is on the request as it was sent, not on what nginx makes of it: a path with a dot, a
percent sign, a double slash or a query is no call that a SuperNode makes, so there is nothing to
normalise and nothing that the SuperLink could read differently.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from pathlib import Path

from fedfair.errors import MissingDependency
from fedfair.federation.consortium import Consortium, is_address
from fedfair.federation.template import Text

_NGINX = Text("""\
# Written by `fedfair federation init`. Paths are relative to this folder: nginx -p FOLDER -c nginx.conf
# Needs no root (for a port below 1024: the capability CAP_NET_BIND_SERVICE). Stays in the foreground.
daemon off;
worker_processes 1;
pid state/nginx.pid;
error_log state/proxy-error.log warn;

events {
    worker_connections 1024;
}

http {
    server_tokens off;
    # Neither headers nor bodies: a header holds the signature by which a site is known.
    log_format calls '$time_iso8601 $remote_addr "$request_method $request_uri" $status '
                     '$request_length bytes in, $bytes_sent out, $request_time s';
    # Every site calls every three seconds; what was refused or failed is worth a line.
    map $status $notable {
        "~^[23]" 0;
        default 1;
    }
    access_log state/proxy.log calls if=$notable;

    # All must be folders that this user may write to, used or not.
    client_body_temp_path state/temp-body;
    proxy_temp_path state/temp-proxy;
    fastcgi_temp_path state/temp-fastcgi;
    uwsgi_temp_path state/temp-uwsgi;
    scgi_temp_path state/temp-scgi;

    # The only calls that a SuperNode makes.
    map "$request_method $request_uri" $of_a_site {
        "~^POST /v1/fleet/[a-z-]+$" 1;
        default 0;
    }

    server {
@{listen}
        ssl_certificate server.crt;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_ciphers ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256;
        ssl_session_cache shared:sites:1m;
        ssl_session_tickets off;

        keepalive_timeout 75s;
        client_header_timeout 15s;
        client_body_timeout 60s;
        send_timeout 60s;

        if ($of_a_site = 0) {
            return 404;
        }

        location / {
            return 404;
        }

        location /v1/fleet/ {
            # Flower sends arrays in pieces of 5 MB; what is much larger is not its.
            client_max_body_size 64m;
            # Updates pass through and never lie on this machine's disk.
            proxy_request_buffering off;
            proxy_max_temp_file_size 0;

            proxy_pass https://127.0.0.1:@{inner_port};
            proxy_http_version 1.1;
            proxy_redirect off;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto https;
            # A call is never sent twice: the SuperNode repeats what failed.
            proxy_next_upstream off;
            proxy_connect_timeout 10s;
            proxy_send_timeout 300s;
            proxy_read_timeout 300s;

            proxy_ssl_protocols TLSv1.2 TLSv1.3;
            proxy_ssl_trusted_certificate ca.crt;
            proxy_ssl_verify on;
            proxy_ssl_verify_depth 1;
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
        }
    }
}
""")


def nginx_configuration(consortium: Consortium) -> str:
    """Return the text of nginx.conf.

    It listens on all of the machine's IPv4 addresses, and on IPv6 where `centre.host` is such an
    address. A host on the loopback is a rehearsal on one machine and is not seen from outside.
    """
    centre = consortium.centre
    listen = f"        listen {_own_address(centre.host)}:{centre.port} ssl;"
    return _NGINX.substitute(listen=listen, inner_port=centre.inner_port)


def nginx_command(folder: Path) -> list[str]:
    """Return the command that runs the proxy of a centre's folder until it is told to end.

    Raises
    ------
    MissingDependency
        If there is no nginx.
    """
    # Where distributions put it is often not on a user's path.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    if (program := shutil.which("nginx", path=path)) is None:
        raise MissingDependency("the proxy must have nginx, got none; install your system's package nginx")
    return [program, "-p", f"{folder.resolve()}/", "-c", "nginx.conf", "-e", "stderr"]


def _own_address(host: str) -> str:
    """Return the address to listen on, given what sites dial."""
    if host.lower() == "localhost":
        return "127.0.0.1"
    if not is_address(host):
        return "0.0.0.0"
    address = ipaddress.ip_address(host)
    shown = str(address) if address.is_loopback else ("::" if address.version == 6 else "0.0.0.0")
    return f"[{shown}]" if address.version == 6 else shown

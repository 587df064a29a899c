"""Connections that this process may open, watched by the interpreter itself.

Python tells an audit hook of every connection before it is opened, whichever library opens it, and a
hook cannot be removed. So a private worker cannot be made to call elsewhere by a library's telemetry, a
model hub, a setting or a proxy; and a cloud worker cannot but by a request that is on record.

Not seen are connections that compiled code opens by itself (Postgres's client library does), and child
processes. That is what the network of its own in compose.yaml is for.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from inference.remote import egress
from inference.remote.local_network import Network, is_local

log = logging.getLogger(__name__)

EVENTS: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})


class ExternalConnectionBlocked(PermissionError):
    """A connection to outside our own network was refused in this process."""


def block_external_connections(
    servers: Sequence[str], allowed: Iterable[Network] = (), *, cloud: bool = False
) -> None:
    """From now on open no connection but to local addresses and the servers named.

    Args:
        servers: URLs of the database and the broker.
        allowed: networks that count as local besides the loopback interface.
        cloud: elsewhere, too, while a request that is on record is being sent.
    """
    known = frozenset(host for url in servers if (host := urlsplit(url).hostname))
    networks = tuple(allowed)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS or args[0].family not in FAMILIES:
            return
        if args[1] is None or _is_allowed(str(args[1][0]), known, networks):
            return
        if cloud and egress.sending():
            return
        log.error("a connection to outside was about to be opened: refused")
        raise ExternalConnectionBlocked

    sys.addaudithook(hook)


def _is_allowed(host: str, known: frozenset[str], networks: tuple[Network, ...]) -> bool:
    if is_local(host, networks) or host in known:
        return True
    # The broker, by what its name leads to just now.
    return any(host in _lookup(name) for name in known)


def _lookup(name: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    except OSError:
        return set()

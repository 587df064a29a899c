"""Network guard: an audit hook that refuses external connections of this process.

Python calls an audit hook before every connection, whichever library opens it, and a hook cannot be
removed. A library's telemetry, a model hub, a setting or a proxy cannot make a private worker connect
elsewhere; a cloud worker can connect elsewhere only for a recorded request.

The hook does not see connections of compiled code, such as Postgres's client library, and of child
processes. The internal networks in compose.yaml block those.
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
    """An external connection was refused in this process."""


def block_external_connections(
    servers: Sequence[str], allowed: Iterable[Network] = (), *, cloud: bool = False
) -> None:
    """From now on, refuse all connections except those to local addresses and some servers.

    Args:
        servers: URLs of the database and the broker.
        allowed: networks that count as local besides the loopback interface.
        cloud: also allow any address while a recorded request is being sent.
    """
    hosts = frozenset(host for url in servers if (host := urlsplit(url).hostname))
    networks = tuple(allowed)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS or args[0].family not in FAMILIES:
            return
        if args[1] is None or _is_allowed(str(args[1][0]), hosts, networks):
            return
        if cloud and egress.sending():
            return
        log.error("external connection refused")
        raise ExternalConnectionBlocked

    sys.addaudithook(hook)


def _is_allowed(host: str, hosts: frozenset[str], networks: tuple[Network, ...]) -> bool:
    if is_local(host, networks) or host in hosts:
        return True
    # A server's name may resolve to a new address.
    return any(host in _lookup(name) for name in hosts)


def _lookup(name: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    except OSError:
        return set()

"""Whether a server's address is our own: loopback, or a network that was named as ours."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network


def networks(text: str) -> tuple[Network, ...]:
    """Networks such as `10.1.0.0/16`, separated by spaces or commas.

    Raises:
        ValueError: one is none; the message names it.
    """
    return tuple(ip_network(part) for part in text.replace(",", " ").split())


def is_own(url: str, own: Sequence[Network] = ()) -> bool:
    """Whether every address of a URL's host is ours. One that cannot be resolved is not.

    Args:
        url: a backend's base URL.
        own: networks that count as ours besides loopback.
    """
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port
        found = socket.getaddrinfo(host or "", port or 0, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return False
    addresses = {ip_address(str(entry[4][0]).partition("%")[0]) for entry in found}
    return bool(host) and all(
        address.is_loopback or any(address in network for network in own) for address in addresses
    )

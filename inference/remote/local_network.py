"""Local networks, and HTTP transports that connect to local addresses only.

An address is local if it is on the loopback interface or in VESTRY_LOCAL_NETWORKS. A host name is
resolved at the start and again for every connection, which is made to the address that was checked: a
name that later resolves to another network is refused.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LOOPBACK: Final[tuple[Network, ...]] = (
    ipaddress.IPv4Network("127.0.0.0/8"),
    ipaddress.IPv6Network("::1/128"),
)
WIDEST: Final = {4: 8, 6: 7}
"""Shortest prefix that VESTRY_LOCAL_NETWORKS may have, by IP version."""

log = logging.getLogger(__name__)


class NotLocal(ValueError):
    """A server declared as local has another address."""


def networks(text: str) -> tuple[Network, ...]:
    """Networks such as `10.20.0.0/16 192.168.1.7`, separated by spaces or commas.

    Raises:
        ValueError: one is not a network, or too wide to be a limit.
    """
    result = []
    for part in text.replace(",", " ").split():
        try:
            network = ipaddress.ip_network(part)
        except ValueError:
            raise ValueError(f"VESTRY_LOCAL_NETWORKS: {part} is not a network") from None
        if network.prefixlen < WIDEST[network.version]:
            raise ValueError(f"VESTRY_LOCAL_NETWORKS: {part} is too wide for a local network")
        result.append(network)
    return tuple(result)


def is_local(address: str, allowed: Iterable[Network] = ()) -> bool:
    """Whether an IP address is on the loopback interface or in an allowed network."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    plain: Address = getattr(ip, "ipv4_mapped", None) or ip
    return any(
        plain in network for network in (*LOOPBACK, *allowed) if network.version == plain.version
    )


def addresses(host: str, port: int, allowed: Iterable[Network] = ()) -> list[str]:
    """The IP addresses of a host, all of them local.

    Raises:
        NotLocal: at least one is not local.
        OSError: the name cannot be resolved.
    """
    resolved = list(
        dict.fromkeys(
            str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
    )
    allowed = tuple(allowed)
    for address in resolved:
        if not is_local(address, allowed):
            raise NotLocal(
                f"{host} is {address}, which is neither on the loopback interface nor in "
                "VESTRY_LOCAL_NETWORKS"
            )
    return resolved


def check_url(url: str, allowed: Iterable[Network] = ()) -> None:
    """Check that a local backend's URL resolves to local addresses.

    Raises:
        NotLocal: it does not, or cannot be resolved; the message names the address.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    # With a login or a backslash in it, two parsers may disagree about the host.
    if host is None or parts.scheme not in {"http", "https"} or "@" in url or "\\" in url:
        raise NotLocal("a backend's URL must be http://HOST:PORT or https://HOST:PORT")
    try:
        addresses(host, port or 0, allowed)
    except OSError:
        raise NotLocal(
            f"{host} cannot be resolved, so it does not count as local; correct the name, or use an "
            "IP address"
        ) from None


def is_own(url: str, allowed: Iterable[Network] = ()) -> bool:
    """Whether a URL resolves to local addresses only; False if it cannot be resolved."""
    try:
        check_url(url, allowed)
    except NotLocal:
        return False
    return True


def guarded_transport(
    httpx: ModuleType, allowed: Iterable[Network] = (), limits: Any = None
) -> Any:
    """A transport for `httpx.Client(transport=…, trust_env=False)` that connects to local servers only.

    Proxies of the environment are ignored. A refused connection raises `httpx.ConnectError`.

    Args:
        httpx: the client's module, `httpx` or `httpx2`.
        allowed: networks besides the loopback interface.
        limits: of connections, `httpx.Limits`.
    """
    limits = limits or httpx.Limits()
    transport = httpx.HTTPTransport(trust_env=False, retries=0)
    core = _core_of(transport)
    transport._pool = core.ConnectionPool(  # noqa: SLF001 - no public parameter for the network backend
        ssl_context=transport._pool._ssl_context,  # noqa: SLF001
        max_connections=limits.max_connections,
        max_keepalive_connections=limits.max_keepalive_connections,
        keepalive_expiry=limits.keepalive_expiry,
        retries=0,
        network_backend=_GuardedNetwork(core, tuple(allowed)),
    )
    return transport


class _GuardedNetwork:
    """Network backend for httpcore that checks addresses before it connects and the peer afterwards."""

    def __init__(self, core: ModuleType, allowed: tuple[Network, ...]) -> None:
        self._core = core
        self._inner = core.SyncBackend()
        self._allowed = allowed

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Any:
        """Connect to a local address of the host."""
        failure: Exception = self._core.ConnectError("no address")
        for address in self._addresses(host, port):
            try:
                stream = self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (self._core.ConnectError, self._core.ConnectTimeout) as error:
                failure = error
                continue
            peer = stream.get_extra_info("server_addr")
            if peer and is_local(str(peer[0]), self._allowed):
                return stream
            stream.close()
            failure = self._refusal()
        raise failure

    def connect_unix_socket(self, *args: Any, **kwargs: Any) -> Any:
        """Connect to a Unix socket, which is local."""
        return self._inner.connect_unix_socket(*args, **kwargs)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self._inner.sleep(seconds)

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            return addresses(host, port, self._allowed)
        except NotLocal:
            log.error("local backend not called (its address is not local)")  # noqa: TRY400
            raise self._refusal() from None
        except OSError:
            raise self._core.ConnectError("the name cannot be resolved") from None

    def _refusal(self) -> Exception:
        refusal: Exception = self._core.ConnectError("not a local address")
        return refusal


def _core_of(transport: Any) -> ModuleType:
    """`httpcore` for httpx, `httpcore2` for httpx2."""
    import sys  # noqa: PLC0415 - used here only

    return sys.modules[type(transport._pool).__module__.partition(".")[0]]  # noqa: SLF001

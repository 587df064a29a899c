"""`python -m workers.stack.port_forwarder`: forwards TCP ports to servers on internal networks.

A container network without external access cannot publish a port either. In compose.yaml this process
is attached to an internal network and an external one, and forwards connections to Postgres and the
Flowers. It has no login and no key: Postgres and Flower ask clients for their own passwords.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

from workers.setting_names import parse_pairs, reject_renamed

VARIABLE: Final = "VESTRY_FORWARD"
ADDRESS_VARIABLE: Final = "VESTRY_FORWARD_ADDRESS"
CONNECT_TIMEOUT_S: Final = 5.0
CHUNK_BYTES: Final = 64 * 1024


def main() -> None:
    """Forward until SIGTERM or SIGINT."""
    try:
        reject_renamed(os.environ)
        forwards = parse_forwards(os.environ.get(VARIABLE, ""))
    except ValueError as error:
        sys.exit(f"port forwarder: {error}")
    asyncio.run(_run(forwards, os.environ.get(ADDRESS_VARIABLE, "0.0.0.0")))  # noqa: S104


def parse_forwards(text: str) -> dict[int, tuple[str, int]]:
    """Parse `5432=postgres:5432 5555=flower-private:5555`: target host and port of each port.

    Raises:
        ValueError: the text has another form, or names no port.
    """
    forwards = {}
    for port, target in parse_pairs(text).items():
        host, _, target_port = target.rpartition(":")
        if not (host and port.isdecimal() and target_port.isdecimal()):
            raise ValueError(f"{VARIABLE} takes PORT=HOST:PORT, not {port}={target}")
        forwards[int(port)] = (host, int(target_port))
    if not forwards:
        raise ValueError(f"{VARIABLE} is empty; it takes PORT=HOST:PORT")
    return forwards


async def serve(forwards: dict[int, tuple[str, int]], address: str, stop: asyncio.Event) -> None:
    """Forward connections until stopped.

    Args:
        forwards: target host and port of each port.
        address: to listen on.
        stop: ends it.
    """
    async with contextlib.AsyncExitStack() as servers:
        for port, (host, target_port) in forwards.items():
            handler = _connection_handler(host, target_port)
            await servers.enter_async_context(await asyncio.start_server(handler, address, port))
        if ready := os.environ.get("VESTRY_READY_FILE"):
            Path(ready).touch()  # noqa: ASYNC240 - before the first connection
        await stop.wait()


async def _run(forwards: dict[int, tuple[str, int]], address: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(forwards, address, stop)


def _connection_handler(host: str, port: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 - asyncio's own
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target = asyncio.open_connection(host, port)
            target_reader, target_writer = await asyncio.wait_for(target, CONNECT_TIMEOUT_S)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))

    return forward


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


if __name__ == "__main__":
    main()

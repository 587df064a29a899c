"""`python -m workers.stack.port_forwarder`: forwards ports to servers on internal networks.

A network without a way out cannot publish a port either. So in compose.yaml this process stands on one
of each sort, and passes connections on to Postgres and the Flowers. It has no login and no key, and
what goes through it is between the two ends: Postgres and Flower ask for their own passwords.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

VARIABLE: Final = "VESTRY_DOORS"
CONNECT_TIMEOUT_S: Final = 5.0
CHUNK: Final = 64 * 1024


def parse_forwards(text: str) -> dict[int, tuple[str, int]]:
    """Where each port leads: `5432=postgres:5432 5555=flower-private:5555`.

    Raises:
        ValueError: it cannot be read.
    """
    found = {}
    for part in text.replace(",", " ").split():
        port, equals, target = part.partition("=")
        host, colon, there = target.rpartition(":")
        if not (equals and colon and host and port.isdecimal() and there.isdecimal()):
            raise ValueError(f"{VARIABLE}: PORT=HOST:PORT, not {part!r}")
        found[int(port)] = (host, int(there))
    if not found:
        raise ValueError(f"{VARIABLE} names no door")
    return found


async def serve(led: dict[int, tuple[str, int]], address: str, ended: asyncio.Event) -> None:
    """Pass connections on until told to end.

    Args:
        led: where each port leads.
        address: on which to listen.
        ended: set when it is time.
    """
    async with contextlib.AsyncExitStack() as open_doors:
        for port, (host, there) in led.items():
            server = await asyncio.start_server(_connection_handler(host, there), address, port)
            await open_doors.enter_async_context(server)
        if ready := os.environ.get("VESTRY_READY_FILE"):
            Path(ready).touch()  # noqa: ASYNC240 - nobody is served yet
        await ended.wait()


def _connection_handler(host: str, port: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 - asyncio's own
    async def passing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far = asyncio.open_connection(host, port)
            far_reader, far_writer = await asyncio.wait_for(far, CONNECT_TIMEOUT_S)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))

    return passing


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


async def _main() -> None:
    led = parse_forwards(os.environ.get(VARIABLE, ""))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await serve(led, os.environ.get("VESTRY_DOOR_ADDRESS", "0.0.0.0"), ended)  # noqa: S104


def main() -> None:
    """Run until told to end."""
    try:
        asyncio.run(_main())
    except ValueError as error:
        sys.exit(f"door: {error}")


if __name__ == "__main__":
    main()

"""The outside world's web and echo servers: ``python -m services.demo.web --http 80,443 --echo 5432``.

Plain HTTP on every ``--http`` port (443 too: what is shown is who may connect, not what is said), a line echo on
``--echo``, on every address of the namespace, both families. The body is the address that was reached.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib

import uvloop

WILDCARDS = ("0.0.0.0", "::")
REQUEST_LIMIT_BYTES = 8192
BACKLOG = 1024


async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, one response, closed."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        await reader.readuntil(b"\r\n\r\n")
        await _respond(writer)
    writer.close()


async def answer_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Every line comes back, until the other side closes; a line that begins an HTTP request is answered as one."""
    with contextlib.suppress(ConnectionError, ValueError):
        while line := await reader.readline():
            if line.startswith(b"GET "):
                await reader.readuntil(b"\r\n\r\n")
                await _respond(writer)
                break
            writer.write(line)
            await writer.drain()
    writer.close()


async def _respond(writer: asyncio.StreamWriter) -> None:
    body = f"{writer.get_extra_info('sockname')[0]}\n".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()


async def serve(http_ports: list[int], echo_ports: list[int]) -> None:
    """Serves until cancelled."""
    kinds = [(answer_http, port) for port in http_ports] + [(answer_echo, port) for port in echo_ports]
    servers = [
        await asyncio.start_server(answer, address, port, limit=REQUEST_LIMIT_BYTES, backlog=BACKLOG)
        for answer, port in kinds
        for address in WILDCARDS
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--http", "--echo"):
        parser.add_argument(
            option, type=lambda text: [int(port) for port in text.split(",")], default=[], metavar="PORTS"
        )
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.http, arguments.echo))


if __name__ == "__main__":
    main()

"""``python -m services.story.receiver PORT``: an OTLP receiver that is not ours; a span a line on stdout, as JSON."""

from __future__ import annotations

import asyncio
import sys

from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings


async def receive(port: int) -> None:
    """For ever."""
    settings = OtelTapHttpProtobufReceiverSettings(port, listen_on_all_interfaces=True, print_traces_as_ndjson=True)
    async with OtelTapHttpProtobufReceiver(settings):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(receive(int(sys.argv[1])))

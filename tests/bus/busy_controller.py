"""A busy controller as a process of its own: ``python -m tests.bus.busy_controller URL``.

Before each revision it prints its number and the digest of the rows that an agent of ``node-a`` should then hold.
"""

from __future__ import annotations

import asyncio
import random
import sys

from nats.aio.client import Client

from schemas.digest import Digest
from services.common import nats
from services.common.jetstream import JetStream
from services.common.settings import CommonSettings
from tests.bus.harness import leading
from tests.bus.toy import Toy

NODE = "node-a"
PODS = 120
"""So many that a replay takes as long as several revisions."""
CHANGES = 4
"""In one revision; an edited policy flips a quarter of all endpoints."""
PAUSE_SECONDS = 0.01
"""Between revisions: a fifth of what the controller keeps."""


def digest_for_node(rows: dict[str, bytes]) -> str:
    """Over the rows that the node's agent follows: all but others' endpoints."""
    digest = Digest()
    for subject, body in rows.items():
        if not subject.startswith("yett.policy.endpoint.") or f".{NODE}." in subject:
            digest.put(subject, body)
    return digest.hexdigest()


async def _publish_for_ever(client: Client) -> None:
    dice, toy = random.Random(1), Toy()
    for number in range(PODS):
        toy.add_pod(f"ns-{number % 4}", toy.nodes[number % 2])
    async with leading(client, JetStream(client)) as lead:
        while True:
            rows = toy.rows()
            print(lead.ledger.number + 1, digest_for_node(rows), flush=True)
            await lead.publish(rows)
            for _ in range(CHANGES):
                toy.change(dice)
            await asyncio.sleep(PAUSE_SECONDS)


async def _main(url: str) -> None:
    await _publish_for_ever(await nats.connect(CommonSettings(nats_url=url, log_level="error"), "busy"))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))

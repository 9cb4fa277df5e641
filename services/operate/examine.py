"""The facts that ``yett doctor`` judges, from this machine, the bus and the API server. Changes nothing."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

from nats.aio.client import Client

from schemas import wire
from schemas.policy import Config, DomainRow
from schemas.status import AgentStatus, ControllerStatus
from services.common import bpf
from services.common.bus import Bus, wait_for
from services.common.follow import Follower
from services.common.jetstream import JetStream, JetStreamError
from services.common.messages import CaughtUp
from services.common.nats import ServerTooOldError, check_version
from services.operate.doctor import Facts, Here

LISTEN_SECONDS = 3.0
"""Agents speak at least once a second; three are enough for all."""
READ_SECONDS = 5.0
BPF_FS = "bpf"


def look_here(pin_root: str) -> Here:
    """This machine as a node."""
    root = Path(pin_root)
    return Here(_try_bpf(), pin_root, _is_bpffs(root), root.is_dir() and any(root.iterdir()))


def _try_bpf() -> str:
    try:
        with bpf.create_map(bpf.TYPE_ARRAY, 4, 4, 1, name="yett_doctor"):
            return ""
    except OSError as error:
        hint = ": CAP_BPF is missing" if error.errno == errno.EPERM else ""
        return f"bpf(2) refuses a map{hint} ({error})"


def _is_bpffs(path: Path) -> bool:
    """Whether the nearest folder that is there lies on a bpf file system, by /proc/self/mountinfo."""
    while not path.exists():
        path = path.parent
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    at = {words[4]: words[words.index("-") + 1] for words in mounts}
    return next((at[str(one)] for one in (path.resolve(), *path.resolve().parents) if str(one) in at), "") == BPF_FS


async def ask_bus(client: Client) -> Facts:
    """What the bus says: its version, the streams, the leader, every agent, the settings in force."""
    version = str(client.connected_server_version)
    try:
        check_version(client)
        problem = ""
    except ServerTooOldError as error:
        problem = str(error)
    jetstream = await _find_stream_fault(client)
    controller, agents = await read_statuses(client)
    config, patterns = (None, 0) if jetstream else await _read_config(client)
    return Facts(
        bus=problem,
        version=version,
        jetstream=jetstream,
        controller=controller,
        config=config,
        patterns=patterns,
        agents=agents,
    )


async def read_statuses(client: Client) -> tuple[ControllerStatus | None, dict[str, AgentStatus]]:
    """The leader's status and each node's newest; waits until every node that the leader knows was heard."""
    bus = await Bus.listen(client, verdicts=False)
    controller = await bus.ask_controller()
    wanted = set(controller.nodes) if controller else set()
    await wait_for(lambda: bool(wanted) and wanted <= bus.agents.keys(), LISTEN_SECONDS)
    return controller, dict(bus.agents)


async def _find_stream_fault(client: Client) -> str:
    for stream in (wire.STREAM_POLICY, wire.STREAM_RESOLUTION):
        try:
            await JetStream(client).read_stream(stream)
        except JetStreamError as error:
            return f"stream {stream}: {error}"
    return ""


async def _read_config(client: Client) -> tuple[Config | None, int]:
    """The settings in force, and how many domain patterns are."""
    config, patterns = None, 0
    filters = [wire.SUBJECT_CONFIG, wire.subject_domain("x").removesuffix("x") + ">"]
    async with asyncio.timeout(READ_SECONDS), Follower(client, wire.STREAM_POLICY, filters) as follower:
        async for item in follower:
            if isinstance(item, CaughtUp):
                break
            for message in item if isinstance(item, list) else ():
                row = None if message.is_delete else wire.decode(message.subject, message.body)
                config = row if isinstance(row, Config) else config
                patterns += isinstance(row, DomainRow)
    return config, patterns

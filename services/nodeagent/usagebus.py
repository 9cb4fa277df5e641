"""Usage of one node from the kernel to the controller: read at an interval, kept on disk, reported until it is taken.

Rows are freed in the kernel after what they said is on disk. Without a server, or without a leader, numbers add up:
they are cumulative, so nothing is lost but time. Deliberately absent: what numbers mean (``usage``).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import msgspec
import nats.errors
from nats.aio.client import Client

from schemas import wire
from schemas.terms import NodeName
from schemas.usage import UsageReport, UsageTaken
from services.common.cancellation import heeding_cancellation
from services.common.log import get_logger
from services.nodeagent.enforcer import Enforcer
from services.nodeagent.memory import read_scene
from services.nodeagent.reached import Reached
from services.nodeagent.usage import Facts, Owner, Totals, Usage
from services.nodeagent.verdicts import Storyteller

FILE_NAME = "usage"
REFRESH_SECONDS = 86400.0
"""How often everything is reported, changed or not."""
LIVE_SECONDS = 60.0
"""How often live flows are looked through for the rules that they use."""
ANSWER_SECONDS = 5.0
_log = get_logger("usage")


class UsageFile:
    """One file in the agent's state folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME

    def read(self) -> Totals:
        """What was kept; a new epoch if there is nothing that can be read."""
        try:
            return msgspec.msgpack.decode(self._path.read_bytes(), type=Totals)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("usage not readable, counting anew", problem=str(error))
        now = time.time_ns()
        return Totals(epoch=now, since=now // 1_000_000_000)

    def write(self, totals: Totals) -> None:
        """Replace the file; a process that dies leaves the one or the other, whole."""
        beside = self._path.with_suffix(".new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(msgspec.msgpack.encode(totals))
        beside.replace(self._path)


class UsageBus:
    """Feeds on the maps of one pin folder, named ``layout``, from ``begin`` on; ``run`` reports."""

    def __init__(self, node: NodeName, folder: Path, reached: Reached, layout: str) -> None:
        self._node = node
        self._file = UsageFile(folder)
        self._reached = reached
        self._scene = f"{read_scene()}/{layout}"
        self._before = reached.read_counters([reached.all_counters])
        self._usage = Usage(node, self._file.read())
        self._owners: dict[int, Owner] = {}
        self._facts = Facts()
        self._is_begun = False
        self.counters: Counter[str] = Counter()

    # -- what the numbers mean

    def resume(self, enforcer: Enforcer) -> None:
        """Before anything changes: what the agent's memory says of rulesets and endpoints still holds."""
        self._usage.watch(enforcer.watched(), _now())
        known = self._usage.owners()
        self._owners = {number: known[uid] for uid, number in enforcer.endpoint_ids().items() if uid in known}

    def begin(self, former: Reached | None = None) -> None:
        """Our programs are in force. ``former``: maps of the layout before, under the same numbers; it is closed."""
        if former is not None:
            self._read(former)
            former.close()
        self._usage.enter(self._scene, self._before)
        self._is_begun = True

    def follow(self, enforcer: Enforcer, storyteller: Storyteller) -> None:
        """A change is in force: what was counted until now is read under the old meanings first."""
        self.read()
        self._usage.watch(enforcer.watched(), _now())
        owners = enforcer.owners()
        for number, owner in owners.items():
            if self._owners.get(number) != owner:
                self._usage.begin_pod(owner, self._reached.read_lost(number), now=_now())
        self._owners = owners
        self._usage.end_pods(owner.uid for owner in owners.values())
        self._facts = Facts(
            addresses=enforcer.state.addresses,
            frontends=enforcer.state.frontends,
            patterns=enforcer.patterns_by_row(),
            names=storyteller.names_of,
        )

    # -- reading

    def read(self) -> None:
        """Everything that the kernel counted since the last time; on disk when this returns."""
        if self._is_begun:
            self._read(self._reached)

    def _read(self, reached: Reached) -> None:
        now = _now()
        self._usage.count(reached.read_counters(self._usage.places()), now)
        for number, owner in self._owners.items():
            rows = list(reached.read_rows(number))
            if rows:
                self._usage.reach(owner, number, rows, self._facts, now=now)
            self._usage.note_lost(owner, reached.read_lost(number), now=now)
        if not self._usage.is_changed:
            return
        try:
            self._file.write(self._usage.totals())
        except OSError as error:
            self.counters["usage_not_saved"] += 1
            _log.error("usage not saved", problem=str(error))
        reached.free()

    async def tick(self, seconds: float) -> None:
        """Read for ever, every ``seconds``, with or without NATS."""
        looked = 0.0
        while True:
            await asyncio.sleep(seconds)
            self.read()
            if time.monotonic() - looked >= LIVE_SECONDS:
                self._usage.note_live(await asyncio.to_thread(self._reached.read_live), _now())
                looked = time.monotonic()

    def close(self) -> None:
        """Read once more."""
        self.read()
        self._reached.close()

    # -- NATS

    async def run(self, connection: Client, seconds: float) -> None:
        """Report for ever, every ``seconds``."""
        refreshed = time.monotonic()
        while True:
            await asyncio.sleep(seconds)
            if time.monotonic() - refreshed >= REFRESH_SECONDS:
                self._usage.refresh()
                refreshed = time.monotonic()
            await self._report(connection)

    async def _report(self, connection: Client) -> None:
        """Until everything is taken, or nobody takes it. A report without news says that the node counts."""
        while connection.is_connected:
            report = self._usage.next_report(_now())
            if not await self._send(connection, report):
                return
            self._usage.note_taken(report)
            if not self._usage.has_news or not (report.rules or report.pods):
                return

    async def _send(self, connection: Client, report: UsageReport) -> bool:
        subject, headers = wire.subject_usage(self._node), wire.headers_for(report)
        try:
            body = wire.encode(report)
            with heeding_cancellation():
                answer = await connection.request(subject, body, timeout=ANSWER_SECONDS, headers=headers)
            taken = msgspec.json.decode(answer.data, type=UsageTaken)
        except (nats.errors.Error, OSError, msgspec.DecodeError, wire.WireError) as error:
            self.counters["usage_reports_not_taken"] += 1
            _log.debug("usage not taken", problem=str(error) or type(error).__name__)
            return False
        self.counters["usage_reports"] += 1
        self.counters["usage_entries_refused"] += taken.refused
        return True

    @property
    def left_out(self) -> dict[str, int]:
        """What did not fit, for the status."""
        return {**self.counters, **self._usage.counters}


def _now() -> int:
    return int(time.time())

"""Pods' interfaces, kept programmed: given their programs, watched, given them again, marked as judged.

Rules of this module:

* Programs go on at once, before it is known whose interface it is: without an endpoint they deny everything. One
  exception: programs of another map layout go on (``release``) when their maps are filled; till then old ones stay.
* Another (``is_deferring``): where the gate lets something pass that is not judged, an interface stays bare until its
  pod is known, because without an endpoint programs would deny that too. It has no life yet, so nothing is bound to it.
* An interface that lost both filters has a new life: what was known of it is known no more.
* A filter that is lost or replaced is put back and counted; in strict mode the interface is shut meanwhile.
* In strict mode an interface has the gate's group only while both programs are on it and ``set_judged`` names its life.

All netlink happens in one thread of its own; the event loop only waits. Deliberately absent: policy, maps, nftables.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from services.common.log import get_logger
from services.nodeagent.binding import Link
from services.nodeagent.gate import GROUP
from services.nodeagent.linkwatch import LinkWatch, Seen
from services.nodeagent.netlink import Filters, Netlink, make_life

AUDIT_SECONDS = 5.0
"""How often everything is looked at without a notification."""
RESULT_SECONDS = 0.2
"""How often it is looked for a CNI plugin's answer about a new interface: no notification tells of it."""
RESULT_AWAITED_SECONDS = 30.0
"""From the interface's appearance on; then with everything else. Not every interface is a pod's or has an answer."""
SETTLE_SECONDS = 0.005
"""Notifications come in bursts; one look serves them all."""

T = TypeVar("T")
_log = get_logger("links")


@dataclass(frozen=True, slots=True)
class PodLink:
    """One interface with our programs. ``appeared``: monotonic seconds, 0 if it was there before us.

    ``attached``: when both programs were on; ``foreign``: what of others runs before ours, or nothing; ``losses``: how
    often our filters had to be put back; ``is_held``: it still has the programs of an older layout; ``is_bare``: it has
    none yet, and the gate alone shuts it.
    """

    link: Link
    appeared: float = 0.0
    attached: float = 0.0
    foreign: str = ""
    losses: int = 0
    is_held: bool = False
    is_bare: bool = False

    @property
    def is_foreign(self) -> bool:
        """Whether another program runs before ours."""
        return bool(self.foreign)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All pods' interfaces now, the addresses that the node has on them, the node's own way out and its DNS cache's
    addresses."""

    links: tuple[PodLink, ...] = ()
    gateways: frozenset[str] = frozenset()
    uplinks: frozenset[int] = frozenset()
    resolvers: frozenset[str] = frozenset()


class Links:
    """The asynchronous part: ``run`` keeps every pod interface programmed and tells ``changed`` what there is."""

    def __init__(
        self,
        interfaces: Sequence[str],
        uplinks: Sequence[str],
        *,
        is_strict: bool = False,
        results: Sequence[str] = (),
        resolvers: Sequence[str] = (),
        is_deferring: bool = False,
    ) -> None:
        """``results``, ``resolvers``: see ``Netlink``. ``is_deferring``: for strict mode alone."""
        self._is_deferring = is_deferring and is_strict
        self._is_empty = False
        self._results, self._resolvers = tuple(results), tuple(resolvers)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netlink")
        self._patterns = (interfaces, uplinks)
        self._is_strict = is_strict
        self._netlink: Netlink | None = None
        self._known: dict[int, PodLink] = {}
        self._appeared: dict[int, float] = {}
        self._judged: Mapping[int, str] | None = None
        """None: nobody said yet. What an earlier agent had judged stays open till then."""
        self._is_held = False
        self.snapshot = Snapshot()
        self.reattached = 0
        """Times a filter that was lost or replaced had to be put back."""
        self.reborn = 0
        """Times an interface was found to be another one under an old number, or to have lost all that was ours."""
        self.taken_groups: frozenset[str] = frozenset()
        """Interfaces that somebody else keeps in a group: the gate cannot open them."""
        self.looked = asyncio.Event()
        """Every interface there is has been looked at once."""

    async def open(self, programs: Mapping[str, Path], *, is_held: bool = False, is_empty: bool = False) -> None:
        """Before anything else. ``programs``: pins by name. ``is_held``: older filters stay till ``release``.

        ``is_empty``: the maps know no endpoint, whatever interfaces were judged by earlier ones.
        """
        self._is_held, self._is_empty = is_held, is_empty
        own = {"results": self._results, "resolvers": self._resolvers}
        self._netlink = await self._do(lambda: Netlink(*self._patterns, **own))
        await self._do(lambda: self._opened().set_programs(programs))

    async def close(self) -> None:
        """Stop; programs stay where they are."""
        if self._netlink is not None:
            await self._do(self._netlink.close)
        self._thread.shutdown(wait=False)

    def _opened(self) -> Netlink:
        assert self._netlink is not None, "open first"
        return self._netlink

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def run(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """For ever: look, attach, tell, wait for a notification or ``AUDIT_SECONDS``."""
        watch = LinkWatch()
        try:
            suspects: set[int] | None = None
            audited = 0.0
            while True:
                if suspects is None:
                    audited = time.monotonic()
                await self.look(suspects, changed)
                is_awaited = self.is_result_awaited()
                seen = await watch.wait(RESULT_SECONDS if is_awaited else AUDIT_SECONDS)
                is_quick = is_awaited and seen.is_empty() and time.monotonic() < audited + AUDIT_SECONDS
                suspects = set() if is_quick else await self._collect(seen, watch)
        finally:
            watch.close()

    def is_result_awaited(self) -> bool:
        """Whether an interface that came a moment ago lacks an answer that would tell whose it is."""
        since = time.monotonic() - RESULT_AWAITED_SECONDS
        return any(one.appeared > since and self._lacks_answer(one.link) for one in self._known.values())

    def _lacks_answer(self, link: Link) -> bool:
        """A bridge's port has its addresses of it, too; where routes prove those, its name may have told the pod."""
        is_known = (self._judged or {}).get(link.ifindex) == link.life
        return not link.pod and (link.is_bridged or (bool(link.addresses) and not is_known))

    async def _collect(self, seen: Seen, watch: LinkWatch) -> set[int] | None:
        """The interfaces whose filters are in doubt; None: all. New links are given their programs at once."""
        if seen.is_empty():
            return None
        for ifindex, when in seen.links.items():
            if ifindex not in self._known:
                self._appeared.setdefault(ifindex, when)
        suspects = seen.filters | seen.links.keys()
        if any(ifindex not in self._known for ifindex in seen.links):
            return suspects
        await asyncio.sleep(SETTLE_SECONDS)
        more = await watch.wait(0)
        if seen.is_lossy or more.is_lossy:
            return None
        return suspects | more.filters | more.links.keys()

    async def look(self, suspects: set[int] | None, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """One round. ``suspects``: interfaces whose filters are to be inspected, None: all."""
        netlink = self._opened()
        if suspects is None or suspects - self._known.keys():
            for ifindex in await self._do(lambda: sorted(netlink.list_names().keys() - self._known.keys())):
                await self._take(ifindex)
        scan = await self._do(netlink.scan)
        links = scan.links
        present = {link.ifindex for link in links}
        for gone in self._known.keys() - present:
            del self._known[gone]
            self._appeared.pop(gone, None)
        for link in links:
            await self._keep(link, suspects is None or link.ifindex in suspects)
        snapshot = Snapshot(
            tuple(self._known[ifindex] for ifindex in sorted(self._known)),
            frozenset(address for link in links for address in link.gateways),
            scan.uplinks,
            scan.resolvers,
        )
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            await changed(snapshot)
        await self._mark()
        self.looked.set()

    async def _take(self, ifindex: int) -> None:
        """An interface that was not known: its life if it has one, and today's programs, unless its own are held."""
        netlink = self._opened()
        found = await self._do(lambda: netlink.inspect(ifindex))
        if self._is_deferring and not self._was_judged(ifindex, found):
            self._known[ifindex] = await self._bare(ifindex, found)
            return
        life = found.life or make_life()
        is_held = self._is_held and found.is_whole and not found.is_on
        if is_held or await self._attach(ifindex, life, is_new=not found.life):
            link = Link(ifindex, "", life=life)
            appeared = self._pop_appeared(ifindex)
            self._known[ifindex] = PodLink(link, appeared, time.monotonic(), found.foreign, is_held=is_held)

    def _pop_appeared(self, ifindex: int) -> float:
        return 0.0 if not self.looked.is_set() else self._appeared.pop(ifindex, time.monotonic())

    def _was_judged(self, ifindex: int, found: Filters) -> bool:
        """Whether an earlier agent had opened it, and what it was judged by is still there."""
        return found.is_whole and not self._is_empty and self._opened().groups.get(ifindex) == GROUP

    async def _bare(self, ifindex: int, found: Filters) -> PodLink:
        """An interface whose pod is not known: shut by the gate alone, without what an earlier agent left on it."""
        netlink = self._opened()

        def work() -> None:
            if netlink.groups.get(ifindex) == GROUP:
                netlink.set_group(ifindex, 0)
            if found.life:
                netlink.detach(ifindex)

        await self._do(work)
        return PodLink(Link(ifindex, ""), self._pop_appeared(ifindex), 0.0, found.foreign, is_bare=True)

    async def _dress(self, ifindex: int) -> None:
        """Its endpoint is in the maps: the programs go on, under a life that is judged in the next round."""
        life = make_life()
        if await self._attach(ifindex, life, is_new=True) and (known := self._known.get(ifindex)):
            link = replace(known.link, life=life)
            self._known[ifindex] = replace(known, link=link, attached=time.monotonic(), is_bare=False)

    async def _attach(self, ifindex: int, life: str, *, is_new: bool) -> bool:
        """Both programs on; what was not ours a moment ago is shut first, whatever mark it bears."""
        netlink = self._opened()

        def work() -> bool:
            if is_new and self._is_strict and netlink.groups.get(ifindex) == GROUP:
                netlink.set_group(ifindex, 0)
            return netlink.attach(ifindex, life)

        return await self._do(work)

    async def _keep(self, link: Link, is_suspect: bool) -> None:
        netlink = self._opened()
        known = self._known.get(link.ifindex)
        if known is None:
            await self._take(link.ifindex)
            known = self._known.get(link.ifindex)
            if known is None:
                return
        if link.disputed and link.disputed != known.link.disputed:
            _log.warning("host routes contradict a CNI plugin's answer", interface=link.name, no_route=link.disputed)
        if is_suspect:
            known = await self._inspect(known, link, await self._do(lambda: netlink.inspect(link.ifindex)))
        self._known[link.ifindex] = replace(known, link=replace(link, life=known.link.life))

    async def _inspect(self, known: PodLink, link: Link, found: Filters) -> PodLink:
        """What is to be known of an interface after its filters were looked at, and put back if they were lost."""
        if found.foreign and not known.is_foreign:
            _log.warning("another program runs before ours", interface=link.name, program=found.foreign)
        known = replace(known, foreign=found.foreign)
        if known.is_bare:  # or dressed while it was looked at
            life, attached = (found.life, time.monotonic()) if found.is_on else ("", 0.0)
            return replace(known, link=replace(link, life=life), attached=attached, is_bare=not found.is_on)
        if found.is_on and found.life == known.link.life:
            return replace(known, is_held=False)
        if known.is_held and found.is_whole and found.life == known.link.life:
            return known
        life = found.life or make_life()
        if life != known.link.life:
            self.reborn += 1
        self.reattached += 1
        _log.warning("filter lost, put back", interface=link.name)
        await self._attach(link.ifindex, life, is_new=True)
        return replace(known, link=replace(link, life=life), losses=known.losses + 1, is_held=False)

    async def release(self) -> None:
        """The maps are filled: today's programs go on where older ones were held, one interface after the other."""
        netlink = self._opened()
        self._is_held = False
        held = [one for one in self._known.values() if one.is_held]

        def work() -> None:
            for one in held:
                netlink.attach(one.link.ifindex, one.link.life)

        await self._do(work)
        for one in held:
            if one.link.ifindex in self._known:
                self._known[one.link.ifindex] = replace(self._known[one.link.ifindex], is_held=False)

    # -- the gate's mark

    async def set_judged(self, judged: Mapping[int, str]) -> None:
        """ifindex -> life of the interfaces that strict mode opens; every other is shut."""
        self._judged = dict(judged)
        for ifindex in [one for one in judged if one in self._known and self._known[one].is_bare]:
            await self._dress(ifindex)
        await self._mark()

    async def _mark(self) -> None:
        if self._is_strict:
            uplinks, judged, known = self.snapshot.uplinks, self._judged, dict(self._known)
            self.taken_groups = await self._do(lambda: self._mark_now(uplinks, judged, known))

    def _mark_now(
        self, uplinks: frozenset[int], judged: Mapping[int, str] | None, known: Mapping[int, PodLink]
    ) -> frozenset[str]:
        """Bring every veth's group to what it is to be; the names of those in somebody else's group.

        Uplinks first. A life is looked at before and after its interface is opened: between the two its number may have
        become another's.
        """
        netlink = self._opened()
        taken = set()
        for ifindex, group in sorted(netlink.groups.items(), key=lambda one: (one[0] not in uplinks, one[0])):
            is_open = ifindex in uplinks or self._is_open(ifindex, judged or {}, known)
            if group not in (0, GROUP):
                taken.add(known[ifindex].link.name if ifindex in known else str(ifindex))
            elif is_open and group == 0:
                self._open(ifindex, "" if ifindex in uplinks else known[ifindex].link.life)
            elif not is_open and group == GROUP and judged is not None:
                netlink.set_group(ifindex, 0)
        return frozenset(taken)

    def _is_open(self, ifindex: int, judged: Mapping[int, str], known: Mapping[int, PodLink]) -> bool:
        one = known.get(ifindex)
        return one is not None and not one.is_bare and not one.is_foreign and judged.get(ifindex) == one.link.life

    def _open(self, ifindex: int, life: str) -> None:
        netlink = self._opened()

        def is_ours() -> bool:
            found = netlink.inspect(ifindex)
            return not life or (found.is_whole and found.life == life and not found.foreign)

        if is_ours():
            netlink.set_group(ifindex, GROUP)
            if not is_ours():
                netlink.set_group(ifindex, 0)


def open_uplinks(interfaces: Sequence[str], uplinks: Sequence[str]) -> tuple[str, ...]:
    """Mark the node's own way out, before there is a gate; names of those in somebody else's group, left alone."""
    netlink = Netlink(interfaces, uplinks)
    try:
        found = netlink.list_uplinks()
        taken = [ifindex for ifindex in found if netlink.groups.get(ifindex, 0) not in (0, GROUP)]
        for ifindex in found & netlink.groups.keys() - set(taken):
            netlink.set_group(ifindex, GROUP)
        return tuple(sorted(netlink.name(ifindex) for ifindex in taken))
    finally:
        netlink.close()

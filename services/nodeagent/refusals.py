"""Names that DNS refused: which answers are worth telling, and how often.

Rules of this module:

* A name that got an address is not refused. An answer without one is held for ``HOLD_SECONDS``; an address for the same
  name and pod before or after it (the other family's, another resolver's, one that the recorder had to finish) cancels
  it. A sinkhole's answer is told at once: its address is the refusal.
* The first is told, then a count of those like it (pod, name, reason) once every window.
* A pod may open only so many windows: names without number below one wildcard are one group more, whose names vary.
* Everything is bounded; what is let go is told or counted.

Pure: time comes in. Deliberately absent: whether some rule of the pod covers the name.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from schemas.resolution import Observed
from schemas.terms import Reason, RefusalReason

HOLD_SECONDS = 2.0
"""For an address of the same name: both families are asked within milliseconds, and answered within seconds."""
WINDOW_SECONDS = 30.0
MAX_HELD = 4_096
"""Names and pods with a refusal in hold, or with an address of late; beyond it the oldest goes (a held one is told)."""
MAX_WINDOWS = 4_096
NAMES_A_POD = 64
"""That one pod is told of by name in one window."""
NO_ERROR = 0
_BY_RCODE = {2: RefusalReason.SERVFAIL, 3: RefusalReason.NXDOMAIN, 5: RefusalReason.REFUSED}
_NEGATIVE = frozenset({Reason.LEARN_RCODE, Reason.LEARN_NO_ADDRESS})

_Name = tuple[int, str]
_Window = tuple[int, str, RefusalReason]


@dataclass(frozen=True, slots=True)
class Refused:
    """``count`` answers like one another. ``suppressed``: refusals of the same pod that the kernel held back.

    ``varies``: they differ in name; the one given is the last. ``trace``: traceparent of the last one's span.
    """

    endpoint: int
    name: str
    reason: RefusalReason
    addresses: tuple[str, ...] = ()
    resolver: str = ""
    count: int = 1
    suppressed: int = 0
    varies: bool = False
    trace: str = ""


@dataclass(slots=True)
class _Held:
    since: float
    refused: dict[RefusalReason, Refused] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    ends: float
    refused: Refused | None = None


def find_refusal(observed: Observed) -> RefusalReason | None:
    """What DNS said instead of an address that the name may have; None if it gave one."""
    if observed.reason == Reason.LEARN_REFUSED_ADDRESS:
        return RefusalReason.SINKHOLE
    if observed.reason not in _NEGATIVE:
        return None
    if observed.rcode == NO_ERROR:
        return RefusalReason.NO_ADDRESS
    return _BY_RCODE.get(observed.rcode, RefusalReason.OTHER)


class Refusals:
    """Those of one node. ``counters``: ``answered_after_all``, answers that were no refusal because of another."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._held: OrderedDict[_Name, _Held] = OrderedDict()
        self._answered: OrderedDict[_Name, float] = OrderedDict()
        self._windows: OrderedDict[_Window, _Open] = OrderedDict()
        self._names: Counter[int] = Counter()
        self._told: list[Refused] = []

    def __len__(self) -> int:
        """Entries of all kinds."""
        return len(self._held) + len(self._answered) + len(self._windows) + len(self._told)

    def take(self, observed: Observed, now: float, trace: str = "") -> None:
        """One answer that a pod was given; what follows is told by ``due``. ``now``: seconds, monotonic."""
        key = (observed.endpoint_id, observed.name)
        reason = find_refusal(observed)
        if reason is None:
            if observed.addresses:
                self._note_answered(key, now)
            return
        refused = Refused(
            *key, reason, observed.addresses, observed.resolver, suppressed=observed.suppressed, trace=trace
        )
        if reason is RefusalReason.SINKHOLE:
            self._count(refused, now)
        elif now - self._answered.get(key, float("-inf")) <= HOLD_SECONDS:
            self.counters["answered_after_all"] += 1
        else:
            self._hold(key, refused, now)

    def due(self, now: float) -> Iterator[Refused]:
        """What is to be told now: what was held long enough, and the counts of windows that are over."""
        while self._held and next(iter(self._held.values())).since + HOLD_SECONDS <= now:
            self._release(now)
        while self._windows and next(iter(self._windows.values())).ends <= now:
            self._close_window(now)
        told, self._told = self._told, []
        yield from told

    def rest(self, now: float) -> Iterator[Refused]:
        """At the end: every count, and what is held."""
        while self._held:
            self._release(now)
        while self._windows:
            _, one = self._windows.popitem(last=False)
            if one.refused is not None:
                self._told.append(one.refused)
        self._names.clear()
        yield from self.due(now)

    # -- answers that cancel each other

    def _note_answered(self, key: _Name, now: float) -> None:
        self._answered[key] = now
        self._answered.move_to_end(key)
        if len(self._answered) > MAX_HELD or next(iter(self._answered.values())) < now - HOLD_SECONDS:
            self._answered.popitem(last=False)
        held = self._held.pop(key, None)
        if held is not None:
            self.counters["answered_after_all"] += sum(one.count for one in held.refused.values())

    def _hold(self, key: _Name, refused: Refused, now: float) -> None:
        if key not in self._held:
            if len(self._held) >= MAX_HELD:
                self._release(now)
            self._held[key] = _Held(now)
        held = self._held[key].refused
        held[refused.reason] = _add(held.get(refused.reason), refused)

    def _release(self, now: float) -> None:
        _, held = self._held.popitem(last=False)
        for refused in held.refused.values():
            self._count(refused, now)

    # -- windows

    def _count(self, refused: Refused, now: float) -> None:
        key = (refused.endpoint, refused.name, refused.reason)
        is_many = self._names[refused.endpoint] >= NAMES_A_POD or len(self._windows) >= MAX_WINDOWS
        if key not in self._windows and is_many:
            key = (refused.endpoint, "", refused.reason)
        one = self._windows.get(key)
        if one is None:
            self._windows[key] = _Open(now + WINDOW_SECONDS)
            self._names[refused.endpoint] += bool(key[1])
            self._told.append(refused)
        else:
            one.refused = _add(one.refused, refused)

    def _close_window(self, now: float) -> None:
        """One that counted something goes on for another window."""
        key, one = self._windows.popitem(last=False)
        if one.refused is not None:
            self._told.append(one.refused)
            self._windows[key] = _Open(now + WINDOW_SECONDS)
        elif key[1]:
            self._names[key[0]] -= 1
            if not self._names[key[0]]:
                del self._names[key[0]]


def _add(before: Refused | None, refused: Refused) -> Refused:
    if before is None:
        return refused
    return replace(
        refused,
        count=before.count + refused.count,
        suppressed=before.suppressed + refused.suppressed,
        varies=before.varies or before.name != refused.name,
    )

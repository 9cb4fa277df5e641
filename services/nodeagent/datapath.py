"""The kernel's maps: what is present, the ops of a plan, shared names, clean-up, counters. Owns every map handle.

Rules of this module:

* What is present is read once, after a restart, and known from then on: only differences are written, nothing flushed.
* It chooses nothing: the order of writes is the plan's. A write that fails ends the plan at a safe prefix.
* Of ``resolutions`` the agent writes the shared scope alone. What the learner wrote is only ever removed, whole pages
  long after their time, so neither side can lose the other's slot.

Deliberately absent: what entries mean, netlink, NATS.
"""

from __future__ import annotations

import errno
import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from schemas import wire
from schemas.terms import Direction, Reason
from services.common.bpf import BpfError, BpfMap, RingBuffer
from services.common.log import get_logger
from services.nodeagent import mapcodec
from services.nodeagent.expired import Keep, Place, PlacesInUse, Terms, choose_keep
from services.nodeagent.liveflows import find_live
from services.nodeagent.mapcodec import SCOPE_LEARNED, SCOPE_SHARED, Bytes
from services.nodeagent.moves import PROGRAM, move_flows
from services.nodeagent.names import MAX_LISTED, Withdrawn
from services.nodeagent.occupancy import count_charged, give_back
from services.nodeagent.plan import ORDER, Kind, Op, order_changes, order_retreat
from services.nodeagent.regions import Region, allot_regions, find_given, plan_moves
from services.nodeagent.rowmap import RowMap, open_table
from services.nodeagent.slots import Slots, drop_expired, list_pages, place_row
from services.nodeagent.tables import Tables

REASONS = 128
SHARED_SHARE = 0.5
"""Of ``resolutions`` at most so much may be what other nodes told: room for what this node's pods resolve."""
FULL = 0.75
CROWDED = 0.5
"""An endpoint that holds more than so much of its quota of names is full: the rest is what it may learn meanwhile."""
MAX_FORGOTTEN_AT_ONCE = 1024
"""New pod addresses above this number are forgotten as names by the next clean-up, not one by one."""

_log = get_logger("datapath")


class DatapathError(RuntimeError):
    """A map refused a write: the last good state is in force. ``map`` names it, ``is_full`` says why."""

    def __init__(self, error: BpfError, name: str) -> None:
        super().__init__(str(error))
        self.map = name
        self.is_full = error.errno in (errno.E2BIG, errno.ENOSPC, errno.ENOMEM)


class Taught(NamedTuple):
    """A domain row that an answer to ``endpoint`` gave an address; until ``expires``, boottime seconds with grace."""

    endpoint: int
    address: str
    row: int
    expires: int


def boottime_seconds() -> int:
    """The clock of every expiry."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


class Datapath:
    """All maps of one pin folder.

    ``maps``: name -> pin; ``terms``: how long expired names stay; ``has_flows``: some that a plan may not lose.
    """

    def __init__(self, maps: Mapping[str, Path], terms: Terms | None = None, *, has_flows: bool = True) -> None:
        self._pins = dict(maps)
        self._in_use = PlacesInUse(terms or Terms(), boottime_seconds())
        self._has_flows = has_flows
        self._maps: dict[str, BpfMap | RowMap] = {}
        self._present: dict[str, Bytes] = {}
        self._shared: dict[str, Slots] = {}
        self._shared_pages = 0
        self._resolutions = 0
        """Entries of it when they were last gone through."""
        self._turned_away = 0
        """Names from other nodes that found no room since then."""
        self.full = ""
        """How ``resolutions`` came to be full, as of the last clean-up; empty while there is room."""
        self._is_moved = False
        """Whether flows are known to be in their regions: an agent before may have ended while it moved them."""
        self._looked = boottime_seconds()
        self.taught: list[Taught] = []
        """What answers here taught, as of the last clean-up: those that live longest, ``MAX_LISTED`` at most."""
        self.written = 0
        """Entries written or deleted since the start: 0 after a restart without changes."""
        self.counters: Counter[str] = Counter()

    def open(self) -> None:
        """Read what is present. BpfError if a map is not there."""
        for name in (*ORDER, "epoch", "resolutions", "reasons", "quotas", "credits", "places", *_KEPT):
            self._maps[name] = open_table(self._pins, name)
        for name in ORDER:
            self._present[name] = dict(self._maps[name].items())
        self._is_moved = not self.regions()
        self._read_shared()

    def close(self) -> None:
        """Close the handles; the pins stay."""
        for one in self._maps.values():
            one.close()
        self._maps.clear()

    def open_verdicts(self) -> RingBuffer:
        """The ring of verdict events."""
        return RingBuffer(self._pins["verdicts"])

    # -- what is present

    def _list_endpoints(self) -> list[bytes]:
        return [*self._present["endpoints"].values(), *self._present["endpoints_far"].values()]

    def present_rulesets(self) -> dict[str, int]:
        """Content hash -> handle."""
        found = {}
        for key, value in self._present["rulesets"].items():
            if name := mapcodec.decode_ruleset_hash(value):
                found[name] = int.from_bytes(key, "little")
        return found

    def referred_rulesets(self) -> set[str]:
        """Content hashes of the rulesets that an endpoint in the kernel names."""
        handles = {handle for value in self._list_endpoints() for handle in mapcodec.decode_endpoint(value)[2]}
        return {name for name, handle in self.present_rulesets().items() if handle in handles}

    def present_patterns(self) -> dict[str, int]:
        """Pattern -> domain row; an exact entry that carries a wildcard's row is that wildcard's shadow, no pattern."""
        decoded = {mapcodec.decode_domain_key(key): value for key, value in self._present["domains"].items()}
        rows = {pattern: int.from_bytes(value, "little") for pattern, value in decoded.items()}
        wild = {pattern: row for pattern, row in rows.items() if pattern.startswith("*.")}
        taken = set(wild.values()) | {0}
        return {**wild, **{pattern: row for pattern, row in rows.items() if row not in taken}}

    def present_revision(self) -> int:
        """The revision that the kernel enforces; 0 if none."""
        return mapcodec.decode_revision(self._present["config"].get(mapcodec.encode_index(0), b""))

    def present_numbers(self) -> dict[str, set[int]]:
        """Numbers in use by space of ``Spaces``: what must not be given a second meaning after amnesia."""
        handles = set(self.present_rulesets().values())
        endpoints = self._list_endpoints()
        peers = {int.from_bytes(key[4:], "little") for key in self._present["peers"]}
        rows = {int.from_bytes(value, "little") for value in self._present["domains"].values()}
        rows |= {klass & 0x3FFFFFFF for klass in peers if klass >> 30 == 2}  # CLASS_DOMAIN
        for _, value in self._maps["resolutions"].items():  # in every scope, whatever its time
            rows.update(row for row, _ in mapcodec.decode_names(value).slots)
        return {
            "handles": handles | {int.from_bytes(key[:4], "little") for key in self._present["peers"]},
            "identity_classes": {klass for klass in peers if klass >> 30 == 0},
            "cidr_classes": {klass & 0x3FFFFFFF for klass in peers if klass >> 30 == 1},
            "port_classes": {int.from_bytes(value, "little") for value in self._present["port_classes"].values()},
            "domain_rows": rows - {0},
            "endpoint_ids": {mapcodec.decode_endpoint(value)[1] for value in endpoints},
            "sets": {int.from_bytes(key[4:], "little") for key in self._present["mixed"]},
        }

    def rows_of_flows(self) -> set[int]:
        """Domain rows that flows were admitted by: each is judged again with its own. Slow where there are many."""
        with BpfMap(self._pins["flows"]) as flows:
            return {mapcodec.decode_flow_row(value) for _, value in flows.items()} - {0}

    # -- applying

    @property
    def endpoint_slots(self) -> int:
        """Size of the array ``endpoints``."""
        return self._maps["endpoints"].info.max_entries

    def regions(self) -> dict[int, Region]:
        """Which part of the flow table is whose, by ifindex."""
        return dict(map(mapcodec.decode_region, self._list_endpoints()))

    def plan(self, tables: Tables, touched: Mapping[str, Iterable[object]] | None) -> list[Op]:
        """Ops from what is present to these tables. ``touched``: keys by table, None: compare everything."""
        moves = self._plan_moves(tables) if touched is None or "endpoints" in touched else []
        return [*moves, *order_changes(*self._compare(tables, touched))]

    def plan_retreat(self, tables: Tables) -> list[Op]:
        """Ops back to these tables, those in force before a plan that a full map stopped."""
        return [*self._plan_moves(tables), *order_retreat(*self._compare(tables, None))]

    def _plan_moves(self, tables: Tables) -> list[Op]:
        """What comes before endpoints may have their regions: the steps there, each followed by the flows."""
        if not self._has_flows:
            return []
        before, after = self.regions(), self._allot_regions(tables)
        steps = plan_moves(before, after)
        if not steps and not find_given(before, after):
            return []
        ops = [] if self._is_moved else [Op(Kind.MOVE, "places")]
        for step in steps:
            ops += [*self._write_regions(step), Op(Kind.MOVE, "places")]
            before = {**before, **step}
        return [*ops, *self._clear_kept(find_given(before, after))]

    def _write_regions(self, regions: Mapping[int, Region]) -> Iterator[Op]:
        """Endpoints as they are, with these regions."""
        for name in ("endpoints_far", "endpoints"):
            entries = {}
            for key, value in self._present[name].items():
                region = regions.get(mapcodec.decode_region(value)[0])
                if region is not None:
                    entries[key] = mapcodec.replace_region(value, region)
            if entries:
                yield Op(Kind.PUT, name, entries)

    def _clear_kept(self, given: Iterable[Region]) -> Iterator[Op]:
        places = self._maps["places"].info.max_entries
        for name in _KEPT:
            info = self._maps[name].info
            sets = [
                number
                for first, size in given
                for number in range(first * info.max_entries // places, (first + size) * info.max_entries // places)
            ]
            yield Op(Kind.CLEAR, name, dict.fromkeys(map(mapcodec.encode_index, sets), bytes(info.value_bytes)))

    def _compare(
        self, tables: Tables, touched: Mapping[str, Iterable[object]] | None
    ) -> tuple[dict[str, Bytes], dict[str, set[bytes]]]:
        puts: dict[str, Bytes] = {}
        deletes: dict[str, set[bytes]] = {}
        for name, entries in self._encode(tables, touched).items():
            now = self._present[name]
            puts[name] = {key: value for key, value in entries.items() if value and now.get(key) != value}
            deletes[name] = {key for key, value in entries.items() if not value and key in now}
            if touched is None or name in _WHOLE:
                deletes[name] |= now.keys() - entries.keys()
        return puts, deletes

    def _encode(self, tables: Tables, touched: Mapping[str, Iterable[object]] | None) -> dict[str, Bytes]:
        """map -> key -> value; an empty value where the entry is to go."""
        if touched is None:
            regions = self._allot_regions(tables)
            return mapcodec.encode_tables(tables, endpoint_slots=self.endpoint_slots, regions=regions)
        encoded: dict[str, Bytes] = {}
        for name in touched.keys() & mapcodec.CODECS.keys():
            codec, table = mapcodec.CODECS[name], getattr(tables, name)
            encoded[name] = {codec.key(one): codec.value(table[one]) if one in table else b"" for one in touched[name]}
        for prefix in touched.get("cidrs", ()):
            name, key = mapcodec.encode_cidr_key(str(prefix))
            entry = tables.cidrs.get(str(prefix))
            encoded.setdefault(name, {})[key] = mapcodec.encode_cidr(entry) if entry else b""
        if not touched.keys().isdisjoint(_OF_ADDRESSES):
            encoded["ipcache"] = self._encode_known(tables, touched)
        if "domains" in touched:
            encoded["domains"] = mapcodec.encode_domains(tables.domains)
        if "endpoints" in touched:
            near, far = mapcodec.encode_endpoints(
                tables.endpoints, endpoint_slots=self.endpoint_slots, regions=self._allot_regions(tables)
            )
            encoded["endpoints"], encoded["endpoints_far"] = near, far
        resolvers = mapcodec.order_resolvers(tables)
        encoded["config"] = {mapcodec.encode_index(0): mapcodec.encode_config(tables.config, resolvers)}
        return encoded

    def _encode_known(self, tables: Tables, touched: Mapping[str, Iterable[Any]]) -> Bytes:
        moved = {address for address, _, _ in touched.get("frontends", ())}
        known = {*touched.get("ipcache", ()), *touched.get("own_addresses", ()), *moved}
        fronts = {address for address, _, _ in tables.frontends} if moved else set()
        encoded: Bytes = {}
        for address in known:
            key = wire.pack_address(address)
            before = mapcodec.decode_known(self._present["ipcache"].get(key, b""))[1]
            is_front = address in fronts if moved else bool(before & mapcodec.ADDRESS_FRONTEND)
            encoded[key] = mapcodec.encode_known(tables, address, is_front=is_front)
        return encoded

    def _allot_regions(self, tables: Tables) -> dict[int, Region]:
        return allot_regions(tables.endpoints, self.regions(), self._maps["places"].info.max_entries)

    def apply(self, ops: Iterable[Op]) -> None:
        """Carry out a plan. DatapathError at the first refusal: what was done is a safe prefix, and known."""
        for op in ops:
            if op.kind is Kind.BUMP:
                self.bump_epoch()
                continue
            try:
                self._apply_one(op)
            except BpfError as error:
                self.counters[f"refused_{op.map}"] += 1
                if op.map in self._present:
                    self._present[op.map] = dict(self._maps[op.map].items())
                raise DatapathError(error, op.map) from error

    def _apply_one(self, op: Op) -> None:
        if op.kind is Kind.MOVE:
            move_flows(self._pins["places"].with_name(PROGRAM), self._maps["places"].info.max_entries)
            self._is_moved = True
        elif op.kind is Kind.CLEAR:
            self._maps[op.map].put_many(op.entries)
        else:
            self._write(op)

    def _write(self, op: Op) -> None:
        present = self._present[op.map]
        self.written += len(op.entries)
        if op.kind is Kind.DELETE:
            self._maps[op.map].delete_many(op.entries)
            for key in op.entries:
                present.pop(key, None)
            return
        if op.map == "ipcache":
            self._forget_names(key for key in op.entries if _is_owned(op.entries, key) and not _is_owned(present, key))
        self._maps[op.map].put_many(op.entries)
        present.update(op.entries)

    def bump_epoch(self) -> None:
        """Every live flow is judged again at its next packet."""
        epoch = self._maps["epoch"]
        now = int.from_bytes(epoch.get(bytes(4)) or bytes(8), "little")
        epoch.put(bytes(4), (now + 1).to_bytes(8, "little"))

    # -- names that other nodes saw

    def _read_shared(self) -> None:
        self._shared.clear()
        pages: dict[str, dict[int, mapcodec.NamesPage]] = {}
        for key, value in self._maps["resolutions"].items():
            address, scope, page = mapcodec.decode_resolution_key(key)
            if scope == SCOPE_SHARED:
                pages.setdefault(address, {})[page] = mapcodec.decode_names(value)
        for address, found in pages.items():
            self._shared[address] = [slot for page in sorted(found) for slot in found[page].slots]
        self._shared_pages = sum(len(found) for found in pages.values())

    def learn(self, address: str, row: int, expires: int) -> bool:
        """Write a name that another node saw; whether there was room. ``expires``: boottime seconds, grace included."""
        slots = self._shared.setdefault(address, [])
        before = len(list(list_pages(slots)))
        index = place_row(slots, row, expires, boottime_seconds())
        if index < 0:
            self.counters["names_full_address"] += 1
            return False
        pages = list(list_pages(slots))
        resolutions = self._maps["resolutions"]
        if self._shared_pages + len(pages) - before > self._shared_room:
            self.counters["names_full_map"] += 1
            self._turned_away += 1
            self._drop_slots(address, slots)
            return False
        changed = {index // mapcodec.NAME_SLOTS} | ({len(pages) - 2} if len(pages) > before > 0 else set())
        try:
            for page in sorted(changed, reverse=True):  # the page before says "more" only when there is more
                resolutions.put(mapcodec.encode_resolution_key(address, page), mapcodec.encode_names(pages[page]))
        except BpfError as error:
            self.counters["refused_resolutions"] += 1
            _log.warning("a name was not written", problem=str(error))
            self._drop_slots(address, slots)
            return False
        self._shared_pages += len(pages) - before
        return True

    @property
    def _shared_room(self) -> float:
        return self._maps["resolutions"].info.max_entries * SHARED_SHARE

    def _drop_slots(self, address: str, slots: Slots) -> None:
        """What was planned in memory and is not in the map."""
        stored = [self._maps["resolutions"].get(mapcodec.encode_resolution_key(address, page)) for page in range(8)]
        pages = [mapcodec.decode_names(value) for value in stored if value is not None]
        slots[:] = [slot for page in pages for slot in page.slots]
        if not slots:
            self._shared.pop(address, None)

    def count_names(self) -> int:
        """Live names that other nodes saw."""
        now = boottime_seconds()
        return sum(1 for slots in self._shared.values() for row, expiry in slots if row and expiry > now)

    def forget_names(self) -> None:
        """Every name of every address is gone, whoever told of it: for who plays one moment after another."""
        resolutions = self._maps["resolutions"]
        resolutions.delete_many(resolutions.keys())
        self._shared.clear()
        self._shared_pages = 0

    def unlearn(self, withdrawn: Withdrawn) -> None:
        """Take (address, domain row) out of the map. Live flows go on, as after an expiry.

        A slot that the learner claims in the same page in these microseconds is lost, and learned by the next answer.
        """
        if withdrawn.learned:
            self._unlearn(lambda address, row: (address, row) in withdrawn.learned)
        for address in {address for address, _ in withdrawn.shared}:
            slots = self._shared.get(address, [])
            before = list(list_pages(slots))
            for index, (row, _) in enumerate(slots):
                if (address, row) in withdrawn.shared:
                    slots[index] = (0, 0)
            self._rewrite_shared(address, before)

    def unlearn_own(self) -> None:
        """Everything that answers on this node taught; what others told stays."""
        self._unlearn(lambda address, row: True)

    def _unlearn(self, is_meant: Callable[[str, int], bool]) -> None:
        resolutions, credited = self._maps["resolutions"], Counter[int]()
        for key, value in list(resolutions.items()):
            address, scope, _ = mapcodec.decode_resolution_key(key)
            names = mapcodec.decode_names(value)
            gone = {index for index, (row, _) in enumerate(names.slots) if row and is_meant(address, row)}
            if scope == SCOPE_SHARED or not gone:
                continue
            slots = tuple((0, 0) if index in gone else slot for index, slot in enumerate(names.slots))
            owners = tuple(0 if index in gone else owner for index, owner in enumerate(names.owners))
            resolutions.put(key, mapcodec.encode_names(mapcodec.NamesPage(slots, owners, names.more)))
            credited.update(names.owners[index] for index in gone)
        give_back(self._maps["credits"], credited)

    def tell_again(self) -> None:
        """Every answer is news again, so that recorders hear of it."""
        with BpfMap(self._pins["seen"]) as seen:
            empty = bytes(seen.info.value_bytes)
            seen.put_many(dict.fromkeys(seen.keys(), empty))

    def _forget_names(self, keys: Iterable[bytes]) -> None:
        """An address that becomes a pod's or node's has no name any more."""
        keys = list(keys)
        if len(keys) > MAX_FORGOTTEN_AT_ONCE:
            return
        resolutions = self._maps["resolutions"]
        for key in keys:
            for scope in (SCOPE_LEARNED, SCOPE_SHARED):
                for page in range(mapcodec.NAME_PAGES):
                    if not resolutions.delete(key + scope.to_bytes(4, "little") + page.to_bytes(4, "little")):
                        break
        self._read_shared_after_forgetting(keys)

    def _read_shared_after_forgetting(self, keys: list[bytes]) -> None:
        for key in keys:
            address = mapcodec.decode_resolution_key(key + bytes(8))[0]
            slots = self._shared.pop(address, None)
            if slots:
                self._shared_pages -= len(list(list_pages(slots)))

    def collect(self) -> set[int]:
        """Remove names long expired, and those of addresses that are pods' now; the domain rows still referred to.

        What is removed is credited to the endpoint that had learned it, and to one that has little of its quota left
        also what others have taken from it.
        """
        now = boottime_seconds()
        resolutions = self._maps["resolutions"]
        charged = count_charged(self._maps["quotas"].items(), self._maps["credits"].items())
        entries = [
            (mapcodec.decode_resolution_key(key), key, mapcodec.decode_names(value))
            for key, value in resolutions.items()
        ]
        self._note_full(len(entries))
        keep = self._choose_keep(len(entries), charged, now)
        doubtful = {key[:_PLACE] for _, key, names in entries if keep.is_doubtful(names)}
        in_use = self._in_use.choose(doubtful, now, self._find_live)
        present = {place for place, _, _ in entries}
        pages = [(address, scope, names) for (address, scope, _), _, names in entries]
        self._count_expired(pages, now)
        self.taught = heapq.nlargest(MAX_LISTED, list_taught(pages, now), key=lambda one: one.expires)
        referred: set[int] = set()
        credited = count_lost({endpoint: charged[endpoint] for endpoint in keep.crowded}, pages)
        for (address, scope, page), key, names in sorted(entries, key=lambda one: one[0], reverse=True):
            is_last = (address, scope, page + 1) not in present
            is_owned = _is_owned(self._present["ipcache"], key[:16])
            if scope != SCOPE_SHARED and is_last and (is_owned or keep.is_over(names, in_use=key[:_PLACE] in in_use)):
                resolutions.delete(key)
                present.discard((address, scope, page))
                credited.update(owner for (row, _), owner in zip(names.slots, names.owners, strict=True) if row)
            else:
                referred.update(row for row, _ in names.slots)
        if self._shared_pages > self._shared_room * FULL:
            keep = keep.hurry()
        self._collect_shared(keep, in_use)
        self._resolutions = len(present)
        give_back(self._maps["credits"], credited)
        return referred - {0}

    def _note_full(self, entries: int) -> None:
        """``entries``: of ``resolutions`` before anything goes."""
        capacity = self._maps["resolutions"].info.max_entries
        self.full = ""
        if entries >= capacity:
            self.full = f"{entries} of {capacity} entries are taken"
        elif self._turned_away:
            self.full = f"{self._shared_pages} of {capacity} entries are what other nodes told, who may have no more"
        self._turned_away = 0

    def _choose_keep(self, entries: int, charged: Mapping[int, int], now: int) -> Keep:
        """``entries``: of ``resolutions``."""
        is_full = entries > self._maps["resolutions"].info.max_entries * FULL
        limit = mapcodec.decode_names_limit(self._present["config"].get(mapcodec.encode_index(0), b""))
        crowded = {endpoint for endpoint, count in charged.items() if count > limit * CROWDED}
        return choose_keep(self._in_use.terms, now, is_full=is_full, crowded=crowded)

    def _find_live(self, places: Set[Place]) -> Set[Place]:
        ids = {ifindex: number for ifindex, number, _ in map(mapcodec.decode_endpoint, self._list_endpoints())}
        return find_live(self._pins, places, ids)

    def _count_expired(self, pages: Iterable[tuple[str, int, mapcodec.NamesPage]], now: int) -> None:
        """Names whose time, grace included, ended since the last look and was not renewed."""
        for _, scope, names in pages:
            expired = sum(1 for row, expiry in names.slots if row and self._looked < expiry <= now)
            self.counters[f"names_expired_{_SOURCES.get(scope, 'outside')}"] += expired
        self._looked = now

    def _collect_shared(self, keep: Keep, in_use: Set[Place]) -> None:
        for address, slots in list(self._shared.items()):
            old = list(list_pages(slots))
            gone = _is_owned(self._present["ipcache"], wire.pack_address(address))
            place = mapcodec.encode_resolution_key(address)[:_PLACE]
            before = keep.longest if place in in_use else keep.before
            if gone:
                slots.clear()
            elif not any(row and expiry <= before for row, expiry in slots):
                continue
            drop_expired(slots, before)
            self._rewrite_shared(address, old)

    def _rewrite_shared(self, address: str, old: list[mapcodec.NamesPage]) -> None:
        """The pages of an address after some of its slots were freed; ``old``: those before."""
        slots = self._shared.get(address, [])
        if drop_expired(slots, 0):
            self._shared.pop(address, None)
        new = list(list_pages(slots))
        for page in reversed(range(len(old))):
            key = mapcodec.encode_resolution_key(address, page)
            if page < len(new):
                self._maps["resolutions"].put(key, mapcodec.encode_names(new[page]))
            else:
                self._maps["resolutions"].delete(key)
        self._shared_pages -= len(old) - len(new)

    # -- counters

    def read_occupancy(self) -> dict[str, tuple[int, int]]:
        """Entries and capacity of each map that the agent writes, and of the names, which the programs write too."""
        found = {name: len(entries) for name, entries in self._present.items()} | {"resolutions": self._resolutions}
        return {name: (entries, self._maps[name].info.max_entries) for name, entries in found.items()}

    def read_reasons(self) -> dict[str, int]:
        """Packets by direction and reason, only those that occurred: ``egress.RULE`` -> 12."""
        counted = {}
        known = {int(reason): reason.name for reason in Reason}
        for key, value in self._maps["reasons"].items():
            index = int.from_bytes(key, "little")
            direction = Direction(index // REASONS).name.lower()
            counted[f"{direction}.{known.get(index % REASONS, index % REASONS)}"] = int.from_bytes(value[:8], "little")
        return counted


def list_taught(pages: Iterable[tuple[str, int, mapcodec.NamesPage]], now: int) -> Iterator[Taught]:
    """The live ones of (address, scope, page) that answers on this node taught."""
    for address, scope, names in pages:
        for (row, expires), owner in zip(names.slots, names.owners, strict=True):
            if scope != SCOPE_SHARED and row and expires > now:
                yield Taught(owner, address, row, expires)


def count_lost(charged: Mapping[int, int], pages: Iterable[tuple[str, int, mapcodec.NamesPage]]) -> Counter[int]:
    """What endpoints are charged for and do not hold: the learner gave a slot whose time was over to another name.

    ``charged`` is read before the pages: a slot is written first and charged then, so what was charged is among them.
    """
    if not charged:
        return Counter()
    held = Counter(
        owner
        for _, scope, names in pages
        if scope != SCOPE_SHARED
        for (row, _), owner in zip(names.slots, names.owners, strict=True)
        if row
    )
    return Counter({endpoint: count - held[endpoint] for endpoint, count in charged.items() if count > held[endpoint]})


def _is_owned(known: Mapping[bytes, bytes], key: bytes) -> bool:
    """Whether an address of ``ipcache`` is a pod's or a node's."""
    return mapcodec.decode_known(known.get(key, b""))[0] != 0


_PLACE = -4
"""Where the page begins in a key of ``resolutions``."""
_KEPT = ("seen", "fragments")
"""Tables of which each endpoint has the part that it has of the places: ``bpf/kept.h``."""
_SOURCES = {SCOPE_LEARNED: "learned", SCOPE_SHARED: "shared"}
"""Whose answer taught a name; every other scope is one endpoint's own, taught by a resolver outside the cluster."""
_OF_ADDRESSES = frozenset({"ipcache", "own_addresses", "frontends"})
"""Tables that make what ``ipcache`` says of an address."""
_WHOLE = frozenset({"domains", "endpoints", "endpoints_far", "config"})
"""Encoded whole whenever touched: what is not in the encoding is to go."""

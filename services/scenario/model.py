"""What a scenario says: a small world, and questions about flows in it, with the answers that its author expects.

``read_scenario`` takes a parsed document and returns a ``Scenario``, or raises ``ScenarioError`` with every fault and
its path. Unknown fields are warnings, unless they look like a known one misspelled: a lost ``expect`` must not pass.

Pure. Deliberately absent: files, Kubernetes objects' meaning (``policy.parse``), judging.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from schemas.terms import Protocol, Verdict
from schemas.wire import is_legal_name
from services.controller.policy.model import Answer, ObjectKey
from services.controller.policy.parse_reader import Reader, Report, describe

PORT_PROTOCOLS = frozenset({Protocol.TCP, Protocol.UDP, Protocol.SCTP})
PROTOCOL_LAST = 255
PROTOCOL_NAMES = "TCP, UDP, SCTP, ICMP, ICMPv6"
TTL_SECONDS = 300
"""Of a resolution that gives none."""
ADDRESSES_MAX = 1000
SIMILARITY = 0.75
"""An unknown field this close to a known one is a misspelling, and refused."""

SCENARIO_FIELDS = ("name", "objects", "files", "config", "resolutions", "probes", "expect_problems", "description")
PROBE_FIELDS = ("id", "from", "to", "protocol", "port", "at", "expect", "description", "source")
RESOLUTION_FIELDS = ("name", "addresses", "ttl", "at")
END_FIELDS = ("pod", "address", "service", "name")
VERDICTS = {verdict.name.lower(): verdict for verdict in Verdict}


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow. Exactly one of ``pod``, ``service``, ``name`` is given, or ``address`` alone.

    Beside a pod the address says which of its own is meant; beside a name, which of the name's.
    """

    pod: ObjectKey | None = None
    service: ObjectKey | None = None
    name: str = ""
    address: str = ""

    def __str__(self) -> str:
        key = self.pod or self.service
        text = "/".join(key) if key else self.name
        if text and self.address:
            return f"{text} ({self.address})"
        return text or self.address


@dataclass(frozen=True, slots=True)
class Probe:
    """A new flow. ``at``: seconds on the resolutions' clock, None for their newest. ``expect`` None: anything."""

    id: str | int | float
    source: End
    destination: End
    protocol: int = Protocol.TCP
    port: int = 0
    at: float | None = None
    expect: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """``objects`` and ``files`` as they were given; ``config``: cluster settings as text. ``file``: where it stands."""

    name: str
    file: str = ""
    objects: tuple[Any, ...] = ()
    files: tuple[str, ...] = ()
    config: dict[str, str] = field(default_factory=dict)
    resolutions: tuple[Answer, ...] = ()
    probes: tuple[Probe, ...] = ()
    expect_problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class ScenarioError(ValueError):
    """A scenario that cannot be used. ``faults``: one line each, path first. ``file``: where it stands, if in one."""

    def __init__(self, name: str, faults: Iterable[str], *, file: str = "") -> None:
        self.name = name
        self.faults = tuple(faults)
        self.file = file
        super().__init__("; ".join(self.lines()))

    def lines(self) -> list[str]:
        """One line a fault, for people."""
        where = ": ".join(part for part in (self.file, self.name) if part)
        return [f"{where}: {fault}" for fault in self.faults]


def read_scenario(document: Any, *, file: str = "", default_name: str = "") -> Scenario:
    """A scenario from a parsed YAML or JSON document; ScenarioError."""
    reader = Reader(document, "", Report("scenario", file))
    if not isinstance(document, dict):
        raise ScenarioError(default_name, ["a scenario is an object with objects and probes"], file=file)
    if "kind" in document and "apiVersion" in document:
        raise ScenarioError(default_name, ["a Kubernetes object, not a scenario: name it in files"], file=file)
    name = _word(reader.get("name")) or default_name
    _check_fields(reader, SCENARIO_FIELDS)
    probes = tuple(_read_probe(item, index) for index, item in enumerate(reader.get("probes").items()))
    for given, count in Counter(probe.id for probe in probes).items():
        if count > 1:
            reader.get("probes").warn(f"the id {given!r} is given {count} times")
    scenario = Scenario(
        name=name,
        file=file,
        objects=_objects(reader.get("objects")),
        files=tuple(_words(reader.get("files"))),
        config=dict(_read_setting(key, value) for key, value in reader.get("config").pairs() if value.is_present),
        resolutions=tuple(_read_resolution(item) for item in reader.get("resolutions").items()),
        probes=probes,
        expect_problems=tuple(_words(reader.get("expect_problems"))),
        warnings=tuple(_lines(reader.report, "warning")),
    )
    if reader.report.is_refused:
        raise ScenarioError(name, _lines(reader.report, "error"), file=file)
    return scenario


def _lines(report: Report, severity: str) -> list[str]:
    chosen = (problem for problem in report.problems if problem.severity == severity)
    return [f"{problem.path}: {problem.message}" if problem.path else problem.message for problem in chosen]


def _check_fields(reader: Reader, known: tuple[str, ...]) -> None:
    for name in reader.present():
        if name in known:
            continue
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=SIMILARITY)
        if close:
            reader.get(name).fault(f"unknown field; is {close[0]} meant?")
        else:
            reader.get(name).warn(f"unknown field, ignored; known here: {', '.join(known)}")


def _objects(reader: Reader) -> tuple[Any, ...]:
    """A list of Kubernetes objects, or one."""
    if isinstance(reader.value, dict):
        return (reader.value,)
    return tuple(item.value for item in reader.items())


def _words(reader: Reader) -> list[str]:
    """A list of strings, or one string."""
    if isinstance(reader.value, str):
        return [reader.value]
    return [item.required_text() for item in reader.items()]


def _word(reader: Reader) -> str:
    """A string; a number that YAML made of one is taken as it is written."""
    if isinstance(reader.value, int | float) and not isinstance(reader.value, bool):
        return str(reader.value)
    return reader.text()


def _read_setting(key: str, value: Reader) -> tuple[str, str]:
    """A cluster setting as the ConfigMap has it: text, lists separated by blanks, pairs as ``name=value``."""
    given = value.value
    if isinstance(given, dict):
        given = [f"{name}={_plain(each)}" for name, each in given.items()]
    text = " ".join(_plain(each) for each in given) if isinstance(given, list) else _plain(given)
    return key.replace("_", "-"), text


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_resolution(reader: Reader) -> Answer:
    if not reader.fields(*RESOLUTION_FIELDS):
        return Answer(name="", addresses=(), ttl_seconds=0, at=0)
    addresses = [_address(item) for item in reader.get("addresses").items(at_most=ADDRESSES_MAX)]
    name = _read_name(reader.get("name"))
    ttl = _seconds(reader.get("ttl"), TTL_SECONDS)
    if ttl < 0:
        reader.get("ttl").fault("may not be negative")
    return Answer(name=name, addresses=tuple(addresses), ttl_seconds=ttl, at=_seconds(reader.get("at"), 0))


def _read_name(reader: Reader) -> str:
    """A DNS name: case and a trailing dot say nothing."""
    text = reader.required_text()
    name = text.lower().removesuffix(".")
    if isinstance(reader.value, str) and not is_legal_name(name):
        reader.fault(f"{text!r} is no DNS name: labels of 1 to 63 letters, digits, '-' and '_', 253 in all")
    return name


def _seconds(reader: Reader, default: float) -> float:
    value = reader.value
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        reader.fault("seconds are expected, a number")
        return default
    return value


def _read_probe(reader: Reader, index: int) -> Probe:
    if not isinstance(reader.value, dict):
        reader.fault("a probe is an object with from and to")
        return Probe(id=index, source=End(), destination=End())
    _check_fields(reader, PROBE_FIELDS)
    protocol = _read_protocol(reader.get("protocol"))
    source, destination = _read_end(reader.get("from")), _read_end(reader.get("to"))
    for field_name in ("service", "name"):
        if getattr(source, field_name):
            reader.get("from").get(field_name).fault("only a destination can be one")
    return Probe(
        id=_read_id(reader.get("id"), index),
        source=source,
        destination=destination,
        protocol=protocol,
        port=_read_port(reader.get("port"), protocol, is_needed=destination.service is None),
        at=_seconds(reader.get("at"), 0) if reader.get("at").is_present else None,
        expect=_read_expect(reader.get("expect")),
    )


def _read_id(reader: Reader, index: int) -> str | int | float:
    """A word or a number; else the probe's place."""
    value = reader.value
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return index if value is None else value
    reader.fault(f"a word or a number is expected, not {describe(value)}")
    return index


def _read_protocol(reader: Reader) -> int:
    """A name or a number; TCP where nothing is said, as in every Kubernetes API."""
    value = reader.value
    if value is None:
        return Protocol.TCP
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, str) and value.upper() in Protocol.__members__:
        return Protocol[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= PROTOCOL_LAST:
        return value
    reader.fault(f"{value!r} is none of {PROTOCOL_NAMES} and no number of 0..{PROTOCOL_LAST}")
    return Protocol.TCP


def _read_port(reader: Reader, protocol: int, *, is_needed: bool) -> int:
    """0 where the protocol has no ports, and where a Service's only port is meant."""
    if protocol not in PORT_PROTOCOLS:
        return 0
    if not reader.is_present and not is_needed:
        return 0
    value = int(reader.value) if isinstance(reader.value, str) and reader.value.isdecimal() else reader.value
    return Reader(value, reader.path, reader.report).integer(first=1, last=65535)


def _read_expect(reader: Reader) -> Verdict | None:
    if not reader.is_present:
        return None
    value = str(reader.value).lower()
    if value not in VERDICTS:
        reader.fault(f"{reader.value!r} is none of {', '.join(VERDICTS)}")
    return VERDICTS.get(value)


def _read_end(reader: Reader) -> End:
    if not reader.is_present:
        reader.fault("required")
        return End()
    if not reader.fields(*END_FIELDS):
        return End()
    chosen = [name for name in reader.present() if name in ("pod", "service", "name")]
    address = _address(reader.get("address")) if reader.get("address").is_present else ""
    if len(chosen) > 1 or not (chosen or address) or (chosen == ["service"] and address):
        reader.fault("give one of pod, service, name or address; an address may stand beside pod or name")
        return End()
    return End(
        pod=_key(reader.get("pod")) if "pod" in chosen else None,
        service=_key(reader.get("service")) if "service" in chosen else None,
        name=_read_name(reader.get("name")) if "name" in chosen else "",
        address=address,
    )


def _key(reader: Reader) -> ObjectKey:
    text = reader.required_text()
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        reader.fault(f"{text!r} is not namespace/name")
    return namespace, name


def _address(reader: Reader) -> str:
    text = reader.required_text()
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        reader.fault(f"{text!r} is not an IP address")
        return "0.0.0.0"
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)

"""Fields that several policy APIs share: selectors, prefixes, domains, ports.

Each function reads one field and returns its normal form; on a fault it reports the path and returns something
harmless, because an object with a fault is refused whole.
"""

from __future__ import annotations

import ipaddress
import re

from schemas.policy import CidrPeer, DomainPeer, PodPeer, PortRange, Requirement, Selector
from schemas.selectors import DOES_NOT_EXIST, EXISTS, IN, NAMESPACE_NAME_LABEL, NOT_IN
from schemas.terms import Protocol
from services.controller.policy.model import NamedPort
from services.controller.policy.parse_reader import Reader

PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
PORT_FIRST, PORT_LAST = 1, 65535
DOMAIN_BYTES_MAX = 253
LABELS_MIN = 2
NOWHERE = "0.0.0.0/32"
"""Stands for a prefix that is at fault; its object is refused."""
LABEL_BYTES_MAX = 63

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_LABEL_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_STRICT_LABEL = re.compile(r"[a-z0-9]([-a-z0-9_]*[a-z0-9])?\Z")
_DOMAIN_LABEL = re.compile(r"[a-z0-9_]([-a-z0-9_]*[a-z0-9])?\Z")
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?\Z")
_PREFIX_LENGTH = re.compile(r"(0|[1-9][0-9]{0,2})\Z")
_V4_PREFIX = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})/(\d{1,2})\Z", re.ASCII)


def read_selector(reader: Reader) -> Selector:
    """A LabelSelector; absent is the empty one, which selects everything."""
    if not reader.is_present or not reader.fields("matchLabels", "matchExpressions"):
        return Selector()
    requirements = [_read_label(key, value) for key, value in reader.get("matchLabels").pairs()]
    requirements += [_read_expression(item) for item in reader.get("matchExpressions").items()]
    unique = sorted(set(requirements), key=lambda each: (each.key, each.operator, each.values))
    return Selector(requirements=tuple(unique))


def _read_label(key: str, value: Reader) -> Requirement:
    check_label_key(value, key)
    text = value.text()
    _check_label_value(value, text)
    return Requirement(key=key, operator=IN, values=(text,))


def _read_expression(reader: Reader) -> Requirement:
    reader.fields("key", "operator", "values")
    key = reader.get("key").required_text()
    if isinstance(reader.get("key").value, str):
        check_label_key(reader.get("key"), key)
    operator = reader.get("operator").choice(IN, NOT_IN, EXISTS, DOES_NOT_EXIST)
    values = [item.text() for item in reader.get("values").items()]
    if operator in (IN, NOT_IN) and not values:
        reader.get("values").fault(f"required with {operator}")
    if operator in (EXISTS, DOES_NOT_EXIST) and values:
        reader.get("values").fault(f"must be empty with {operator}")
    for value in values:
        _check_label_value(reader.get("values"), value)
    return Requirement(key=key, operator=operator, values=tuple(sorted(set(values))))


def check_label_key(reader: Reader, key: str) -> None:
    """A fault unless it could be the key of a label."""
    prefix, _, name = key.rpartition("/")
    if not _LABEL_NAME.match(name) or ("/" in key and not (_LABEL_PREFIX.match(prefix) and len(prefix) <= 253)):
        reader.fault(f"{key!r} is not a label key")


def _check_label_value(reader: Reader, value: str) -> None:
    if value and not _LABEL_NAME.match(value):
        reader.fault(f"{value!r} is not a label value")


def select_namespace(name: str) -> Selector:
    """The selector of one namespace by name."""
    return Selector(requirements=(Requirement(key=NAMESPACE_NAME_LABEL, operator=IN, values=(name,)),))


def read_namespaced_pods(reader: Reader) -> PodPeer:
    """``pods: {namespaceSelector, podSelector}`` of the cluster-wide APIs."""
    reader.fields("namespaceSelector", "podSelector")
    if not reader.get("podSelector").is_present:
        reader.get("podSelector").fault("required; {} selects all pods")
    return PodPeer(
        namespaces=read_selector(reader.get("namespaceSelector")), pods=read_selector(reader.get("podSelector"))
    )


def read_cidr(reader: Reader, *, takes_host_bits: bool = True) -> str:
    """A prefix in canonical text; host bits are cleared with a warning where the API tolerates them."""
    if isinstance(reader.value, str) and is_canonical_v4(reader.value):
        return reader.value
    network = _read_network(reader)
    if network and not takes_host_bits and str(network.network_address) != _canonical(reader.text().partition("/")[0]):
        reader.fault(f"{reader.value!r} has bits set beyond its length: {network} is the prefix")
    return str(network or NOWHERE)


def _canonical(address: str) -> str:
    return str(ipaddress.ip_address(address))


def is_canonical_v4(text: str) -> bool:
    """Whether ``ipaddress`` would give an IPv4 prefix back as it stands: most do, and it takes long to say so."""
    found = _V4_PREFIX.match(text)
    if found is None:
        return False
    a, b, c, d, length = map(int, found.groups())
    is_whole = not (a << 24 | b << 16 | c << 8 | d) & (0xFFFFFFFF >> length)
    return is_whole and max(a, b, c, d) <= 255 and length <= 32 and text == f"{a}.{b}.{c}.{d}/{length}"


def _read_network(reader: Reader) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """None: a fault, reported."""
    text = reader.required_text()
    address, slash, length = text.partition("/")
    try:
        if not slash or not _PREFIX_LENGTH.match(length):
            raise ValueError("no prefix length")
        network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    except ValueError:
        if reader.value is not None:
            reader.fault(f"{text!r} is not a CIDR")
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        reader.fault(f"{text!r}: an IPv4 prefix is not written as IPv6")
    if str(network) != text.lower():
        reader.warn(f"{text!r} is read as {network}")
    return network


def read_ip_block(reader: Reader) -> CidrPeer:
    """``ipBlock: {cidr, except}``; every exception lies strictly inside.

    Where ``cidr`` is at fault, its exceptions are not held against it.
    """
    reader.fields("cidr", "except")
    if not reader.get("except").is_present:
        return CidrPeer(cidr=read_cidr(reader.get("cidr")))
    block = _read_network(reader.get("cidr"))
    excepts = set()
    for item in reader.get("except").items():
        inner = _read_network(item)
        if inner and block and not _is_strictly_inside(inner, block):
            item.fault(f"{inner} is not strictly inside {block}")
        excepts.add(str(inner or NOWHERE))
    return CidrPeer(cidr=str(block or NOWHERE), excepts=tuple(sorted(excepts)))


def _is_strictly_inside(
    inner: ipaddress.IPv4Network | ipaddress.IPv6Network, block: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> bool:
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(block, ipaddress.IPv4Network):
        return inner != block and inner.subnet_of(block)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(block, ipaddress.IPv6Network):
        return inner != block and inner.subnet_of(block)
    return False


def read_domain(reader: Reader, *, takes_underscore: bool = True) -> DomainPeer:
    """A name or ``*.name`` of two labels at least, as every API's pattern says; lower-cased, trailing dot dropped.

    ``takes_underscore``: whether a label may begin with one.
    """
    text = reader.required_text()
    pattern = text.lower().removesuffix(".")
    labels = pattern.removeprefix("*.").split(".")
    form = _DOMAIN_LABEL if takes_underscore else _STRICT_LABEL
    if any("*" in label for label in labels):
        reader.fault(f"{text!r}: '*' may only stand for whole labels, once, at the front")
    elif any(len(label) > LABEL_BYTES_MAX for label in labels):
        reader.fault(f"{text!r}: a label is longer than {LABEL_BYTES_MAX} bytes")
    elif not all(form.match(label) for label in labels):
        reader.fault(f"{text!r} is not a domain name")
    elif len(labels) < LABELS_MIN:
        after = " after the star: a whole top-level domain is too broad" if pattern.startswith("*.") else ""
        reader.fault(f"{text!r}: at least {LABELS_MIN} labels are expected{after}")
    elif len(pattern) > DOMAIN_BYTES_MAX:
        reader.fault(f"{text!r} is longer than {DOMAIN_BYTES_MAX} bytes")
    return DomainPeer(pattern=pattern)


def read_protocol(reader: Reader) -> Protocol:
    """TCP, UDP or SCTP; absent is TCP."""
    return PROTOCOLS.get(reader.choice(*PROTOCOLS, default="TCP"), Protocol.TCP)


def read_port_number(reader: Reader) -> int:
    return reader.integer(first=PORT_FIRST, last=PORT_LAST)


def read_range(reader: Reader, protocol: Protocol, *, first: str, last: str, is_strict: bool) -> PortRange:
    """Two fields of an object as a range; ``is_strict``: the last must be greater, else it may be equal."""
    begin, end = read_port_number(reader.get(first)), read_port_number(reader.get(last))
    if end < begin or (is_strict and end == begin):
        reader.get(last).fault(f"{end} is not {'greater than' if is_strict else 'at least'} {first} {begin}")
        return PortRange(protocol=protocol, first=begin, last=begin)
    return PortRange(protocol=protocol, first=begin, last=end)


def read_port_name(reader: Reader) -> str:
    """An IANA service name as Kubernetes has it: at most 15 of a-z, 0-9 and '-', at least one letter."""
    name = reader.required_text()
    if not _PORT_NAME.match(name):
        reader.fault(f"{name!r} is not a port name")
    return name


def name_for_every_protocol(name: str) -> list[NamedPort]:
    """A named port of an API that gives no protocol: whichever the pod declares it for."""
    return [NamedPort(protocol=protocol, name=name) for protocol in sorted(PROTOCOLS.values())]


def read_classic_port(reader: Reader) -> PortRange | NamedPort:
    """``{protocol, port, endPort}`` as in NetworkPolicy."""
    reader.fields("protocol", "port", "endPort")
    protocol = read_protocol(reader.get("protocol"))
    port, end = reader.get("port"), reader.get("endPort")
    if isinstance(port.value, str):
        if end.is_present:
            end.fault("may not be given with a named port")
        return NamedPort(protocol=protocol, name=read_port_name(port))
    if not port.is_present:
        if end.is_present:
            end.fault("may not be given without port")
        return PortRange(protocol=protocol)
    if end.is_present:
        return read_range(reader, protocol, first="port", last="endPort", is_strict=False)
    number = read_port_number(port)
    return PortRange(protocol=protocol, first=number, last=number)

"""What container runtimes keep of a CNI plugin's answer: which pod is behind an interface.

A routed pod proves its address by the host route that leads to its interface, and whose the address is the cluster says
only after the pod's postStart hooks. A bridged one has no such route. The plugin's own answer says both, which libcni
writes for every pod (``cniCacheV1``) and only the host's root can write.

Rules of this module:

* An answer counts only for an interface of its name and of its hardware address: names come again.
* Of several that name one interface the newest counts; what cannot be read is none.

Pure. Deliberately absent: the folders (``cnifiles``), what routes say of it (``binding``), what the pod says of itself.
Source: libcni's ``cacheAdd`` and the CNI specification's result type, versions 0.3.0 to 1.1.0.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

KIND = "cniCacheV1"
RESULT_BYTES_MAX = 1 << 20


class CniResult(msgspec.Struct, frozen=True):
    """One interface of the host. ``pod``: namespace/name as the runtime told the plugin; ``addresses``: sorted."""

    interface: str
    hardware: str
    pod: str
    addresses: tuple[str, ...]


class _Interface(msgspec.Struct):
    name: str = ""
    mac: str = ""
    sandbox: str = ""


class _Address(msgspec.Struct):
    address: str
    interface: int | None = None


class _Result(msgspec.Struct):
    interfaces: list[_Interface] = []
    ips: list[_Address] = []


class _Cached(msgspec.Struct):
    kind: str
    result: _Result
    cniArgs: list[list[str]] | None = None


_DECODER = msgspec.json.Decoder(_Cached)


def parse_result(content: bytes) -> tuple[CniResult, ...]:
    """The host's interfaces in one file of the cache; none if it is no such file, or names no pod or no address."""
    try:
        cached = _DECODER.decode(content)
        inside = {number for number, one in enumerate(cached.result.interfaces) if one.sandbox}
        own = [one for one in cached.result.ips if one.interface is None or one.interface in inside]
        addresses = tuple(sorted(str(ipaddress.ip_interface(one.address).ip) for one in own))
    except (msgspec.DecodeError, ValueError):
        return ()
    arguments = {pair[0]: pair[1] for pair in cached.cniArgs or () if len(pair) == 2}
    namespace, name = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
    if cached.kind != KIND or not (namespace and name and addresses):
        return ()
    return tuple(
        CniResult(one.name, one.mac.lower(), f"{namespace}/{name}", addresses)
        for one in cached.result.interfaces
        if one.name and one.mac and not one.sandbox
    )


def index_results(newest_first: Iterable[Iterable[CniResult]]) -> dict[tuple[str, str], CniResult]:
    """(interface, hardware address) -> the newest answer that names it."""
    found: dict[tuple[str, str], CniResult] = {}
    for file in newest_first:
        for one in file:
            found.setdefault((one.interface, one.hardware), one)
    return found

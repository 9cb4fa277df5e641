"""The ConfigMap ``yett``: settings of the whole cluster, one key each, as strings.

Lists are separated by blanks or commas; times are whole seconds. Strict: an unknown key or a bad value refuses the
object, and the settings in force stay.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable
from typing import Any

from schemas.policy import Config, FlowTimeouts, Resolver
from schemas.terms import Default
from services.controller.policy.model import ObjectKey, Settings
from services.controller.policy.parse_facts import DEFAULTS
from services.controller.policy.parse_fields import check_label_key
from services.controller.policy.parse_reader import Reader

SETTINGS_NAME = "yett"
SETTINGS_NAMESPACES = ("yett-system", "yett", "kube-system")
"""Where the ConfigMap may stand; a manifest without a namespace is taken as one of them."""
SECONDS_MAX = 7 * 24 * 3600
PREFIXES_MAX = 1 << 24
FLOW_LABELS_MAX = 8
"""A pod's row has the values of all of them; more is refused."""
SHARES = ("cluster", "zone", "node", "off")
DEFAULT_DNS_SERVICE: ObjectKey = ("kube-system", "kube-dns")

_RESOLVER = re.compile(r"(?:\[(?P<six>[^]]+)\]|(?P<four>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?\Z")


def read_settings(data: Reader) -> Settings:
    """Keys of ``data`` -> Settings; faults are in the report."""
    config: dict[str, Any] = {}
    own: dict[str, Any] = {}
    timeouts: dict[str, int] = {}
    for key, reader in data.pairs():
        known = SETTINGS.get(key)
        if known is None:
            reader.fault(f"unknown setting; known: {', '.join(sorted(SETTINGS))}")
        elif reader.is_present:
            field, read = known
            target = own if field in OWN_FIELDS else config
            (timeouts if key in TIMEOUTS else target)[field] = read(reader)
    if config.get("ttl_min_seconds", 30) > config.get("ttl_max_seconds", 3600):
        data.fault("ttl-min is greater than ttl-max")
    return Settings(config=Config(timeouts=FlowTimeouts(**timeouts), **config), **own)


def _scalar(reader: Reader) -> str:
    """ConfigMap values are strings; unquoted numbers and booleans of a hand-written manifest are taken as such."""
    if isinstance(reader.value, bool):
        return str(reader.value).lower()
    return str(reader.value) if isinstance(reader.value, int) else reader.text().strip()


def _words(reader: Reader) -> list[str]:
    return [word for word in re.split(r"[\s,]+", _scalar(reader)) if word]


def _default(reader: Reader) -> Default:
    return _one_default(reader, _scalar(reader))


def _one_default(reader: Reader, text: str) -> Default:
    if text not in DEFAULTS:
        reader.fault(f"{text!r} is none of {', '.join(DEFAULTS)}")
    return DEFAULTS.get(text, Default.DENY)


def _defaults_by_name(reader: Reader) -> dict[str, Default]:
    """``name=deny other=allow``."""
    found = {}
    for word in _words(reader):
        name, equals, text = word.partition("=")
        if not equals or not name:
            reader.fault(f"{word!r} is not name=default")
        else:
            found[name] = _one_default(reader, text)
    return found


def _seconds(reader: Reader) -> int:
    return _count(reader, last=SECONDS_MAX)


def _timeout(reader: Reader) -> int:
    """Zero is refused: a flow has to outlive the packet that made it."""
    return _count(reader, first=1, last=SECONDS_MAX)


def _count(reader: Reader, *, first: int = 0, last: int = 1_000_000) -> int:
    text = _scalar(reader).removesuffix("s")
    if not text.isdecimal() or not first <= int(text) <= last:
        reader.fault(f"{text!r} is not a whole number of {first}..{last}")
        return first
    return int(text)


def _prefixes(reader: Reader) -> int:
    return _count(reader, last=PREFIXES_MAX)


def _boolean(reader: Reader) -> bool:
    text = _scalar(reader)
    if text not in ("true", "false"):
        reader.fault(f"{text!r} is none of true, false")
    return text == "true"


def _cidrs(reader: Reader) -> tuple[str, ...]:
    found = set()
    for word in _words(reader):
        try:
            found.add(str(ipaddress.ip_network(word)))
        except ValueError:
            reader.fault(f"{word!r} is not a CIDR")
    return tuple(sorted(found))


def _resolvers(reader: Reader) -> tuple[Resolver, ...]:
    """``10.96.0.10:53 [fd00::10]:53``; with ``outside:`` in front, a resolver that is not of this cluster."""
    found = []
    for word in _words(reader):
        text = word.removeprefix("outside:")
        match = _RESOLVER.match(text)
        try:
            address = str(ipaddress.ip_address((match["six"] or match["four"]) if match else text))
            port = int(match["port"] or 53) if match else 53
        except ValueError:
            reader.fault(f"{word!r} is not address:port")
            continue
        if not 1 <= port <= 65535:
            reader.fault(f"{word!r}: port out of range")
        else:
            found.append(Resolver(address=address, port=port, outside=text != word))
    return tuple(sorted(found, key=lambda each: (each.address, each.port)))


def _suffixes(reader: Reader) -> tuple[str, ...]:
    return tuple(word.lower().strip(".") for word in _words(reader))


def _share(reader: Reader) -> str:
    text = _scalar(reader)
    if text not in SHARES:
        reader.fault(f"{text!r} is none of {', '.join(SHARES)}")
    return text


def _learn(reader: Reader) -> bool:
    text = _scalar(reader)
    if text not in ("all", "covered"):
        reader.fault(f"{text!r} is none of all, covered")
    return text == "all"


def _flow_labels(reader: Reader) -> tuple[str, ...]:
    words = sorted(set(_words(reader)))
    if len(words) > FLOW_LABELS_MAX:
        reader.fault(f"{len(words)} labels: at most {FLOW_LABELS_MAX}")
    for word in words:
        check_label_key(reader, word)
    return tuple(words)


def _service(reader: Reader) -> ObjectKey:
    namespace, slash, name = _scalar(reader).partition("/")
    if not (namespace and slash and name):
        reader.fault(f"{_scalar(reader)!r} is not namespace/name")
        return DEFAULT_DNS_SERVICE
    return namespace, name


OWN_FIELDS = frozenset(field.name for field in dataclasses.fields(Settings)) - {"config"}
"""What agents need not know."""
TIMEOUTS = {f"timeout-{field.replace('_', '-')}": field for field in FlowTimeouts.__struct_fields__}
"""Setting -> field of ``FlowTimeouts``."""
SETTINGS: dict[str, tuple[str, Callable[[Reader], Any]]] = {
    "enforce": ("enforce", _boolean),
    "default": ("default", _default),
    "namespace-defaults": ("namespace_defaults", _defaults_by_name),
    "node-defaults": ("node_defaults", _defaults_by_name),
    "resolvers": ("resolvers", _resolvers),
    "dns-service": ("dns_service", _service),
    "dns-implicit": ("dns_implicit", _boolean),
    "ttl-min": ("ttl_min_seconds", _seconds),
    "ttl-max": ("ttl_max_seconds", _seconds),
    "grace": ("grace_seconds", _seconds),
    "service-cidrs": ("service_cidrs", _cidrs),
    "pod-cidrs": ("pod_cidrs", _cidrs),
    "never-learn": ("never_learn_cidrs", _cidrs),
    "learn-anyway": ("learn_anyway_cidrs", _cidrs),
    "search-suffixes": ("search_suffixes", _suffixes),
    "addresses-per-name": ("addresses_per_name", _count),
    "prefixes": ("prefixes", _prefixes),
    "prefixes-per-namespace": ("prefixes_per_namespace", _prefixes),
    "share": ("share", _share),
    "learn": ("learn_all", _learn),
    "flow-labels": ("flow_labels", _flow_labels),
    "flow-owners": ("flow_owners", _boolean),
    **{name: (field, _timeout) for name, field in TIMEOUTS.items()},
}
"""Setting -> (field, reader). The page of all settings is held to this table by a test."""

"""Settings: one frozen struct a service, read from ``YETT_*`` variables and an optional YAML file.

The variable of a field is ``YETT_`` and its name in capitals. The environment wins over the file named by
``YETT_CONFIG``, the file over the default. Lists are comma separated in the environment.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta

PREFIX = "YETT_"
CONFIG_VARIABLE = "YETT_CONFIG"

Count = Annotated[int, Meta(ge=1)]
LogLevel = Literal["debug", "info", "warning", "error"]
Exporter = Literal["auto", "off", "console", "otlp"]
Mode = Literal["standard", "strict"]


class SettingsError(ValueError):
    """A setting that cannot be used. ``name``: the variable, or the field in the file."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs."""

    nats_url: str = "nats://127.0.0.1:4222"
    """One address, or several separated by commas."""
    nats_creds: str = ""
    """Path of a credentials file; empty: none."""
    nats_nkey: str = ""
    """Path of the secret seed of a NATS user; empty: none."""
    nats_ca: str = ""
    """Path of the authority that the server's certificate must be of; the connection is TLS from its first byte."""
    nats_tls_name: str = ""
    """The name that the server's certificate must have; empty: the host of the address."""
    nats_api_prefix: str = "$JS.API"
    """Where the JetStream API is; another account's is imported under another prefix."""
    nats_inbox_prefix: str = "_INBOX"
    """Answers come to subjects below it. ``{node}`` stands for the node's name, as one token."""
    log_level: LogLevel = "info"
    log_format: Literal["auto", "console", "json"] = "auto"
    """auto: for people on a terminal, JSON elsewhere."""
    otel_exporter: Exporter = "auto"
    """auto: otlp if an endpoint is set, here or by OpenTelemetry's own variables, else off."""
    otel_endpoint: str = ""
    """Base URL of a collector; empty: OTEL_EXPORTER_OTLP_ENDPOINT."""
    otel_protocol: Literal["", "http/protobuf", "grpc"] = ""
    """Empty: OTEL_EXPORTER_OTLP_PROTOCOL, else http/protobuf."""
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port of /metrics for Prometheus; 0: none."""
    metrics_address: str = "0.0.0.0"
    otel_queue: Count = 2_048
    """Spans that wait for the collector; what does not fit is dropped, and counted."""


class ControllerSettings(CommonSettings, frozen=True, kw_only=True):
    """services.controller."""

    manifests: str = ""
    """Folder of Kubernetes manifests, watched; empty: objects come from the API server."""
    kube_config: str = ""
    """Path of a kubeconfig; empty: the pod's service account."""
    kube_namespace: str = "yett-system"
    """Yett's own namespace, where its ConfigMap and its Lease stand."""
    kube_page: Annotated[int, Meta(ge=1, le=10_000)] = 500
    """Objects in one page of a list."""
    kube_watch_seconds: Annotated[int, Meta(ge=1, le=3600)] = 60
    """How long the API server is asked to keep a watch; ten seconds later one that is still silent is given up."""
    startup_taint: str = ""
    """Key of the taint with which nodes register; taken off where the agent enforces. Empty: no node is written."""
    controller_name: str = ""
    """Its name as a leader; empty: host name and process id."""
    revision_interval_millis: Annotated[int, Meta(ge=0, le=10_000)] = 50
    """Least time between two revisions. The first change after a quiet time is published at once."""
    signing_key: str = ""
    """Path of the key that signs revisions; empty: they are not signed."""
    stream_replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    resolution_max_bytes: Count = 256 * 1024 * 1024
    verdict_max_bytes: Count = 256 * 1024 * 1024
    verdict_max_age_seconds: Count = 24 * 3600
    usage_max_bytes: Count = 256 * 1024 * 1024
    usage_max_age_seconds: Count = 30 * 24 * 3600
    """How long the use of a rule or pod that is gone is kept."""


class NodeagentSettings(CommonSettings, frozen=True, kw_only=True):
    """services.nodeagent."""

    node: str
    pin_root: str = "/sys/fs/bpf/yett"
    state_dir: str = "/var/lib/yett"
    programs: str = ""
    """Where compiled programs are kept for the next start; empty: beside the state."""
    mode: Mode = "standard"
    bootstrap: tuple[str, ...] = ()
    """``protocol:cidr:port`` that pass strict mode's gate before an interface is judged."""
    policy_keys: tuple[str, ...] = ()
    """Public keys, one of which must have signed a revision; none: signatures are not asked for."""
    interfaces: tuple[str, ...] = ("veth*", "eni*", "cali*", "pod*")
    """Host-side interfaces of pods, as globs."""
    uplinks: tuple[str, ...] = ()
    """Interfaces that are never touched, as globs."""
    resolver_interfaces: tuple[str, ...] = ("nodelocaldns",)
    """Interfaces on which the node's own DNS cache has its addresses, as globs: those are trusted resolvers."""
    resolver_sources: Literal["checked", "any"] = "checked"
    """Whether packets that come to the node with its resolver's own address are dropped."""
    cni_results: tuple[str, ...] = ("/var/lib/cni/results", "/var/lib/cni/cache/results")
    """Folders in which libcni keeps the plugins' answers: pods behind a bridge are found by them, and routed
    ones whose interface's name tells nothing before their address is known."""
    denial_seconds: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    """A denial is told at once, those like it as a count every so many seconds."""
    allow_ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Share of the allowed flows that are told."""
    flow_log: str = ""
    """Where flow logs go: ``stdout``, a file, or nowhere."""
    flow_log_format: Literal["json", "emf"] = "json"
    flow_log_namespaces: tuple[str, ...] = ()
    """Pods of these namespaces alone; empty: all."""
    flow_log_pods: tuple[str, ...] = ()
    """These pods alone, as globs of namespace/name; empty: all."""
    flow_log_owners: tuple[str, ...] = ()
    """Pods of these owners alone, as globs of Kind/name; empty: all."""
    flow_log_labels: tuple[str, ...] = ()
    """Pods that have all these labels alone, as key=value; empty: all."""
    flow_log_max_bytes: Count = 100 * 1024 * 1024
    flow_log_files: Count = 5
    span_allow_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of the allowed flows told that become spans too; denials all do."""
    usage_seconds: Annotated[float, Meta(ge=0.2, le=3600)] = 10.0
    """How often what rules and pods are used for is read and reported."""
    names_expired_seconds: Count = 3600
    """How long a name whose time is over explains denials and admits the rest of a connection."""
    names_in_use_seconds: Count = 86_400
    """At most so long while such a connection lives."""
    map_flows: Count = 262_144
    map_resolutions: Count = 65_536
    map_ipcache: Count = 262_144
    map_peers: Count = 131_072
    map_peer_rows: Count = 65_536
    map_port_rows: Count = 32_768
    map_frontends: Count = 65_536
    map_endpoints: Count = 1_024
    map_query_sets: Count = 256
    map_reach_sets: Count = 8
    map_rulesets: Count = 1_024
    map_prefixes: Count = 262_144
    map_identities: Count = 65_536
    map_ports: Count = 65_536
    map_mixed: Count = 65_536
    map_domains: Count = 16_384
    map_resolvers: Count = 4_096
    map_seen: Count = 65_536
    map_fragments: Count = 8_192
    map_rule_counters: Count = 65_536
    map_verdict_pages: Count = 512
    map_resolution_pages: Count = 1_024
    map_handover_pages: Count = 1_024


class RecorderSettings(CommonSettings, frozen=True, kw_only=True):
    """services.dnsrecorder."""

    node: str
    pin_root: str = "/sys/fs/bpf/yett"
    state_dir: str = "/var/lib/yett"
    buffer: Count = 10_000
    """Resolutions kept while NATS is away; the oldest are dropped first, and counted."""


SERVICES: tuple[type[CommonSettings], ...] = (ControllerSettings, NodeagentSettings, RecorderSettings)
"""Every service's settings: what one shared file may name."""

S = TypeVar("S", bound=CommonSettings)


def load_settings(kind: type[S], environment: Mapping[str, str] | None = None) -> S:
    """The service's settings; SettingsError names the variable or field that is missing, unknown or unusable."""
    environment = os.environ if environment is None else environment
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    given = _read_file(environment.get(CONFIG_VARIABLE, ""))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        variable = PREFIX + name.upper()
        if variable in environment:
            values[name] = _convert(variable, _split(environment[variable], field.type), field.type, strict=False)
        elif name in given:
            values[name] = _convert(name, given[name], field.type, strict=True)
        elif field.required:
            raise SettingsError(variable, "is needed and not set")
    return kind(**values)


def default_controller_name() -> str:
    """A name that tells two controllers of one host apart."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _split(text: str, kind: Any) -> object:
    if kind == tuple[str, ...]:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _convert(name: str, value: object, kind: Any, *, strict: bool) -> Any:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise SettingsError(name, f"{value!r}: {error}") from error


def _read_file(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(CONFIG_VARIABLE, f"{path}: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise SettingsError(CONFIG_VARIABLE, f"{path}: not a mapping of settings")
    known = {field.name for kind in SERVICES for field in msgspec.structs.fields(kind)}
    for name in content:
        if name not in known:
            raise SettingsError(str(name), f"no such setting, in {path}")
    return content

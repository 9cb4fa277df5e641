"""Writes ``deploy/crds``: ``python deploy/make_crds.py``. A test holds the files to it.

The definitions are for clusters that lack the managed service's own. They differ from those on purpose:

* No field is pruned. A misspelt ``namespaceSelector`` that the server drops in silence selects every namespace; here it
  reaches the controller, which refuses the object whole and says so in its status.
* The spellings of the published examples are admitted: ``networks`` of strings and of ``{cidr}``, ``tier`` in lower
  case, ``ports`` of ``{protocol, port}``, ``name`` and ``action`` on an ApplicationNetworkPolicy's rule.

Validation is structural where a schema can say it, an expression where it cannot. Expressions never look at
``networks``: its items have no one type, so a server does not show them to expressions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

GROUP, VERSION = "networking.k8s.aws", "v1alpha1"
FOLDER = Path(__file__).parent / "crds"
ITEMS_MAX, NETWORKS_MAX, CIDR_LENGTH_MAX, RULE_NAME_MAX, PRIORITY_MAX = 100, 25, 43, 100, 1000
DOMAIN_LENGTH_MAX = 253

LABEL = "[a-zA-Z0-9_]([-a-zA-Z0-9_]{0,61}[a-zA-Z0-9])?"
DOMAIN = rf"^(\*\.)?({LABEL}\.)+{LABEL}\.?$"
CIDR_FOUR = r"[0-9]{1,3}(\.[0-9]{1,3}){3}/([0-9]|[12][0-9]|3[0-2])"
CIDR_SIX = r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/([0-9]{1,2}|1[01][0-9]|12[0-8])"
CIDR = f"^({CIDR_FOUR}|{CIDR_SIX})$"
PORT_NAME = r"^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$"

Schema = dict[str, Any]


def text(**more: Any) -> Schema:
    return {"type": "string", **more}


def one_of(*choices: str, **more: Any) -> Schema:
    return text(enum=[*choices], **more)


def port_number(description: str) -> Schema:
    return {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535, "description": description}


def listed(items: Schema, *, at_most: int = ITEMS_MAX, at_least: int = 0, **more: Any) -> Schema:
    return {
        "type": "array",
        "items": items,
        "maxItems": at_most,
        **({"minItems": at_least} if at_least else {}),
        **more,
    }


def fields(
    properties: Schema, *, required: tuple[str, ...] = (), rules: tuple[tuple[str, str], ...] = (), **more: Any
) -> Schema:
    """An object; what it does not know is kept. ``rules``: (expression, message)."""
    schema: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": properties, **more}
    if required:
        schema["required"] = [*required]
    if rules:
        schema["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]
    return schema


def selector(description: str, **extra: Schema) -> Schema:
    """A LabelSelector."""
    expression = fields(
        {
            "key": text(),
            "operator": one_of("In", "NotIn", "Exists", "DoesNotExist"),
            "values": listed(text()),
        },
        required=("key", "operator"),
    )
    labels = {"type": "object", "additionalProperties": text()}
    return fields({"matchLabels": labels, "matchExpressions": listed(expression), **extra}, description=description)


def namespaces() -> Schema:
    """A LabelSelector, or one wrapped as in a published example."""
    wrapped = selector("Read as if it stood in place of its parent.")
    return selector("Namespaces by their labels; {} is all of them.", namespaceSelector=wrapped)


def pods() -> Schema:
    return fields(
        {
            "namespaceSelector": selector("Namespaces by their labels."),
            "podSelector": selector("Pods by their labels."),
        },
        required=("namespaceSelector", "podSelector"),
        description="Pods in namespaces, both by their labels.",
    )


def networks() -> Schema:
    """CIDRs as text, or as ``{cidr: text}``: each keyword binds the values of its own type, and no number passes."""
    cidr = {"pattern": CIDR, "maxLength": CIDR_LENGTH_MAX}
    item = {
        "x-kubernetes-preserve-unknown-fields": True,
        "description": "A CIDR, as text or as {cidr: text}.",
        "properties": {"cidr": text(**cidr)},
        "required": ["cidr"],
        "maxProperties": 1,
        "minimum": 1,
        "maximum": 0,
        "maxItems": 0,
        **cidr,
    }
    return listed(item, at_least=1, at_most=NETWORKS_MAX)


def domains(**limits: int) -> Schema:
    rule = f"self.size() <= {DOMAIN_LENGTH_MAX} || self.endsWith('.')"
    item = text(pattern=DOMAIN, maxLength=DOMAIN_LENGTH_MAX + 1)
    item["x-kubernetes-validations"] = [{"rule": rule, "message": f"longer than {DOMAIN_LENGTH_MAX} characters"}]
    description = "Names; *.example.com is one or more labels under example.com, and not example.com itself."
    return listed(item, at_least=1, description=description, **{"x-kubernetes-list-type": "set"}, **limits)


# ---------------------------------------------------------------------------------------------------------------------
# ClusterNetworkPolicy


def cluster_peer(*, is_egress: bool) -> Schema:
    outside = {"networks": networks(), "domainNames": domains(at_most=NETWORKS_MAX)} if is_egress else {}
    return fields({"namespaces": namespaces(), "pods": pods(), **outside}, minProperties=1, maxProperties=1)


def cluster_port() -> Schema:
    protocol = one_of("TCP", "UDP", "SCTP", default="TCP")
    single = fields({"protocol": protocol, "port": port_number("The port.")}, required=("port",))
    ranged = fields(
        {"protocol": protocol, "start": port_number("The first port."), "end": port_number("The last port.")},
        required=("start", "end"),
        rules=(("self.start < self.end", "end must be greater than start"),),
    )
    forms = "has(self.portNumber), has(self.portRange), has(self.namedPort)"
    classic = "has(self.protocol) || has(self.port) || has(self.endPort)"
    return fields(
        {
            "portNumber": single,
            "portRange": ranged,
            "namedPort": text(pattern=PORT_NAME),
            **classic_port_fields(),
        },
        rules=((f"[{forms}, {classic}].filter(x, x).size() == 1", "exactly one form of port is expected"), END_PORT),
    )


def classic_port_fields() -> Schema:
    """As NetworkPolicy has them; without a default, which would make one form of port out of another."""
    return {
        "protocol": one_of("TCP", "UDP", "SCTP"),
        "port": {"x-kubernetes-int-or-string": True, "description": "A number or a name."},
        "endPort": port_number("The last port of a range that begins at port."),
    }


END_PORT = (
    "!has(self.endPort) || (has(self.port) && type(self.port) == int && self.endPort >= self.port)",
    "endPort wants a port that is a number and not greater",
)
ONLY_ACCEPT = (
    "self.action in ['Accept', 'Allow'] || !self.to.exists(peer, has(peer.domainNames))",
    "domainNames can only be accepted: a name that is not known cannot be denied",
)


def cluster_rule(*, is_egress: bool) -> Schema:
    peers = "to" if is_egress else "from"
    return fields(
        {
            "name": text(maxLength=RULE_NAME_MAX),
            "action": one_of("Accept", "Allow", "Deny", "Pass"),
            peers: listed(cluster_peer(is_egress=is_egress), at_least=1),
            "ports": listed(cluster_port(), at_least=1),
        },
        required=("action", peers),
        rules=(ONLY_ACCEPT,) if is_egress else (),
    )


def cluster_spec() -> Schema:
    subject = fields({"namespaces": namespaces(), "pods": pods()}, minProperties=1, maxProperties=1)
    priority = {"type": "integer", "format": "int32", "minimum": 0, "maximum": PRIORITY_MAX}
    return fields(
        {
            "tier": one_of("Admin", "Baseline", "admin", "baseline"),
            "priority": {**priority, "description": "Lower numbers are judged first."},
            "subject": {**subject, "description": "The pods that the policy governs."},
            "ingress": listed(cluster_rule(is_egress=False)),
            "egress": listed(cluster_rule(is_egress=True)),
        },
        required=("tier", "priority", "subject"),
    )


# ---------------------------------------------------------------------------------------------------------------------
# ApplicationNetworkPolicy


def application_peer(*, is_egress: bool) -> Schema:
    block = fields(
        {"cidr": text(pattern=CIDR), "except": listed(text(pattern=CIDR))}, required=("cidr",), description="A CIDR."
    )
    alone = "has(self.podSelector) || has(self.namespaceSelector)"
    rules = [(f"!has(self.ipBlock) || !({alone})", "ipBlock may not stand beside a selector")]
    if is_egress:
        others = f"{alone} || has(self.ipBlock)"
        rules.append(
            (f"!has(self.domainNames) || !({others})", "domainNames may not stand beside another kind of peer")
        )
    return fields(
        {
            "podSelector": selector("Pods by their labels."),
            "namespaceSelector": selector("Namespaces by their labels."),
            "ipBlock": block,
            **({"domainNames": domains()} if is_egress else {}),
        },
        minProperties=1,
        rules=tuple(rules),
    )


def application_rule(*, is_egress: bool) -> Schema:
    peers = "to" if is_egress else "from"
    return fields(
        {
            "name": text(),
            "action": one_of("Accept", "Allow"),
            peers: listed(application_peer(is_egress=is_egress)),
            "ports": listed(fields(classic_port_fields(), rules=(END_PORT,))),
        }
    )


def application_spec() -> Schema:
    return fields(
        {
            "podSelector": selector("The pods that the policy governs; {} is all of its namespace."),
            "policyTypes": listed(one_of("Ingress", "Egress"), at_most=2),
            "ingress": listed(application_rule(is_egress=False)),
            "egress": listed(application_rule(is_egress=True)),
        },
        required=("podSelector",),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Definitions


def status() -> Schema:
    condition = {
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": text(),
            "status": one_of("True", "False", "Unknown"),
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": text(format="date-time"),
            "reason": text(),
            "message": text(),
        },
    }
    mapped = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return {"type": "object", "properties": {"conditions": listed(condition, at_most=16, **mapped)}}


def column(name: str, path: str, kind: str = "string") -> Schema:
    return {"name": name, "type": kind, "jsonPath": path}


def definition(kind: str, plural: str, short: str, scope: str, spec: Schema, columns: list[Schema]) -> Schema:
    conditions = [
        column(each, f'.status.conditions[?(@.type=="{each}")].status') for each in ("Accepted", "Programmed")
    ]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [*columns, *conditions, column("Age", ".metadata.creationTimestamp", "date")],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "required": ["spec"],
                "properties": {
                    "apiVersion": text(),
                    "kind": text(),
                    "metadata": {"type": "object"},
                    "spec": spec,
                    "status": status(),
                },
            }
        },
    }
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower(), "shortNames": [short]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "yett"}},
        "spec": {"group": GROUP, "scope": scope, "names": names, "versions": [version]},
    }


def definitions() -> dict[str, Schema]:
    """File name -> definition."""
    order = [column("Tier", ".spec.tier"), column("Priority", ".spec.priority", "integer")]
    return {
        "clusternetworkpolicies.yaml": definition(
            "ClusterNetworkPolicy", "clusternetworkpolicies", "cnp", "Cluster", cluster_spec(), order
        ),
        "applicationnetworkpolicies.yaml": definition(
            "ApplicationNetworkPolicy", "applicationnetworkpolicies", "anp", "Namespaced", application_spec(), []
        ),
    }


class _Plain(yaml.SafeDumper):
    """Without anchors: not every reader of definitions knows them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render(content: Schema) -> str:
    head = "# Made by deploy/make_crds.py; change that.\n"
    return head + yaml.dump(content, Dumper=_Plain, sort_keys=False, width=120)


if __name__ == "__main__":
    for name, content in definitions().items():
        (FOLDER / name).write_text(render(content))

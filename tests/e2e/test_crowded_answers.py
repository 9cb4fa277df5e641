"""An answer with more addresses than the kernel has places for: BPF_PROG_TEST_RUN takes no packet that long."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from services.demo import objects
from services.demo.netns import open_socket
from services.demo.topology import DNS_SERVICE, FABRIC_DNS, NODE_A
from tests.bpf.messages import Message, address, query
from tests.e2e.onenode import ALLOWED, OneNode, hears, jumbo_links, make_pod, one_node, passes, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

POD, NAME = make_pod(10), "crowded.example.com"
LAST = "203.0.113.20"
RECORDS = 265
"""Of 15 bytes each, by an owner of one: the least there is."""
READ_BYTES = 4095
"""What the kernel reads of a message."""
POLICY = """\
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: names, namespace: t}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{domainNames: ["*.example.com"]}]
"""


@pytest.fixture(scope="module")
def node() -> Iterator[OneNode]:
    with one_node() as made:
        made.folder.write("05-dns.yaml", objects.render(objects.make_dns_service()))
        made.start([POD], default="allow")
        made.lab.apply_services(())
        made.pipeline.start_recorder(NODE_A)
        made.apply("10-names.yaml", POLICY)
        yield made


def test_every_address_of_a_crowded_answer_opens(node: OneNode) -> None:
    """The first and the last of 265 in one packet: the recorder has what the kernel has no place for."""
    others = [f"198.19.{240 + n // 250}.{n % 250 + 1}" for n in range(RECORDS - 2)]
    first, *rest = (address(one, owner=b"\0") for one in (ALLOWED, *others, LAST))
    told = Message(NAME, answers=[first, *rest], flags=0x8180).wire()
    assert RECORDS > 256 and len(told) <= READ_BYTES
    with (
        jumbo_links(node, POD),
        closing(open_socket(node.lab.fabric, socket.AF_INET, socket.SOCK_DGRAM)) as resolver,
        closing(node.open(POD)) as asker,
    ):
        resolver.bind((FABRIC_DNS, 53))
        resolver.settimeout(5)
        assert not passes(node, POD, ALLOWED, 0.3)
        asker.sendto(query(NAME), (DNS_SERVICE, 53))
        _, whom = resolver.recvfrom(4096)
        resolver.sendto(told, whom)
        assert hears(asker, 5) == told
    for opened in (ALLOWED, LAST):
        until(lambda opened=opened: passes(node, POD, opened, 0.3), 5, f"{opened} is open")

"""What a CNI plugin answered, as libcni keeps it: whose an interface of a bridge is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.nodeagent.cniresult import CniResult, index_results, parse_result

MAC = "0a:58:0a:42:00:01"


def make_file(pod: str = "web", *, interface: str = "veth1", mac: str = MAC, **changes: Any) -> bytes:
    """As ``cacheAdd`` of libcni 1.1 writes it for the bridge plugin."""
    cached = {
        "kind": "cniCacheV1",
        "containerId": "c0ffee",
        "config": "e30=",
        "ifName": "eth0",
        "networkName": "kind",
        "netns": "/var/run/netns/cni-1",
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "ns"], ["K8S_POD_NAME", pod]],
        "result": {
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "cni0", "mac": "0a:58:0a:42:00:ff"},
                {"name": interface, "mac": mac.upper()},
                {"name": "eth0", "mac": "0a:58:0a:42:00:02", "sandbox": "/var/run/netns/cni-1"},
            ],
            "ips": [
                {"interface": 2, "address": "10.66.0.7/24", "gateway": "10.66.0.1"},
                {"interface": 2, "address": "fd00:66::7/64"},
            ],
            "dns": {},
        },
        **changes,
    }
    return json.dumps(cached).encode()


def test_a_bridged_pod_is_found_by_its_answer() -> None:
    """Pod, addresses of both families, and the interface by name and hardware address."""
    found = index_results([make_file()])
    assert found["veth1", MAC] == CniResult("veth1", MAC, "ns/web", ("10.66.0.7", "fd00:66::7"))


def test_the_newest_answer_of_an_interface_counts() -> None:
    """A file that its pod left behind says nothing of the pod that has the interface now."""
    assert index_results([make_file("new"), make_file("old")])["veth1", MAC].pod == "ns/new"


def test_an_address_of_another_interface_is_not_the_pods() -> None:
    """Only what is inside the sandbox, or belongs to no interface in particular."""
    result = json.loads(make_file())["result"]
    result["ips"] = [{"interface": 0, "address": "10.66.0.1/24"}, {"address": "10.66.0.9/24"}]
    (_, found) = parse_result(make_file(result=result))
    assert found.addresses == ("10.66.0.9",)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(make_file()[:-9], id="cut short"),
        pytest.param(b"[]", id="no object"),
        pytest.param(make_file(kind="cniCacheV9"), id="another kind"),
        pytest.param(make_file(cniArgs=None), id="no pod"),
        pytest.param(make_file(cniArgs=[["K8S_POD_NAME", "web"]]), id="no namespace"),
        pytest.param(make_file(result={"interfaces": [{"name": "veth1", "mac": MAC}]}), id="no address"),
        pytest.param(make_file(result={"ips": [{"address": "10.66.0.300/24"}]}), id="a bad address"),
        pytest.param(make_file(result={"ips": [{"address": "10.66.0.7/24"}]}), id="no interface"),
        pytest.param(make_file(mac=""), id="no hardware address"),
    ],
)
def test_what_cannot_be_read_is_none(content: bytes) -> None:
    """Nobody's interface is shut, and stays so: nothing is guessed."""
    assert not any(one.interface == "veth1" for one in parse_result(content))

"""What a CNI plugin answered, as libcni keeps it in its folders: whose an interface is."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.nodeagent.cnifiles import CniFiles
from services.nodeagent.cniresult import RESULT_BYTES_MAX, CniResult, index_results, parse_result

MAC = "0a:58:0a:42:00:01"


ADDRESSES = ("10.66.0.7/24", "fd00:66::7/64")


def make_file(
    pod: str = "ns/web",
    *,
    interface: str = "veth1",
    mac: str = MAC,
    addresses: Sequence[str] = ADDRESSES,
    **changes: Any,
) -> bytes:
    """As ``cacheAdd`` of libcni 1.1 writes it for the bridge plugin; ptp's answer is the same without the bridge."""
    namespace, _, name = pod.partition("/")
    cached = {
        "kind": "cniCacheV1",
        "containerId": "c0ffee",
        "config": "e30=",
        "ifName": "eth0",
        "networkName": "kind",
        "netns": "/var/run/netns/cni-1",
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", namespace], ["K8S_POD_NAME", name]],
        "result": {
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "cni0", "mac": "0a:58:0a:42:00:ff"},
                {"name": interface, "mac": mac.upper()},
                {"name": "eth0", "mac": "0a:58:0a:42:00:02", "sandbox": "/var/run/netns/cni-1"},
            ],
            "ips": [{"interface": 2, "address": one, "gateway": "10.66.0.1"} for one in addresses],
            "dns": {},
        },
        **changes,
    }
    return json.dumps(cached).encode()


def test_a_bridged_pod_is_found_by_its_answer() -> None:
    """Pod, addresses of both families, and the interface by name and hardware address."""
    found = index_results([parse_result(make_file())])
    assert found["veth1", MAC] == CniResult("veth1", MAC, "ns/web", ("10.66.0.7", "fd00:66::7"))


def test_the_newest_answer_of_an_interface_counts() -> None:
    """A file that its pod left behind says nothing of the pod that has the interface now."""
    newest_first = [make_file("ns/new"), make_file("ns/old")]
    assert index_results(map(parse_result, newest_first))["veth1", MAC].pod == "ns/new"


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


def write_at(path: Path, content: bytes, second: int) -> None:
    path.write_bytes(content)
    os.utime(path, (second, second))


def pod_of(files: CniFiles) -> str:
    found = files.read().get(("veth1", MAC))
    return found.pod if found else ""


def test_files_are_read_as_they_are_now(tmp_path: Path) -> None:
    """One that was cut short and is whole now, a newer one beside it, and one that went; a folder may be absent."""
    files = CniFiles([str(tmp_path / "absent"), str(tmp_path)])
    write_at(tmp_path / "one", make_file("ns/one")[:-9], 1)
    assert pod_of(files) == ""
    write_at(tmp_path / "one", make_file("ns/one"), 1)
    assert pod_of(files) == "ns/one"
    write_at(tmp_path / "two", make_file("ns/two"), 2)
    assert pod_of(files) == "ns/two"
    (tmp_path / "two").unlink()
    assert pod_of(files) == "ns/one"


def test_what_is_no_file_or_too_large_is_left_aside(tmp_path: Path) -> None:
    """A folder among the files, one that leads nowhere, and one larger than any answer."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    write_at(tmp_path / "large", make_file("ns/large") + b" " * RESULT_BYTES_MAX, 2)
    write_at(tmp_path / "one", make_file("ns/one"), 1)
    assert pod_of(CniFiles([str(tmp_path)])) == "ns/one"

"""The daemons' configuration, and what is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.demo import topology, zones
from services.demo.lab import render_kube_proxy
from services.demo.servers import check_nats_server, find_nats_server
from services.demo.state import DemoError


def make_server(folder: Path, says: str) -> Path:
    """A program that prints a version."""
    program = folder / "nats-server"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    return program


def test_a_nats_server_that_is_too_old_is_refused_and_named(tmp_path: Path) -> None:
    """Debian's own ignores per-message TTL without an error."""
    server = make_server(tmp_path, "nats-server: v2.9.10")
    with pytest.raises(DemoError, match=r"v2\.9\.10; Yett needs 2\.11 or newer"):
        check_nats_server(server)


@pytest.mark.parametrize("version", ["v2.11.0", "v2.15.1", "v3.0.0"])
def test_a_new_enough_nats_server_is_taken(tmp_path: Path, version: str) -> None:
    """2.11 is the first with per-message TTL."""
    assert check_nats_server(make_server(tmp_path, f"nats-server: {version}")) == version


def test_something_that_is_no_nats_server_is_refused(tmp_path: Path) -> None:
    """The message quotes what it said."""
    with pytest.raises(DemoError, match="hello"):
        check_nats_server(make_server(tmp_path, "hello"))
    with pytest.raises(DemoError, match="make setup"):
        check_nats_server(tmp_path / "absent")


def test_the_nats_server_is_the_virtual_environments_own() -> None:
    """PATH may hold an older one."""
    assert find_nats_server().parent.name == "bin"
    assert (find_nats_server().parent.parent / "pyvenv.cfg").exists()


def test_a_zone_holds_its_own_names_in_both_families() -> None:
    """And not its neighbours'."""
    text = zones.render_zone("company.com", topology.OUTSIDE)
    assert f"{topology.DATABASE}. {topology.DATABASE_TTL_SECONDS} A 198.51.100.200" in text
    assert f"{topology.DATABASE}. {topology.DATABASE_TTL_SECONDS} AAAA 2001:db8:4::200" in text
    assert "example.com" not in text


def test_kube_proxy_translates_every_cluster_address_in_both_families() -> None:
    """ClusterIPs lead to a backend, the DNS Service to the recursive resolver over both protocols."""
    text = render_kube_proxy(topology.SERVICES)
    assert "ip daddr 10.100.12.34 tcp dport 80 dnat ip to 10.244.1.10:8080" in text
    assert "ip6 daddr fd00:10:100::c22 tcp dport 80 dnat ip6 to [fd00:10:244:1::a]:8080" in text
    assert "ip daddr 10.100.0.10 meta l4proto { tcp, udp } th dport 53 dnat ip to 10.0.3.53:53" in text

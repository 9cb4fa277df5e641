"""What an API server stores, in whichever version it serves."""

from __future__ import annotations

import asyncio

import pytest

from services.operate.stored import read_policies
from tests.controller.scripted import Obj, ScriptedApi, listed

NETWORK = "/apis/networking.k8s.io/v1/networkpolicies"
UPSTREAM = "/apis/policy.networking.k8s.io/{}/clusternetworkpolicies"


@pytest.mark.parametrize(
    ("served", "read"),
    [((), []), (("v1alpha2",), ["v1alpha2"]), (("v1beta1",), ["v1beta1"]), (("v1alpha2", "v1beta1"), ["v1alpha2"])],
)
def test_a_policy_is_read_once_in_the_version_that_the_source_reads(served: tuple[str, ...], read: list[str]) -> None:
    """Custom kinds that are not served are passed over."""
    stored: Obj = {"metadata": {"name": "p"}, "spec": {}}
    api = ScriptedApi({NETWORK: listed()} | {UPSTREAM.format(each): listed(stored) for each in served})
    found = asyncio.run(read_policies(api))
    assert [obj["apiVersion"] for obj in found] == [f"policy.networking.k8s.io/{each}" for each in read]

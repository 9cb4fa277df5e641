"""What is shipped, sent to a real API server as a person would send it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from services.access.kubernetes import make_objects
from tests.deploy.readme import make_keys
from tests.deploy.test_overlays import DEPLOY, PLACES, Object, render
from tests.kube.servers import KubeServer

pytestmark = pytest.mark.kube

NEWER = {("policy/v1", "PodDisruptionBudget")}
"""Not known to the server that we have; held against the published schema in tests/deploy."""


def has_claims(each: Object) -> bool:
    return each["kind"] == "StatefulSet" and "volumeClaimTemplates" in each["spec"]


@pytest.mark.parametrize("place", PLACES)
def test_a_server_takes_every_object(kube: KubeServer, tmp_path: Path, place: str) -> None:
    """Each overlay, and the keys; but for kinds that this server is too old for, which are listed."""
    secrets = make_objects(make_keys(tmp_path, "node-a"))
    rendered = render(DEPLOY / place)
    left_out = {(each["apiVersion"], each["kind"]) for each in rendered} & NEWER
    print(f"not sent, too new for this server: {sorted(left_out)}")
    assert left_out == NEWER
    sent = [each for each in rendered if (each["apiVersion"], each["kind"]) not in NEWER]
    text = yaml.safe_dump_all([*sent, *secrets])
    said = kube.kubectl("apply", "-f", "-", stdin=text).stdout.splitlines()
    assert len(said) == len(sent) + len(secrets)
    again = kube.kubectl("apply", "-f", "-", stdin=text).stdout.splitlines()
    # This server writes a status into the claims of a StatefulSet, which kubectl then takes for a difference.
    claiming = {f"statefulset.apps/{each['metadata']['name']}" for each in sent if has_claims(each)}
    assert {line.split()[0] for line in again if line.split()[-1] != "unchanged"} <= claiming

"""What is shipped, sent to a real API server as a person would send it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from services.access.kubernetes import make_objects
from tests.deploy.readme import make_keys
from tests.deploy.test_overlays import DEPLOY, PLACES, Object, render
from tests.kube.definitions import definition, open_definition
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


def apply_definition(kube: KubeServer, obj: Object, *flags: str) -> subprocess.CompletedProcess[str]:
    return kube.kubectl("apply", "--server-side", "-f", "-", *flags, stdin=yaml.safe_dump(obj), check=False)


def test_a_definition_that_is_somebody_else_s_is_left_alone(kube: KubeServer) -> None:
    """The README's line, where the cluster has a kind of this name that another manager applied: it fails, says whose
    it is, and the definition is what it was to the last field. Where there is none it is made."""
    ours = definition("ClusterNetworkPolicy")
    group, names = ours["spec"]["group"], ours["spec"]["names"]
    theirs = {key: ours[key] for key in ("apiVersion", "kind")}
    theirs |= open_definition(group, "v1alpha1", names["kind"], names["plural"], scope="Cluster")
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{ours['metadata']['name']}"
    assert apply_definition(kube, theirs, "--field-manager=vpc-cni").returncode == 0
    kube.until(lambda: "conditions" in kube.admin.call("GET", path)["status"], 20)
    before = kube.admin.call("GET", path)
    done = apply_definition(kube, ours)
    assert done.returncode != 0 and 'conflict with "vpc-cni"' in done.stderr
    assert kube.admin.call("GET", path) == before
    kube.admin.call("DELETE", path)
    kube.until(lambda: kube.admin.request("GET", path)[0] == 404, 20)
    assert apply_definition(kube, ours).returncode == 0
    assert kube.admin.call("GET", path)["spec"]["names"]["shortNames"] == ["cnp"]

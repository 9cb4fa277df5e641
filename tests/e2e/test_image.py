"""The images: what is in them and what is not, and one node that runs on nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.demo import servers, topology
from services.demo.lab import in_namespace
from services.demo.pipeline import recorder_name
from services.demo.state import is_alive
from services.demo.topology import NODE_A
from services.installation.objects import make_detach
from tests.deploy.test_overlays import DEPLOY, find, render
from tests.e2e.container import BUILD, Image, ImagePipeline, build_images
from tests.e2e.onenode import OneNode, echo_server, make_pod, one_node, until

# The first build of all takes minutes, and is not the test's.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


SERVICES = ("controller", "nodeagent", "dnsrecorder")
TOOLS = ("pytest", "hypothesis", "mypy", "ruff", "typer", "rich", "pip", "setuptools")
SERVER, FRIEND, STRANGER = make_pod(10), make_pod(11), make_pod(12)
FOR_FRIENDS = f"""\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: friends, namespace: t}}
spec:
  podSelector: {{matchLabels: {{app: {SERVER.name}}}}}
  policyTypes: [Ingress]
  ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {FRIEND.name}}}}}}}]}}]
"""


@pytest.fixture(scope="module")
def roots() -> Path:
    return build_images()


def run_image(image: Image, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The entry point to its end."""
    command = image.command(folder, environment, {"/tmp": folder}, arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("controller", "yett-controller: YETT_MANIFESTS: is not set, nor is YETT_KUBE_CONFIG"),
        ("nodeagent", "nodeagent: YETT_NODE: is needed and not set"),
        ("dnsrecorder", "dnsrecorder: YETT_NODE: is needed and not set"),
    ],
)
def test_without_settings_an_entry_point_says_which_it_needs(
    roots: Path, tmp_path: Path, service: str, said: str
) -> None:
    """Everything that the service imports is there, for its user, without a place to write; status 2, no traceback."""
    done = run_image(Image(service, roots), tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(said) and "Traceback" not in done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_is_in_an_image_that_its_service_does_not_need(roots: Path, service: str) -> None:
    """The compiler is in the agent's alone; no other service, no test, no tool of the build; of the building machine's
    mirrors no word."""
    root = Image(service, roots).root
    installed = {each.name for each in (root / "opt/yett/site").iterdir()} | {
        each.name for each in (root / "usr/lib/python3/dist-packages").iterdir()
    }
    assert not installed & set(TOOLS) and "nats" in installed
    has_compiler = "bcc" in installed or any((root / "usr/lib/x86_64-linux-gnu").glob("libLLVM*"))
    assert has_compiler == (service == "nodeagent")
    assert {each.name for each in (root / "opt/yett/services").iterdir() if each.is_dir()} - {"__pycache__"} == {
        "common",
        service,
    }
    assert (root / "opt/yett/bpf/pod_tc.c").exists() == (service == "nodeagent")
    sources = [each.read_text() for each in (root / "etc/apt").rglob("*") if each.suffix in (".list", ".sources")]
    told = {line.split()[1] for text in sources for line in text.splitlines() if line.startswith("URIs")}
    assert told <= {"http://deb.debian.org/debian"} and not any(text.startswith("deb ") for text in sources)
    assert not any((root / "etc" / name).exists() for name in ("pip.conf", "xdg/pip"))


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_is_what_the_manifests_name(roots: Path, service: str) -> None:
    """Name and version, entry point, labels; a controller is nobody, an agent root with three capabilities."""
    image = Image(service, roots)
    name = f"yett-{service}:{image.config['Labels']['org.opencontainers.image.version']}"
    assert image.described["FromImage"] == f"localhost/{name}"
    assert image.container["image"] == name
    assert image.config["Entrypoint"] == ["python3", "-m", f"services.{service}"]
    assert image.config["Labels"]["org.opencontainers.image.title"] == f"yett-{service}"
    user = image.config.get("User", "")
    assert user == ("65532:65532" if service == "controller" else "")


def test_archives_bear_the_names_that_the_manifests_have(roots: Path) -> None:
    """As the README hands them to kind: a container runtime puts the same prefix before a name without a registry."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([BUILD, "--archive", folder], check=True, capture_output=True)
        for service in SERVICES:
            with tarfile.open(Path(folder) / f"yett-{service}.tar") as archive:
                file = archive.extractfile("manifest.json")
                assert file is not None
                (described,) = json.load(file)
            assert f"docker.io/library/{Image(service, roots).container['image']}" in described["RepoTags"]


def test_the_images_of_a_kind_cluster_are_never_asked_of_a_registry() -> None:
    """They have no registry in their names, and kind's nodes are told not to pull them."""
    ours = [
        each
        for obj in render(DEPLOY / "overlays/kind")
        for each in obj.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ())
        if each["image"].startswith("yett-")
    ]
    assert {each["name"] for each in ours} == set(SERVICES)
    assert {each["imagePullPolicy"] for each in ours} == {"Never"}


@pytest.fixture(scope="module")
def node(roots: Path) -> Iterator[OneNode]:
    """Three pods under an agent, a recorder and a controller out of the images; NATS and name servers are real."""
    with one_node() as made:
        made.pipeline = ImagePipeline(made.lab, roots)
        made.build((SERVER, FRIEND, STRANGER), default="allow", config={"resolvers": topology.FABRIC_DNS})
        servers.start_outside(made.lab)
        made.start_agent()
        made.pipeline.start_recorder(NODE_A)
        made.settle(0, seconds=60)
        yield made


def test_a_policy_is_enforced_by_the_images(node: OneNode) -> None:
    """Real packets: before the policy both reach the server, under it the friend alone, and after it both again."""
    with echo_server(node.lab.pod_namespace(SERVER)) as port:
        for pod in (FRIEND, STRANGER):
            assert node.reaches(pod, SERVER.address, port), pod.name
        node.apply("friends.yaml", FOR_FRIENDS)
        assert node.reaches(FRIEND, SERVER.address, port)
        assert not node.reaches(STRANGER, SERVER.address, port)
        node.remove("friends.yaml")
        assert node.reaches(STRANGER, SERVER.address, port)


def test_a_name_is_learned_and_told_by_the_images(node: OneNode) -> None:
    """A pod asks for a name that its policy has: it reaches what that name is, and nothing else; the recorder tells."""
    node.apply("names.yaml", FOR_A_NAME)
    resolver = f"@{topology.FABRIC_DNS}"
    dig = ["dig", "+short", "+tries=1", resolver, "example.com", "A"]
    done = subprocess.run(
        in_namespace(node.lab.pod_namespace(FRIEND), *dig), capture_output=True, text=True, check=True, timeout=30
    )
    address = done.stdout.split()[0]
    assert node.reaches(FRIEND, address, 80)
    assert not node.reaches(FRIEND, topology.AUTHORITY, 53)
    recorder = node.bus.recorders
    until(lambda: node.status() and recorder and recorder[NODE_A.name].counters.get("published", 0) > 0, 20, "told")
    node.remove("names.yaml")


FOR_A_NAME = f"""\
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {{name: names, namespace: t}}
spec:
  podSelector: {{matchLabels: {{app: {FRIEND.name}}}}}
  policyTypes: [Egress]
  egress: [{{to: [{{domainNames: [example.com]}}]}}]
"""


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_of_an_image_has_no_more_than_the_manifest_grants(node: OneNode, service: str) -> None:
    """By what the kernel says of the running process: its user, its capabilities, and that it can gain none."""
    process = node.pipeline.processes[service if service == "controller" else f"{service}-{NODE_A.key}"]
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    said = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    has = 0 if service == "controller" else 1 << 12 | 1 << 38 | 1 << 39  # NET_ADMIN, PERFMON, BPF
    for field in ("CapPrm", "CapEff", "CapBnd", "CapInh"):
        assert int(said[field][0], 16) == has, field
    assert said["NoNewPrivs"] == ["1"]
    assert set(said["Uid"]) == ({"65532"} if service == "controller" else {"0"})
    mounts = [line.split() for line in Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()]
    assert [each[5].split(",")[0] for each in mounts if each[4] == "/"] == ["ro"]


def test_an_uninstall_takes_the_programs_off_by_the_image(node: OneNode, tmp_path: Path) -> None:
    """As the DaemonSet of ``yett uninstall`` runs it, with an agent's capabilities: policy holds after the agent has
    ended, until every trace of it is gone; what is left is the folder that a kubelet made."""
    node.apply("friends.yaml", FOR_FRIENDS)
    node.end_agent(signal.SIGTERM)
    recorder = node.pipeline.processes[recorder_name(NODE_A)]
    os.kill(recorder.pid, signal.SIGTERM)
    until(lambda: not is_alive(recorder), 10, "the recorder ends")
    pins, state = node.run.pins / NODE_A.key, node.run.folder / f"state-{NODE_A.key}"
    agent = find(render(DEPLOY / "base"), "DaemonSet", "yett-agent")
    (container,) = make_detach(agent, is_waiting=False)["spec"]["template"]["spec"]["initContainers"]
    outside = {"bpffs": Path("/sys/fs/bpf"), "state": state, "tmp": tmp_path}
    mounts = {each["mountPath"]: outside[each["name"]] for each in container["volumeMounts"]}
    image = Image("nodeagent", node.pipeline.roots)
    assert container["securityContext"] == image.container["securityContext"]
    command = image.command(tmp_path, {"YETT_NODE": "n", "YETT_PIN_ROOT": str(pins)}, mounts, container["args"])
    with echo_server(node.lab.pod_namespace(SERVER)) as port:
        assert not node.reaches(STRANGER, SERVER.address, port)
        node.in_node(*command)
        assert node.reaches(STRANGER, SERVER.address, port)
    shown = node.in_node("tc", "filter", "show", "dev", SERVER.interface, "ingress", check=False)
    assert "yett" not in shown and not pins.exists()
    assert list(state.iterdir()) == []

"""deploy/: chart and base say the same, a real API server takes both, and each value does what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.cluster.apiserver import ApiServer
from tests.cluster.rendered import (
    CHART,
    DEPLOY,
    NAMESPACE,
    Key,
    Object,
    RenderError,
    agent,
    daemonset,
    kustomized,
    objects,
    template,
)
from tests.tools import build

CRDS = {
    ("CustomResourceDefinition", f"{plural}.egress.skouter")
    for plural in ("egresses", "clusteregresses", "externalworkloads")
}
EGRESS = """
apiVersion: egress.skouter/v1alpha1
kind: Egress
metadata: {name: kept, namespace: skouter-system}
spec: {podSelector: {}}
"""


@pytest.fixture(scope="session")
def helm() -> Path:
    return build.folder("helm") / "helm"


@pytest.fixture(scope="session")
def kubectl(programs: Path) -> Path:
    return programs / "kubectl"


@pytest.fixture(scope="session")
def chart(helm: Path) -> str:
    return template(helm, "--no-hooks")


@pytest.fixture(scope="session")
def base(kubectl: Path) -> str:
    return kustomized(kubectl)


@pytest.fixture
def namespace(api: ApiServer) -> str:
    """The one that everything lives in; it stays, since no controller is there to end it."""
    api.kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", DEPLOY / "kustomize" / "base" / "namespace.yaml"
    )
    return NAMESPACE


def without_annotation(each: Object) -> Object:
    """Helm's word that uninstalling keeps an object is of no use to others."""
    annotations = dict(each["metadata"].get("annotations", {}))
    annotations.pop("helm.sh/resource-policy", None)
    metadata = {key: value for key, value in each["metadata"].items() if key != "annotations"}
    return {**each, "metadata": {**metadata, **({"annotations": annotations} if annotations else {})}}


# ---- Two renderings, one meaning --------------------------------------------------------------------------


def test_the_base_and_the_chart_are_the_same_objects(base: str, chart: str) -> None:
    by_kustomize = objects(base)
    assert by_kustomize.pop(("Namespace", NAMESPACE))["metadata"]["labels"] == {
        f"pod-security.kubernetes.io/{mode}": "privileged" for mode in ("enforce", "audit", "warn")
    }
    by_helm = {key: without_annotation(each) for key, each in objects(chart).items()}
    image = ":".join(agent(chart)["image"].split(":")[:1])
    agent_of = by_kustomize["DaemonSet", "skouter"]["spec"]["template"]["spec"]["containers"][0]
    assert agent_of["image"].startswith(image)
    assert by_kustomize == by_helm


def test_what_is_made_of_the_chart_is_up_to_date(helm: Path) -> None:
    made = template(helm, "--no-hooks", "--set", "crds.install=false")
    assert (DEPLOY / "kustomize" / "base" / "skouter.yaml").read_text() == made, "run `make manifests`"
    only = ("--set", "openshift.enabled=true", "--show-only", "templates/openshift.yaml")
    constraints = DEPLOY / "kustomize" / "openshift" / "constraints.yaml"
    assert constraints.read_text() == template(helm, *only), "run `make manifests`"


def test_the_charts_readme_tells_every_value() -> None:
    document = loaded(DEPLOY / "helm" / "document.py")
    readme, values = (CHART / "README.md").read_text(), (CHART / "values.yaml").read_text()
    assert document.document(readme, values) == readme, "run `make manifests`"
    with pytest.raises(document.UndocumentedError, match="more"):
        document.table(values + "\nmore: 1\n")


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_constraints_of_openshift_are_what_the_agent_asks_for(kubectl: Path) -> None:
    found = objects(kustomized(kubectl, "openshift"))
    constraints = found["SecurityContextConstraints", "skouter"]
    pod = found["DaemonSet", "skouter"]["spec"]["template"]["spec"]
    context = pod["containers"][0]["securityContext"]
    assert constraints["allowedCapabilities"] == context["capabilities"]["add"]
    assert constraints["users"] == [f"system:serviceaccount:{NAMESPACE}:{pod['serviceAccountName']}"]
    for ours, theirs in (("hostNetwork", "allowHostNetwork"), ("hostPID", "allowHostPID")):
        assert constraints[theirs] is pod[ours] is True
    assert constraints["allowPrivilegedContainer"] is context["privileged"] is False
    kinds = {next(key for key in volume if key != "name") for volume in pod["volumes"]}
    assert kinds | {"projected"} == set(constraints["volumes"])


# ---- A real API server ------------------------------------------------------------------------------------


def test_a_server_takes_the_base_and_the_chart(api: ApiServer, namespace: str, base: str, chart: str) -> None:
    for text in (base, chart):
        said = api.kubectl(
            "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", input=text
        )
        assert len(said.splitlines()) == len(objects(text))
        assert "Warning" not in said


def test_a_server_takes_the_hooks_and_every_option(api: ApiServer, namespace: str, helm: Path) -> None:
    values = """
        image: {digest: "sha256:%s"}
        imagePullSecrets: [{name: registry}]
        config: {floor: 120, grace: 30}
        args: [--verbose]
        apiServer: {host: 192.0.2.1, port: 6443}
        startupTaint: {enabled: true}
        affinity: {nodeAffinity: {}}
        podLabels: {team: platform}
        podAnnotations: {example.com/note: x}
    """
    text = template(helm, values=values % ("0" * 64))
    api.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", input=text)
    found = agent(text)
    assert found["image"] == f"skouter@sha256:{'0' * 64}"
    assert found["args"][-2:] == ["--startup-taint", "--verbose"]
    assert {"name": "KUBERNETES_SERVICE_HOST", "value": "192.0.2.1"} in found["env"]
    assert daemonset(text)["spec"]["template"]["metadata"]["labels"]["team"] == "platform"
    (config,) = [each for key, each in objects(text).items() if key[0] == "ConfigMap"]
    assert yaml.safe_load(config["data"]["agent.yaml"]) == {"floor": 120, "grace": 30}
    assert objects(text)["Job", "skouter-cleanup"]


@pytest.mark.parametrize("folder", ["startup-taint", "cleanup"])
def test_a_server_takes_the_overlays(
    api: ApiServer, namespace: str, kubectl: Path, base: str, folder: str
) -> None:
    text = kustomized(kubectl, folder)
    api.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", input=text)
    assert objects(text).keys() == objects(base).keys()
    assert objects(text) != objects(base)


def test_the_startup_taint_is_one_thing_in_the_overlay_and_in_the_chart(helm: Path, kubectl: Path) -> None:
    by_helm = objects(template(helm, "--no-hooks", values="startupTaint: {enabled: true}"))
    by_kustomize = objects(kustomized(kubectl, "startup-taint"))
    for key in (("DaemonSet", "skouter"), ("ClusterRole", "skouter")):
        assert by_kustomize[key] == by_helm[key]


# ---- Values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ("image: {repo: x}", "additional properties 'repo' not allowed"),
        ("image: {pullPolicy: Sometimes}", "at '/image/pullPolicy'"),
        ("image: {digest: abc}", "at '/image/digest'"),
        ("metrics: {port: 0}", "at '/metrics/port'"),
        ("metrics: {enabled: sometimes}", "at '/metrics/enabled'"),
        ("args: [verbose]", "at '/args/0'"),
        ("cleanup: {timeout: 1}", "at '/cleanup/timeout'"),
        ("resources: {limit: {}}", "additional properties 'limit' not allowed"),
        ("nodeSelector: {disk: 1}", "at '/nodeSelector/disk'"),
        ("unheard: of", "additional properties 'unheard' not allowed"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(helm: Path, values: str, complaint: str) -> None:
    with pytest.raises(RenderError, match=complaint.replace("(", r"\(")):
        template(helm, values=values)


def test_an_older_kubernetes_is_refused(helm: Path) -> None:
    with pytest.raises(RenderError, match=r"requires kubeVersion: >=1\.31"):
        template(helm, version="1.30")


@pytest.mark.parametrize(
    ("values", "gone"),
    [
        ("priorityQuota: false", {("ResourceQuota", "skouter")}),
        ("rbac: {view: false}", {("ClusterRole", "skouter-view")}),
        ("metrics: {enabled: false}", {("ClusterRole", "skouter-metrics")}),
        ("crds: {install: false}", CRDS),
    ],
)
def test_what_is_switched_off_is_not_there(helm: Path, chart: str, values: str, gone: set[Key]) -> None:
    left = template(helm, "--no-hooks", values=values)
    assert objects(chart).keys() - objects(left).keys() == gone
    if "metrics" in values:
        assert not [word for word in agent(left)["args"] if "metrics" in word]
        assert "reviews" not in json.dumps(objects(left)["ClusterRole", "skouter"])


def test_helm_finds_nothing_to_complain_of(helm: Path) -> None:
    done = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ---- Install, upgrade, uninstall --------------------------------------------------------------------------


@pytest.fixture
def untouched(programs: Path) -> Iterator[ApiServer]:
    """A server of its own: Helm takes no CRD that is there already."""
    with ApiServer(programs) as running:
        running.kubectl(
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            DEPLOY / "kustomize" / "base" / "namespace.yaml",
        )
        yield running


def call(words: list[str], api: ApiServer) -> str:
    environ = {**os.environ, "HOME": str(api.folder)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_upgrade_brings_the_crds_along_and_uninstalling_keeps_what_users_wrote(
    untouched: ApiServer, helm: Path, tmp_path: Path
) -> None:
    """The CRDs of an older version: one that knows less of Egress."""
    api = untouched
    released = [str(helm), "--kubeconfig", str(api.kubeconfig), "--namespace", NAMESPACE]
    older = tmp_path / "older"
    subprocess.run(["cp", "-rL", CHART, older], check=True)
    crd = older / "files" / "crds" / "egresses.yaml"
    text = yaml.safe_load(crd.read_text())
    (version,) = text["spec"]["versions"]
    newer = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"].pop("mode")
    version["additionalPrinterColumns"] = []
    crd.write_text(yaml.safe_dump(text))

    call([*released, "install", "skouter", str(older)], api)
    api.kubectl("wait", "--for=condition=Established", "crd/egresses.egress.skouter")
    api.kubectl("apply", "-f", "-", input=EGRESS)
    assert "mode" not in spec_of_egress(api)

    call([*released, "upgrade", "skouter", str(CHART)], api)
    assert spec_of_egress(api)["mode"] == newer
    assert kept(api)

    call([*released, "uninstall", "skouter", "--no-hooks"], api)
    assert kept(api)
    assert "daemonset" not in api.kubectl("get", "daemonsets", "-n", NAMESPACE, "-o", "name")

    call([*released, "install", "skouter", str(CHART)], api)
    assert kept(api)


def spec_of_egress(api: ApiServer) -> Object:
    found = json.loads(api.kubectl("get", "crd", "egresses.egress.skouter", "-o", "json"))
    (version,) = found["spec"]["versions"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert isinstance(properties, dict)
    return properties


def kept(api: ApiServer) -> bool:
    return "kept" in api.kubectl("get", "egresses", "-n", NAMESPACE, "-o", "name")


# ---- What is told of it -----------------------------------------------------------------------------------


def test_the_readme_tells_of_what_is_there(chart: str) -> None:
    text = (DEPLOY / "README.md").read_text()
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", text, re.MULTILINE)
    named = [word for row in rows for word in re.findall(r"`([^`]+)`", row)]
    asked = agent(chart)["securityContext"]["capabilities"]["add"]
    assert [word for word in named if word.isupper()] == asked
    for word in named:
        if not word.isupper() and not word.startswith(("/", "host")):
            assert (DEPLOY / word).exists(), word
    mounts = {mount["mountPath"] for mount in agent(chart)["volumeMounts"]}
    assert {word for word in named if word.startswith("/")} == mounts - {"/run/agent", "/etc/skouter"}
    port = yaml.safe_load((CHART / "values.yaml").read_text())["metrics"]["port"]
    assert f"https://NODE:{port}/metrics" in text
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DEPLOY / link).exists(), link

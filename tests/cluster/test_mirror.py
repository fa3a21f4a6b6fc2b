"""The policies of an API server as a gateway has them, with the rights of deploy/kustomize/gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from gateway.kubernetes.api_rights import RIGHTS_OF_GATEWAY
from gateway.kubernetes.mirror import Mirror
from gateway.kubernetes.source import Asked, Kubernetes
from gateway.policies import documents
from gateway.policies.records import Egress, ExternalWorkload, Object
from tests.cluster.apiserver import ApiServer
from tests.cluster.objects import off, until
from tests.cluster.rendered import NAMESPACE, kustomized, objects
from tests.cluster.test_deploy_rights import granted

ACCOUNT = "skouter-gateway"
HEAD = "apiVersion: egress.skouter/v1alpha1\n"
MACHINE = HEAD + "kind: ExternalWorkload\nmetadata: {name: vm}\nspec: {addresses: [10.0.0.7]}\n"
SLICE = f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: gateways-x, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: gateways}}}}
addressType: IPv4
endpoints: [{{addresses: [10.0.9.1]}}, {{addresses: [10.0.9.2]}}]
ports: []
"""


def policy(domain: str) -> str:
    return (
        f"{HEAD}kind: ClusterEgress\nmetadata: {{name: mirrored}}\n"
        f'spec: {{sourceCIDRs: [10.0.0.0/24], rules: [{{domains: ["{domain}"]}}]}}\n'
    )


@pytest.fixture(scope="module")
def account(api: ApiServer) -> Iterator[str]:
    """Of the manifests, as a user applies them; its token."""
    text = kustomized(api.programs / "kubectl", "gateway")
    api.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)
    api.kubectl("wait", "--for=condition=Established", "crd", "--all")
    yield api.account_token(NAMESPACE, ACCOUNT)
    for kind in ("clusterrolebinding", "clusterrole"):
        api.kubectl("delete", kind, ACCOUNT)


@pytest.fixture
def ours(api: ApiServer, account: str) -> Iterator[None]:
    yield
    api.kubectl("delete", "--ignore-not-found", "clusteregress,externalworkload", "--all")
    api.kubectl("delete", "--ignore-not-found", "-f", "-", input=SLICE)


@asynccontextmanager
async def mirroring(api: ApiServer, folder: Path, token: str) -> AsyncIterator[Mirror]:
    config = api.write_kubeconfig(folder / "kubeconfig", token)
    asked = Asked(gateway=True, peers=(NAMESPACE, "gateways"), dns=(), spread=0.1)
    mirror = Mirror(Kubernetes("gateway", config, asked), folder / "mirror")
    async with trio.open_nursery() as nursery:
        await nursery.start(mirror.run)
        yield mirror
        nursery.cancel_scope.cancel()


def read(mirror: Mirror) -> dict[str, Object]:
    if not mirror.is_there:
        return {}
    found, problems = documents.read(mirror.file.read_text(), str(mirror.file))
    assert not problems
    return {str(item): item for item in found}


def domains(mirror: Mirror) -> list[str]:
    found = read(mirror).get("ClusterEgress mirrored")
    return [str(name) for rule in found.rules for name in rule.domains] if isinstance(found, Egress) else []


@pytest.mark.usefixtures("ours")
def test_the_file_is_what_the_server_says_and_follows_it(
    api: ApiServer, account: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with mirroring(api, tmp_path, account) as mirror:
            assert not mirror.is_there
            await off(lambda: api.kubectl("apply", "-f", "-", input=f"{MACHINE}---\n{policy('a.example')}"))
            await until(lambda: domains(mirror) == ["a.example"] and len(read(mirror)) == 2, "both")
            assert isinstance(read(mirror)["ExternalWorkload vm"], ExternalWorkload)
            await off(lambda: api.kubectl("apply", "-f", "-", input=policy("b.example")))
            await until(lambda: domains(mirror) == ["b.example"], "the change")

            def is_accepted() -> bool:
                found = json.loads(api.kubectl("get", "clusteregress", "mirrored", "-o", "json"))
                return any(
                    each["type"] == "Accepted" for each in found.get("status", {}).get("conditions", ())
                )

            await until(is_accepted, "the condition Accepted, which a gateway writes, too")
            met: list[object] = []
            mirror.meet = met.append
            await off(lambda: api.kubectl("apply", "-f", "-", input=SLICE))
            await until(lambda: met[-1:] == [(ip_address("10.0.9.1"), ip_address("10.0.9.2"))], "peers")
            await off(lambda: api.kubectl("delete", "clusteregress,externalworkload", "--all"))
            await until(lambda: not mirror.is_there, "the end of all of them")

    trio.run(main)


@pytest.mark.usefixtures("ours")
def test_what_was_told_last_is_there_while_the_server_is_away(
    api: ApiServer, account: str, tmp_path: Path
) -> None:
    """A gateway that starts then begins with it."""
    api.kubectl("apply", "-f", "-", input=policy("kept.example"))

    async def main() -> None:
        async with mirroring(api, tmp_path, account) as mirror:
            assert domains(mirror) == ["kept.example"]
        nowhere = tmp_path / "kubeconfig"
        nowhere.write_text(nowhere.read_text().replace(api.url, "https://127.0.0.1:9"))
        later = Mirror(Kubernetes("gateway", nowhere, Asked(gateway=True, dns=())), tmp_path / "mirror")
        assert later.is_there
        assert domains(later) == ["kept.example"]
        with trio.move_on_after(0.5):
            await later.run()
        assert domains(later) == ["kept.example"]

    trio.run(main)


def test_the_account_of_a_gateway_may_do_what_it_does_and_no_more(api: ApiServer) -> None:
    found = objects(kustomized(api.programs / "kubectl", "gateway"))
    roles = [found[kind, ACCOUNT] for kind in ("ClusterRole", "Role")]
    assert granted(*roles) == {
        (right.group, right.resource, verb) for right in RIGHTS_OF_GATEWAY for verb in right.verbs
    }
    assert found["Role", ACCOUNT]["metadata"]["namespace"] == NAMESPACE

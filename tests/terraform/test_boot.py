"""A gateway boots with the document that Terraform renders: files, secrets, resolver, agent.

It is a namespace of the gateways' lab. The document's files lie at their own paths, in a mount namespace;
what its units start is started here, in their order.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cloud.clouds import Answer, Question, serving
from tests.gateway.gates import HEALTH, POLICIES, SKOUTER, Gate, configuration
from tests.gateway.lab import CLIENTS, DNS4, PUBLIC4, ZONE, GatewayLab
from tests.terraform.harness import ROOT, Terraform, programs

CALL = """
module "boot" {{
  source      = "{source}"
  clients     = {clients}
  policies    = "{policies}"
  secrets     = {{ peer_key = "projects/example/secrets/peer/versions/latest" }}
  peers       = ["{address}"]
  dns         = {{ upstreams = ["{dns}"] }}
  health_port = {port}
}}
output "document" {{
  value = module.boot.document
}}
"""
PLACES = ("/etc/skouter", "/run/skouter-cloud")
MOUNTED = " && ".join(f'mount --bind "$0{place}" {place}' for place in PLACES) + ' && exec "$@"'


def rendered(lab: GatewayLab, folder: Path) -> dict[str, Any]:
    """The document, with the lab's addresses, made by a module that calls boot."""
    policies = folder / "policies"
    policies.mkdir()
    (policies / "all.yaml").write_text(POLICIES)
    values = {
        "clients": json.dumps(list(CLIENTS)),
        "address": lab.gateways[0].inside4,
        "dns": DNS4,
        "port": HEALTH,
    }
    text = CALL.format(source=ROOT / "terraform" / "boot", policies=policies, **values)
    (folder / "main.tf").write_text(text)
    terraform = Terraform(programs()[0], {}, folder / "data")
    terraform.init(folder)
    done = terraform.run(folder, "apply", "-auto-approve", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(yaml.safe_load(terraform.run(folder, "output", "-raw", "document").stdout))


class Booted(Gate):
    """A gateway that sees the document's files at their own paths."""

    def __init__(self, lab: GatewayLab, document: dict[str, Any], root: Path) -> None:
        self.mounted = root
        for place in PLACES:
            (root / place.strip("/")).mkdir(parents=True)
        for file in document["write_files"]:  # as cloud-init does it
            path = root / file["path"].strip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file["content"])
        self.fetch_secrets()
        said = yaml.safe_load((root / "etc/skouter/gateway.yaml").read_text())
        super().__init__(lab.gateways[0], dict.fromkeys(configuration(lab.gateways[0])) | said)
        assert json.loads(self.config.read_text()) == said

    def within(self, words: list[str]) -> list[str]:
        return ["unshare", "--mount", "sh", "-c", MOUNTED, str(self.mounted), *words]

    def command(self, *words: object) -> list[str]:
        here, setting = self.gateway.here, f"SKOUTER_INSTANCE={self.gateway.instance}"
        return here.command(*self.within(["env", setting, str(SKOUTER), *map(str, words)]))

    def fetch_secrets(self) -> None:
        """What skouter-secrets.service starts, before a cloud that has one key."""
        key = base64.b64encode(secrets.token_bytes(32))

        def answers(question: Question) -> Answer | None:
            if question.path.endswith("/token"):
                return 200, '{"access_token": "token"}'
            return 200, json.dumps({"payload": {"data": base64.b64encode(key).decode()}})

        with serving(answers) as cloud:
            host = cloud.url.removeprefix("http://")
            env = {
                "PATH": "/usr/bin:/bin",
                "GCE_METADATA_HOST": host,
                "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"{cloud.url}/",
            }
            words = self.within([sys.executable, "-m", "gateway.cloud", "secrets"])
            done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (self.mounted / "run/skouter-cloud/peer.key").read_bytes() == key


@pytest.fixture(scope="module")
def booted(lab_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    with ExitStack() as undo:
        for place in map(Path, PLACES):
            if not place.exists():
                place.mkdir()
                undo.callback(place.rmdir)
        lab = undo.enter_context(GatewayLab(1, one_armed=True))
        document = rendered(lab, tmp_path_factory.mktemp("caller"))
        gate = Booted(lab, document, tmp_path_factory.mktemp("machine"))
        undo.callback(gate.close)
        gate.wait_until_ready()
        lab.trust(PUBLIC4)  # which the gateway answers for: what is asked elsewhere is captured
        lab.lead()
        yield gate


def test_it_is_ready(booted: Booted) -> None:
    assert booted.probe("/readyz")[0] == 200
    assert booted.probe("/livez")[0] == 200


def test_machines_reach_what_its_policies_say_and_no_more(booted: Booted) -> None:
    lab = booted.gateway.lab
    assert lab.inside("vm1", "connect(resolve('example.com', socket.AF_INET))") == "connected"
    assert lab.inside("vm1", f"connect({ZONE['example.org'][0]!r})") == "ECONNREFUSED"

"""The document that a gateway boots with: what cloud-init says of it, and whoever reads its files."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import settings
from gateway.cloud import settings as cloud_settings
from gateway.policies import documents
from tests.terraform.harness import ROOT, Terraform

# Resources and data sources whose values are secrets, which a state holds as they are.
HOLDERS = {
    *("aws_secretsmanager_secret_version", "aws_ssm_parameter", "aws_iam_access_key", "aws_key_pair"),
    *("google_secret_manager_secret_version", "google_secret_manager_secret_version_access"),
    *("google_service_account_key", "azurerm_key_vault_secret", "random_password", "tls_private_key"),
}
CALL = """
module "boot" {{
  source          = "{source}"
  clients         = ["10.20.0.0/16", "fd00:20::/64"]
  policies        = "{policies}"
  secrets = {{
    peer_key     = "projects/p/secrets/key/versions/latest"
    old_peer_key = "projects/p/secrets/old/versions/1"
  }}
  peers           = ["10.0.0.5", "10.0.1.5"]
  dns             = {{ upstreams = ["169.254.169.253"], zones = {{ "corp.example" = ["10.0.0.2"] }} }}
  own_resolvers   = ["169.254.169.253"]
  agent           = {{ url = "https://example.com/skouter.tar.gz", sha256 = "{sum}" }}
  routes_to_take_over = {{
    port     = 9808
    gateways = [
      {{ interface = "eni-1", address = "10.0.0.5", routeTables = ["rtb-1"], destinations = ["0.0.0.0/0"] }}
    ]
  }}
}}
output "document" {{
  value = module.boot.document
}}
"""


@pytest.fixture(scope="module")
def document(terraform: Terraform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The whole of it: rendered by a module that calls boot, applied for real, since it needs no provider."""
    folder = tmp_path_factory.mktemp("caller")
    source, policies = ROOT / "terraform" / "boot", ROOT / "deploy" / "examples"
    (folder / "main.tf").write_text(CALL.format(source=source, policies=policies, sum="0" * 64))
    terraform.init(folder)
    done = terraform.run(folder, "apply", "-auto-approve", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    text = terraform.run(folder, "output", "-raw", "document").stdout
    assert text.startswith("#cloud-config\n")
    return text


def files(document: str) -> dict[str, dict[str, Any]]:
    return {file["path"]: file for file in yaml.safe_load(document)["write_files"]}


def test_cloud_init_finds_nothing_wrong(document: str, tmp_path: Path) -> None:
    file = tmp_path / "user-data"
    file.write_text(document)
    words = ["cloud-init", "schema", "--config-file", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid" in done.stdout


def test_cloud_init_would_find_something_wrong(document: str, tmp_path: Path) -> None:
    file = tmp_path / "user-data"
    file.write_text(document.replace('"runcmd":', '"runcmd": once\n"other":', 1))
    words = ["cloud-init", "schema", "--config-file", str(file)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1


def test_the_gateway_reads_its_settings(document: str) -> None:
    text = files(document)["/etc/skouter/gateway.yaml"]["content"]
    read, problems = settings.read(text, "gateway.yaml", gateway=True)
    assert problems == []
    assert read is not None
    found = read.gateway
    assert found is not None
    assert [str(network) for network in found.clients] == ["10.20.0.0/16", "fd00:20::/64"]
    assert found.peers is not None
    assert found.peers.members == ("10.0.0.5", "10.0.1.5")
    assert found.peers.old_key == "/run/skouter-cloud/peer.old.key"
    assert [(zone, [str(ip) for ip, _ in servers]) for zone, servers in found.dns.zones] == [
        ("corp.example", ["10.0.0.2"])
    ]


def test_the_clouds_part_reads_its_settings(document: str, tmp_path: Path) -> None:
    file = tmp_path / "cloud.yaml"
    file.write_text(files(document)["/etc/skouter/cloud.yaml"]["content"])
    found = cloud_settings.read(file)
    assert found.secrets == {
        Path("/run/skouter-cloud/peer.key"): "projects/p/secrets/key/versions/latest",
        Path("/run/skouter-cloud/peer.old.key"): "projects/p/secrets/old/versions/1",
    }
    assert found.gateways[0].tables == ("rtb-1",)


def test_the_policies_are_those_of_the_folder(document: str) -> None:
    copied = {
        Path(path).name: file["content"]
        for path, file in files(document).items()
        if path.startswith("/etc/skouter/policies/")
    }
    assert copied == {path.name: path.read_text() for path in (ROOT / "deploy" / "examples").glob("*.yaml")}
    for name, text in copied.items():
        assert not documents.read(text, name)[1]


def test_its_units_are_those_that_are_installed(document: str) -> None:
    commands = yaml.safe_load(document)["runcmd"]
    enabled = next(words[3:] for words in commands if words[:3] == ["systemctl", "enable", "--now"])
    installed = {path.name for path in (ROOT / "deploy" / "systemd").glob("*.service")}
    assert enabled == [
        "skouter-secrets.service",
        "skouter-resolver.service",
        "skouter-gateway.service",
        "skouter-take-over.service",
    ]
    assert set(enabled) <= installed


def test_its_installer_refuses_another_archive(document: str, tmp_path: Path) -> None:
    """Run for real, with an apt-get, a curl and a make that do nothing but note that they ran."""
    script = tmp_path / "install-skouter"
    script.write_text(files(document)["/usr/local/sbin/install-skouter"]["content"])
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, does in {
        "apt-get": ":",
        "curl": 'echo other >"${9:-$8}"',
        "make": "touch ran",
        "mkdir": ":",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    words = ["sh", str(script), "https://example.com/x.tar.gz", "0" * 64]
    env = {"PATH": f"{tools}:/usr/bin:/bin"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert not (tmp_path / "ran").exists()
    assert "did NOT match" in done.stderr + done.stdout


@pytest.mark.parametrize("cloud", ["aws", "google", "azure"])
def test_no_secret_is_in_a_plan_or_state(terraform: Terraform, cloud: str) -> None:
    """What Terraform keeps names secrets: it reads none, makes none, and writes none into a document."""
    folder = ROOT / "terraform" / cloud
    terraform.init(folder)
    kept = [line for line in terraform.tested(folder) if line["type"] in ("test_plan", "test_state")]
    kinds = set(re.findall(r'"type": "(\w+)"', json.dumps(kept)))
    assert {kind for kind in kinds if kind.startswith(("aws_", "google_", "azurerm_"))}
    assert not kinds & HOLDERS
    booted = [text for text in _texts(kept) if text.startswith("#cloud-config")]
    assert any("/run/skouter-cloud/peer.key" in text for text in booted)
    for text in booted:
        assert not [path for path in files(text) if path.startswith("/run/")]


def _texts(value: Any) -> Iterator[str]:
    """Every text within; what is base64 of gzip is unpacked."""
    if isinstance(value, str):
        yield gzip.decompress(b64decode(value)).decode() if value.startswith("H4sI") else value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)

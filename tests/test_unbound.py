"""The resolver's configuration, as unbound itself reads it."""

import subprocess
from pathlib import Path

from gateway.settings import read
from gateway.unbound import configuration

TEXT = """
clients: [10.20.0.0/16, "fd00:20::/64"]
dns: {upstreams: [192.0.2.1, "[2001:db8::53]:5353"], port: 5300, zones: {corp.example: [10.0.0.2]}}
"""


def made(text: str, folder: Path) -> Path:
    settings, problems = read(text, "gateway.yaml", gateway=True)
    assert settings, problems
    assert settings.gateway
    file = folder / "unbound.conf"
    file.write_text(configuration(settings.gateway))
    checked = subprocess.run(["unbound-checkconf", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    return file


def option(file: Path, name: str) -> list[str]:
    asked = ["unbound-checkconf", "-o", name, file]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def test_unbound_reads_it_as_it_is_meant(tmp_path: Path) -> None:
    file = made(TEXT, tmp_path)
    assert option(file, "port") == ["5300"]
    assert option(file, "interface-automatic") == ["yes"]
    assert "10.20.0.0/16 allow" in option(file, "access-control")
    assert "fd00:20::/64 allow" in option(file, "access-control")
    text = file.read_text()
    assert "forward-addr: 192.0.2.1@53\n  forward-addr: 2001:db8::53@5353" in text
    assert 'name: "corp.example"\n  forward-addr: 10.0.0.2@53' in text


def test_without_upstreams_it_asks_from_the_root(tmp_path: Path) -> None:
    file = made("clients: [10.0.0.0/8]\n", tmp_path)
    assert "forward-zone" not in file.read_text()
    assert option(file, "port") == ["53"]

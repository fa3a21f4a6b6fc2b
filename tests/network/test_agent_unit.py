"""deploy/systemd: the unit is one that systemd takes, and the agent can do its work in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import settings
from gateway.plan import plan, select
from gateway.policies import documents
from tests.network.conftest import REFUSED4, ZONE
from tests.network.daemon import WEB, Host, document
from tests.network.test_agent import host
from tests.network.test_agent_lifelines import DNS

__all__ = ["host"]  # the fixture

DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = DEPLOY / "skouter.service"
CONFINED = Path(__file__).parent / "confined.py"
NET4 = ZONE["example.net"][0]


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, check=False)


def test_the_unit_and_the_drop_in_are_what_systemd_takes(tmp_path: Path) -> None:
    """In a root of their own, in which the programs that they start are to be found."""
    units = tmp_path / "etc/systemd/system"
    (units / "web.service.d").mkdir(parents=True)
    (units / "web.service").write_text("[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/true\n")
    shutil.copy(UNIT, units)
    shutil.copy(DEPLOY / "10-skouter.conf", units / "web.service.d")
    for program in ("opt/skouter/bin/skouter", "bin/kill", "bin/true"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / program)
    done = analyze(f"--root={tmp_path}", "verify", "--man=no", "skouter.service", "web.service")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (units / "skouter.service").write_text(UNIT.read_text().replace("WatchdogSec", "WatchDogSec"))
    assert "Unknown key" in analyze(f"--root={tmp_path}", "verify", "--man=no", "skouter.service").stderr


def test_the_unit_leaves_the_agent_little() -> None:
    done = analyze("security", "--offline=true", "--no-pager", "--threshold=40", UNIT)
    assert done.returncode == 0, done.stdout


def test_the_configuration_that_is_installed_fits_the_policy_that_is_installed() -> None:
    read, problems = settings.read((DEPLOY / "agent.yaml").read_text(), "agent.yaml")
    objects, wrong = documents.read((DEPLOY / "web.yaml").read_text(), "web.yaml")
    assert not problems
    assert not wrong
    assert read
    made = plan(select(objects, read), read, ["/", "/system.slice/nginx.service"])
    assert made.wanted["web"].cgroups == {"/system.slice/nginx.service"}
    assert not made.told


def test_the_comments_of_the_configuration_are_good_lines(tmp_path: Path) -> None:
    """Whoever takes the # away gets what it says."""
    text = re.sub(r"^#(?=  )", "", (DEPLOY / "agent.yaml").read_text(), flags=re.MULTILINE)
    text = re.sub(r"^# (?=(resolvers|exempt|floor|grace|cluster):)", "", text, flags=re.MULTILINE)
    read, problems = settings.read(text, "agent.yaml")
    assert not problems
    assert read
    assert [member.name for member in read.workloads] == ["web", "batch"]
    assert (read.cluster.cgroup_root, len(read.cluster.resolvers)) == ("/k8s", 1)
    assert (len(read.resolvers), read.exempt, read.floor, read.grace) == (2, ("chrony.service",), 60, 60)


def test_the_units_of_a_gateway_are_what_systemd_takes(tmp_path: Path) -> None:
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    names = ("skouter-gateway.service", "skouter-resolver.service", "skouter-route.service")
    for name in names:
        shutil.copy(DEPLOY / name, units)
    for name in ("sysinit", "basic", "shutdown", "network-online"):
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    for program in ("opt/skouter/bin/skouter", "bin/kill", "bin/sh", "usr/sbin/unbound"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / program)
    done = analyze(f"--root={tmp_path}", "verify", "--man=no", *names)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("unit", "exposure"),
    [("skouter-gateway.service", 45), ("skouter-resolver.service", 20), ("skouter-route.service", 25)],
)
def test_the_units_of_a_gateway_leave_little(unit: str, exposure: int) -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={exposure}", DEPLOY / unit)
    assert done.returncode == 0, done.stdout


def test_the_comments_of_a_gateway_s_configuration_are_good_lines() -> None:
    text = (DEPLOY / "gateway.yaml").read_text()
    least, problems = settings.read(text, "gateway.yaml", gateway=True)
    assert least, problems
    said = re.sub(r"^# (?=( |[a-z]+:))", "", text, flags=re.MULTILINE).replace("policies: /etc", "# /etc")
    read, problems = settings.read(said, "gateway.yaml", gateway=True)
    assert not problems
    assert read
    assert read.gateway
    assert (read.gateway.kubeconfig, read.gateway.health and read.gateway.health[1]) == (
        "/etc/skouter/kubeconfig",
        9808,
    )
    assert read.gateway.peers
    assert (len(read.gateway.peers.members), read.gateway.dns.zones[0][0]) == (2, "corp.example")


def test_the_agent_does_all_of_its_work_with_what_the_unit_leaves_it(host: Host) -> None:
    """Hold, end a withdrawn connection, find who listens, keep the last good set."""
    if not shutil.which("systemd-analyze"):
        pytest.fail("needs systemd: run 'make test'")
    host.write("web.yaml", document("web", "example.com", "example.net"))
    host.unit(DNS)
    made = [f"/run/{host.instance}", f"/var/lib/{host.instance}", "/var/cache/skouter", str(host.folder)]
    within = ("unshare", "--mount", sys.executable, CONFINED, UNIT, ",".join(made))
    with host.agent(within=within) as agent, host.program(WEB) as program:
        capabilities = (Path("/proc") / str(agent.pid) / "status").read_text()
        assert "NoNewPrivs:\t1" in capabilities
        assert "Seccomp:\t2" in capabilities
        assert program("keep('net', lambda: opened(resolve('example.net')))") == "kept"
        assert program(f"connect({REFUSED4!r})") == "EPERM"
        host.reload("web.yaml", document("web", "example.com"))
        host.wait_until_said(f"ended TCP to {NET4} port 80")
        assert program("page('net')") == "ECONNABORTED"
    host.write("web.yaml", "nonsense: [")
    with host.agent(within=within):
        assert "the last good set of files stays in force" in host.said()
        assert host.held() == {"web": [WEB]}
        assert not [
            line for line in host.said().splitlines() if "not permitted" in line or "Traceback" in line
        ]

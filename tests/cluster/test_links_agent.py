"""The links of pods as the agent follows them: real veths, agent, kernel and API server, small kubelet."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import kernel
from bpf.contract import contract
from bpf.datapath import Datapath
from routing import interfaces
from routing.namespaces import inside
from tests.cluster.apiserver import ApiServer
from tests.cluster.kubelet import NETWORK, Kubelet, Pod
from tests.cluster.objects import OURS, create, define, delete, egress, is_served, patch
from tests.network.conftest import ZONE
from tests.topology import DNS4, PATIENCE, TOOLS, Lab, Namespace, wait_for

ALLOWED, REFUSED = "example.com", "example.org"
PAGE = "tell(outcome(lambda: connect('{}')))"
KINDS = ("Egress", "ClusterEgress", "ExternalWorkload")
RAW = [{"name": "main", "image": "none"}]  # as a runtime gives it: with NET_RAW
EVERY = 3  # ETH_P_ALL: what leaves is seen by nobody else
INGRESS = kernel.TCX_INGRESS

# A frame as AF_PACKET sends it: a SYN to (MAC, address), from the pod's own or another MAC.
FRAME = """
def checksum(data):
    total = sum(struct.unpack(f"!{{len(data) // 2}}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
    s.bind(("eth0", 0))
    source = bytes.fromhex({mac!r}) or s.getsockname()[4]
    here, there = socket.inet_aton({here!r}), socket.inet_aton({there!r})
    tcp = struct.pack("!HHIIBBHHH", {port}, 80, 1, 0, 0x50, 2, 1000, 0, 0)
    pseudo = here + there + struct.pack("!BBH", 0, 6, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0, here, there)
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    s.send(bytes.fromhex({gateway!r}) + source + b"\\x08\\x00" + ip + tcp)
tell("sent")
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid():
        pytest.skip("needs root: namespaces, cgroups and BPF")
    if missing := [tool for tool in (*TOOLS, "nft", "tc", "dig") if not shutil.which(tool)]:
        pytest.skip(f"needs {', '.join(missing)}: run 'make deps'")
    with Lab() as built:
        built.world.ip(f"route add {NETWORK} via 192.0.2.1")
        built.dns.add((name, address, 60) for name, addresses in ZONE.items() for address in addresses)
        yield built


@pytest.fixture
def node(lab: Lab, api: ApiServer, tmp_path: Path) -> Iterator[Kubelet]:
    for kind in KINDS:
        if not is_served(api, kind):
            define(api, kind)
    made = Kubelet(lab, api, tmp_path)
    yield made
    say(made, "uninstall")  # from here its interfaces and rules are not seen
    made.close()


@pytest.fixture
def space(node: Kubelet) -> Iterator[str]:
    name = f"links-{os.getpid()}-{os.urandom(3).hex()}"
    create(node.api, "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    delete(node.api, f"{OURS}/namespaces/{name}/egresses")
    delete(node.api, f"/api/v1/namespaces/{name}/pods", gracePeriodSeconds=0)


def say(node: Kubelet, command: str) -> str:
    words = node.lab.skouter(command, instance=node.instance, machine=node.lab.node)
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


# ---- What the node knows ----------------------------------------------------------------------------------


def there(node: Kubelet, work: Callable[[], Any]) -> Any:
    """In the node's network."""
    with Path(f"/proc/{node.lab.node.holder.pid}/ns/net").open() as namespace:
        return inside(namespace.fileno(), work)


def link(pod: Pod) -> str:
    """The host's side."""
    assert pod.network is not None
    (found,) = pod.network.checked("ip", "-br", "link", "show", "eth0").split()[0].split("@")[1:]
    index = int(found.removeprefix("if"))
    return str(there(pod.kubelet, lambda: socket.if_indextoname(index)))


def judging(node: Kubelet, name: str) -> list[int]:
    """Ids of the programs on an interface of the node, towards it."""
    return list(there(node, lambda: kernel.attached(socket.if_nametoindex(name), INGRESS)))


def row(node: Kubelet, pod: Pod) -> Any:
    loaded = Datapath(node.place.pins)
    try:
        return loaded["workloads"].get(pod.cgroup.stat().st_ino)
    finally:
        loaded.close()


def is_linked(node: Kubelet, pod: Pod) -> bool:
    found = row(node, pod)
    return found is not None and bool(int(found.flags) & contract().constant("LINKED"))


def links(node: Kubelet) -> dict[int, int]:
    loaded = Datapath(node.place.pins)
    try:
        return {int(index): int(each.workload) for index, each in loaded["links"].items()}
    finally:
        loaded.close()


def line(node: Kubelet, title: str) -> dict[str, Any]:
    return next(one for one in node.status()["agent"]["pods"] if one["pod"] == f"pod {title}")


def until_linked(node: Kubelet, pod: Pod) -> None:
    wait_for(lambda: is_linked(node, pod), f"a link, after {node.said()}", 20)


def allow(node: Kubelet, space: str, name: str, *domains: str, **more: Any) -> None:
    spec = {"podSelector": {"matchLabels": {"app": name}}, "rules": [{"domains": [*domains]}], **more}
    create(node.api, f"{OURS}/namespaces/{space}/egresses", egress(name, spec=spec))


def relabel(node: Kubelet, data: Any, **labels: str) -> None:
    meta = data["metadata"]
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
    patch(node.api, path, {"metadata": {"labels": labels}})


def traces(where: Namespace) -> list[str]:
    """All that may be left on a node, as its own tools tell it."""
    asked = [["tc", "qdisc"], ["nft", "list", "ruleset"]]
    for family in ((), ("-6",)):
        asked += [["ip", *family, "rule"], ["ip", *family, "route", "show", "table", "21323"]]
    return [where.run(*words).stdout for words in asked]  # a table that is empty is an error


# ---- Raw frames -------------------------------------------------------------------------------------------


def arrives(node: Kubelet, pod: Pod, mac: str = "") -> bool:
    """Whether a SYN that the pod hands to its interface reaches the host outside."""
    assert pod.network is not None
    name = link(pod)
    far = there(node, lambda: next(one.mac for one in interfaces.interfaces() if one.name == name))
    here = pod.network.checked("ip", "-br", "-4", "addr", "show", "eth0").split()[2].split("/")[0]
    port = 20000 + os.getpid() % 1000 + int.from_bytes(os.urandom(2), "big") % 20000

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERY))
        made.bind(("world", EVERY))
        made.settimeout(1 * PATIENCE)
        return made

    with there(node, listen) as seen:
        code = FRAME.format(mac=mac, here=here, there=ZONE[REFUSED][0], port=port, gateway=far.hex())
        assert pod.do(code) == "sent"
        try:
            while True:
                packet = seen.recv(4096)
                if packet[20:22] == port.to_bytes(2, "big"):
                    return True
        except TimeoutError:
            return False


def test_a_pods_raw_frames_are_judged_as_soon_as_the_agent_holds_it(node: Kubelet, space: str) -> None:
    allow(node, space, "web", ALLOWED)
    pod = node.run(node.create("web", {"app": "web"}, space, containers=RAW))
    assert arrives(node, pod)
    with node.agent():
        until_linked(node, pod)
        assert not arrives(node, pod, "02aabbccddee")
        assert not arrives(node, pod)
        assert pod.do(PAGE.format(ALLOWED)) == "connected"
        assert pod.do(PAGE.format(REFUSED)) == "EPERM"
        found = line(node, f"{space}/web")
        assert (found["link"], found["link_why"], found["uncontained"]) == ("attached", "", "")
        assert "Uncontained" not in node.said()
        assert links(node) == {next(iter(links(node))): pod.cgroup.stat().st_ino}


def test_a_link_outlives_the_agent_and_is_adopted_without_a_gap(node: Kubelet, space: str) -> None:
    allow(node, space, "web", ALLOWED)
    pod = node.run(node.create("web", {"app": "web"}, space, containers=RAW))
    with node.agent() as first:
        until_linked(node, pod)
        before = judging(node, link(pod))
        assert len(before) == 1
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert judging(node, link(pod)) == before
        assert not arrives(node, pod, "02aabbccddee")
        assert is_linked(node, pod)
    with node.agent():
        assert is_linked(node, pod)
        wait_for(lambda: line(node, f"{space}/web")["link"] == "attached", "the adopted link")
        assert judging(node, link(pod)) == before
        assert pod.do(PAGE.format(ALLOWED)) == "connected"
    assert judging(node, link(pod)) == before


def test_a_pod_that_is_selected_no_more_has_its_link_to_itself(node: Kubelet, space: str) -> None:
    allow(node, space, "web", ALLOWED)
    data = node.create("web", {"app": "web"}, space, containers=RAW)
    pod = node.run(data)
    with node.agent():
        until_linked(node, pod)
        relabel(node, data, app="other")
        wait_for(lambda: judging(node, link(pod)) == [], "the end of the link")
        wait_for(lambda: links(node) == {}, "the end of its row")
        assert arrives(node, pod)
        assert pod.do(PAGE.format(REFUSED)) == "connected"
        relabel(node, data, app="web")
        until_linked(node, pod)
        patch(node.api, f"{OURS}/namespaces/{space}/egresses/web", {"spec": {"mode": "Audit"}})
        wait_for(lambda: judging(node, link(pod)) == [], "the end of the link under Audit")
        assert not is_linked(node, pod)
        assert line(node, f"{space}/web")["link_why"] == "its policy refuses nothing"


def test_a_veth_that_comes_after_the_first_process_is_judged(node: Kubelet, space: str) -> None:
    allow(node, space, "web", ALLOWED)
    with node.agent():
        pod = node.run(node.create("web", {"app": "web"}, space, containers=RAW))
        until_linked(node, pod)
        assert pod.network is not None
        pod.network.ip("link del eth0")
        wait_for(lambda: not is_linked(node, pod), "the end of the link")
        found = wait_for(lambda: line(node, f"{space}/web")["uncontained"], "what is told")
        assert found.startswith("it has NET_RAW, and its link is not judged (no interface leads out")
        name = f"late{os.getpid() % 10**6}"
        pod.network.ip(f"link add eth0 type veth peer name {name} netns {node.lab.node.holder.pid}")
        wait_for(lambda: len(judging(node, name)) == 1, "a program on the new link")
        until_linked(node, pod)


def test_who_came_before_us_is_told_and_the_links_promise_is_taken_back(node: Kubelet, space: str) -> None:
    allow(node, space, "web", ALLOWED)
    pod = node.run(node.create("web", {"app": "web"}, space, containers=RAW))
    foreign = kernel.load_program("first", b"\xb7" + bytes(7) + b"\x95" + bytes(7), 3, 0)
    with node.agent():
        until_linked(node, pod)
        name = link(pod)
        there(node, lambda: kernel.attach_to_link(foreign, socket.if_nametoindex(name), INGRESS))
        wait_for(lambda: not is_linked(node, pod), "the promise taken back", 20)
        found = line(node, f"{space}/web")
        assert found["link"] == "bypassed"
        assert found["link_why"].endswith(f"(first) sees the packets of {name} first")
        assert found["uncontained"].startswith("it has NET_RAW, and its link is bypassed (program ")
        wait_for(lambda: f"Uncontained: pod {space}/web" in node.said(), "the log")
        there(node, lambda: kernel.detach(foreign, socket.if_nametoindex(name), INGRESS))
        until_linked(node, pod)
        assert line(node, f"{space}/web")["uncontained"] == ""
    os.close(foreign)


@pytest.mark.parametrize("command", ["off", "uninstall"])
def test_nothing_is_left_on_links(node: Kubelet, space: str, command: str) -> None:
    allow(node, space, "web", ALLOWED)
    pod = node.run(node.create("web", {"app": "web"}, space, containers=RAW))
    before = traces(node.lab.node)
    with node.agent():
        until_linked(node, pod)
        wait_for(lambda: "skouter" in traces(node.lab.node)[1], "steering")
    assert f"link_ingress from {link(pod)}" in say(node, command)
    assert judging(node, link(pod)) == []
    assert traces(node.lab.node) == before
    assert arrives(node, pod)


# ---- DNS over TCP -----------------------------------------------------------------------------------------

SERVICE = "10.96.0.10"
KUBE_PROXY = f"""
table ip kube {{
  chain pods {{ type nat hook prerouting priority -100; ip daddr {SERVICE} dnat to {DNS4}; }}
  chain host {{ type nat hook output priority -100; ip daddr {SERVICE} dnat to {DNS4}; }}
}}
"""


@pytest.fixture
def service(node: Kubelet) -> Iterator[str]:
    """The cluster's DNS by its Service's address, as kube-proxy does it; no other is trusted."""
    node.config.write_text(f"cluster: {{resolvers: [{SERVICE}]}}")
    node.lab.node.checked("nft", "-f", "-", input=KUBE_PROXY)
    yield SERVICE
    node.lab.node.checked("nft", "delete", "table", "ip", "kube")


def dig(pod: Pod, *words: str) -> str:
    process = pod.start("dig", "+tries=1", "+time=3", *words, stdout=subprocess.PIPE)
    return str(process.communicate(timeout=30 * PATIENCE)[0])


def test_dns_over_tcp_goes_to_the_service_that_the_pod_asked_and_teaches(
    node: Kubelet, space: str, service: str
) -> None:
    allow(node, space, "web", ALLOWED)
    pod = node.run(node.create("web", {"app": "web"}, space, containers=RAW))
    address = ZONE[ALLOWED][0]
    with node.agent() as agent:
        until_linked(node, pod)
        assert pod.do(PAGE.format(address)) == "EPERM"
        answer = dig(pod, "+tcp", "+short", f"@{service}", ALLOWED)
        assert address in answer.split(), node.said()
        assert pod.do(PAGE.format(address)) == "connected"
        assert ZONE[REFUSED][0] in dig(pod, "+tcp", "+short", f"@{service}", REFUSED)
        assert pod.do(PAGE.format(ZONE[REFUSED][0])) == "EPERM"
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        began = time.monotonic()
        assert "connection refused" in dig(pod, "+tcp", f"@{service}", ALLOWED)
        assert time.monotonic() - began < 2 * PATIENCE
        assert address in dig(pod, "+short", f"@{service}", ALLOWED).split()
    with node.agent():
        wait_for(
            lambda: address in dig(pod, "+tcp", "+short", f"@{service}", ALLOWED), "DNS over TCP again", 10
        )


def test_dns_over_tcp_comes_through_a_bridge_that_has_netfilter_s_hooks(
    node: Kubelet, space: str, service: str
) -> None:
    """They take a packet's socket away (br_netfilter), on every node whose CNI has a bridge."""
    allow(node, space, "web", ALLOWED)
    pod = node.run(node.create("web", {"app": "web"}, space, containers=RAW))
    host, bridge = node.lab.node, "cni0"
    port, address = link(pod), ZONE[ALLOWED][0]
    ours = host.checked("ip", "-br", "-4", "addr", "show", port).split()[2]
    host.ip(f"addr flush dev {port}\nlink add {bridge} type bridge\nlink set {bridge} up")
    host.ip(f"link set {port} master {bridge}\naddr add {ours} dev {bridge}")
    if host.run("sysctl", "-w", "net.bridge.bridge-nf-call-iptables=1").returncode:
        pytest.skip("needs br_netfilter")
    try:
        with node.agent():
            until_linked(node, pod)
            assert address in dig(pod, "+tcp", "+short", f"@{service}", ALLOWED).split(), node.said()
            assert pod.do(PAGE.format(address)) == "connected"
            assert ZONE[REFUSED][0] in dig(pod, "+tcp", "+short", f"@{service}", REFUSED)
            assert pod.do(PAGE.format(ZONE[REFUSED][0])) == "EPERM"
            assert len(judging(node, bridge)) == 1
            delete(node.api, f"{OURS}/namespaces/{space}/egresses/web")
            wait_for(lambda: judging(node, bridge) == [] and links(node) == {}, "the end of the link")
    finally:
        host.ip(f"link del {bridge}")


def test_refused_questions_are_answered_at_once_over_both(node: Kubelet, space: str, service: str) -> None:
    allow(node, space, "web", ALLOWED, dns={"onlyAllowedNames": True})
    pod = node.run(node.create("web", {"app": "web"}, space, containers=RAW))
    with node.agent():
        until_linked(node, pod)
        for words in ((), ("+tcp",)):
            began = time.monotonic()
            assert "status: NXDOMAIN" in dig(pod, *words, f"@{service}", REFUSED), words
            assert time.monotonic() - began < 2 * PATIENCE
            assert "status: NOERROR" in dig(pod, *words, f"@{service}", ALLOWED), words

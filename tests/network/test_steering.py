"""Packets with our mark reach a transparent listener, also behind a NAT like kube-proxy's; no others do."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator

import pytest

from routing import netlink, steering
from routing.namespaces import inside
from routing.netlink import DEFAULTS, Route, Rule
from routing.steering import PRIORITY, TABLE, Change, Marks, Steering, difference, plan
from tests.topology import Namespace

IP_TRANSPARENT, IPV6_TRANSPARENT, SO_MARK = 19, 75, 36
MARKS, OTHERS = Marks(0x30, 0x10), Marks(0x3000, 0x2000)
BOTH = frozenset(DEFAULTS)
NAME = "skouter-lab-steering"
AUTOMATIC = re.compile(r"\b(fe80|ff00):")  # routes of addresses that the kernel gives itself, when it is done
SERVICE = {4: "10.96.0.10", 6: "fd96::10"}
BACKEND = {4: "10.9.0.1", 6: "fd09::1"}

# As K's link would: a mark before connections are tracked, and the listener; as kube-proxy would: DNAT.
CLUSTER = """
table inet others {
  chain first { type filter hook prerouting priority -310; tcp dport 53 meta mark set 0x10; }
  chain listener { type filter hook prerouting priority -150;
    meta l4proto tcp meta mark & 0x30 == 0x10 tproxy ip to 127.0.0.1:7053
    meta l4proto tcp meta mark & 0x30 == 0x10 tproxy ip6 to [::1]:7053
  }
  chain service { type nat hook prerouting priority -100;
    ip daddr 10.96.0.10 tcp dport 53 dnat to 10.9.0.1:5353
    ip6 daddr fd96::10 tcp dport 53 dnat to [fd09::1]:5353
  }
}
"""


# ---- Pure -------------------------------------------------------------------------------------------------


def test_what_is_there_needs_no_change() -> None:
    wanted = plan(MARKS, NAME, BOTH)
    assert not difference(wanted, wanted)
    assert len(wanted.rules) == len(wanted.routes) == 2


def test_routes_come_first_and_another_mark_is_another_rule() -> None:
    there, wanted = plan(OTHERS, NAME, BOTH), plan(MARKS, NAME, BOTH)
    change = difference(there, wanted)
    assert change.add_rules == tuple(sorted(wanted.rules))
    assert change.remove_rules == tuple(sorted(there.rules))
    assert (change.add_routes, change.remove_routes, change.write_table) == ((), (), True)
    assert difference(Steering(), wanted).add_routes == tuple(Route(family, TABLE) for family in sorted(BOTH))


def test_a_family_that_is_not_there_is_not_steered() -> None:
    (rule,) = plan(MARKS, NAME, frozenset({int(socket.AF_INET)})).rules
    assert rule == Rule(socket.AF_INET, PRIORITY, 0x10, 0x30, TABLE)


# ---- A real kernel ----------------------------------------------------------------------------------------


class Node:
    """A namespace with a pod behind it: 10.9.0.1 and .2, fd09::1 and ::2."""

    def __init__(self) -> None:
        self.host, self.pod = Namespace("host"), Namespace("pod")
        self.fd = os.open(f"/proc/{self.host.holder.pid}/ns/net", os.O_RDONLY)
        self.pod_fd = os.open(f"/proc/{self.pod.holder.pid}/ns/net", os.O_RDONLY)
        pid = self.host.holder.pid
        self.pod.ip(f"link set lo up\nlink add eth0 type veth peer name host0 netns {pid}\nlink set eth0 up")
        self.host.ip("link set lo up\nlink set host0 up")
        self.host.ip("addr add 10.9.0.1/24 dev host0\naddr add fd09::1/64 dev host0 nodad")
        self.pod.ip("addr add 10.9.0.2/24 dev eth0\naddr add fd09::2/64 dev eth0 nodad")
        self.pod.ip("route add default via 10.9.0.1\nroute add default via fd09::1")
        self.host.checked(
            "sysctl",
            "-qw",
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=1",
        )

    def apply(self, marks: Marks = MARKS) -> Change:
        return inside(self.fd, lambda: steering.apply(marks, NAME))

    def remove(self) -> list[str]:
        return inside(self.fd, lambda: steering.remove(NAME))

    def everything(self) -> list[str]:
        """Rules, routes of every table and nftables, as their own tools tell them."""
        asked = [
            ["ip", *family, *what]
            for family in ((), ("-6",))
            for what in (("rule",), ("route", "show", "table", "all"))
        ]
        told = [self.host.checked(*words) for words in (*asked, ["nft", "list", "ruleset"])]
        return [
            "".join(line for line in text.splitlines(True) if not AUTOMATIC.search(line)) for text in told
        ]

    def close(self) -> None:
        for fd in (self.fd, self.pod_fd):
            os.close(fd)
        for space in (self.pod, self.host):
            space.close()


@pytest.fixture
def node() -> Iterator[Node]:
    if os.geteuid():
        pytest.skip("needs root: namespaces")
    if not shutil.which("nft"):
        pytest.skip("needs nft: the package nftables")
    made = Node()
    yield made
    made.close()


def test_it_is_written_once_and_removed_without_a_trace(node: Node) -> None:
    before = node.everything()
    assert node.apply()
    assert not node.apply()
    assert node.everything() != before
    assert node.remove() == [
        f"rule of priority {PRIORITY}",
        f"table {TABLE}",
        f"table inet {NAME} of nftables",
    ]
    assert node.everything() == before
    assert node.remove() == []


def test_another_mark_takes_the_place_of_the_first(node: Node) -> None:
    node.apply()
    assert node.apply(OTHERS)
    rules = inside(node.fd, netlink.rules)
    assert {(rule.mark, rule.mask) for rule in rules} == {(0x2000, 0x3000)}
    assert "0x00000010" not in node.everything()[-1]


def test_what_others_have_stays(node: Node) -> None:
    node.host.ip(
        "rule add fwmark 0x10/0x30 table 77 priority 53\nrule add fwmark 0x7 table 21323 priority 60"
    )
    node.host.checked(
        "nft", "-f", "-", input="table inet skouter-else {\nchain c {\n}\n}\ntable ip nat {\n}\n"
    )
    before = node.everything()
    node.apply()
    node.apply(OTHERS)
    node.remove()
    assert node.everything() == before


def test_somebody_who_removes_a_part_is_put_right(node: Node) -> None:
    node.apply()
    whole = node.everything()
    node.host.ip(f"rule del priority {PRIORITY}")
    node.host.checked("nft", "flush", "chain", "inet", NAME, "output")
    change = node.apply()
    assert (len(change.add_rules), change.write_table) == (1, True)
    assert [text.replace(" ", "") for text in node.everything()] == [text.replace(" ", "") for text in whole]


def test_without_nft_it_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    before = inside(node.fd, netlink.rules)
    with pytest.raises(OSError, match="install the package nftables"):
        node.apply()
    assert inside(node.fd, netlink.rules) == before
    assert node.remove() == []


# ---- What it is for ---------------------------------------------------------------------------------------


def transparent(version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if version == 4:
        made.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    made.setsockopt(socket.SOL_SOCKET, SO_MARK, MARKS.answers)
    made.bind(("127.0.0.1" if version == 4 else "::1", 7053))
    made.listen()
    made.settimeout(3)
    return made


def led_to(node: Node, version: int) -> str:
    """Whom the listener is told that a client of the pod asked for; the client gets an answer."""

    def connect() -> socket.socket:
        return socket.create_connection((SERVICE[version], 53), 3)

    with inside(node.fd, lambda: transparent(version)) as listener, inside(node.pod_fd, connect) as client:
        served, _ = listener.accept()
        with served:
            served.sendall(b"read")
            assert client.recv(10) == b"read"
            return str(served.getsockname()[0])


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_to_a_service_reaches_the_listener_with_the_services_address(
    node: Node, version: int
) -> None:
    node.host.checked("nft", "-f", "-", input=CLUSTER)
    node.apply()
    assert led_to(node, version) == SERVICE[version]


@pytest.mark.parametrize("version", [4, 6])
def test_without_steering_it_does_not(node: Node, version: int) -> None:
    node.host.checked("nft", "-f", "-", input=CLUSTER)
    with pytest.raises(OSError, match=r"timed out|refused|reset|unreachable|No route"):
        led_to(node, version)


def test_another_instance_has_a_table_of_its_own(node: Node) -> None:
    node.apply()
    inside(node.fd, lambda: steering.apply(MARKS, f"{NAME}-2"))
    node.remove()
    assert f"table inet {NAME}-2" in node.everything()[-1]

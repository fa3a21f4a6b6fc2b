"""A router in front of three gateways: who goes to which, and what one gateway's end changes for the others.

  client              router                        g1, g2, g3
┌──────────────┐    ┌───────────────────────┐     ┌─────────────────────────┐
│ 10.9.0.2...  ├────┤ in0    gw1, gw2, gw3  ├─────┤ 10.1.N.2, fd01:N::2     │
│ fd09::2...   │    │        else0          │     │ 198.51.100.1 ...        │
└──────────────┘    └──────────┬────────────┘     │ (the world, seen by all)│
                               │                  └─────────────────────────┘
                       somewhere else: where the router's own default route leads
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from routing import hops, next_hops
from routing.namespaces import inside
from routing.next_hops import TABLE, Change, Spread, difference, plan
from tests.topology import PREFIX, SKOUTER, Namespace, end, wait_for

SOURCES = 40
WORLD = {4: "198.51.100.1", 6: "2001:db8:51::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}  # ip(7): also what may pass is told
CLIENTS = (ipaddress.ip_network("10.9.0.0/24"), ipaddress.ip_network("fd09::/64"))
GATEWAYS = tuple(
    ipaddress.ip_address(text) for number in (1, 2, 3) for text in (f"10.1.{number}.2", f"fd01:{number}::2")
)
PORT, HEALTH = 7777, 9808
SOFT = re.compile(r"\b(fe80|ff00):")
families = pytest.mark.parametrize("version", [4, 6])

SERVER = """
import sys, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(open(sys.argv[1]).read())); self.end_headers()
    def log_message(self, *_): pass
print("ready", flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", 9808), Handler).serve_forever()
"""


class Fork:
    """The lab: `sockets` of who could get a datagram, g1 to g3 and somebody else."""

    def __init__(self) -> None:
        names = ("client", "router", "g1", "g2", "g3", "else")
        self.spaces = {name: Namespace(name) for name in names}
        self.fds = {
            name: os.open(f"/proc/{space.holder.pid}/ns/net", os.O_RDONLY)
            for name, space in self.spaces.items()
        }
        self.router, client = self.spaces["router"], self.spaces["client"]
        pid = self.router.holder.pid
        for space in self.spaces.values():
            forwards = int(space is self.router)
            space.checked("sysctl", "-qw", f"net.ipv4.ip_forward={forwards}")
            space.checked("sysctl", "-qw", f"net.ipv6.conf.all.forwarding={forwards}")
            space.checked("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")  # nobody waits for a second
            space.ip("link set lo up")
        client.ip(f"link add eth0 type veth peer name in0 netns {pid}\nlink set eth0 up")
        self.router.ip("link set in0 up\naddr add 10.9.0.1/24 dev in0\naddr add fd09::1/64 dev in0 nodad")
        client.ip("".join(f"addr add 10.9.0.{i + 2}/24 dev eth0\n" for i in range(SOURCES)))
        client.ip("".join(f"addr add fd09::{i + 2:x}/64 dev eth0 nodad\n" for i in range(SOURCES)))
        client.ip("route add default via 10.9.0.1\nroute add default via fd09::1")
        for number, name in enumerate(("g1", "g2", "g3", "else"), 1):
            self._wire(name, number)
        self.router.ip("route add default via 10.1.4.2\nroute add default via fd01:4::2")
        self.sockets = {
            (name, version): inside(self.fds[name], lambda version=version: listening(version))
            for name in ("g1", "g2", "g3", "else")
            for version in (4, 6)
        }

    def _wire(self, name: str, number: int) -> None:
        space, port = self.spaces[name], "else0" if name == "else" else f"gw{number}"
        space.ip(f"link add eth0 type veth peer name {port} netns {self.router.holder.pid}\nlink set eth0 up")
        space.ip(f"addr add 10.1.{number}.2/24 dev eth0\naddr add fd01:{number}::2/64 dev eth0 nodad")
        space.ip(f"addr add {WORLD[4]}/32 dev lo\naddr add {WORLD[6]}/128 dev lo nodad")
        space.ip(f"route add default via 10.1.{number}.1\nroute add default via fd01:{number}::1")
        self.router.ip(f"link set {port} up\naddr add 10.1.{number}.1/24 dev {port}")
        self.router.ip(f"addr add fd01:{number}::1/64 dev {port} nodad")

    def wanted(self, **more: object) -> Spread:
        given = {"gateways": GATEWAYS, "clients": CLIENTS, "inside": frozenset({"in0"})}
        return Spread(**{**given, **more})  # type: ignore[arg-type]

    def apply(self, kept: Path, *dead: int, **more: object) -> list[str]:
        alive = frozenset(address for at, address in enumerate(GATEWAYS) if at // 2 + 1 not in dead)
        return inside(self.fds["router"], lambda: next_hops.apply(self.wanted(**more), alive, kept))

    def remove(self, kept: Path) -> list[str]:
        return inside(self.fds["router"], lambda: next_hops.remove(kept))

    # ---- Packets ------------------------------------------------------------------------------------------

    def send(self, version: int, source: str, to: str = "", port: int = 0) -> str | None:
        """From a source to the world: who gets it, or None; a refusal is raised."""
        ears = {ear: name for (name, of), ear in self.sockets.items() if of == version}
        with inside(self.fds["client"], lambda: socket.socket(FAMILY[version], socket.SOCK_DGRAM)) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(*RECVERR[version], 1)
            made.bind((source, port))
            made.connect((to or WORLD[version], PORT))
            made.send(source.encode())
            heard, _, _ = select.select([*ears, made], [], [], 2)
            if made in heard:
                made.recv(9)  # an ICMP error
            for ear in heard:
                assert ear.recv(99) == source.encode()
                return ears[ear]
        return None

    def spread(self, version: int) -> dict[str, str | None]:
        """Source to gateway."""
        return {source: self.send(version, source) for source in sources(version)}

    def everything(self) -> list[str]:
        asked = [
            ["ip", *family, *what]
            for family in ([], ["-6"])
            for what in (["rule"], ["route", "show", "table", "all"], ["nexthop"])
        ] + [["sysctl", "-a", "-r", "fib_multi|send_redir"]]
        found = [self.router.checked(*words) for words in asked]
        return ["\n".join(line for line in text.splitlines() if not SOFT.search(line)) for text in found]

    def close(self) -> None:
        for ear in self.sockets.values():
            ear.close()
        for fd in self.fds.values():
            os.close(fd)
        for space in self.spaces.values():
            space.close()


def listening(version: int) -> socket.socket:
    made = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    if version == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(("0.0.0.0" if version == 4 else "::", PORT))
    made.setblocking(False)
    return made


def sources(version: int) -> list[str]:
    return [f"10.9.0.{i + 2}" if version == 4 else f"fd09::{i + 2:x}" for i in range(SOURCES)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Fork]:
    if os.geteuid():
        pytest.skip("needs root: namespaces")
    made = Fork()
    yield made
    made.close()


@pytest.fixture
def kept(lab: Fork, tmp_path: Path) -> Iterator[Path]:
    """Where a router keeps what its settings were; it is undone in the end."""
    path = tmp_path / "route.json"
    yield path
    lab.remove(path)


# ---- Pure -------------------------------------------------------------------------------------------------

NEAR = {address: 2 + at // 2 for at, address in enumerate(GATEWAYS)}
SPREAD = Spread(GATEWAYS, CLIENTS, frozenset({"in0"}))


def test_what_is_there_needs_no_change() -> None:
    whole = plan(SPREAD, NEAR, frozenset(GATEWAYS))
    there = next_hops.Standing(whole.hops, whole.groups, whole.ways, whole.rules)
    assert difference(there, whole) == Change()


def test_a_dead_gateway_only_leaves_its_group() -> None:
    whole, less = (plan(SPREAD, NEAR, frozenset(alive)) for alive in (GATEWAYS, GATEWAYS[2:]))
    assert (whole.hops, whole.ways, whole.rules) == (less.hops, less.ways, less.rules)
    gone = {member for group in whole.groups for member in group.members}
    gone -= {member for group in less.groups for member in group.members}
    assert {hop.address for hop in whole.hops if hop.id in gone} == {"10.1.1.2", "fd01:1::2"}


def test_a_gateways_number_does_not_depend_on_the_others() -> None:
    def numbers(gateways: tuple[hops.Address, ...]) -> dict[str, int]:
        return {hop.address: hop.id for hop in plan(SPREAD, dict.fromkeys(gateways, 2), frozenset()).hops}

    whole = numbers(GATEWAYS)
    assert len(set(whole.values())) == len(GATEWAYS)
    assert numbers(GATEWAYS[3:]).items() <= whole.items()


def test_of_dead_gateways_all_are_taken_and_of_far_ones_none() -> None:
    whole = plan(SPREAD, NEAR, frozenset(GATEWAYS))
    assert plan(SPREAD, NEAR, frozenset()) == whole
    far = plan(SPREAD, {}, frozenset(GATEWAYS))
    assert not far.groups
    assert {way.kind for way in far.ways} == {hops.THROW, hops.UNREACHABLE}


# ---- Made and undone --------------------------------------------------------------------------------------


def test_it_is_written_once_and_removed_without_a_trace(lab: Fork, kept: Path) -> None:
    before = lab.everything()
    assert lab.apply(kept)
    whole = lab.everything()
    assert lab.apply(kept) == []
    assert lab.everything() == whole != before
    assert lab.remove(kept)
    assert lab.everything() == before
    assert lab.remove(kept) == []
    assert not kept.exists()


@pytest.mark.parametrize(
    "harm",
    [
        ["ip", "rule", "del", "priority", "57"],
        ["ip", "route", "del", "default", "metric", "1", "table", str(TABLE)],
        ["ip", "nexthop", "flush", "protocol", "213"],
        ["sysctl", "-w", "net.ipv4.fib_multipath_hash_policy=0"],
        ["ip", "link", "set", "gw2", "down"],
    ],
    ids=["rule", "routes", "hops", "setting", "link"],
)
def test_what_others_undo_is_mended(lab: Fork, kept: Path, harm: list[str]) -> None:
    lab.apply(kept)
    before = lab.everything()
    lab.router.checked(*harm)
    if harm[1] == "link":
        lab.apply(kept)  # the kernel has taken it out of its groups itself
        lab.router.ip("link set gw2 up\naddr replace fd01:2::1/64 dev gw2 nodad")
        wait_for(lambda: interface(lab, "gw2"), "the link")
    assert lab.apply(kept)
    assert [sorted(text.splitlines()) for text in lab.everything()] == [
        sorted(text.splitlines()) for text in before
    ]
    assert lab.apply(kept) == []


def interface(lab: Fork, name: str) -> bool:
    (about,) = json.loads(lab.router.checked("ip", "-j", "link", "show", name))
    return about["operstate"] == "UP"


def test_another_number_of_buckets_is_another_group(lab: Fork, kept: Path) -> None:
    lab.apply(kept)
    lab.apply(kept, buckets=64, idle=3)
    assert lab.apply(kept, buckets=64, idle=3) == []
    groups = lab.router.checked("ip", "nexthop", "show", "groups").splitlines()
    assert len(groups) == 2
    assert all("buckets 64 idle_timer 3 " in group for group in groups)
    assert set(lab.spread(4).values()) == {"g1", "g2", "g3"}


def test_other_next_hops_and_routes_stay(lab: Fork, kept: Path) -> None:
    lab.router.ip("nexthop add id 7 via 10.1.4.2 dev else0\nroute add 203.0.113.0/24 nhid 7")
    lab.router.ip("rule add from 10.9.0.0/24 priority 60 lookup 77")
    before = lab.everything()
    lab.apply(kept)
    lab.apply(kept, 1)
    lab.remove(kept)
    assert lab.everything() == before
    lab.router.ip("rule del priority 60\nroute del 203.0.113.0/24\nnexthop del id 7")


# ---- Who goes where ---------------------------------------------------------------------------------------


@families
def test_every_source_has_its_gateway(lab: Fork, kept: Path, version: int) -> None:
    lab.apply(kept)
    first = lab.spread(version)
    assert set(first.values()) == {"g1", "g2", "g3"}
    for source in sources(version)[:5]:
        assert {lab.send(version, source, port=port) for port in range(6000, 6010)} == {first[source]}


@families
def test_with_hashing_by_flow_a_source_has_them_all(lab: Fork, kept: Path, version: int) -> None:
    lab.apply(kept, by_flow=True)
    source = sources(version)[0]
    assert {lab.send(version, source, port=port) for port in range(6000, 6040)} == {"g1", "g2", "g3"}


@families
def test_only_who_loses_its_gateway_gets_another(lab: Fork, kept: Path, version: int) -> None:
    lab.apply(kept)
    first = lab.spread(version)
    assert lab.apply(kept, 2)
    lab.spread(version)  # in the very tick (jiffy) in which a bucket is given away its use is not seen
    without = lab.spread(version)
    assert set(without.values()) == {"g1", "g3"}
    assert {s: g for s, g in without.items() if first[s] != "g2"} == {
        s: g for s, g in first.items() if g != "g2"
    }
    lab.apply(kept)
    assert lab.spread(version) == without  # whoever sends goes on where it is


@families
def test_who_comes_back_gets_what_is_idle(lab: Fork, kept: Path, version: int) -> None:
    lab.apply(kept, 2, idle=1, buckets=3)  # so few that all are used
    lab.spread(version)
    lab.apply(kept, idle=1, buckets=3)
    address = str(GATEWAYS[2 if version == 4 else 3])
    (number,) = [hop.id for hop in plan(SPREAD, NEAR, frozenset()).hops if hop.address == address]
    wait_for(
        lambda: lab.router.checked("ip", "nexthop", "bucket", "list", "nhid", str(number)), "it has some"
    )
    assert "g2" in lab.spread(version).values()


@families
def test_gateways_themselves_are_reached_directly(lab: Fork, kept: Path, version: int) -> None:
    """They are also the clients' DNS servers."""
    lab.apply(kept)
    for number in (1, 2, 3):
        to = f"10.1.{number}.2" if version == 4 else f"fd01:{number}::2"
        assert {lab.send(version, source, to) for source in sources(version)[:8]} == {f"g{number}"}


@families
def test_there_is_no_way_around_dead_gateways(lab: Fork, kept: Path, version: int) -> None:
    lab.apply(kept, 1, 2, 3)
    assert set(lab.spread(version).values()) == {"g1", "g2", "g3"}  # who knows whether they are dead
    for name in ("gw1", "gw2", "gw3"):
        lab.router.ip(f"link set {name} down")
    try:
        for _ in range(2):  # at once, and when it is known
            with pytest.raises(OSError, match=r"No route to host|unreachable"):
                lab.send(version, sources(version)[0])
            lab.apply(kept)
    finally:
        for number in (1, 2, 3):
            lab.router.ip(f"link set gw{number} up\naddr replace fd01:{number}::1/64 dev gw{number} nodad")
            wait_for(lambda number=number: interface(lab, f"gw{number}"), "the link")
    lab.apply(kept)
    assert set(lab.spread(version).values()) == {"g1", "g2", "g3"}


@families
def test_who_is_no_client_goes_its_way(lab: Fork, kept: Path, version: int) -> None:
    lab.apply(kept, clients=(ipaddress.ip_network("10.9.0.0/28"), ipaddress.ip_network("fd09::/124")))
    assert lab.send(version, sources(version)[30]) == "else"
    assert lab.send(version, sources(version)[0]) in {"g1", "g2", "g3"}


# ---- The command ------------------------------------------------------------------------------------------


@pytest.fixture
def asked(lab: Fork, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Each gateway answers with the status in its file."""
    with ExitStack() as undo:
        files = {}
        for name in ("g1", "g2", "g3"):
            files[name] = tmp_path / name
            files[name].write_text("200")
            server = lab.spaces[name].start(sys.executable, "-c", SERVER, files[name], stdout=subprocess.PIPE)
            undo.callback(end, server)
            assert server.stdout.readline() == "ready\n"
        yield files


def test_the_command_follows_its_gateways(lab: Fork, asked: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "route.yaml"
    config.write_text(
        json.dumps(
            {
                "inside": ["in0"],
                "clients": [str(client) for client in CLIENTS],
                "gateways": [{"addresses": [f"10.1.{n}.2", f"fd01:{n}::2"]} for n in (1, 2, 3)],
            }
        )
    )
    instance = f"SKOUTER_INSTANCE={PREFIX}-{os.getpid()}-route"
    words = ["env", instance, SKOUTER, "route"]
    before = lab.everything()
    command = lab.router.start(*words, "--config", config, stderr=subprocess.PIPE)
    try:

        def used() -> set[str | None]:
            try:
                return set(lab.spread(4).values())
            except OSError:  # while a way changes
                return {None}

        wait_for(lambda: used() == {"g1", "g2", "g3"}, "all are used")
        asked["g2"].write_text("503")
        wait_for(lambda: used() == {"g1", "g3"}, "g2 drains")
        assert set(lab.spread(6).values()) == {"g1", "g3"}
        lab.router.ip("link set gw3 down")
        wait_for(lambda: used() == {"g1"}, "g3 has no link")
        lab.router.ip("link set gw3 up\naddr replace fd01:3::1/64 dev gw3 nodad")
        lab.router.checked("ip", "nexthop", "flush", "protocol", "213")
        wait_for(lambda: used() <= {"g1", "g3"}, "what somebody flushed is there again", 15)
        command.send_signal(signal.SIGTERM)
        assert command.wait(10) == 0
        assert used() <= {"g1", "g3"}
    finally:
        end(command)
    told = lab.router.checked(*words, "--undo")
    assert "removed rules of priority 57" in told
    assert [sorted(text.splitlines()) for text in lab.everything()] == [
        sorted(text.splitlines()) for text in before
    ]
    assert lab.router.checked(*words, "--undo") == "nothing was there\n"

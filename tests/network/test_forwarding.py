"""What a gateway forwards, and what never leaves it: real packets, by one NIC and by two."""

from __future__ import annotations

import ipaddress
import os
import re
import select
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from routing import forwarding, netlink, nft, steering
from routing.forwarding import PRIORITIES, Host, Standing, difference, plan
from routing.netlink import DEFAULTS, PROHIBIT
from tests.kernel.link_lab import summed
from tests.kernel.packets import ACK, ICMPV6, RST, TCP, UDP, icmp, ipv4, ipv6, tcp, udp
from tests.network.test_steering import transparent
from tests.network.yard import (
    ADMIT,
    CLIENT,
    CLIENTS,
    GATEWAY,
    MARKS,
    OUTSIDE,
    PACKET_OUTGOING,
    WORLD,
    Yard,
    destination,
    source,
)
from tests.topology import wait_for

NAME = "skouter-lab-forwarding"
HOST = Host(frozenset(DEFAULTS))
PORT = 7777
SOFT = re.compile(r"\b(packets|bytes) \d+|\b(fe80|ff00):")  # counted, or made by the kernel when it is done
IP_PKTINFO, IP_MTU, IPV6_MTU, IPV6_RECVPKTINFO = 8, 14, 24, 49
families = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module", params=[2, 1], ids=["two-arms", "one-arm"])
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    if os.geteuid():
        pytest.skip("needs root: namespaces")
    if not shutil.which("nft"):
        pytest.skip("needs nft: the package nftables")
    made = Yard(request.param, NAME, tmp_path_factory.mktemp("kept"))
    yield made
    made.close()


@pytest.fixture
def gateway(yard: Yard) -> Iterator[Yard]:
    """Its client is admitted."""
    yard.apply()
    yard.admit()
    yard.seen()
    yield yard
    yard.admit("")
    yard.gateway.checked("nft", "flush", "ruleset")
    yard.remove()


def packet(version: int, from_: str, to: str, protocol: int, payload: bytes) -> bytes:
    """With its checksum, if it is TCP or UDP."""
    make = ipv4 if version == 4 else ipv6
    at = {TCP: 16, UDP: 6, ICMPV6: 2}.get(protocol)
    made = make(from_, to, protocol, payload)
    return made if at is None else summed(made, at)


def everything(yard: Yard) -> list[str]:
    asked = [["ip", "rule"], ["ip", "-6", "rule"], ["nft", "list", "ruleset"], ["sysctl", "-a", "-r", "^net"]]
    found = [yard.gateway.checked(*words) for words in asked]
    moving = ("conntrack_count", "random", "stable_secret", "nr_", "fib_sync")
    return [
        "\n".join(
            SOFT.sub("", line) for line in text.splitlines() if not any(word in line for word in moving)
        )
        for text in found
    ]


# ---- Pure -------------------------------------------------------------------------------------------------


def wanted(**more: object) -> forwarding.Forwarding:
    given = {"inside": frozenset({"in0"}), "outside": frozenset({"out0"}), "clients": CLIENTS, "marks": MARKS}
    return forwarding.Forwarding(**{**given, **more})  # type: ignore[arg-type]


def test_what_is_there_needs_no_change() -> None:
    whole = plan(NAME, wanted(), HOST)
    there = Standing(whole.table, whole.rules, ())
    assert difference(there, whole) == forwarding.Change()


def test_every_client_is_refused_by_every_inside_interface_without_the_mark() -> None:
    rules = plan(NAME, wanted(inside=frozenset({"a", "b"})), HOST).rules
    refused = {(rule.source, rule.interface) for rule in rules if rule.action == PROHIBIT}
    assert refused == {(str(client), name) for client in CLIENTS for name in ("a", "b")}


def test_a_family_without_clients_or_without_addresses_is_left_alone() -> None:
    only4 = plan(NAME, wanted(clients=CLIENTS[:1]), HOST)
    assert {rule.family for rule in only4.rules} == {socket.AF_INET}
    assert not any(setting.path.startswith("ipv6") for setting in only4.settings)
    off6 = plan(NAME, wanted(), Host(frozenset({int(socket.AF_INET)})))
    assert {rule.family for rule in off6.rules} == {socket.AF_INET}


def test_forwarding_comes_last() -> None:
    paths = [setting.path for setting in plan(NAME, wanted(), HOST).settings]
    six = paths.index("ipv6/conf/all/forwarding")
    assert six == len(paths) - 1
    assert all("forwarding" not in path for path in paths[: paths.index("ipv4/conf/in0/forwarding")])


def test_a_network_within_another_is_no_element_of_its_own() -> None:
    small = ipaddress.ip_network("10.9.0.128/25")
    assert plan(NAME, wanted(clients=(*CLIENTS, small)), HOST) == plan(NAME, wanted(), HOST)


# ---- Made and undone --------------------------------------------------------------------------------------


def test_it_is_written_once_and_removed_without_a_trace(yard: Yard) -> None:
    yard.apply()
    yard.remove()  # what the kernel begins to have with the first use of conntrack
    before = everything(yard)
    assert yard.apply()
    whole = everything(yard)
    assert whole != before
    assert yard.apply() == []
    assert everything(yard) == whole
    assert yard.remove()
    assert everything(yard) == before
    assert yard.remove() == []
    assert not yard.kept.exists()


@pytest.mark.parametrize(
    "more",
    [
        {
            "clients": tuple(
                ipaddress.ip_network(f"10.9.{i}.{i}/{24 + i % 9}", strict=False) for i in range(20)
            )
        },
        {"snat": "none"},
        {"snat": (ipaddress.IPv4Address("192.0.2.7"), None)},
        {"capture": False},
        {"capture": False, "dns_port": 5353},
        {"dns_port": 5353},
        {"inside": frozenset({"in0", "a", "b"}), "clients": CLIENTS[1:]},
    ],
    ids=["networks", "no snat", "snat to", "no capture", "port", "captured to port", "interfaces"],
)
def test_other_wishes_take_its_place_and_are_known_again(gateway: Yard, more: dict[str, object]) -> None:
    more = {**more, "inside": frozenset({"in0"})} if "inside" in more else more
    assert gateway.apply(**more)
    assert gateway.apply(**more) == []


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (["nft", "flush", "ruleset"], "wrote table"),
        (["nft", "flush", "chain", "inet", f"{NAME}-gateway", "guard"], "wrote table"),
        (["nft", "insert rule inet", f"{NAME}-gateway", "judge accept"], "wrote table"),
        (["ip", "rule", "del", "priority", str(PRIORITIES[1])], "wrote rules"),
        (["ip", "-6", "rule", "add", "priority", str(PRIORITIES[0]), "goto", "56"], "wrote rules"),
        (["sysctl", "-w", "net.ipv4.conf.in0.forwarding=0"], "net.ipv4.conf.in0.forwarding=1"),
        (
            ["sysctl", "-w", "net.netfilter.nf_conntrack_tcp_loose=1"],
            "net.netfilter.nf_conntrack_tcp_loose=0",
        ),
    ],
)
def test_what_others_undo_is_mended(gateway: Yard, harm: list[str], told: str) -> None:
    before = everything(gateway)
    gateway.gateway.checked(*harm)
    assert any(line.startswith(told) for line in gateway.apply())
    gateway.admit()
    assert everything(gateway) == before
    assert gateway.apply() == []


def test_a_change_of_nftables_is_told_at_once(gateway: Yard) -> None:
    with gateway.in_("gateway", forwarding.changes) as news:
        assert not select.select([news], [], [], 0)[0]
        gateway.gateway.checked("nft", "flush", "ruleset")
        assert select.select([news], [], [], 3)[0]
        forwarding.drain(news)
        assert not select.select([news], [], [], 0)[0]
        assert gateway.apply()


def test_what_only_the_host_can_change_is_told_once(gateway: Yard) -> None:
    many = 2**31 - 4
    (told,) = [line for line in gateway.apply(conntrack=many, capture=False) if "nf_conntrack_max" in line]
    assert told.endswith(f", not {many}: only the host itself can change that")
    assert gateway.apply(conntrack=many, capture=False) == []


def test_what_somebody_set_since_is_not_set_back(gateway: Yard) -> None:
    gateway.gateway.checked("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_established=999")
    gateway.remove()
    told = gateway.gateway.checked("sysctl", "-n", "net.netfilter.nf_conntrack_tcp_timeout_established")
    assert told == "999\n"


def test_without_nft_nothing_is_done(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(yard)
    with monkeypatch.context() as nowhere:
        nowhere.setenv("PATH", "/nowhere")
        with pytest.raises(OSError, match="install the package nftables"):
            yard.apply()
    assert everything(yard) == before


def test_the_interface_of_the_default_route(yard: Yard) -> None:
    assert yard.in_("gateway", forwarding.default_interface) == yard.out
    with pytest.raises(OSError, match="no default route: name the interface"):
        yard.in_("lan", forwarding.default_interface)


def test_routes_that_routers_tell_stay(yard: Yard) -> None:
    path = f"net.ipv6.conf.{yard.out}.accept_ra"
    yard.gateway.checked("sysctl", "-qw", f"{path}=1")
    yard.apply()
    assert yard.gateway.checked("sysctl", "-n", path) == "2\n"
    yard.remove()
    assert yard.gateway.checked("sysctl", "-n", path) == "1\n"


def test_other_interfaces_check_sources_as_before(yard: Yard) -> None:
    yard.gateway.ip("link add other0 type veth peer name other1")
    try:
        yard.apply()
        path = "net.ipv4.conf.{}.rp_filter"
        asked = [path.format(name) for name in ("other0", "all", "in0")]
        assert yard.gateway.checked("sysctl", "-n", *asked) == "2\n0\n0\n"
        yard.remove()
        assert yard.gateway.checked("sysctl", "-n", asked[1]) == "2\n"
    finally:
        yard.gateway.ip("link del other0")


# ---- Admitted ---------------------------------------------------------------------------------------------


@families
def test_who_is_admitted_arrives_with_the_gateways_address(gateway: Yard, version: int) -> None:
    with connected(gateway, version) as (client, served):
        assert served.getpeername()[0] == OUTSIDE[version]
        served.sendall(b"hello")
        assert client.recv(9) == b"hello"
    assert echo(gateway, version) == OUTSIDE[version]
    assert not gateway.escaped()


@contextmanager
def connected(yard: Yard, version: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end of a connection, and the world's."""
    with (
        yard.listener("world", version, PORT) as server,
        yard.connect(WORLD[version], PORT) as client,
        server.accept()[0] as served,
    ):
        yield client, served


def echo(yard: Yard, version: int, port: int = PORT) -> str:
    """Whom the world sees in a client's datagram; the answer reaches the client."""
    with yard.udp("world", version, port) as server, yard.udp("client", version) as client:
        client.sendto(b"question", (WORLD[version], port))
        _, peer = server.recvfrom(99)
        server.sendto(b"answer", peer)
        assert client.recv(99) == b"answer"
        return str(peer[0])


@families
def test_with_an_address_for_one_family_the_other_is_not_translated(gateway: Yard, version: int) -> None:
    gateway.gateway.ip(f"addr replace 192.0.2.7/24 dev {gateway.out}")
    gateway.world.ip("route replace fd09::/64 via 2001:db8:2::1")
    gateway.apply(snat=(ipaddress.IPv4Address("192.0.2.7"), None))
    assert echo(gateway, version) == {4: "192.0.2.7", 6: CLIENT[6]}[version]
    gateway.world.ip("route del fd09::/64 via 2001:db8:2::1")


@families
def test_connections_go_on_while_the_table_is_written_again(gateway: Yard, version: int) -> None:
    with gateway.udp("world", version, PORT) as server, gateway.udp("client", version) as client:
        for turn in range(10):
            client.sendto(b"before", (WORLD[version], PORT))
            peer = server.recvfrom(99)[1]
            assert gateway.apply(capture=bool(turn % 2))
            client.sendto(b"after", (WORLD[version], PORT))
            assert server.recvfrom(99)[1] == peer
            server.sendto(b"answer", peer)
            assert client.recv(99) == b"answer"
    assert not gateway.escaped()


@families
def test_the_segments_of_a_connection_fit_the_smallest_link(gateway: Yard, version: int) -> None:
    header = {4: 40, 6: 60}[version]
    gateway.gateway.ip(f"link set {gateway.out} mtu 1400")
    try:
        with connected(gateway, version) as both:
            sizes = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for one in both]
    finally:
        gateway.gateway.ip(f"link set {gateway.out} mtu 1500")
    assert all(1200 < size <= 1400 - header for size in sizes)


ROUTER = {4: "10.8.0.9", 6: "fd08::9"}
CLIENTS_ROUTER = {4: "10.9.0.9", 6: "fd09::9"}


def too_big(version: int, from_: str, to: str, quoted: bytes, mtu: int) -> bytes:
    """RFC 792 and 1191; RFC 4443."""
    if version == 4:
        made = bytearray(icmp(3, 4, payload=quoted))
        made[4:8] = b"\0\0" + mtu.to_bytes(2)
        made[2:4] = b"\0\0"
        words = sum(int.from_bytes(made[at : at + 2]) for at in range(0, len(made), 2))
        while words >> 16:
            words = (words & 0xFFFF) + (words >> 16)
        made[2:4] = (~words & 0xFFFF).to_bytes(2)
        return packet(4, from_, to, 1, bytes(made))
    return packet(6, from_, to, ICMPV6, b"\2\0\0\0" + mtu.to_bytes(4) + quoted)


@families
def test_what_a_router_outside_tells_of_a_packets_size_reaches_the_client(
    gateway: Yard, version: int
) -> None:
    level, option = {4: (socket.IPPROTO_IP, IP_MTU), 6: (socket.IPPROTO_IPV6, IPV6_MTU)}[version]
    with gateway.udp("world", version, PORT) as server, gateway.udp("client", version) as client:
        client.connect((WORLD[version], PORT))
        client.send(bytes(64))
        server.recvfrom(99)
        (outside,) = [one for one in gateway.seen() if one.endswith(bytes(64))]
        gateway.send_raw("world", too_big(version, WORLD[version], OUTSIDE[version], outside[:100], 1320))
        wait_for(lambda: client.getsockopt(level, option) == 1320, "the client knows the size")


@families
@pytest.mark.parametrize("router", [ROUTER, CLIENTS_ROUTER], ids=["of its own", "a client's"])
def test_what_a_router_inside_tells_of_a_packets_size_reaches_the_server(
    gateway: Yard, version: int, router: dict[int, str]
) -> None:
    """By whichever address, no program marks it."""
    address = router[version]
    length = {4: 32, 6: 128}[version]
    gateway.client.ip(f"addr add {address}/{length} dev eth0")
    gateway.gateway.ip(f"route add {address} via {CLIENT[version]}")
    answer = packet(version, WORLD[version], CLIENT[version], UDP, udp(6000, PORT, bytes(64)))
    try:
        with gateway.udp("world", version, PORT) as server, gateway.udp("client", version, 6000) as client:
            client.sendto(b"question", (WORLD[version], PORT))
            server.recvfrom(99)
            gateway.admit("")
            gateway.seen()
            gateway.send_raw("client", too_big(version, address, WORLD[version], answer[:100], 1320))
            (told,) = [one for one in gateway.seen() if (1320).to_bytes(2) in one]
        assert str(source(told)) == OUTSIDE[version]
        gateway.send_raw("client", packet(version, address, WORLD[version], UDP, udp(9, 9, b"anything else")))
        assert not any(is_transport(one) for one in gateway.seen())
    finally:
        gateway.gateway.ip(f"route del {address}")
        gateway.client.ip(f"addr del {address}/{length} dev eth0")


# ---- Refused ----------------------------------------------------------------------------------------------


@families
def test_who_is_not_admitted_is_told_at_once(gateway: Yard, version: int) -> None:
    gateway.admit("")
    assert_refused(gateway, version, ConnectionRefusedError)


def assert_refused(yard: Yard, version: int, by_tcp: type[OSError] = OSError) -> None:
    """TCP and UDP at once, and nothing of it reaches the world."""
    begun = time.monotonic()
    with yard.listener("world", version, PORT), pytest.raises(by_tcp) as told:
        yard.connect(WORLD[version], PORT).close()
    assert not isinstance(told.value, TimeoutError)
    with yard.udp("client", version) as client:
        client.connect((WORLD[version], PORT))
        client.send(b"question")
        with pytest.raises(OSError, match=r"No route to host|Permission denied|refused") as told:
            client.recv(9)
    assert time.monotonic() - begun < 2
    assert not [one for one in yard.seen() if str(destination(one)) == WORLD[version] and is_transport(one)]


def is_transport(one: bytes) -> bool:
    return (one[9] if one[0] >> 4 == 4 else one[6]) in (TCP, UDP)


@families
def test_without_nftables_nothing_is_forwarded(gateway: Yard, version: int) -> None:
    """`systemctl restart nftables`, while the program goes on admitting."""
    gateway.gateway.checked("nft", "delete", "table", "inet", f"{NAME}-gateway")
    assert_refused(gateway, version)
    assert gateway.in_("gateway", lambda: nft.read("program"))


@families
def test_without_the_rules_nftables_alone_refuses(gateway: Yard, version: int) -> None:
    for family in ((), ("-6",)):
        for priority in PRIORITIES:
            gateway.gateway.run("ip", *family, "rule", "flush", "priority", str(priority))
            while not gateway.gateway.run("ip", *family, "rule", "del", "priority", str(priority)).returncode:
                pass
    assert not gateway.in_("gateway", lambda: netlink.rules_of(PRIORITIES))
    gateway.admit("")
    assert_refused(gateway, version, ConnectionRefusedError)
    gateway.admit()
    assert echo(gateway, version) == OUTSIDE[version]


@families
def test_this_host_itself_is_reached_without_any_mark(gateway: Yard, version: int) -> None:
    gateway.admit("")
    gateway.gateway.checked("nft", "delete", "table", "inet", f"{NAME}-gateway")
    with gateway.listener("gateway", version, PORT):
        gateway.connect(GATEWAY[version], PORT).close()


@families
@pytest.mark.parametrize("flags", [ACK, 0x18, 0x12], ids=["ACK", "PSH-ACK", "SYN-ACK"])
def test_a_segment_of_a_connection_that_nobody_knows_is_answered_with_rst(
    gateway: Yard, version: int, flags: int
) -> None:
    with gateway.in_(
        "client", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    ) as ear:
        lost = packet(version, CLIENT[version], WORLD[version], TCP, tcp(443, flags=flags, payload=b"data"))
        gateway.send_raw("client", lost)
        ear.settimeout(3)
        while True:
            answer = ear.recv(999)
            if answer[0] >> 4 == version and str(source(answer)) == WORLD[version]:
                break
    head = answer[20:] if version == 4 else answer[40:]
    assert head[13] & RST
    assert not any(b"data" in one for one in gateway.seen())


@contextmanager
def moved(yard: Yard, version: int, **more: object) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection through a router without NAT, which this gateway follows."""
    way = {4: "10.9.0.0/24 via 192.0.2.1", 6: "fd09::/64 via 2001:db8:2::1"}[version]
    yard.world.ip(f"route add {way}")
    yard.gateway.checked("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    try:
        with connected(yard, version) as (client, served):
            assert served.getpeername()[0] == CLIENT[version]
            yard.apply(**more)
            yard.admit()
            yard.seen()
            yield client, served
    finally:
        yard.world.ip(f"route del {way}")
        yard.gateway.checked("nft", "flush", "ruleset")
        yard.remove()
        yard.gateway.checked("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")


@families
def test_connections_of_a_gateway_that_died_end_at_once(yard: Yard, version: int) -> None:
    with moved(yard, version) as (client, _):
        client.sendall(b"in mid-stream")
        begun = time.monotonic()
        with pytest.raises(ConnectionResetError):
            client.recv(9)
        assert time.monotonic() - begun < 1
        assert not any(b"in mid-stream" in one for one in yard.seen())


@families
@pytest.mark.parametrize("first", [0, 1], ids=["the client", "the world"])
def test_where_nothing_is_translated_they_go_on_whoever_speaks_first(
    yard: Yard, version: int, first: int
) -> None:
    with moved(yard, version, snat="none") as ends:
        for one, other in (ends[first], ends[1 - first]), (ends[1 - first], ends[first]):
            one.sendall(b"in mid-stream")
            other.settimeout(3)
            assert other.recv(99) == b"in mid-stream"


@families
def test_but_nobody_outside_begins_any(yard: Yard, version: int) -> None:
    with (
        moved(yard, version, snat="none"),
        yard.listener("client", version, PORT),
        pytest.raises(TimeoutError),
    ):
        yard.in_("world", lambda: socket.create_connection((CLIENT[version], PORT), 0.5))


# ---- Attacks ----------------------------------------------------------------------------------------------


@families
def test_what_conntrack_does_not_translate_does_not_leave(gateway: Yard, version: int) -> None:
    """Somebody's `notrack`, and a mark all the same."""
    gateway.admit(f"{ADMIT} udp dport {PORT} notrack;")
    with gateway.udp("client", version) as client:
        client.sendto(b"untracked", (WORLD[version], PORT))
        client.sendto(b"tracked", (WORLD[version], PORT + 1))
    seen = gateway.seen()
    assert not any(one.endswith(b"untracked") for one in seen)
    assert [str(source(one)) for one in seen if one.endswith(b"tracked")] == [OUTSIDE[version]]
    assert re.search(r"counter packets 1 .*drop", gateway.gateway.checked("nft", "list", "ruleset"))


@families
def test_a_clients_address_from_outside_is_not_forwarded(gateway: Yard, version: int) -> None:
    if gateway.arms == 1:
        pytest.skip("there is no outside interface: who is on the client's LAN is judged as the client")
    gateway.admit("meta mark set 0x30;")
    forged = packet(version, CLIENT[version], CLIENT[version][:-1] + "3", UDP, udp(PORT, 9, b"forged"))
    beyond = packet(
        version, CLIENT[version], {4: "198.51.100.1", 6: "2001:db8:51::1"}[version], UDP, udp(9, 9, b"f")
    )
    with listening(gateway, "client") as ear:
        for one in (forged, beyond):
            gateway.send_raw("world", one)
        gateway.seen()
        assert not [one for one in heard(gateway, ear) if b"forged" in one]
    assert not [one for one in gateway.seen() if one.endswith(b"f")]


def listening(yard: Yard, where: str) -> socket.socket:
    return yard.in_(where, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)))


def heard(yard: Yard, ear: socket.socket) -> list[bytes]:
    """All that came to a client until a datagram that the gateway sends now."""
    with yard.udp("gateway", 4) as bell:
        bell.sendto(b"the end", (CLIENT[4], 9))
    found = []
    ear.settimeout(5)
    while True:
        one, about = ear.recvfrom(1 << 16)
        if about[2] == PACKET_OUTGOING or one[0] >> 4 not in (4, 6):
            continue
        if one.endswith(b"the end"):
            return found
        found.append(one)


@families
def test_another_source_is_not_forwarded_whatever_its_mark(gateway: Yard, version: int) -> None:
    others = {
        4: ["10.77.0.1", "0.0.0.0", "127.0.0.1", "192.0.2.2"],
        6: ["fd77::1", "::", "::1", "2001:db8:2::2"],
    }
    gateway.admit("meta mark set 0x30;")
    for other in others[version]:
        with suppress(OSError):  # what the client's own kernel does not even send
            gateway.send_raw("client", packet(version, other, WORLD[version], UDP, udp(PORT, 9, b"other")))
    assert not any(one.endswith(b"other") for one in gateway.seen())


@families
def test_a_client_behind_another_interface_is_not_believed(gateway: Yard, version: int) -> None:
    if gateway.arms == 1:
        pytest.skip("all clients are behind one interface")
    other, network = {4: ("10.9.8.8", "10.9.8.0/24"), 6: ("fd09:0:0:8::8", "fd09:0:0:8::/64")}[version]
    gateway.gateway.ip(f"link add in1 type veth peer name in2\nlink set in1 up\nroute add {network} dev in1")
    try:
        both = {"inside": frozenset({"in0", "in1"}), "clients": (*CLIENTS, ipaddress.ip_network(network))}
        gateway.apply(**both)
        gateway.admit('iifname "in0" meta mark set 0x30;')
        forged = packet(version, other, WORLD[version], UDP, udp(PORT, 9, b"another client's"))
        gateway.send_raw("client", forged)
        assert not any(one.endswith(b"another client's") for one in gateway.seen())
        assert echo(gateway, version) == OUTSIDE[version]
    finally:
        gateway.apply()
        gateway.gateway.ip("link del in1")


@families
def test_who_connects_from_outside_reaches_no_client(gateway: Yard, version: int) -> None:
    gateway.world.ip(f"route add {CLIENT[version]} via {OUTSIDE[version]}")
    try:
        with gateway.listener("client", version, PORT), pytest.raises(TimeoutError):
            gateway.in_("world", lambda: socket.create_connection((CLIENT[version], PORT), 0.5))
    finally:
        gateway.world.ip(f"route del {CLIENT[version]}")


@families
def test_no_client_is_told_of_a_way_around_the_gateway(gateway: Yard, version: int) -> None:
    with listening(gateway, "client") as ear:
        echo(gateway, version)
        echo(gateway, version)
        redirects = [
            one
            for one in heard(gateway, ear)
            if (one[0] >> 4 == 4 and one[9] == 1 and one[20] == 5)
            or (one[0] >> 4 == 6 and one[6] == ICMPV6 and one[40] == 137)
        ]
    assert not redirects


# ---- DNS --------------------------------------------------------------------------------------------------

FAR = {4: "8.8.8.8", 6: "2001:4860:4860::8888"}


@families
@pytest.mark.parametrize("port", [53, 5353])
@pytest.mark.parametrize("server", [FAR, GATEWAY], ids=["elsewhere", "here"])
def test_every_question_reaches_the_resolver_of_this_host(
    gateway: Yard, version: int, port: int, server: dict[int, str]
) -> None:
    gateway.apply(dns_port=port)
    with gateway.udp("gateway", version, port) as resolver, gateway.udp("client", version) as client:
        client.connect((server[version], 53))
        level, option = {4: (socket.IPPROTO_IP, IP_PKTINFO), 6: (socket.IPPROTO_IPV6, IPV6_RECVPKTINFO)}[
            version
        ]
        resolver.setsockopt(level, option, 1)  # it answers from the address that was asked
        client.send(b"question")
        question, asked, _, peer = resolver.recvmsg(99, 99)
        assert (question, peer[0]) == (b"question", CLIENT[version])
        resolver.sendmsg([b"answer"], asked, 0, peer)
        assert client.recv(99) == b"answer"
    assert not any(one.endswith(b"question") for one in gateway.seen())


@families
def test_without_capture_a_question_takes_its_way(gateway: Yard, version: int) -> None:
    gateway.apply(capture=False)
    assert echo(gateway, version, 53) == OUTSIDE[version]


@families
@pytest.mark.parametrize("port", [53, 5353])
def test_this_is_no_open_resolver(gateway: Yard, version: int, port: int) -> None:
    gateway.apply(dns_port=port)
    here = gateway.udp("gateway", version, port)
    with here, gateway.listener("gateway", version, port), gateway.udp("world", version) as stranger:
        stranger.sendto(b"from outside", (OUTSIDE[version], port))
        stranger.sendto(b"from outside", (OUTSIDE[version], 53))
        with pytest.raises(TimeoutError):
            gateway.in_("world", lambda: socket.create_connection((OUTSIDE[version], port), 0.3))
        here.settimeout(0.1)
        with pytest.raises(TimeoutError):
            here.recv(9)
        with gateway.udp("gateway", version) as itself:
            itself.sendto(b"itself", (GATEWAY[version], port))
            assert here.recv(9) == b"itself"
        gateway.connect(GATEWAY[version], port).close()


LISTENER = """
table inet listener { chain led { type filter hook prerouting priority -150;
  meta l4proto tcp meta mark & 0x30 == 0x10 tproxy ip to 127.0.0.1:7053
  meta l4proto tcp meta mark & 0x30 == 0x10 tproxy ip6 to [::1]:7053
}
}
"""


@families
def test_what_the_program_leads_to_a_listener_arrives_there(gateway: Yard, version: int) -> None:
    """DNS over TCP: routing/steering.py, and a table that plays bpf_sk_assign."""
    gateway.admit(f"{ADMIT} tcp dport 53 meta mark set 0x10;")
    gateway.gateway.checked("nft", "-f", "-", input=LISTENER)
    gateway.in_("gateway", lambda: steering.apply(MARKS, NAME))
    try:
        with (
            gateway.in_("gateway", lambda: transparent(version)) as listener,
            gateway.connect(FAR[version], 53) as client,
            listener.accept()[0] as served,
        ):
            assert served.getsockname()[0] == FAR[version]
            served.sendall(b"read")
            assert client.recv(9) == b"read"
    finally:
        gateway.in_("gateway", lambda: steering.remove(NAME))
    with pytest.raises(OSError, match=r"refused|No route|Permission denied"):
        gateway.connect(FAR[version], 53)  # nothing leads it there any more, and out it does not go
    assert not any(str(destination(one)) == FAR[version] for one in gateway.seen())


@families
def test_break_glass_opens_until_it_is_applied_again(gateway: Yard, version: int) -> None:
    gateway.admit("")
    assert gateway.in_("gateway", lambda: forwarding.open_to_all(NAME, gateway.kept))
    assert echo(gateway, version) == OUTSIDE[version]
    assert gateway.apply()
    gateway.seen()
    assert_refused(gateway, version, ConnectionRefusedError)

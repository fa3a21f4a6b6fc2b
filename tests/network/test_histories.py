"""Random histories of policies, answers, flows, expiry, restarts and upgrades, against a naive model.

Real sockets of a workload send to a world that echoes; a policy is changed in place meanwhile. The model
knows no generation, no slot, no bit and no table: only who was granted what, and by whom a flow may have been
admitted.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from dnslib import QTYPE, RR, A, DNSRecord
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule

from bpf.events import pack_address
from gateway import place, resolvers
from gateway.engine import Engine
from gateway.numbers import Options
from gateway.policies import names, patterns, policy
from gateway.policies.policy import Peer, PortRange
from gateway.policies.records import Block
from tests.kernel.bench import Namespace, inside
from tests.topology import PREFIX, remove_instance, sweep
from tests.variants import environment, variant

RESOLVER, PORTS = "192.0.2.53", (7, 9)
HOSTS = {"a.h.test": ("198.51.100.1", "198.51.100.2"), "b.h.test": ("198.51.100.2", "198.51.100.3")}
OTHERS = ("198.51.100.4",)
ADDRESSES = tuple(sorted({address for found in HOSTS.values() for address in found} | set(OTHERS)))
PEERS: dict[str, Peer] = {
    "a.h.test": Peer(names.parse("a.h.test")),
    "b.h.test": Peer(names.parse("b.h.test")),
    "*.h.test": Peer(names.parse("*.h.test")),
    "/[ab]\\.h\\.test/": Peer(patterns.parse(r"[ab]\.h\.test")),
    "198.51.100.2/31": Peer(Block(ipaddress.ip_network("198.51.100.2/31"))),
    "198.51.100.4": Peer(Block(ipaddress.ip_network("198.51.100.4"))),
}
RESTART = """
import sys
from gateway import place
from gateway.engine import Engine
Engine(place.find(sys.argv[1])).close()
"""


def covers(peer: str, name: str) -> bool:
    if peer.startswith("/"):
        return bool(re.fullmatch(peer.strip("/"), name))
    return name == peer or (peer.startswith("*") and name.endswith(peer[1:]))


def holds(peer: str, address: str) -> bool:
    return peer[0].isdigit() and ipaddress.ip_address(address) in ipaddress.ip_network(peer)


@dataclass
class Model:
    """What must hold, told without any table."""

    rules: dict[str, set[int]] = field(default_factory=dict)  # peer -> ports
    only_allowed: bool = False
    grants: dict[tuple[str, str], bool] = field(default_factory=dict)  # address, peer -> whether it is alive
    flows: dict[tuple[int, str, int], set[str]] = field(default_factory=dict)  # who may have admitted it

    def admitting(self, address: str, port: int) -> set[str]:
        """Who would admit a new flow."""
        return {
            peer
            for peer, ports in self.rules.items()
            if port in ports and (self.grants.get((address, peer)) or holds(peer, address))
        }

    def send(self, at: tuple[int, str, int]) -> set[bool]:
        """What may come of it: two outcomes where it hangs on which of several peers admitted the flow."""
        _, address, port = at
        before = self.flows.get(at, set())
        staying = {peer for peer in before if port in self.rules.get(peer, ())}
        now = self.admitting(address, port)
        if now or (before and staying == before):
            return {True}
        return {True, False} if staying else {False}

    def sent(self, at: tuple[int, str, int], passed: bool) -> None:
        _, address, port = at
        staying = {peer for peer in self.flows.get(at, ()) if port in self.rules.get(peer, ())}
        self.flows.pop(at, None)
        if passed:
            self.flows[at] = staying | (self.admitting(address, port) if not staying else set())
            self.flows[at] |= self.admitting(address, port)


class World:
    """Two namespaces, the workload's and everybody else's, with an engine between them."""

    def __init__(self, folder: Any, undo: ExitStack) -> None:
        sweep()
        self.pod, self.outside = Namespace(), Namespace()
        undo.callback(self.pod.close)
        undo.callback(self.outside.close)
        self.pod.join(self.outside)
        self.pod.ip("addr add 10.0.0.2/24 dev outside", "route add default via 10.0.0.1")
        self.outside.ip(
            "addr add 10.0.0.1/24 dev inside",
            "route add local 198.51.100.0/24 dev lo",
            "route add local 192.0.2.0/24 dev lo",
        )
        self.instance = f"{PREFIX}-{os.getpid()}-histories"
        undo.callback(remove_instance, self.instance)
        self.where = place.find(self.instance)
        self.other = variant(
            folder / "other",
            {
                "bpf/contract.h": [
                    ("struct slot {\n\t__u64 peer;", "struct slot {\n\t__u64 spare;\n\t__u64 peer;")
                ]
            },
        )
        with self.outside.entered():
            self.servers = {}
            for address, port in [*((a, port) for a in ADDRESSES for port in PORTS), (RESOLVER, 53)]:
                self.servers[address, port] = bound(address, port)
                undo.callback(self.servers[address, port].close)
        self.engine = Engine(self.where)
        undo.callback(lambda: self.engine.close())
        self.cgroup = self.where.cgroup / "histories"
        self.cgroup.mkdir()

    def upgraded(self, there: bool) -> None:
        """Another version starts, with another layout of maps; or only this one, anew."""
        self.engine.close()
        if there:
            command = [sys.executable, "-c", RESTART, self.instance]
            subprocess.run(command, env=environment(self.other), check=True, cwd="/")
        self.engine = Engine(self.where)


def bound(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.setblocking(False)
    return made


@pytest.fixture(scope="module")
def world(superuser: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as undo:
        yield World(tmp_path_factory.mktemp("histories"), undo)


class Histories(RuleBasedStateMachine):
    world: World  # set by the test
    sockets = Bundle("sockets")

    def __init__(self) -> None:
        super().__init__()
        self.model, self.upgrades = Model(), 1
        self.open: dict[int, socket.socket] = {}
        self.connected: dict[int, tuple[str, int]] = {}
        self.options = Options(resolvers=(resolvers.parse(RESOLVER),), floor=3600)

    def wanted(self) -> policy.Policy:
        grants = {
            (PEERS[peer], frozenset(PortRange("UDP", port, port) for port in ports))
            for peer, ports in self.model.rules.items()
        }
        return policy.Policy(frozenset(grants), only_allowed_names=self.model.only_allowed)

    rules = st.dictionaries(st.sampled_from(sorted(PEERS)), st.sets(st.sampled_from(PORTS), min_size=1))

    @initialize(rules=rules)
    def begin(self, rules: dict[str, set[int]]) -> None:
        self.model.rules = rules
        self.held = self.world.engine.hold("histories", self.wanted(), self.options, {"kind": "test"})
        self.world.engine.place(self.held, self.world.cgroup)

    @rule(rules=rules, only_allowed=st.booleans())
    def change(self, rules: dict[str, set[int]], only_allowed: bool) -> None:
        before = self.model.rules
        self.model.rules, self.model.only_allowed = rules, only_allowed
        self.world.engine.update(self.held, self.wanted(), self.options)
        self.drop_ended(before)

    def drop_ended(self, before: dict[str, set[int]]) -> None:
        """Connected sockets may be ended where nobody admits their flow, and nowhere else."""
        for number, (address, port) in list(self.connected.items()):
            failed = self.open[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                assert failed == errno.ECONNABORTED
                assert False in self.model.send((number, address, port)), before
                self.forget(number)

    def forget(self, number: int) -> None:
        self.open.pop(number).close()
        self.connected.pop(number, None)
        self.model.flows = {at: who for at, who in self.model.flows.items() if at[0] != number}

    @rule(target=sockets, to=st.none() | st.tuples(st.sampled_from(ADDRESSES), st.sampled_from(PORTS)))
    def open_socket(self, to: tuple[str, int] | None) -> int:
        with self.world.pod.entered(), inside(self.world.cgroup):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind(("10.0.0.2", 0))
            if to:
                made.connect(to)
        made.setblocking(False)
        number = max(self.open, default=0) + 1
        self.open[number] = made
        if to:
            self.connected[number] = to
        return number

    @rule(number=sockets, address=st.sampled_from(ADDRESSES), port=st.sampled_from(PORTS))
    def send(self, number: int, address: str, port: int) -> None:
        if number not in self.open:
            return
        address, port = self.connected.get(number, (address, port))
        at = (number, address, port)
        may = self.model.send(at)
        passed = self.exchange(self.open[number], address, port, number in self.connected)
        assert passed in may, (at, self.model)
        self.model.sent(at, passed)

    def exchange(self, held: socket.socket, address: str, port: int, connected: bool) -> bool:
        """Whether it left; what left is echoed, and comes back."""
        try:
            held.send(b"x") if connected else held.sendto(b"x", (address, port))
        except PermissionError:
            return False
        server = self.world.servers[address, port]
        data, client = server.recvfrom(9)
        server.sendto(data, client)
        assert held.recv(9) == b"x"
        return True

    @rule(name=st.sampled_from(sorted(HOSTS)))
    def resolve(self, name: str) -> None:
        with self.world.pod.entered(), inside(self.world.cgroup):
            held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            held.connect((RESOLVER, 53))
        held.setblocking(False)
        wanting = [peer for peer in self.model.rules if covers(peer, name)]
        with held:
            try:
                held.send(DNSRecord.question(name).pack())
            except PermissionError:
                assert self.model.only_allowed
                assert not wanting
                return
            assert wanting or not self.model.only_allowed
            server = self.world.servers[RESOLVER, 53]
            data, client = server.recvfrom(512)
            reply = DNSRecord.parse(data).reply()
            for address in HOSTS[name]:
                reply.add_answer(RR(name, QTYPE.A, rdata=A(address), ttl=60))
            server.sendto(reply.pack(), client)
            held.recv(512)
        for address in HOSTS[name]:
            self.model.grants |= {(address, peer): True for peer in wanting}

    @rule(address=st.sampled_from(ADDRESSES))
    def expire(self, address: str) -> None:
        """All that was learned of an address has run out. The clock can't be moved, the grants can."""
        table, key = self.world.engine.datapath["grants"], (pack_address(address), self.held.number)
        if (grant := table.get(key)) is not None:
            table[key] = ([(int(slot.peer), 1 if slot.peer else 0) for slot in grant.slots],)
        for place_, peer in list(self.model.grants):
            if place_ == address:
                self.model.grants[place_, peer] = False

    @rule()
    def restart(self) -> None:
        self.start_again(other=False)

    @precondition(lambda self: self.upgrades)
    @rule()
    def upgrade(self) -> None:
        self.upgrades -= 1
        self.start_again(other=True)

    def start_again(self, other: bool) -> None:
        """The agent dies and comes back: as it was, or after another version."""
        os.close(self.held.ring)
        os.close(self.held.state)
        self.world.upgraded(other)
        self.held = self.world.engine.hold("histories", self.wanted(), self.options, {"kind": "test"})
        assert self.held.ended == []

    def teardown(self) -> None:
        for number in list(self.open):
            self.forget(number)
        if hasattr(self, "held"):
            self.world.engine.release(self.held)
        for server in self.world.servers.values():
            try:
                while True:
                    server.recv(512)
            except BlockingIOError:
                pass


EXAMPLES = int(os.environ.get("SKOUTER_HISTORIES", "12"))


def test_every_history_is_as_the_naive_model_says(world: World) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    Histories.world = world
    chosen = settings(max_examples=EXAMPLES, stateful_step_count=30, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Histories, settings=chosen)

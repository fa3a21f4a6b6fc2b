"""What an agent does on a gateway beside its own work: it has the clients' packets forwarded, and only those
that are admitted.

Rules this file obeys:

- What refuses comes before what forwards: sources and their policies, then the programs, then the way out.
- Others may take away what is ours (a restart of nftables does): it is looked at every few seconds, and made
  anew.
- A gateway is ready when it would serve a client as well as any other: only then is it sent any.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import trio
from dnslib import DNSError, DNSRecord

from bpf.events import Event
from bpf.load import GATEWAY
from gateway.enforcement import Enforcement, Outcome
from gateway.engine import Engine
from gateway.gateway_settings import AUTO, DNS_PORT, GatewaySettings
from gateway.link_programs import LinkPrograms
from gateway.machines import UNREGISTERED, Machines, plan
from gateway.numbers import Options
from gateway.peers.neighbours import Neighbours
from gateway.place import FORWARDING, Place
from gateway.plan import Plan
from gateway.policies.records import Object
from gateway.settings import Settings
from gateway.sources import Sources
from gateway.states import EngineError, locked
from routing import forwarding
from routing.forwarding import Forwarding
from routing.own import LOOPBACKS, Home
from routing.steering import Marks

TOGETHER = 0.05  # seconds in which changes of nftables are one
AGAIN, PATIENCE = 2.0, 1.0  # seconds between two questions to the resolver, and for its answer
QUESTION = "localhost."  # every resolver answers it by itself: whether it lives, not whether its upstreams do
LARGEST = 4096
SIOCGIFHWADDR, ETHERNET = 0x8927, 1  # netdevice(7), linux/if_arp.h


class Gate:
    """Of one engine. `failed` is what should be enforced and is not, `fallen` why nothing is forwarded; in
    words."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.sources, self.settings = engine, Sources(engine), settings
        peers = self._own.peers
        self.neighbours = Neighbours(engine.datapath, peers) if peers else None
        if not self.neighbours:
            engine.datapath.set(hold_back=0)  # as an earlier agent may have left it
        self.programs = LinkPrograms(engine.where.pins, GATEWAY)
        self.machines = Machines()
        self.failed: tuple[str, ...] = ()
        self.fallen: tuple[str, ...] = ("nothing is forwarded yet",)
        self.inside = self.outside = ""
        self._is_on: Callable[[], bool] = bool  # no: nothing is enforced before there is a plan
        self.answers = self.draining = False

    @property
    def _own(self) -> GatewaySettings:
        assert self.settings.gateway is not None
        return self.settings.gateway

    # ---- What is to be --------------------------------------------------------------------------------

    def enforce(
        self,
        wanted: Plan,
        objects: Collection[Object],
        settings: Settings,
        held: Enforcement,
        ids: Mapping[str, int],
        options: Options,
        home: Home,
    ) -> tuple[Plan, Outcome]:
        """The host's plan and that of the machines, made so; what fails of either is in the outcome."""
        self.settings, self._is_on = settings, lambda: held.is_attached
        machines = self.machines = plan(objects, self._own, self.sources.at(held.held), held.said)
        wanted = replace(
            wanted, wanted={**wanted.wanted, **machines.wanted}, told=(*wanted.told, *machines.told)
        )
        outcome, failed = held.apply(wanted, ids, options, home), list[str]()
        try:
            failed += self.sources.apply(machines.under, machines.titles, held.held, home)
            if self.neighbours and self._own.peers:
                self.neighbours.follow(machines.wanted, held.held, self._own.peers)
        except (EngineError, OSError) as error:
            failed.append(f"gateway: {error}")
        self.failed = tuple(f"NOT ENFORCED: {line}" for line in failed)
        self.look_again()
        return wanted, replace(outcome, failed=[*outcome.failed, *self.failed, *self.fallen])

    def _stand(self) -> None:
        """The programs and the way out, as far as they are not there; not after `skouter off` or `uninstall`.
        Raises :class:`OSError`."""
        where = self.engine.where
        with locked(where):
            if not self._is_on():
                return
            own = self._own
            made = forwarding_of(self.settings, self.engine.links.marks)
            (self.inside,), (self.outside,) = made.inside, made.outside
            behind = own.dns.port if own.dns.port != DNS_PORT else 0
            self.engine.datapath.set(dns_port=behind, pick_up=int(own.snat == "none"))
            programs = self.engine.datapath.for_gateway()
            self.programs.attach(socket.if_nametoindex(self.inside), programs, self.programs.pinned())
            self.engine.links.steer(where.name)
            forwarding.apply(where.name, made, where.state / FORWARDING)

    def look_again(self) -> None:
        """Makes what is not there, or what somebody took away."""
        try:
            self._stand()
            self.fallen = ()
        except (EngineError, OSError) as error:
            self.fallen = (f"NOT ENFORCED: gateway: {error}",)

    # ---- How it is -----------------------------------------------------------------------------------------

    def unready(self) -> tuple[str, ...]:
        """What keeps it from being sent any clients, in words."""
        found = [*self.failed, *self.fallen]
        if not self.answers:
            found.append("the resolver on this host does not answer: is skouter-resolver.service running?")
        if self.neighbours:
            found += self.neighbours.unready()
        if self.draining:
            found.append("it is about to end")
        return tuple(found)

    def rows(self) -> dict[str, Any]:
        """For people."""
        machines = self.machines
        return {
            "inside": self.inside,
            "outside": self.outside,
            "unready": list(self.unready()),
            "peers": self.neighbours.peers.numbers() if self.neighbours else {},
            "machines": [
                {"source": str(source), "name": machines.titles[source], "group": group or "let through"}
                for source, group in sorted(machines.under.items(), key=lambda item: str(item[0]))
            ],
        }

    def hear(self, event: Event) -> str:
        """An event of some workload; the name of the machine whose it is, or nothing."""
        if self.neighbours:
            self.neighbours.hear(event)
        title = self.sources.titles.get(event.workload)
        if title is None:
            return ""
        return f"machine {event.local if title == UNREGISTERED or '/' in title else title}"

    async def drain(self, signals: AsyncIterator[int]) -> None:
        """Until nobody should come any more, or a second signal."""
        self.draining = True
        with trio.move_on_after(self._own.drain):
            await anext(signals)

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.ask_resolver)
            nursery.start_soon(self._follow_tables)
            if self.neighbours:
                nursery.start_soon(self.neighbours.peers.run)

    async def _follow_tables(self) -> None:
        """Whoever flushes nftables is not waited out. `skouter off` opens them, and means it."""
        with forwarding.changes() as changes:
            while True:
                await trio.lowlevel.wait_readable(changes)
                await trio.sleep(TOGETHER)
                forwarding.drain(changes)
                if self._is_on():
                    await trio.to_thread.run_sync(self.look_again)

    async def ask_resolver(self) -> None:
        """For ever: whether it answers, in `answers`."""
        while True:
            self.answers = any([await _answers(*at, self._own.dns.port) for at in LOOPBACKS])
            await trio.sleep(AGAIN)


def refuse_first(where: Place, settings: Settings) -> None:
    """What takes its time to start must not leave open what a host may forward already: from now on all is
    refused that no program admits. Raises :class:`OSError`."""
    where.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    marks = Marks(settings.link.mask, settings.link.mark)
    forwarding.apply(where.name, forwarding_of(settings, marks), where.state / FORWARDING)


def forwarding_of(settings: Settings, marks: Marks) -> Forwarding:
    """Raises :class:`OSError` where an interface is not there."""
    gateway = settings.gateway
    assert gateway is not None
    return Forwarding(
        inside=frozenset({_ethernet(_interface(gateway.inside))}),
        outside=frozenset({_interface(gateway.outside)}),
        clients=gateway.clients,
        marks=marks,
        capture=gateway.dns.capture,
        dns_port=gateway.dns.port,
        snat=gateway.snat,
        conntrack=gateway.conntrack,
    )


def _interface(name: str) -> str:
    found = forwarding.default_interface() if name == AUTO else name
    if found is None:
        raise OSError("no default route says which interface is meant: write its name in place of auto")
    if not any(found == there for _, there in socket.if_nameindex()):
        raise OSError(f"there is no interface {found}: write one of `ip link`, or auto")
    return found


def _ethernet(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asked = struct.pack("256s", name.encode())
        (kind,) = struct.unpack_from("=H", fcntl.ioctl(asking, SIOCGIFHWADDR, asked), 16)
    if kind != ETHERNET:
        raise OSError(
            f"{name} is no Ethernet: clients can't be judged there; write another interface as inside"
        )
    return name


async def _answers(family: int, address: str, port: int) -> bool:
    try:
        with trio.socket.socket(family, socket.SOCK_DGRAM) as asking, trio.move_on_after(PATIENCE):
            await asking.connect((address, port))
            question = DNSRecord.question(QUESTION)
            await asking.send(question.pack())
            return bool(DNSRecord.parse(await asking.recv(LARGEST)).header.id == question.header.id)
    except (OSError, DNSError):
        pass
    return False

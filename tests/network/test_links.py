"""Which veths lead into a namespace, who judges them beside other tools, and what the kernel is told."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from bpf import kernel
from bpf.contract import contract
from bpf.datapath import Datapath, identities
from bpf.load import GATEWAY, LINKS, Family
from gateway import place
from gateway.homes import Homes
from gateway.link_programs import LinkPrograms, detach_everywhere, has_tcx
from gateway.links import ATTACHED, BYPASSED, NONE, Links, State
from routing import interfaces, links, netlink
from routing.links import Link, Ways
from routing.namespaces import inside
from routing.own import Home
from tests.topology import Namespace, wait_for

T = TypeVar("T")
SCHED_CLS, UNSPEC, OK, SHOT = 3, -1, 0, 2
INGRESS, EGRESS = kernel.TCX_INGRESS, kernel.TCX_EGRESS
FORMS = ["tcx", "clsact"]
WORKLOAD, OTHER, POLICY, HOME = 7_000_001, 7_000_002, 4000, 77


def returning(what: int) -> int:
    """A program that says the same of every packet."""
    code = b"\xb7\0\0\0" + what.to_bytes(4, "little", signed=True) + b"\x95" + bytes(7)
    return kernel.load_program("always", code, SCHED_CLS, 0)


@dataclass
class Machine:
    """A namespace with which the test's threads can work."""

    space: Namespace
    fd: int

    def do(self, work: Callable[[], T]) -> T:
        return inside(self.fd, work)

    def ip(self, lines: str) -> None:
        self.space.ip(lines)

    def ways_of(self, other: Machine) -> Ways:
        return self.do(lambda: links.ways_of(other.fd))

    def index(self, name: str) -> int:
        return self.do(lambda: socket.if_nametoindex(name))

    def says(self, *words: str) -> str:
        return self.space.checked(*words)


@pytest.fixture
def machine() -> Iterator[Callable[[str], Machine]]:
    if os.geteuid():
        pytest.skip("needs root: namespaces and BPF")
    made: list[Machine] = []

    def make(name: str) -> Machine:
        space = Namespace(name)
        made.append(Machine(space, os.open(f"/proc/{space.holder.pid}/ns/net", os.O_RDONLY)))
        made[-1].ip("link set lo up")
        return made[-1]

    yield make
    for each in made:
        os.close(each.fd)
        each.space.close()


@pytest.fixture
def host(machine: Callable[[str], Machine]) -> Machine:
    return machine("host")


@pytest.fixture
def pod(machine: Callable[[str], Machine], host: Machine) -> Machine:
    """Joined by a veth: host0 10.9.0.1, eth0 10.9.0.2."""
    made = machine("pod")
    made.ip(f"link add eth0 type veth peer name host0 netns {host.space.holder.pid}")
    made.ip("addr add 10.9.0.2/24 dev eth0\nlink set eth0 up")
    host.ip("addr add 10.9.0.1/24 dev host0\nlink set host0 up")
    return made


def mac(where: Machine, name: str) -> bytes:
    return next(one.mac for one in where.do(interfaces.interfaces) if one.name == name)


# ---- Whose veth -------------------------------------------------------------------------------------------


def test_the_hosts_side_of_a_veth_is_found_with_the_others_mac(host: Machine, pod: Machine) -> None:
    pod.ip("link set eth0 address 02:00:00:00:00:07")
    assert host.ways_of(pod) == Ways((Link(host.index("host0"), "host0", bytes.fromhex("020000000007")),))


def test_every_veth_is_found(host: Machine, pod: Machine) -> None:
    pod.ip(f"link add net1 type veth peer name host1 netns {host.space.holder.pid}")
    assert [link.name for link in host.ways_of(pod).links] == ["host0", "host1"]


def test_an_interface_of_the_same_number_elsewhere_is_not_taken_for_it(
    machine: Callable[[str], Machine], host: Machine
) -> None:
    other, third, pod = machine("other"), machine("third"), machine("pod")
    other.ip(f"link add eth0 type veth peer name mistaken netns {host.space.holder.pid}")
    pod.ip(f"link add eth0 type veth peer name beyond netns {third.space.holder.pid}")
    assert pod.do(lambda: interfaces.interface(pod.index("eth0")).peer) == host.index("mistaken")  # type: ignore[union-attr]
    pod.ip(f"link add eth1 type veth peer name right netns {host.space.holder.pid}")
    found = host.ways_of(pod)
    assert [link.name for link in found.links] == ["right"]
    assert found.astray == ("eth0 (veth) is no veth to this host",)


def test_what_leads_out_without_a_veth_is_named_and_what_is_made_inside_is_not(
    host: Machine, pod: Machine
) -> None:
    pid = pod.space.holder.pid
    host.ip(f"link add under type bridge\nlink add link under name macvlan0 netns {pid} type macvlan")
    pod.ip("link add br0 type bridge\nlink add name a type veth peer name b")
    found = host.ways_of(pod)
    assert [link.name for link in found.links] == ["host0"]
    assert found.astray == ("macvlan0 (macvlan) is no veth to this host",)


def test_a_namespace_without_interfaces_has_no_way_out(
    machine: Callable[[str], Machine], host: Machine
) -> None:
    assert host.ways_of(machine("empty")) == Ways()


def test_a_veth_that_comes_is_heard_of(machine: Callable[[str], Machine], host: Machine) -> None:
    pod = machine("pod")
    news = host.do(interfaces.changes)
    with news:
        assert select.select([news], [], [], 0)[0] == []
        pod.ip(f"link add eth0 type veth peer name host0 netns {host.space.holder.pid}")
        assert select.select([news], [], [], 5)[0]
        assert host.index("host0") in (interfaces.changed(news) or ())
        assert interfaces.changed(news) == set()


# ---- Who judges it ----------------------------------------------------------------------------------------


class Ours:
    """Programs of a version, pinned as the engine pins them."""

    def __init__(self, root: Path, version: str, what: int, family: Family = LINKS) -> None:
        folder = root / f"programs-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        self.programs = {name: returning(what) for name in family.hooks}
        for name, fd in self.programs.items():
            kernel.pin(fd, folder / name)

    def close(self) -> None:
        for fd in self.programs.values():
            os.close(fd)


@pytest.fixture
def root() -> Iterator[Path]:
    folder = place.find(f"skouter-lab-{os.getpid()}-links").pins
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=FORMS)
def on(request: pytest.FixtureRequest, host: Machine, root: Path) -> LinkPrograms:
    if request.param == "tcx" and not has_tcx():
        pytest.skip("tcx needs Linux 6.6")
    return host.do(lambda: LinkPrograms(root, by_tcx=request.param == "tcx"))


def reaches(host: Machine, pod: Machine) -> bool:
    """Whether a datagram of the pod arrives."""

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("10.9.0.1", 0))
        made.settimeout(0.3)
        return made

    with host.do(listen) as here, pod.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as there:
        there.sendto(b"x", here.getsockname())
        try:
            return here.recv(10) == b"x"
        except TimeoutError:
            return False


@pytest.fixture
def known(host: Machine, pod: Machine) -> None:
    """Both know the other's MAC: what is dropped below is no ARP."""
    wait_for(lambda: reaches(host, pod), "the first datagram")
    host.ip(f"neigh replace 10.9.0.2 lladdr {mac(pod, 'eth0').hex(':')} dev host0 nud permanent")
    pod.ip(f"neigh replace 10.9.0.1 lladdr {mac(host, 'host0').hex(':')} dev eth0 nud permanent")


def attach(host: Machine, on: LinkPrograms, ours: Ours) -> None:
    host.do(lambda: on.attach(host.index("host0"), ours.programs, on.pinned()))


def standing(host: Machine, on: LinkPrograms, ours: Ours) -> tuple[bool, str]:
    return host.do(lambda: on.standing(host.index("host0"), ours.programs, on.pinned()))


@pytest.mark.usefixtures("known")
def test_a_link_is_judged_then_by_another_version_then_not_at_all(
    host: Machine, pod: Machine, on: LinkPrograms, root: Path
) -> None:
    old, new = Ours(root, "old", SHOT), Ours(root, "new", UNSPEC)
    assert standing(host, on, old) == (False, "")
    attach(host, on, old)
    assert standing(host, on, old) == (True, "")
    assert not reaches(host, pod)
    attach(host, on, old)
    host.do(lambda: on.replace_all(new.programs))
    assert standing(host, on, old) == (False, "")
    assert standing(host, on, new) == (True, "")
    assert reaches(host, pod)
    told = host.do(on.detach_all)
    assert told == ["link_ingress from host0", "link_egress from host0"]
    assert standing(host, on, new) == (False, "")
    assert "clsact" not in host.says("tc", "qdisc", "show", "dev", "host0")
    assert host.do(on.detach_all) == []
    for each in (old, new):
        each.close()


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("form", FORMS)
def test_a_gateway_s_programs_come_and_go_beside_those_of_a_link(
    host: Machine, pod: Machine, root: Path, form: str
) -> None:
    if form == "tcx" and not has_tcx():
        pytest.skip("tcx needs Linux 6.6")
    links, gates = (host.do(lambda f=f: LinkPrograms(root, f, form == "tcx")) for f in (LINKS, GATEWAY))
    link, shut = Ours(root, "one", UNSPEC), Ours(root, "one", SHOT, GATEWAY)
    opened = Ours(root, "two", UNSPEC, GATEWAY)
    attach(host, links, link)
    attach(host, gates, shut)
    assert not reaches(host, pod)
    host.do(lambda: gates.replace_all(opened.programs))
    assert reaches(host, pod)
    assert standing(host, gates, opened)[0]
    assert standing(host, links, link)[0]
    host.do(lambda: gates.detach(host.index("host0"), gates.pinned()))
    assert (standing(host, gates, opened)[0], standing(host, links, link)[0]) == (False, True)
    attach(host, gates, opened)
    told = host.do(lambda: detach_everywhere(root))
    assert sorted(told) == sorted(f"{name} from host0" for name in (*link.programs, *opened.programs))
    for each in (link, shut, opened):
        each.close()


def received(host: Machine) -> int:
    """Packets of the pod so far, whatever became of them."""
    (found,) = json.loads(host.says("ip", "-json", "-statistics", "link", "show", "host0"))
    return int(found["stats64"]["rx"]["packets"])


@pytest.mark.usefixtures("known")
def test_a_replacement_lets_nothing_through(
    host: Machine, pod: Machine, on: LinkPrograms, root: Path
) -> None:
    versions = [Ours(root, "one", SHOT), Ours(root, "two", SHOT)]
    attach(host, on, versions[0])

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("10.9.0.1", 7007))
        made.setblocking(False)
        return made

    flood = "import socket\ns=socket.socket(2,2)\nwhile True: s.sendto(b'x', ('10.9.0.1', 7007))"
    with host.do(listen) as here:
        sender = pod.space.start("python3", "-c", flood)
        try:
            for turn in range(1, 41):
                before = received(host)
                wait_for(lambda before=before: received(host) > before, "traffic")
                attach(host, on, versions[turn % 2])
            with pytest.raises(BlockingIOError):
                here.recv(10)
        finally:
            sender.kill()
            sender.wait()
    for each in versions:
        each.close()


def test_other_tools_programs_stay_and_come_after_ours(host: Machine, pod: Machine, root: Path) -> None:
    if not has_tcx():
        pytest.skip("tcx needs Linux 6.6")
    on, ours, foreign = (
        host.do(lambda: LinkPrograms(root, by_tcx=True)),
        Ours(root, "one", UNSPEC),
        returning(OK),
    )
    index, number = host.index("host0"), int(kernel.program_info(foreign).id)
    host.do(lambda: kernel.attach_to_link(foreign, index, INGRESS))
    attach(host, on, ours)
    (mine,) = identities(root.glob("programs-*/link_ingress"))
    assert host.do(lambda: kernel.attached(index, INGRESS)) == [mine, number]
    assert standing(host, on, ours) == (True, "")
    host.do(on.detach_all)
    assert host.do(lambda: kernel.attached(index, INGRESS)) == [number]
    os.close(foreign)
    ours.close()


@pytest.mark.parametrize("hook", [INGRESS, EGRESS])
def test_a_program_that_came_before_ours_is_told(
    host: Machine, pod: Machine, on: LinkPrograms, root: Path, hook: int
) -> None:
    if not has_tcx():
        pytest.skip("tcx needs Linux 6.6")
    ours, foreign = Ours(root, "one", UNSPEC), returning(OK)
    index, number = host.index("host0"), int(kernel.program_info(foreign).id)
    attach(host, on, ours)
    host.do(lambda: kernel.attach_to_link(foreign, index, hook))
    assert standing(host, on, ours) == (True, f"program {number} (always)")
    attach(host, on, ours)
    assert standing(host, on, ours) == (True, f"program {number} (always)")
    host.do(lambda: kernel.detach(foreign, index, hook))
    assert standing(host, on, ours) == (True, "")
    host.do(on.detach_all)
    os.close(foreign)
    ours.close()


def foreign_filters(host: Machine) -> str:
    return host.says("tc", "filter", "show", "dev", "host0", "ingress")


@pytest.mark.parametrize(("preference", "before"), [(1, "a filter of tc"), (7, "")])
def test_other_tools_filters_stay(
    host: Machine, pod: Machine, root: Path, preference: int, before: str
) -> None:
    on, ours, foreign = (
        host.do(lambda: LinkPrograms(root, by_tcx=False)),
        Ours(root, "one", UNSPEC),
        returning(UNSPEC),
    )
    index = host.index("host0")
    host.do(lambda: netlink.set_filter(index, netlink.INGRESS, preference, foreign, "somebody:1"))
    there = foreign_filters(host)
    assert "somebody:1" in there
    attach(host, on, ours)
    assert standing(host, on, ours) == (True, before)
    attach(host, on, ours)
    host.do(on.detach_all)
    assert foreign_filters(host) == there
    assert standing(host, on, ours)[0] is False
    os.close(foreign)
    ours.close()


def test_a_link_that_has_gone_is_an_error_and_detaching_it_none(
    host: Machine, pod: Machine, on: LinkPrograms, root: Path
) -> None:
    ours, index = Ours(root, "one", UNSPEC), host.index("host0")
    attach(host, on, ours)
    pod.ip("link del eth0")
    numbers = on.pinned()
    with pytest.raises(OSError, match=r"No such device|Cannot find|Invalid argument"):
        host.do(lambda: on.attach(index, ours.programs, numbers))
    host.do(lambda: on.detach(index, numbers))
    ours.close()


# ---- What the kernel is told of it ------------------------------------------------------------------------


@pytest.fixture
def rows(datapath: Datapath) -> Iterator[Datapath]:
    for workload in (WORKLOAD, OTHER):
        datapath["workloads"][workload] = (POLICY, 0, HOME)
    yield datapath
    for workload in (WORKLOAD, OTHER):
        datapath["workloads"].discard(workload)
    for index, _row in list(datapath["links"].items()):
        datapath["links"].discard(int(index))


@pytest.fixture(params=["tcx", "clsact"])
def judged(request: pytest.FixtureRequest, rows: Datapath, host: Machine) -> Iterator[Links]:
    if request.param == "tcx" and not has_tcx():
        pytest.skip("tcx needs Linux 6.6")
    made = host.do(lambda: Links(rows, by_tcx=request.param == "tcx"))
    yield made
    host.do(made.on.detach_all)


def is_linked(rows: Datapath, workload: int = WORKLOAD) -> bool:
    return bool(int(rows["workloads"][workload].flags) & contract().constant("LINKED"))


def told(rows: Datapath) -> dict[int, tuple[int, bytes]]:
    return {int(index): (int(row.workload), bytes(row.mac)) for index, row in rows["links"].items()}


def follow(host: Machine, judged: Links, ways: Ways, workload: int = WORKLOAD) -> State:
    return host.do(lambda: judged.follow({workload: ways}))[workload]


def test_ATTACK_a_pod_gives_its_interface_away_and_is_judged_no_more(
    machine: Callable[[str], Machine], host: Machine, pod: Machine, judged: Links, rows: Datapath
) -> None:
    """To a namespace that nobody looks at; it leads to this host all the same."""
    inner = machine("inner")
    assert follow(host, judged, host.ways_of(pod)) == State(ATTACHED)
    pod.ip(f"link set eth0 netns {inner.space.holder.pid}")
    follow(host, judged, host.ways_of(pod))
    chains = host.do(lambda: [judged.on._chain(host.index("host0"), name) for name in LINKS.hooks])
    assert all(set(chain) & judged.on.pinned() for chain in chains)
    assert told(rows)


def test_a_link_is_told_and_goes_without_a_trace(
    host: Machine,
    pod: Machine,
    judged: Links,
    rows: Datapath,
) -> None:
    ways = host.ways_of(pod)
    assert follow(host, judged, ways) == State(ATTACHED)
    assert told(rows) == {host.index("host0"): (WORKLOAD, ways.links[0].mac)}
    assert is_linked(rows)
    assert not host.do(judged.moved)
    host.do(lambda: judged.keep({WORKLOAD}))
    assert is_linked(rows)
    host.do(lambda: judged.keep({OTHER}))
    assert told(rows) == {}
    assert not is_linked(rows)
    assert host.do(judged.on.detach_all) == []


def test_another_mac_and_another_veth_are_followed(
    host: Machine,
    pod: Machine,
    judged: Links,
    rows: Datapath,
) -> None:
    follow(host, judged, host.ways_of(pod))
    pod.ip("link set eth0 address 02:00:00:00:00:09")
    follow(host, judged, host.ways_of(pod))
    assert told(rows)[host.index("host0")] == (WORKLOAD, bytes.fromhex("020000000009"))
    pod.ip("link del eth0")
    assert follow(host, judged, host.ways_of(pod)) == State(NONE, "no interface leads out of its network yet")
    assert not is_linked(rows)
    assert told(rows) == {}
    pod.ip(f"link add eth0 type veth peer name again netns {host.space.holder.pid}")
    assert follow(host, judged, host.ways_of(pod)) == State(ATTACHED)
    assert list(told(rows)) == [host.index("again")]


def test_what_leads_out_beside_the_link_takes_the_promise_back(
    host: Machine,
    pod: Machine,
    judged: Links,
    rows: Datapath,
) -> None:
    follow(host, judged, host.ways_of(pod))
    host.ip("link add under type bridge")
    host.ip(f"link add link under name macvlan0 netns {pod.space.holder.pid} type macvlan")
    state = follow(host, judged, host.ways_of(pod))
    assert state == State(BYPASSED, "macvlan0 (macvlan) is no veth to this host")
    assert not is_linked(rows)
    assert told(rows)


def test_who_detaches_ours_is_seen_and_put_right(
    host: Machine,
    pod: Machine,
    judged: Links,
    rows: Datapath,
) -> None:
    ways = host.ways_of(pod)
    follow(host, judged, ways)
    host.do(judged.on.detach_all)
    judged.look_again()
    assert host.do(judged.moved)
    (state,) = host.do(judged.states).values()
    assert (state.link, state.why) == (NONE, "host0: somebody detached what judges it")
    assert follow(host, judged, ways) == State(ATTACHED)


def test_a_start_believes_linked_only_where_it_is(
    host: Machine,
    pod: Machine,
    judged: Links,
    rows: Datapath,
) -> None:
    follow(host, judged, host.ways_of(pod))
    rows["workloads"][OTHER] = (POLICY, contract().constant("LINKED"), HOME)
    host.do(judged.settle)
    assert is_linked(rows)
    assert not is_linked(rows, OTHER)
    host.do(judged.on.detach_all)
    judged.look_again()
    host.do(judged.settle)
    assert not is_linked(rows)


@pytest.mark.parametrize(("home", "stays"), [(HOME, True), (HOME + 1, False)])
def test_a_row_that_is_written_again_keeps_its_link_in_the_same_home_only(
    rows: Datapath, home: int, stays: bool
) -> None:
    rows["workloads"][WORKLOAD] = (POLICY, contract().constant("LINKED"), HOME)
    Homes(rows).enter(WORKLOAD, POLICY, Home(home))
    assert is_linked(rows) is stays


def test_a_workload_that_is_nobodys_by_now_gets_no_row(
    host: Machine,
    pod: Machine,
    judged: Links,
    rows: Datapath,
) -> None:
    rows["workloads"].discard(WORKLOAD)
    follow(host, judged, host.ways_of(pod))
    assert rows["workloads"].get(WORKLOAD) is None

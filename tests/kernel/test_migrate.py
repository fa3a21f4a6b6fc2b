"""Layouts that differ: rows are taken over by name; a swap that a crash cut short is finished or undone.

The other version is a copy of this checkout with another contract, run as a program of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpf import carry, datapath, kernel, versions
from bpf.contract import Contract, contract
from bpf.convert import Conversion, DoesNotFitError, sealed
from bpf.datapath import DECIDING, Datapath
from bpf.migrate import SCRATCH, Migration
from tests.conftest import BPFFS, unique_name
from tests.kernel.bench import Bench, Namespace, now
from tests.kernel.packets import packed
from tests.variants import environment, variant

NUMBER, PEER, WORKLOAD = 7, 0xFEDCBA9876543210, 4711
TEXT = contract().text
FIELDS = (
    ("	__u64 peer;\n	__u64 expires;", "	__u64 peer;\n	__u64 more;\n	__u64 expires;"),
    ("	struct slot slots[4];", "	__u64 more;\n	struct slot slots[4];"),
    ("	__u64 seen;\n	__u32 policy;", "	__u64 seen;\n	__u64 more;\n	__u32 policy;"),
    ("	struct flow flow;\n	__u64 netns;", "	struct flow flow;\n	__u64 more;\n	__u64 netns;"),
    ("	__u64 time;\n	__u64 workload;\n	__u64 socket;\n	__u32 policy;",
     "	__u64 time;\n	__u64 more;\n	__u64 workload;\n	__u64 socket;\n	__u32 policy;"),
)  # fmt: skip
REASONS = (
    ("	ALLOWED,                  /*", "	FANCY,\n	ALLOWED,                  /*"),
    ("	LOOPBACK,\n", "	INBOUND,\n	LOOPBACK,\n"),
    ("	INBOUND,                  /* answers", "	/* answers"),
)
SIZES = (
    ("MAP(hash, grants, struct grant_key, struct grant, 1000000)",
     "MAP(hash, grants, struct grant_key, struct grant, 2000000)"),
    ("MAP(hash, rules, struct rule_key, struct rule, 262144)",
     "MAP(hash, rules, struct rule_key, struct rule, 1000)"),
    ("MAP(array, settings,", "MAP(hash, novelties, __u64, __u64, 16)\nMAP(array, settings,"),
)  # fmt: skip
OTHER = (*FIELDS, *REASONS, *SIZES)


def edited(*edits: tuple[str, str]) -> Contract:
    text = TEXT
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return Contract(text)


def flow(layout: Contract, **fields: Any) -> bytes:
    """A whole struct flow of a datagram socket, sealed."""
    state = layout.constant(fields.pop("state", "ALLOWED"))
    tuple_ = {"local": packed("10.0.0.1"), "remote": packed("10.0.0.2"), "protocol": 17}
    raw = layout.pack("struct flow", {"tuple": tuple_, "peer": PEER, "policy": 7, "state": state, **fields})
    held = layout.unpack("struct flow", raw)
    held.seal = sealed(layout, raw)[2]
    return bytes(layout.ffi.buffer(held))


# ---- Rows


def test_fields_keep_their_values_and_new_ones_are_0() -> None:
    other = edited(*FIELDS)
    there, back = Conversion(contract(), other), Conversion(other, contract())
    raw = contract().pack("struct grant", ([(1, 2), (3, 4), (5, 6), (7, 8)],))
    made = other.unpack("struct grant", there.of("struct grant", "struct grant")(raw))
    assert [(s.peer, s.more, s.expires) for s in made.slots] == [(1, 0, 2), (3, 0, 4), (5, 0, 6), (7, 0, 8)]
    assert back.of("struct grant", "struct grant")(bytes(other.ffi.buffer(made))) == raw


@pytest.mark.parametrize("edits", [(), FIELDS, REASONS, OTHER], ids=["none", "fields", "reasons", "all"])
@pytest.mark.parametrize("kind", sorted({m.value for m in contract().maps.values()} - {"struct slate"}))
def test_there_and_back_nothing_changes(kind: str, edits: tuple[tuple[str, str], ...]) -> None:
    other = edited(*edits)
    if not kind.startswith("struct"):
        raw = b"\x07\0\0\0"
    elif kind == "struct flow":
        raw = flow(contract())
    elif kind == "struct socket":
        raw = flow(contract()) + bytes(range(contract().ffi.sizeof(kind) - len(flow(contract()))))
    else:
        raw = bytes(i % 250 for i in range(contract().ffi.sizeof(kind)))
    there = Conversion(contract(), other).of(kind, kind)(raw)
    assert Conversion(other, contract()).of(kind, kind)(there) == raw


def test_a_reason_is_known_by_its_name_and_the_seal_counts_it_in() -> None:
    other = edited(*REASONS)
    assert other.constant("INBOUND") != contract().constant("INBOUND")
    convert = Conversion(contract(), other).of("struct flow", "struct flow")
    made = other.unpack("struct flow", convert(flow(contract(), state="INBOUND")))
    assert other.enumerators("reason")[made.state] == "INBOUND"
    assert made.seal == sealed(other, bytes(other.ffi.buffer(made)))[2]


def test_a_flow_that_was_torn_is_no_flow_afterwards() -> None:
    held = contract().unpack("struct flow", flow(contract()))
    held.peer = PEER + 1
    convert = Conversion(contract(), edited(*REASONS)).of("struct flow", "struct flow")
    assert edited(*REASONS).unpack("struct flow", convert(bytes(contract().ffi.buffer(held)))).state == 0


def test_a_state_that_is_not_known_any_more_is_no_state() -> None:
    other = edited(("	WITHDRAWN,                /*", "	/*"))
    convert = Conversion(contract(), other).of("struct flow", "struct flow")
    assert other.unpack("struct flow", convert(flow(contract(), state="WITHDRAWN"))).state == 0


def test_flags_move_with_their_names_and_one_that_is_not_known_is_refused() -> None:
    other = edited(("	AUDIT = 1,", "	AUDIT = 64,"))
    convert = Conversion(contract(), other).of("struct policy", "struct policy")
    made = other.unpack("struct policy", convert(contract().pack("struct policy", (1, 1 | 2, 60, 60))))
    assert made.flags == 64 | 2
    less = edited(("	ONLY_ALLOWED_NAMES = 8, ", "	"))
    refuse = Conversion(contract(), less).of("struct policy", "struct policy")
    with pytest.raises(DoesNotFitError, match="ONLY_ALLOWED_NAMES"):
        refuse(contract().pack("struct policy", (1, 8, 60, 60)))


def test_who_is_exempt_stays_exempt() -> None:
    other = edited(("	EXEMPT = 65535, ", "	EXEMPT = 70000, "))
    convert = Conversion(contract(), other).of("struct workload", "struct workload")
    assert (
        other.unpack("struct workload", convert(contract().pack("struct workload", (65535,)))).policy == 70000
    )
    assert other.unpack("struct workload", convert(contract().pack("struct workload", (12,)))).policy == 12


@pytest.mark.parametrize(
    ("kind", "edit", "value", "words"),
    [
        ("struct counter", ("	__u64 packets;", "	__u32 packets;"), (1 << 32,), "counter.packets"),
        (
            "struct grant",
            ("struct slot slots[4]", "struct slot slots[2]"),
            ([(0, 0)] * 3 + [(1, 1)],),
            "for 2",
        ),
    ],
)
def test_what_has_no_room_is_refused_by_name(kind: str, edit: Any, value: Any, words: str) -> None:
    convert = Conversion(contract(), edited(edit)).of(kind, kind)
    with pytest.raises(DoesNotFitError, match=words):
        convert(contract().pack(kind, value))
    convert(bytes(contract().ffi.sizeof(kind)))


def test_the_seal_is_the_one_that_the_programs_make(bench: Bench) -> None:
    bench.classify(bench.cgroup, NUMBER)
    bench.policy(NUMBER)
    bench.service(NUMBER, 1)
    bench.rule(NUMBER, PEER, 1)
    bench.prefix(NUMBER, "10.0.0.0/8", PEER)
    bench.network.ip(
        "addr replace 10.7.7.1/24 dev outside",
        "neigh replace 10.7.7.2 lladdr 02:00:00:00:00:02 dev outside",
    )
    bench.d.attach(bench.cgroup)
    with bench.seated(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("10.7.7.2", 9))
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)
        found = dict(carry.sockets(bench.d["sockets"].fd))[cookie]
    bench.d.detach(bench.cgroup)
    held = contract().unpack("struct socket", found)
    was, protocol, right = sealed(contract(), found)
    assert (protocol, held.flow.peer) == (17, PEER)
    assert was == right


def test_the_list_of_sockets_is_whole_whatever_they_are_and_wherever_they_live() -> None:
    fd = kernel.create_map(contract().maps["sockets"])
    held, known = [], {}
    with Namespace().entered():
        for i in range(600):
            kind = (socket.SOCK_DGRAM, socket.SOCK_STREAM)[i % 2]
            held.append(socket.socket((socket.AF_INET, socket.AF_INET6)[i // 2 % 2], kind))
            known[int.from_bytes(held[-1].getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)] = i + 1
            value = contract().pack("struct socket", {"pid": i + 1})
            kernel.update(fd, held[-1].fileno().to_bytes(4, sys.byteorder), value)
    found = {cookie: contract().unpack("struct socket", raw).pid for cookie, raw in carry.sockets(fd)}
    assert found == known
    for sock in held:
        sock.close()
    assert list(carry.sockets(fd)) == []
    os.close(fd)


# ---- Swaps

CHILD = """
import os, signal, sys
from pathlib import Path
from bpf import kernel, versions

root, run, cgroup, fatal, turn = *map(Path, sys.argv[1:4]), sys.argv[4], int(sys.argv[5])

def deadly(call, turns):
    def step(*words, **more):
        turns.append(0)
        if len(turns) == turn:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **more)
    return step

for owner in (kernel, os):
    if hasattr(owner, fatal):
        setattr(owner, fatal, deadly(getattr(owner, fatal), []))
versions.bring_up(root, run, [cgroup])
"""


class Place:
    """Where both versions are brought up: pins, run folder and cgroup."""

    def __init__(self, cgroup_root: Path, run: Path, other: Path) -> None:
        name = unique_name()
        self.root, self.run, self.cgroup, self.other = BPFFS / name, run, cgroup_root / name, other
        self.cgroup.mkdir()

    def mine(self, links: versions.Links = lambda _: lambda: None) -> Datapath:
        """This version starts."""
        return versions.bring_up(self.root, self.run, [self.cgroup], links=links)

    def theirs(self, folder: Path | None = None, fatal: str = "", turn: int = 0) -> tuple[int, str]:
        """The other version starts, and dies at the given turn of a call."""
        words = [str(word) for word in (self.root, self.run, self.cgroup, fatal, turn)]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *words],
            env=environment(folder or self.other),
            cwd="/",
            check=False,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr

    def deciding(self) -> list[versions.Layout]:
        return [one for one in versions.layouts(self.root, self.run) if one.decides([self.cgroup])]

    def check_tidy(self) -> None:
        """One version, attached once, with nothing pinned of another."""
        (one,) = versions.layouts(self.root, self.run)
        assert one.decides([self.cgroup])
        assert sorted(path.name for path in self.run.iterdir()) == [f"contract-{one.name}.h"]
        (programs,) = self.root.glob("programs-*")
        pinned = datapath.identities(programs.iterdir())
        with datapath.open_folder(self.cgroup) as target:
            there = [pinned[number].name for _, number in kernel.attachments(target)]
        assert sorted(there) == sorted(DECIDING)

    def close(self) -> None:
        if self.root.exists():
            datapath.detach_all(self.root, self.cgroup)
            datapath.unpin(self.root)
        self.cgroup.rmdir()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variant(
        tmp_path_factory.mktemp("other") / "version",
        {"bpf/contract.h": (*FIELDS, *SIZES), "bpf/reasons.h": REASONS},
    )


@pytest.fixture(scope="module")
def place(cgroup_root: Path, tmp_path_factory: pytest.TempPathFactory, other: Path) -> Iterator[Place]:
    """One for all tests, since loading programs takes seconds: each begins with what the last one left."""
    made = Place(cgroup_root, tmp_path_factory.mktemp("run") / "run", other)
    yield made
    made.close()


def word(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def fill(d: Datapath) -> None:
    """A row, or some, in every table."""
    policy, address, flags = NUMBER.to_bytes(2, "big"), packed("10.1.2.3"), 1 | 2 | 16
    tuple_ = (packed("10.0.0.1"), address, b"\0\x50", b"\0\x35", 17)
    flow_, socket_ = flow(contract(), seen=now()), 99
    constant = contract().constant
    rows: dict[str, list[tuple[Any, Any]]] = {
        "policies": [(NUMBER, (3, flags, 60, 30))],
        "workloads": [(WORKLOAD, (NUMBER, 64, 12)), (WORKLOAD + 1, (constant("EXEMPT"),))],
        "links": [(5, (WORKLOAD, b"\2abcde"))],
        "proxies": [(NUMBER, (12, b"\0\x50", b"\0\x51"))],
        "own": [((address, 12), 1)],
        "sources": [((120, address), 1 << constant("MACHINE_BIT") | 5)],
        "resolvers": [((address, NUMBER, b"\0\x35"), 1)],
        "names": [((16 + 8 * 4, policy, b"moc\0"), ([PEER, 0, 0, 0],))],
        "suffixes": [((16 + 8 * 4, policy, b"moc."), ([4] + [0] * 7,))],
        "prefixes": [((16 + 104, policy, address), ([PEER, 1, 0, 0],))],
        "never": [((16 + 104, b"\0\0", address), 1)],
        "domains": [((16 + 8 * 4, b"\0\0", b"moc."), 1)],
        "rules": [((NUMBER, PEER + i), (1 << 63 | i,)) for i in range(40)],
        "services": [((24, policy, 6, b"\0\0"), (3,))],
        "single_services": [((40, policy, 6, b"\0\x50"), (3,))],
        "grants": [((packed(f"10.2.0.{i}"), NUMBER), ([(PEER, i), (1, 2), (3, 4)],)) for i in range(50)],
        "grant_ring": [((NUMBER, PEER, i), (packed(f"10.2.0.{i}"),)) for i in range(50)],
        "holdings": [((NUMBER, PEER), (50, 0)), ((NUMBER, 0), (0, 50))],
        "tallies": [(WORKLOAD, (5, 6, 7))],
        "questions": [((socket_, 88, tuple_, 4), (now(), WORKLOAD, socket_, NUMBER))],
        "question_ring": [((WORKLOAD, 4), (socket_, 88, tuple_, 4))],
        "flow_ring": [((WORKLOAD, 5), (socket_, tuple_))],
        "inbounds": [((WORKLOAD, tuple_), (now(),))],
        "inbound_ring": [((WORKLOAD, 6), (WORKLOAD, tuple_))],
    }  # fmt: skip
    for name, lines in rows.items():
        for key, value in lines:
            d[name][key] = value
    kernel.update(d["flows"].fd, contract().pack("struct flow_key", (socket_, tuple_)), flow_)
    d.set(inbounds=123)
    index = (NUMBER * constant("REASONS") + constant("NOT_ALLOWED")).to_bytes(4, sys.byteorder)
    kernel.update(d["counters"].fd, index, (5).to_bytes(8, sys.byteorder) * kernel.possible_cpus())
    automaton = kernel.create_array(contract().maps["patterns"].inner_size, 3)
    kernel.update(automaton, b"\1\0\0\0", contract().pack("struct state", ([2] * 40, [PEER, 0, 0, 0])))
    ring = kernel.create_ring(4096)
    for name, fd in (("patterns", automaton), ("events", ring)):
        kernel.update(d[name].fd, word(NUMBER), word(fd))
        os.close(fd)


def contents(d: Datapath) -> dict[str, Any]:
    """All that must be the same after any number of swaps. A swap has every flow asked again, no more."""
    left_out = ("settings", "counters", "sockets", "carried", *SCRATCH)
    found: dict[str, Any] = {}
    for name, table in d.tables.items():
        if name in left_out:
            continue
        rows = {key: kernel.lookup(table.fd, key, table.layout.value_size) for key in table.raw_keys()}
        found[name] = {key: value for key, value in rows.items() if value and any(value)}
    for name in ("patterns", "events"):
        found[name] = list(found[name])
    for key, raw in found["policies"].items():
        found["policies"][key] = raw[4:]
    reasons = contract().enumerators("reason")
    found["counters"] = {
        reasons[i]: count
        for i in range(len(reasons) - 1)
        if (count := d["counters"].sum_cpus(NUMBER * (len(reasons) - 1) + i))
    }
    settings = d["settings"][0]
    found["quotas"] = (settings.flows, settings.inbounds, settings.addresses, settings.deepest)
    return found


@pytest.fixture
def filled(place: Place) -> tuple[Place, dict[str, Any]]:
    """This version decides, with something in every table."""
    loaded = place.mine()
    loaded.set(shallowest=1, deepest=3)
    loaded.attach(place.cgroup)
    fill(loaded)
    before = contents(loaded)
    assert all(before.values())
    loaded.close()
    return place, before


EXEMPT = contract().constant("EXEMPT")
WITH_POLICIES = (
    ("	__u32 grace;\n};", "	__u32 grace;\n	__u64 netns;\n};"),
    ("	__u32 flags;              /* OWN_SOURCES", "	/* OWN_SOURCES"),
    ("	__u64 home;               /* its", "	/* its"),
    ("MAP(hash, own, struct own_key,", "MAP(hash, own, struct grant_key,"),
)


def test_what_a_layout_kept_with_policies_goes_to_their_workloads(place: Place) -> None:
    """Cookies where they were known; where not, the policy's number leads to the same addresses as before."""
    layout, folder = edited(*WITH_POLICIES), BPFFS / unique_name()
    own, host = contract().constant("OWN_SOURCES"), contract().constant("HOST")
    rows: dict[str, list[tuple[Any, Any]]] = {
        "settings": [(0, {"deepest": 3})],
        "policies": [(1, (1, own, 0, 0, 4242)), (2, (1, own | host, 0, 0, 0)), (3, (1, 0, 0, 0, 0))],
        "workloads": [(91, (1,)), (92, (2,)), (93, (3,)), (94, (EXEMPT,)), (95, (0,))],
        "own": [((packed("10.0.0.1"), 1), 1), ((packed("10.0.0.2"), 2), 1)],
    }
    layout.maps = {name: replace(m, entries=min(m.entries, 4096)) for name, m in layout.maps.items()}
    loaded = place.mine()
    try:
        folder.mkdir()
        for name, wanted in layout.maps.items():
            fd = kernel.create_map(wanted)
            kernel.pin(fd, folder / name)
            for key, value in rows.get(name, ()):
                kernel.update(fd, layout.pack(wanted.key, key), layout.pack(wanted.value, value))
            os.close(fd)
        Migration(folder, layout, loaded).prepare()
        found = {int(key): contract().plain(row) for key, row in loaded["workloads"].items()}
        cookie = contract().constant("COOKIE")
        assert {number: found[number] for number in (91, 92, 93, 94, 95)} == {
            **{91: (1, own | cookie, 4242), 92: (2, own, 2), 93: (3, 0, 0)},
            **{94: (EXEMPT, 0, 0), 95: (0, 0, 0)},
        }
        assert [int(loaded["policies"][number].flags) for number in (1, 2, 3)] == [0, host, 0]
        addresses = {contract().plain(key) for key, _ in loaded["own"].items()}
        assert {(packed("10.0.0.1"), 4242), (packed("10.0.0.2"), 2)} <= addresses
    finally:
        for number in (91, 92, 93, 94, 95):
            loaded["workloads"].discard(number)
        loaded.set(shadow=0)
        loaded.close()
        datapath.unpin(folder)


def test_to_another_layout_and_back_every_row_is_there(filled: tuple[Place, dict[str, Any]]) -> None:
    place, before = filled
    assert place.theirs() == (0, "")
    place.check_tidy()
    assert place.deciding()[0].name != contract().layout
    loaded = place.mine()
    place.check_tidy()
    after = contents(loaded)
    # Whoever reads events of one layout does not understand those of another: they are not handed over.
    assert after.pop("events") == []
    before.pop("events")
    assert after == before
    inner = kernel.map_by_id(
        int.from_bytes(kernel.lookup(loaded["patterns"].fd, word(NUMBER), 4) or b"", sys.byteorder)
    )
    held = contract().unpack("struct state", kernel.lookup(inner, b"\1\0\0\0", 112) or b"")
    assert (held.next[0], held.peers[0]) == (2, PEER)
    os.close(inner)
    loaded.close()


def test_what_is_kept_with_sockets_comes_along_through_two_swaps(
    filled: tuple[Place, dict[str, Any]],
) -> None:
    place, _ = filled
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        loaded = place.mine()
        laid = contract().unpack("struct socket", bytes(contract().maps["sockets"].value_size))
        laid.flow = contract().unpack("struct flow", flow(contract(), generation=3))[0]
        laid.netns, laid.passive, laid.pid, laid.comm = 77, 1, 5, b"curl"
        raw = bytes(contract().ffi.buffer(laid))
        kernel.update(loaded["sockets"].fd, sock.fileno().to_bytes(4, sys.byteorder), raw)
        loaded.close()
        assert place.theirs() == (0, "")
        loaded = place.mine()
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)
        held = loaded["carried"][cookie]
        assert bytes(contract().ffi.buffer(held)) == raw
        assert loaded["settings"][0].carrying == 1
        loaded.close()


def test_a_table_that_does_not_fit_is_named_and_the_running_version_goes_on(
    filled: tuple[Place, dict[str, Any]], tmp_path: Path
) -> None:
    place, before = filled
    small = ("struct rule, 262144)", "struct rule, 8)")
    tiny = variant(tmp_path / "tiny", {"bpf/contract.h": [small]})
    status, said = place.theirs(tiny)
    assert status == 1
    assert "table rules: what the running version holds does not fit into 8 rows" in said
    place.check_tidy()
    loaded = place.mine()
    assert contents(loaded) == before
    loaded.close()


MOMENTS = {
    "some maps are made": ("pin", 12),
    "the programs are pinned in part": ("pin", 40),
    "policies are half copied": ("update", 60),
    "attached in part, in the shadow": ("attach", 4),
    "moving rows are half copied": ("update", 200),
    "a packet wait before the end": ("wait_for_programs", 3),
    "both decide, the old one not yet told": ("detach", 1),
    "the old one is detached in part": ("detach", 5),
    "the old programs are unpinned in part": ("unlink", 6),
    "the old maps are unpinned in part": ("unlink", 25),
}


FINISHED_BY_ITSELF = ("attached in part, in the shadow", "the old one is detached in part")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_when(moment: str, filled: tuple[Place, dict[str, Any]]) -> None:
    """Somebody decides at every moment, and the next start, whosever it is, has it whole again."""
    place, before = filled
    assert place.theirs(None, *MOMENTS[moment])[0] == -signal.SIGKILL
    assert place.deciding(), "nobody decides: a gap"
    if moment in FINISHED_BY_ITSELF:
        assert place.theirs() == (0, "")
        place.check_tidy()
    loaded = place.mine()
    place.check_tidy()
    after = contents(loaded)
    before.pop("events"), after.pop("events")
    assert after == before
    loaded.close()


@pytest.mark.parametrize("moment", ["attached in part, in the shadow", "the old one is detached in part"])
def test_off_in_the_midst_detaches_all_and_the_next_start_begins_anew(
    moment: str, filled: tuple[Place, dict[str, Any]]
) -> None:
    place, _ = filled
    assert place.theirs(None, *MOMENTS[moment])[0] == -signal.SIGKILL
    assert set(datapath.detach_all(place.root, place.cgroup)) <= set(DECIDING)
    with datapath.open_folder(place.cgroup) as target:
        assert kernel.attachments(target) == []
    loaded = place.mine()
    loaded.attach(place.cgroup)
    place.check_tidy()
    assert loaded["settings"][0].shadow == 0
    loaded.close()


def test_another_text_over_the_same_maps_replaces_the_programs_and_their_pins(
    filled: tuple[Place, dict[str, Any]], tmp_path: Path
) -> None:
    place, before = filled
    text = variant(
        tmp_path / "text", {"bpf/cgroup.c": [("#include <linux/ip.h>", "/* */\n#include <linux/ip.h>")]}
    )
    assert place.theirs(text) == (0, "")
    place.check_tidy()
    assert place.deciding()[0].name == contract().layout
    loaded = place.mine()
    place.check_tidy()
    assert contents(loaded) == before
    loaded.close()


@pytest.mark.parametrize("moment", [None, "both decide, the old one not yet told", "the programs differ"])
def test_programs_of_links_are_made_first_and_put_there_when_they_decide_and_older_ones_are_still_known(
    moment: str | None, filled: tuple[Place, dict[str, Any]], tmp_path: Path
) -> None:
    """Where the older ones are unpinned nobody can tell any more that they are ours."""
    place, _ = filled
    text = variant(
        tmp_path / "text", {"bpf/cgroup.c": [("#include <linux/ip.h>", "/* */\n#include <linux/ip.h>")]}
    )
    assert (
        place.theirs(text if moment == "the programs differ" else None, *MOMENTS.get(moment or "", ()))[0]
        <= 0
    )
    older = datapath.pinned_programs(place.root, "egress")
    mine: set[int] = set()
    asked: list[set[int]] = []

    def links(loaded: Datapath) -> Callable[[], None]:
        mine.add(int(kernel.program_info(loaded.programs["egress"]).id))
        with datapath.open_folder(place.cgroup) as target:
            assert not mine & {number for _, number in kernel.attachments(target)}, "the clock runs"

        def put() -> None:
            assert contract().layout in [one.name for one in place.deciding()]
            assert loaded["settings"][0].shadow == 0
            asked.append(datapath.pinned_programs(place.root, "egress"))

        return put

    place.mine(links).close()
    assert asked == [older | mine]
    assert older - mine
    place.check_tidy()


def test_maps_whose_contract_is_lost_are_left_alone_as_long_as_they_filter(
    filled: tuple[Place, dict[str, Any]],
) -> None:
    place, _ = filled
    (place.run / f"contract-{contract().layout}.h").unlink()
    assert place.theirs() == (0, "")
    assert {one.name for one in versions.layouts(place.root, place.run)} > {contract().layout}
    with datapath.open_folder(place.cgroup) as target:
        assert kernel.attachments(target), "nothing filters"


def test_waiting_for_programs_takes_its_time_but_not_more() -> None:
    start = time.monotonic()
    kernel.wait_for_programs()
    assert time.monotonic() - start < 5


def test_whoever_keeps_no_text_can_be_brought_up_all_the_same(place: Place) -> None:
    loaded = place.mine()
    shutil.rmtree(place.run)
    loaded.close()
    place.mine().close()
    assert (place.run / f"contract-{contract().layout}.h").read_text() == TEXT

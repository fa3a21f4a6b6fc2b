"""What a verdict and a DNS answer cost, by BPF_PROG_TEST_RUN, beside an empty program in the same run."""

from __future__ import annotations

import ipaddress
import os
import random
import statistics
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dnslib

from bpf import datapath, kernel
from bpf.datapath import Datapath
from gateway import cgroups
from gateway.numbers import Numbers
from gateway.policies import dfa, patterns
from tests.kernel import packets as p
from tests.kernel.bench import LATER, Bench, Namespace, now
from tests.random_patterns import SIX

POLICIES, GRANTS = 1000, 500_000
REPEAT, ROUNDS = 100_000, 15
ME, NEAR, PREFIXED, SERVER = "10.1.0.2", "198.51.100.7", "203.0.113.9", "127.0.0.53"
EMPTY = bytes.fromhex("b7000000010000009500000000000000")  # r0 = 1; exit
SKB = 8


@contextmanager
def laid(flags: tuple[str, ...]) -> Iterator[Bench]:
    """The programs with full tables."""
    name = f"skouter-bench-{os.getpid()}"
    root, folder = Path("/sys/fs/bpf") / name, cgroups.hierarchy() / name
    workload = folder / "workload"
    workload.mkdir(parents=True)
    network, other = Namespace(), Namespace()
    network.join(other)
    loaded = datapath.load(root, flags)
    try:
        shallowest, deepest = cgroups.levels(folder, 1)
        loaded.set(shallowest=shallowest, deepest=deepest)
        bench = Bench(loaded, workload, network)
        fill(bench)
        yield bench
    finally:
        loaded.close()
        datapath.unpin(root)
        workload.rmdir()
        folder.rmdir()


def fill(bench: Bench) -> None:
    """POLICIES policies and GRANTS grants; the workload's is in the midst of them."""
    mine = POLICIES // 2
    for number in range(1, POLICIES + 1):
        bench.policy(number)
        bench.service(number, 0)
        for mask, protocol, port in ((1, p.TCP, 443), (1, p.UDP, 443), (2, p.TCP, 80)):
            key = (datapath.SINGLE_PORT, number.to_bytes(2, "big"), protocol, port.to_bytes(2, "big"))
            datapath.write(bench.d.tables, "services", key, (mask,))
        bench.rule(number, 7, 1)
        bench.rule(number, 8, 3)
    bench.classify(bench.cgroup, mine)
    bench.grant(mine, NEAR, (7, now() + LATER))
    bench.prefix(mine, "203.0.113.0/24", 8)
    bench.name(mine, "*.example.com", 7)
    slots = struct.pack("=QQ", 7, now() + LATER) + bytes(48)
    for index in range(GRANTS):
        key = grant_address(index).packed.rjust(6, b"\xff").rjust(16, b"\0") + struct.pack(
            "=Q", 1 + index % POLICIES
        )
        kernel.update(bench.d["grants"].fd, key, slots)


def grant_address(index: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(0x0B000000 + index)


def costs(bench: Bench) -> dict[str, float]:
    """Median ns by case, measured in turns, so that the machine's mood is shared."""
    programs = {**bench.d.programs, "empty": kernel.load_program("empty", EMPTY, SKB, 0)}
    cases = {
        "empty program": ("empty", tcp(NEAR)),
        "TCP over IPv4": ("egress", tcp(NEAR)),
        "UDP over IPv4": ("egress", p.ether(p.ipv4(ME, NEAR, p.UDP, p.udp(443)))),
        "by a prefix": ("egress", tcp(PREFIXED)),
        "refused": ("egress", tcp("192.0.2.1")),
    }
    found: dict[str, list[int]] = {name: [] for name in cases}
    with bench.seated():
        for _round in range(ROUNDS):
            for name in random.sample(list(cases), len(cases)):
                program, frame = cases[name]
                found[name].append(kernel.test_run(programs[program], frame, REPEAT, bench.context)[1])
    return {name: statistics.median(times) for name, times in found.items()}


def random_keys(bench: Bench, empty: bool) -> float:
    """Median ns of single runs on grants picked at random: caches are as cold as the table is large."""
    mine = POLICIES // 2
    program = kernel.load_program("empty", EMPTY, SKB, 0) if empty else bench.d.programs["egress"]
    picks = [mine - 1 + POLICIES * random.randrange(GRANTS // POLICIES) for _ in range(3000)]
    frames = [tcp(str(grant_address(index))) for index in picks]
    with bench.seated():
        return statistics.median(kernel.test_run(program, frame, 1, bench.context)[1] for frame in frames)


def answers(bench: Bench) -> dict[str, float]:
    """Median ns for the resolver's hook to read an answer and write its grants (question kept open)."""
    mine, port = POLICIES // 2, 40000
    for policy in (0, mine):
        bench.resolver(policy, SERVER)
    cases = {
        "1 A": answer(["A"]),
        "4 A": answer(["A"] * 4),
        "2 CNAME and 4 A": answer(["CNAME"] * 2 + ["A"] * 4),
        "30 A": answer(["A"] * 30),
        "64 AAAA": answer(["AAAA"] * 64),
    }
    found = {}
    for name, message in cases.items():
        open_question(bench, message, port, mine)
        frame = p.ether(p.ipv4(SERVER, "127.0.0.1", p.UDP, p.udp(port, 53, message)))
        runs = []
        for _round in range(ROUNDS):
            open_question(bench, message, port, mine)
            runs.append(kernel.test_run(bench.d.programs["resolver"], frame, 2000)[1])
        found[name] = statistics.median(runs)
    return found


def walks(bench: Bench) -> dict[str, tuple[float, int]]:
    """By length of the name: median ns that the automaton of six expressions adds, and its states."""
    mine, port = POLICIES // 2, 40000
    automaton = dfa.compile({patterns.parse(text): n for n, text in enumerate(SIX, start=20)}).automaton
    numbers = Numbers(bench.d)
    numbers._set_automaton(mine, automaton)
    found = {}
    for length in (16, 40, 253):
        name = ("a" * 60 + ".") * 4
        message = answer(["A"], name[: length - len(".example.com")].rstrip(".") + ".example.com")
        frame = p.ether(p.ipv4(SERVER, "127.0.0.1", p.UDP, p.udp(port, 53, message)))
        with_it, without = [], []
        for _round in range(ROUNDS):
            for runs, flags in ((with_it, ("PATTERNS",)), (without, ())):
                bench.policy(mine, *flags)
                open_question(bench, message, port, mine)
                runs.append(kernel.test_run(bench.d.programs["resolver"], frame, 2000)[1])
        found[f"{length} characters"] = statistics.median(with_it) - statistics.median(without)
    numbers._set_automaton(mine, None)
    numbers.close()
    return {name: (ns, len(automaton.states)) for name, ns in found.items()}


def open_question(bench: Bench, message: bytes, port: int, policy: int) -> None:
    question = message[12 : message.index(b"\0", 12) + 5]
    folded = 0xCBF29CE484222325
    for byte in question:
        folded = (folded ^ byte) * 0x100000001B3 % 2**64
    client = (p.packed("127.0.0.1"), p.packed(SERVER), port.to_bytes(2, "big"), b"\0\x35", p.UDP)
    identity = cgroups.cgroup_id(bench.cgroup)
    key = (0, folded, client, int.from_bytes(message[:2], "big"))
    bench.put("questions", key, (time.clock_gettime_ns(time.CLOCK_BOOTTIME), identity, 0, policy))


def answer(kinds: list[str], name: str = "www.example.com") -> bytes:
    record = dnslib.DNSRecord(dnslib.DNSHeader(id=1, qr=1, ra=1), q=dnslib.DNSQuestion(name))
    for index, kind in enumerate(kinds):
        if kind == "CNAME":
            target = f"edge{index}.example.net"
            record.add_answer(dnslib.RR(name, dnslib.QTYPE.CNAME, ttl=60, rdata=dnslib.CNAME(target)))
            name = target
        elif kind == "A":
            record.add_answer(dnslib.RR(name, dnslib.QTYPE.A, ttl=60, rdata=dnslib.A(f"198.51.100.{index}")))
        else:
            data = dnslib.AAAA(f"2001:db8::{index:x}")
            record.add_answer(dnslib.RR(name, dnslib.QTYPE.AAAA, ttl=60, rdata=data))
    return bytes(record.pack())


def tcp(destination: str) -> bytes:
    return p.ether(p.ipv4(ME, destination, p.TCP, p.tcp(443, flags=p.ACK)))


def verified(loaded: Datapath) -> dict[str, int]:
    """Instructions that the verifier walked, by program (fdinfo, Linux 5.16)."""
    found = {}
    for name, fd in loaded.programs.items():
        fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
        found[name] = int(fields.get("verified_insns", "0"))
    return found

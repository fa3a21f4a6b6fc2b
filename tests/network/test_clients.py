"""Programs as they are: what a policy allows works for each of them, all else is refused at once."""

import json
import os
import socket

import pytest

from tests.network.conftest import REFUSED4, REFUSED6, ZONE
from tests.network.workload import python
from tests.topology import DNS4, DNS6, ODD

SITE4, SITE6 = ZONE["example.com"]
OTHER = "198.51.100.99"  # that no name has
ALLOW = ("--allow", "example.com", "--")


def test_without_skouter_everything_here_is_reached(lab):
    for url in (f"http://{REFUSED4}/", f"http://[{REFUSED6}]/", "http://metadata.example.com/"):
        assert lab.pod.run("curl", "-sS", "-m5", url).returncode == 0


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize(
    "fetch", [("curl", "-sSf", "-m9"), ("wget", "-qO-", "-T9", "-t1")], ids=["curl", "wget"]
)
def test_a_fetcher_gets_the_allowed_name_and_is_refused_the_other(run, fetch, family):
    fetch = (*fetch, family)
    got = run(*ALLOW, *fetch, "http://example.com/")
    assert (got.status, got.out.strip()) == (0, SITE4 if family == "-4" else SITE6)
    refused = run(*ALLOW, *fetch, "http://example.org/")
    assert refused.status != 0
    assert refused.refusals() == {REFUSED4 if family == "-4" else REFUSED6: "NOT_ALLOWED"}


@pytest.mark.parametrize("compiler", ["gcc", "musl-gcc"])
def test_a_c_program_reaches_every_address_of_a_name(run, programs, compiler):
    got = run(*ALLOW, programs("resolve", compiler), "example.com", "80")
    assert got.status == 0, got
    assert {tuple(line.split()[:2]) for line in got.out.splitlines()} == {
        (SITE4, "connected"),
        (SITE6, "connected"),
    }
    assert got.summary["refused"] == []


@pytest.mark.parametrize("compiler", ["gcc", "musl-gcc"])
def test_a_c_program_is_refused_a_name_that_no_rule_allows(run, programs, compiler):
    got = run(*ALLOW, programs("resolve", compiler), "example.org", "80")
    assert got.status == 1
    lines = [line.rsplit(maxsplit=1) for line in got.out.splitlines()]
    assert {text for text, _ in lines} == {
        f"{REFUSED4} Operation not permitted",
        f"{REFUSED6} Operation not permitted",
    }
    assert all(float(took) < 0.1 for _, took in lines)


def test_dig_gets_answers_for_every_name(run):
    got = run(*ALLOW, "dig", "+short", "example.org", "A", "example.com", "AAAA")
    assert got.out.split() == [REFUSED4, SITE6]
    assert got.summary["refused"] == []


def test_an_address_that_dig_learned_is_open_to_a_program_that_asks_nobody(run):
    got = run(*ALLOW, "sh", "-c", f"dig +short example.com >/dev/null && curl -sSf http://{SITE4}/")
    assert got.out.strip() == SITE4


def test_a_refused_connect_fails_with_EPERM_within_100_ms(run):
    got = run(*ALLOW, *python(f"tell([timed(lambda: connect(a)) for a in ({REFUSED4!r}, {REFUSED6!r})])"))
    for why, seconds in got.told:
        assert why == "EPERM"
        assert seconds < 0.1


def test_an_address_of_an_allowed_name_is_closed_until_somebody_asks_for_it(run):
    got = run(*ALLOW, *python(f"tell([connect({SITE4!r}), resolve('example.com'), connect({SITE4!r})])"))
    assert got.told == ["EPERM", SITE4, "connected"]


@pytest.mark.parametrize("connected", [False, True], ids=["unconnected", "connected"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_datagrams_pass_to_an_allowed_name_only(run, connected, family):
    code = f"""
        for name in ("example.com", "example.org"):
            tell(datagram(resolve(name, {int(family)}), connected={connected}))
    """
    assert run(*ALLOW, *python(code)).out.split() == ['"echo"', '"EPERM"']


def test_a_connected_socket_of_the_resolver_library_sorts_addresses_without_being_refused(run):
    """getaddrinfo connects a datagram socket to each address to sort them, and sends nothing."""
    got = run(*ALLOW, *python("tell(sorted(a[4][0] for a in socket.getaddrinfo('example.org', 80, type=1)))"))
    assert got.told == [REFUSED6, REFUSED4] or got.told == sorted([REFUSED6, REFUSED4])
    assert got.summary["refused"] == []


# ---- What rules mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "reached", "refused"),
    [
        ("*.example.com", ["www.example.com:80"], ["example.com:80", "evilexample.com:80"]),  # never the apex
        ("EXAMPLE.com.", ["example.com:80", "exAMPLE.Com:8080"], ["www.example.com:80"]),
        ("*", ["example.org:80", "www.example.com:443"], [f"{OTHER}:80"]),
        ("example.com:80", ["example.com:80"], ["example.com:443"]),
        ("example.com:8000-8080", ["example.com:8080"], ["example.com:80"]),
        ("example.com:443/udp", [], ["example.com:443"]),
        ("198.51.100.16/28", [f"{REFUSED4}:80", "example.net:8080"], ["example.com:80"]),
        (REFUSED4, [f"{REFUSED4}:80"], ["example.net:80"]),
        ("198.51.100.0/24:443", [f"{REFUSED4}:443"], [f"{REFUSED4}:80"]),
    ],
)
def test_allow(run, allow, reached, refused):
    code = """
        for at in sys.argv[1:]:
            host, port = at.rsplit(":", 1)
            tell(connect(resolve(host), int(port)))
    """
    got = run("--allow", allow, "--", *python(code), *reached, *refused)
    assert [json.loads(line) for line in got.out.splitlines()] == (
        ["connected"] * len(reached) + ["EPERM"] * len(refused)
    )


@pytest.mark.parametrize(
    ("allow", "wanted"),
    [("2001:db8:51::/48", "connected"), (f"[{REFUSED6}]:443", "EPERM"), (f"[{REFUSED6}]:80", "connected")],
)
def test_allow_of_an_IPv6_address_or_network(run, allow, wanted):
    assert run("--allow", allow, "--", *python(f"tell(connect({REFUSED6!r}))")).told == wanted


@pytest.mark.parametrize(
    ("allow", "wanted"),
    [
        ("example.com:7/udp", ["echo", "EPERM"]),
        ("example.com", ["echo", "echo"]),
        ("example.com:80", ["EPERM"] * 2),
    ],
)
def test_a_rule_for_datagrams_holds_for_its_port_only(run, allow, wanted):
    code = "a = resolve('example.com'); tell([datagram(a, 7), datagram(a, 9000)])"
    assert run("--allow", allow, "--", *python(code)).told == wanted


def test_a_port_that_the_rule_does_not_name_is_told_as_such(run):
    got = run("--allow", "example.com:443", "--", *python("tell(connect(resolve('example.com'), 80))"))
    assert got.refusals() == {SITE4: "PORT_NOT_ALLOWED"}


def test_a_name_behind_an_alias_is_allowed_by_the_name_that_was_asked_for(run):
    code = f"tell([connect(ask(n, {ODD!r})[-1]) for n in ('alias.example.com', 'target.example.net')])"
    for allow, wanted in (
        ("alias.example.com", ["connected", "connected"]),  # the same address
        ("target.example.net", ["EPERM", "connected"]),
    ):
        assert run("--resolver", ODD, "--allow", allow, "--", *python(code)).told == wanted


def test_the_v4_mapped_form_of_an_address_is_that_address(run):
    code = f"tell([connect('::ffff:{REFUSED4}'), connect('::ffff:' + resolve('example.com'))])"
    assert run(*ALLOW, *python(code)).told == ["EPERM", "connected"]


def test_a_resolver_may_be_reached_over_IPv6(lab, run):
    lab.trust(DNS6)
    try:
        got = run(*ALLOW, "curl", "-4sSf", "-m5", "http://example.com/")
    finally:
        lab.trust(DNS4)
    assert got.out == f"{SITE4}\n"


def test_a_resolver_may_listen_on_another_port_which_is_then_the_one_that_is_trusted(run):
    code = f"""
        tell([connect(ask("www.example.com", {ODD!r}, port=5353)[0])])
        tell(outcome(lambda: ask("www.example.com", {ODD!r})))
    """
    got = run("--resolver", f"{ODD}:5353", "--allow", "*.example.com", "--", *python(code))
    assert got.out.splitlines() == ['["connected"]', '"EPERM"']


@pytest.mark.parametrize("address", ["10.1.0.2", "fd01::2"])
def test_a_workload_reaches_itself_by_its_own_address(run, address):
    code = f"""
        server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        tell(connect({address!r}, server.getsockname()[1]))
    """
    assert run("--", *python(code)).told == "connected"


def test_loopback_stays_open(run):
    code = """
        server = socket.create_server(("127.0.0.1", 0))
        six = socket.create_server(("::1", 0), family=socket.AF_INET6)
        tell([connect("127.0.0.1", server.getsockname()[1]), connect("::1", six.getsockname()[1])])
    """
    assert run("--", *python(code)).told == ["connected", "connected"]


def test_a_connection_from_outside_is_answered(lab, running):
    code = """
        server = socket.create_server(("::", 8000), family=socket.AF_INET6, dualstack_ipv6=True)
        tell("ready")
        for _ in range(2):
            server.accept()[0].sendall(b"hello")
    """
    with running("--", *python(code)) as server:
        assert server.stdout.readline() == '"ready"\n'
        for address in ("10.1.0.2", "fd01::2"):
            hello = lab.world.run(*python(f"print(socket.create_connection(({address!r}, 8000), 5).recv(9))"))
            assert hello.stdout == "b'hello'\n", hello


def test_ping_needs_no_capability_and_a_rule(lab, run):
    lab.pod.checked("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    code = f"""
        def ping(address):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
                sock.settimeout(2)
                sock.sendto(bytes([8, 0, 0, 0, 0, 1, 0, 1]), (address, 0))
                return sock.recv(100)[0]
        tell([outcome(lambda: ping(a)) for a in ({SITE4!r}, {REFUSED4!r})])
    """
    assert run("--allow", SITE4, "--", *python(code)).told == [0, "EPERM"]


def test_the_environment_is_not_used_to_steer_a_program(run):
    """No proxy variable: what the program sees is what the caller has, less sudo's and our own."""
    got = run("--", "env", env={"SUDO_COMMAND": "x", "KEPT": "yes"})
    names = {line.split("=")[0] for line in got.out.splitlines()}
    assert "KEPT" in names
    assert not {name for name in names - set(os.environ) if "proxy" in name.lower()}
    assert not {name for name in names if name.startswith(("SUDO_", "SKOUTER_"))}

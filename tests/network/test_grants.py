"""How long an address that DNS taught stays open, and for what."""

from contextlib import ExitStack

import pytest

from tests.network.conftest import result
from tests.network.workload import python

OLD, NEW = "198.51.100.50", "198.51.100.51"


def test_a_grant_lasts_the_longer_of_TTL_and_floor_and_then_the_grace(lab, running):
    cases = [(1, 1, 0, 1), (1, 1, 1, 2), (2, 1, 0, 2), (0, 2, 0, 2)]  # TTL, floor, grace, and what follows
    with ExitStack() as held:
        started = []
        for ttl, floor, grace, _ in cases:
            name = f"for-{ttl}-seconds.example.com"
            lab.dns.set(name, OLD, ttl=ttl)
            code = f"a = resolve({name!r}); tell([connect(a), until(lambda: connect(a), 'EPERM')])"
            words = ("--floor", floor, "--grace", grace, "--allow", name, "--", *python(code))
            started.append(held.enter_context(running(*words)))
        for case, process in zip(cases, started, strict=True):
            got = result(0, *process.communicate(timeout=60))
            first, lasted = got.told
            assert (case, first) == (case, "connected")
            assert case[3] - 0.2 <= lasted < case[3] + 3, case
            assert got.refusals() == {OLD: "EXPIRED"}


def test_a_name_that_is_resolved_again_is_open_again(lab, run):
    lab.dns.set("short.example.com", OLD, ttl=1)
    code = """
        address = resolve("short.example.com")
        until(lambda: connect(address), "EPERM")
        tell([resolve("short.example.com"), connect(address)])
    """
    got = run("--floor", 1, "--grace", 0, "--allow", "short.example.com", "--", *python(code))
    assert got.told == [OLD, "connected"]
    assert "resolve the name again" not in got.out


def test_the_human_summary_tells_what_to_do_about_a_grant_that_ran_out(lab, run):
    lab.dns.set("short.example.com", OLD, ttl=1)
    code = 'a = resolve("short.example.com"); until(lambda: connect(a), "EPERM")'
    words = ("-o", "human", "--floor", 1, "--grace", 0, "--allow", "short.example.com", "--")
    assert "its DNS answer ran out: resolve the name again" in run(*words, *python(code)).said


def test_an_open_connection_outlives_its_grant_and_new_ones_do_not(lab, run):
    lab.dns.set("short.example.com", OLD, ttl=1)
    code = """
        address = resolve("short.example.com")
        download = socket.create_connection((address, 80), 5)
        download.sendall(b"GET /endless HTTP/1.0\\r\\n\\r\\n")
        asked = socket.create_connection((address, 80), 5)
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.settimeout(5)
        peer.connect((address, 7))
        peer.send(b"before")
        peer.recv(10)
        until(lambda: connect(address), "EPERM")
        before = len(download.recv(1 << 20))
        asked.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        peer.send(b"after")
        more = before and len(download.recv(1 << 20))
        tell([more > 0, asked.recv(100)[:12].decode(), peer.recv(10).decode()])
    """
    got = run("--floor", 1, "--grace", 0, "--allow", "short.example.com", "--", *python(code))
    assert got.told == [True, "HTTP/1.1 200", "after"]


def test_a_name_that_moves_is_followed_at_once_and_its_old_address_closes(lab, running):
    lab.dns.set("moving.example.com", OLD, ttl=1)
    code = """
        tell(connect(resolve("moving.example.com")))
        input()
        until(lambda: resolve("moving.example.com"), "198.51.100.51")
        tell(connect("198.51.100.51"))
        until(lambda: connect("198.51.100.50"), "EPERM")
        tell(connect(resolve("moving.example.com")))
    """
    words = ("--floor", 3, "--grace", 0, "--allow", "moving.example.com", "--", *python(code))
    with running(*words) as workload:
        assert workload.stdout.readline() == '"connected"\n'
        lab.dns.set("moving.example.com", NEW, ttl=1)
        out, said = workload.communicate("\n", timeout=60)
    assert out.splitlines() == ['"connected"'] * 2, said


def test_two_names_on_one_address_hold_it_each_for_its_own_ports_and_time(lab, run):
    lab.dns.set("web.example.com", OLD, ttl=1)
    lab.dns.set("echo.example.com", OLD, ttl=3)
    code = """
        tell([resolve("web.example.com"), resolve("echo.example.com")])
        tell([connect("198.51.100.50"), datagram("198.51.100.50")])
        until(lambda: connect("198.51.100.50"), "EPERM")
        tell(datagram("198.51.100.50"))
    """
    allow = ("--allow", "web.example.com:80", "--allow", "echo.example.com:7/udp")
    got = run("--floor", 1, "--grace", 0, *allow, "--", *python(code))
    assert got.out.splitlines()[1:] == ['["connected", "echo"]', '"echo"']


def test_an_answer_that_takes_three_seconds_teaches_all_the_same(run):
    code = 'a = ask("slow.example.com", "192.0.2.54", seconds=9); tell(connect(a[0]))'
    got = run("--resolver", "192.0.2.54", "--allow", "*.example.com", "--", *python(code))
    assert got.told == "connected"


@pytest.mark.xfail(strict=True, reason="nobody reads DNS over TCP for skouter run yet")
def test_an_answer_over_TCP_teaches_too(run):
    code = """
        import subprocess
        dig = ["dig", "+short", "large.example.com", "@192.0.2.54"]
        found = subprocess.run(dig, capture_output=True, text=True).stdout.strip()
        tell([found, connect(found)])
    """
    got = run("--resolver", "192.0.2.54", "--allow", "*.example.com", "--", *python(code))
    assert got.told == ["198.51.100.54", "connected"]

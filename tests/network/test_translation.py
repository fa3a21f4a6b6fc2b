"""Addresses that the node translates, as kube-proxy does for what lives in its own network: whom a TCP socket
was connected to counts, not whom its packets go to. Nothing else is believed for being translated."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.network.conftest import ZONE
from tests.network.workload import python
from tests.topology import Lab

SERVICES = {"198.51.100.90": ZONE["example.org"][0], "2001:db8:51::90": ZONE["example.org"][1]}
SERVICE4, SERVICE6 = SERVICES
BACKEND4, BACKEND6 = SERVICES.values()
URL4, URL6 = f"http://{SERVICE4}:8000/", f"http://[{SERVICE6}]:8000/"
ALLOW = tuple(word for service in SERVICES for word in ("--allow", service))
CURL = ("curl", "-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}")


@pytest.fixture(scope="module", autouse=True)
def translation(lab: Lab) -> Iterator[None]:
    rules = "".join(
        f"ip{'6' * (':' in one)} daddr {one} {protocol} dport 8000 dnat ip{'6' * (':' in one)} to "
        f"{f'[{other}]' if ':' in other else other}:80;"
        for one, other in SERVICES.items()
        for protocol in ("tcp", "udp")
    )
    table = f"table inet test_translation {{ chain out {{ type nat hook output priority -100; {rules} }}; }}"
    lab.pod.checked("nft", table)
    yield
    lab.pod.checked("nft", "delete table inet test_translation")


@pytest.mark.parametrize("url", [URL4, URL6])
def test_a_service_is_reached_by_the_address_that_was_asked_for(run, url):
    got = run(*ALLOW, "--", *CURL, url)
    assert (got.out, got.status) == ("200", 0), got.said


@pytest.mark.parametrize("url", [URL4, URL6])
def test_without_a_rule_for_the_service_its_backend_is_of_no_use(run, url):
    got = run("--allow", BACKEND4, "--allow", BACKEND6, "--", *CURL, url)
    assert got.status != 0
    assert set(got.refusals()) & set(SERVICES)


def test_the_port_that_was_asked_for_counts(run):
    assert run("--allow", f"{SERVICE4}:8000", "--", *CURL, URL4).out == "200"
    assert run("--allow", f"{SERVICE4}:80", "--", *CURL, URL4).status != 0


def test_a_connection_that_is_open_goes_on(run):
    code = f"""
        calling = socket.create_connection(({SERVICE4!r}, 8000), 5)
        got = []
        for _ in range(3):
            calling.send(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            got.append(calling.recv(12).decode())
            while calling.recv(4096)[-1:] == b"":
                pass
        tell(got)
    """
    got = run(*ALLOW, "--", *python(code))
    assert json.loads(got.out)[0] == "HTTP/1.1 200", got.said


def test_ATTACK_the_backend_itself_is_connected_to(run):
    got = run(*ALLOW, "--", *CURL, f"http://{BACKEND4}/")
    assert got.status != 0
    assert got.refusals() == {BACKEND4: "NOT_ALLOWED"}


def test_ATTACK_a_socket_that_asked_for_the_service_is_connected_elsewhere(run):
    code = f"""
        calling = socket.create_connection(({SERVICE4!r}, 8000), 5)
        disconnect(calling)
        tell(outcome(lambda: calling.connect(({BACKEND4!r}, 80))))
    """
    assert run(*ALLOW, "--", *python(code)).told == "EPERM"


def test_ATTACK_a_socket_that_asked_for_the_service_opens_fast_elsewhere(run):
    """sendto() with MSG_FASTOPEN connects too (tcp(7))."""
    code = f"""
        calling = socket.create_connection(({SERVICE4!r}, 8000), 5)
        disconnect(calling)
        tell(outcome(lambda: calling.sendto(b"x", socket.MSG_FASTOPEN, ({BACKEND4!r}, 80))))
    """
    assert run(*ALLOW, "--", *python(code)).told == "EPERM"


def test_ATTACK_a_datagram_is_not_believed_for_being_translated(run):
    """A thread may connect its socket to what is allowed while another's datagram is on its way elsewhere."""
    code = f"""
        calling = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        calling.connect(({SERVICE4!r}, 8000))
        tell(outcome(lambda: calling.send(b"x")))
    """
    assert run(*ALLOW, "--", *python(code)).told == "EPERM"

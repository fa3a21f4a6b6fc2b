"""DNS over TCP is read: what it says is learned before the client sees it, wherever the client asks."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bpf import kernel
from bpf.contract import contract
from bpf.datapath import Table
from bpf.load import maps_folder
from gateway import place
from tests.network.arena import Arena, Version
from tests.network.conftest import REFUSED4, ZONE, Result
from tests.network.daemon import CONFIG, WEB, Host, document
from tests.network.test_agent import OTHER, host
from tests.network.workload import python
from tests.topology import DNS4, DNS6, ODD, Lab, Unbound, end, wait_for

__all__ = ["host"]  # the fixture

SITE4, SITE6 = ZONE["example.com"]
ALLOW = ("--allow", "example.com", "--")
MANY = 2000

TCP = """
def stream(server=RESOLVER, source=None, device=None, port=53):
    s = socket.socket(family_of(server))
    s.settimeout(5)
    if source:
        s.bind((source, 0))
    if device:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    s.connect((server, port))
    return s

def framed(message):
    return len(message).to_bytes(2, "big") + message

def exactly(s, size):
    data = b""
    while len(data) < size:
        piece = s.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data

def reply(s):
    return exactly(s, int.from_bytes(exactly(s, 2), "big"))

def question(name, kind="A", number=7):
    asked = DNSRecord.question(name, kind)
    asked.header.id = number
    return bytes(asked.pack())

def ask_tcp(name, s=None, kind="A", **how):
    s = s or stream(**how)
    s.sendall(framed(question(name, kind)))
    return answers(reply(s))

def turned_away(connected):
    try:
        s = connected()
        s.sendall(framed(question("example.com")))
        return s.recv(1) == b""
    except ConnectionError:
        return True

def ended(s):
    try:
        while s.recv(65536):
            pass
        return "closed"
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode[error.errno]
"""


def program(code: str) -> list[str]:
    return python(f"{TCP}\n{textwrap.dedent(code)}")


def told(run: Callable[..., Result], code: str, *words: object) -> Any:
    return run(*(words or ALLOW[:-1]), "--", *program(code)).told


# ---- Clients as they are --------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [DNS4, DNS6])
def test_what_dig_learned_over_TCP_is_open(run: Callable[..., Result], server: str) -> None:
    line = f"dig +tcp +short @{server} example.com && curl -sSf http://{SITE4}/"
    got = run("--resolver", server, *ALLOW, "sh", "-c", line)
    assert got.out.split() == [SITE4, SITE4], got.said
    assert got.summary["refused"] == []


def test_dig_sees_the_server_that_it_asked(run: Callable[..., Result]) -> None:
    got = run(*ALLOW, "dig", "+tcp", "example.com")
    assert f"SERVER: {DNS4}#53({DNS4}) (TCP)" in got.out


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_the_C_library_asks_over_TCP(run: Callable[..., Result], family: str) -> None:
    env = {"RES_OPTIONS": "use-vc"}
    got = run(*ALLOW, "curl", family, "-sSf", "-m5", "http://example.com/", env=env)
    assert got.out.strip() == (SITE4 if family == "-4" else SITE6)
    refused = run(*ALLOW, "curl", family, "-sSf", "-m5", "http://example.org/", env=env)
    assert set(refused.refusals().values()) == {"NOT_ALLOWED"}


def test_a_server_whose_answers_over_UDP_are_truncated(run: Callable[..., Result]) -> None:
    line = f"dig +short @{ODD} large.example.com && curl -sSf http://198.51.100.54/"
    got = run("--resolver", ODD, "--allow", "*.example.com", "--", "sh", "-c", line)
    assert got.out.split() == ["198.51.100.54"] * 2


def test_a_resolver_of_this_host(run: Callable[..., Result], lab: Lab, tmp_path: Any) -> None:
    forwarder = Unbound(lab.pod, tmp_path / "forwarder", ["127.0.0.53"], forward=DNS4)
    lab.trust("127.0.0.53")
    try:
        got = run(*ALLOW, "sh", "-c", f"dig +tcp +short example.com && curl -sSf http://{SITE4}/")
    finally:
        lab.trust(DNS4)
        forwarder.close()
    assert got.out.split() == [SITE4, SITE4]


def test_an_answer_of_200_addresses_is_learned_whole(run: Callable[..., Result], lab: Lab) -> None:
    addresses = [f"198.51.100.{i}" for i in range(1, 201)]
    lab.dns.set("many.example.com", *addresses)
    code = """
        found = ask_tcp("many.example.com")
        tell([len(found), {connect(a) for a in found} == {"connected"}])
    """
    assert told(run, code, "--allow", "many.example.com") == [200, True]


def test_an_answer_of_64_KiB_is_learned_whole(run: Callable[..., Result], lab: Lab) -> None:
    """In an instance of its own: what many commands have just used leaves a name less room."""
    code = f"""
        found = ask_tcp('huge.example.com', server={ODD!r})
        tell([len(found), connect(found[0]), connect(found[-1])])
    """
    words = ("--resolver", ODD, "--allow", "*.example.com", "--", *program(code))
    assert run(*words, instance=lab.another_instance()).told == [4000, "connected", "connected"]


def test_an_answer_with_EDNS_and_signatures_passes_as_it_is(run: Callable[..., Result], lab: Lab) -> None:
    code = f"""
        asked = question("signed.example.com")
        options = bytes([0, 0, 41, 16, 0, 0, 0, 128, 0, 0, 4, 0, 10, 0, 0])
        asked = asked[:10] + bytes([0, 1]) + asked[12:] + options
        s = stream({ODD!r})
        s.sendall(framed(asked))
        tell(reply(s).hex())
    """
    direct = lab.pod.run(*program(code)).stdout
    got = run(
        "--resolver",
        ODD,
        "--allow",
        "*.example.com",
        "--",
        *program(f"{code}    tell(connect('198.51.100.54'))"),
    )
    assert got.out.splitlines() == [direct.strip(), '"connected"']
    assert len(direct) > 2 * 4000


def test_of_2000_fresh_names_over_TCP_no_first_packet_is_lost(run: Callable[..., Result], lab: Lab) -> None:
    code = f"""
        lost, s = [], stream()
        for i in range({MANY}):
            name = f"n{{i}}.many.test"
            (address,) = ask_tcp(name, s)
            with socket.socket() as peer:
                peer.settimeout(5)
                why = outcome(lambda: peer.connect((address, 9)))
                again = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[100:104]
                if why or again != bytes(4):  # tcpi_total_retrans
                    lost.append([name, why])
        tell(lost)
    """
    got = run("--allow", "*.many.test", "--", *program(code), instance=lab.another_instance(), timeout=90)
    assert got.told == []


def test_many_questions_at_once_on_one_connection(run: Callable[..., Result]) -> None:
    code = """
        s = stream()
        s.sendall(b"".join(framed(question(f"n{i}.many.test", number=i)) for i in range(500)))
        got = [DNSRecord.parse(reply(s)) for _ in range(500)]
        tell([sorted(g.header.id for g in got) == list(range(500)), connect(str(got[0].rr[0].rdata), 9)])
    """
    assert told(run, code, "--allow", "*.many.test") == [True, "connected"]


# ---- Sockets of many kinds ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        "source='10.1.0.2'",
        "source='127.0.0.1'",
        f"server='{DNS6}', source='fd01::2'",
        f"server='::ffff:{DNS4}'",
        "device='lo'",
    ],
)
def test_a_bound_socket_is_led_too(run: Callable[..., Result], how: str) -> None:
    code = f"s = stream({how}); tell([s.getpeername()[0], ask_tcp('example.com', s), connect({SITE4!r})])"
    wanted = how.split("'")[1] if "server" in how else DNS4
    assert told(run, code, "--resolver", DNS4, "--resolver", DNS6, "--allow", "example.com") == [
        wanted,
        [SITE4],
        "connected",
    ]


def test_a_question_on_the_first_packet(run: Callable[..., Result]) -> None:
    """sendto(2) with MSG_FASTOPEN connects, too."""
    code = f"""
        s = socket.socket()  # without a timeout: else it would have to be waited for
        s.sendto(framed(question("example.com")), socket.MSG_FASTOPEN, ({DNS4!r}, 53))
        tell([answers(reply(s)), connect({SITE4!r})])
    """
    assert told(run, code) == [[SITE4], "connected"]


def test_a_socket_that_is_bound_to_a_link_is_not_led_and_teaches_nothing(run: Callable[..., Result]) -> None:
    code = f"tell([outcome(lambda: ask_tcp('example.com', device='eth0')), connect({SITE4!r})])"
    assert told(run, code) == [[SITE4], "EPERM"]
    only = told(run, code, "--allow", "example.com", "--only-allowed-names")
    assert only == ["EPERM", "EPERM"]


# ---- What may be asked ----------------------------------------------------------------------------------


def test_a_refused_question_is_answered_at_once_and_told(run: Callable[..., Result]) -> None:
    code = """
        s = stream()
        for name in ("secret.tunnel.test", "example.com"):
            s.sendall(framed(question(name)))
            got = DNSRecord.parse(reply(s))
            tell([got.header.rcode, str(got.q.qname), answers(got.pack())])
        s.sendall(framed(question("example.com", "AXFR")))
        tell(DNSRecord.parse(reply(s)).header.rcode)
    """
    got = run("--only-allowed-names", *ALLOW, *program(code))
    assert [json.loads(line) for line in got.out.splitlines()] == [
        [3, "secret.tunnel.test.", []],
        [0, "example.com.", [SITE4]],
        3,
    ]
    refused = [row["name"] for row in got.summary["refused"] if row["reason"] == "QUESTION_REFUSED"]
    assert refused == ["*.tunnel.test"]


def test_audit_refuses_nothing_and_learns(run: Callable[..., Result]) -> None:
    code = f"tell([ask_tcp('example.org'), connect({REFUSED4!r})])"
    assert told(run, code, "--audit", "--only-allowed-names", "--allow", "example.com") == [
        [REFUSED4],
        "connected",
    ]


# ---- Attacks --------------------------------------------------------------------------------------------

OWN_SERVER = """
    import threading
    def serve(listener, early):
        while True:
            s, _ = listener.accept()
            if early:
                s.sendall(framed(answer("own.example.com", 7, FORGED)))
                s.close()
                continue
            asked = DNSRecord.parse(reply(s))
            s.sendall(framed(answer("own.example.com", asked.header.id, FORGED)))
    FORGED = %r
    listener = socket.create_server((%r, 53), backlog=5)
    threading.Thread(target=serve, args=(listener, %r), daemon=True).start()
    tell([outcome_of(lambda: ask_tcp("own.example.com", server=%r)), connect(FORGED)])
"""
OUTCOME = """
def outcome_of(call):
    try:
        return outcome(call)
    except EOFError:
        return "ended"
"""


OUTSIDE, KNOWN = "a server of DNS over TCP is nobody's workload", "the proxy is known by its listener"


def of(version: Version) -> dict[str, Any]:
    """How this version of the program is run."""
    return {"instance": version.instance, "env": {**os.environ, "PYTHONPATH": str(version.folder)}}


@pytest.mark.parametrize("without", [OUTSIDE, ""], ids=["weakened", "defended"])
@pytest.mark.parametrize("address", ["127.0.0.53", "10.1.0.2"])
def test_ATTACK_the_workload_answers_itself_at_the_trusted_address(
    run: Callable[..., Result], arena: Arena, address: str, without: str
) -> None:
    code = OUTCOME + textwrap.dedent(OWN_SERVER) % (REFUSED4, address, False, address)
    words = ("--resolver", address, "--allow", "*.example.com", "--", *program(code))
    asked, connected = run(*words, **of(arena.version(without))).told
    if without:
        assert (asked, connected) == ([REFUSED4], "connected")
    else:
        assert asked in ("ended", "ECONNRESET")
        assert connected == "EPERM"


@pytest.mark.parametrize("address", ["127.0.0.53", "10.1.0.2"])
def test_ATTACK_the_workload_answers_itself_before_it_is_asked(
    run: Callable[..., Result], address: str
) -> None:
    code = OUTCOME + textwrap.dedent(OWN_SERVER) % (REFUSED4, address, True, address)
    asked, connected = told(run, code, "--resolver", address, "--allow", "*.example.com")
    assert asked in ("ended", "ECONNRESET")
    assert connected == "EPERM"


@pytest.mark.parametrize("without", [KNOWN, ""], ids=["weakened", "defended"])
def test_ATTACK_somebody_takes_the_port_that_the_proxy_left(
    lab: Lab, arena: Arena, running: Callable[..., Any], without: str
) -> None:
    """Else the questions, and the answers, would be theirs."""
    code = f"""{OUTCOME}
tell(ask_tcp("example.com"))
input()
tell(outcome_of(lambda: ask_tcp("example.com")))
"""
    thief = f"""
        listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
        tell("ready")
        s, _ = listener.accept()
        asked = DNSRecord.parse(reply(s))
        s.sendall(framed(answer("example.com", asked.header.id, {REFUSED4!r})))
    """
    version = arena.version(without)
    with running(*ALLOW, *program(code), **of(version)) as process:
        assert json.loads(process.stdout.readline()) == [SITE4]
        port, _ = ports(version.instance)
        process.kill()
        process.wait(10)
        taker = lab.pod.start(*program(thief), port, stdout=subprocess.PIPE)
        try:
            assert taker.stdout
            assert taker.stdout.readline() == '"ready"\n'
            process.stdin.write("\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == ([REFUSED4] if without else "EPERM")
        finally:
            end(taker)


def ports(instance: str) -> tuple[int, int]:
    """Of the loopback, to which the workloads of the newest policy number are led."""
    proxies = contract().maps["proxies"]
    table = Table(kernel.get(maps_folder(place.find(instance).pins) / "proxies"), proxies)
    rows = [table[number] for number in range(1, 50)]
    os.close(table.fd)
    row = [row for row in rows if bytes(row.port4) != bytes(2)][-1]
    return int.from_bytes(bytes(row.port4), "big"), int.from_bytes(bytes(row.port6), "big")


def test_ATTACK_who_comes_to_the_proxy_without_being_led_is_refused(
    lab: Lab, running: Callable[..., Any]
) -> None:
    instance = lab.another_instance()
    code = """
        tell(ask_tcp("example.com"))
        for line in sys.stdin:
            four, six = map(int, line.split())
            for address, port in (("127.0.0.1", four), ("::1", six)):
                tell(turned_away(lambda: stream(address, port=port)))
            led = stream()
            disconnect(led)  # it was led once, and goes there by itself now
            tell(turned_away(lambda: led.connect(("127.0.0.1", four)) or led))
    """
    with running(*ALLOW, *program(code), instance=instance) as process:
        assert json.loads(process.stdout.readline()) == [SITE4]
        four, six = ports(instance)
        process.stdin.write(f"{four} {six}\n")
        process.stdin.flush()
        assert [json.loads(process.stdout.readline()) for _ in range(3)] == [True] * 3
        stranger = f'tell(turned_away(lambda: stream("127.0.0.1", port={four})))'
        done = lab.pod.run(*program(stranger))
        assert done.stdout == "true\n", done.stderr


@pytest.mark.parametrize(
    "sent",
    ["b'\\0\\0'", "b'\\0\\x05hello'", "os.urandom(65537)", "b'\\xff\\xff' + os.urandom(65535) * 3"],
    ids=["empty", "too short", "garbage", "64 KiB of it"],
)
def test_ATTACK_garbage_ends_its_connection_and_no_other(run: Callable[..., Result], sent: str) -> None:
    code = f"""
        other = stream()
        s = stream()
        outcome(lambda: s.sendall({sent}))
        s.settimeout(15)
        tell([ended(s) != "timeout", ask_tcp("example.com", other)])
    """
    assert told(run, code) == [True, [SITE4]]


def test_ATTACK_an_answer_on_a_connection_that_is_led_elsewhere_afterwards(
    run: Callable[..., Result],
) -> None:
    """What a socket asked for once does not open another server."""
    code = f"""
        s = stream()
        ask_tcp("example.com", s)
        disconnect(s)
        tell([outcome(lambda: s.connect(({ODD!r}, 53))), outcome(lambda: s.connect(({REFUSED4!r}, 80)))])
    """
    assert told(run, code) == ["EPERM", "EPERM"]


# ---- Whoever is away ------------------------------------------------------------------------------------


@pytest.fixture
def asking(lab: Lab, running: Callable[..., Any]) -> Iterator[Any]:
    """A command that outlives its `skouter run`, and asks on every line of input."""
    code = f"""
        s = stream()
        tell(ask_tcp("example.com", s))
        for line in sys.stdin:
            tell([ended(s), timed(lambda: ask_tcp("example.com")), ask("example.com"), connect({SITE4!r})])
    """
    with ExitStack() as stack:
        yield stack.enter_context(running(*ALLOW, *program(code), instance=lab.another_instance()))


def test_when_the_proxy_is_killed_connections_end_and_new_ones_are_refused_at_once(asking: Any) -> None:
    """Over UDP all goes on, and names are learned."""
    assert json.loads(asking.stdout.readline()) == [SITE4]
    asking.kill()
    asking.wait(10)
    asking.stdin.write("\n")
    asking.stdin.flush()
    open_one, (fresh, seconds), over_udp, connected = json.loads(asking.stdout.readline())
    assert open_one in ("closed", "ECONNRESET")
    assert (fresh, over_udp, connected) == ("EPERM", [SITE4], "connected")
    assert seconds < 0.1


def test_an_agent_that_is_killed_and_started_again_reads_again_within_a_second(host: Host) -> None:
    host.write("web.yaml", document("web", "example.com"))
    loop = """
        def ask_once():
            try:
                return bool(outcome(lambda: ask_tcp("example.com")) == [%r])
            except EOFError:
                return False
        while True:
            start = time.monotonic()
            tell([ask_once(), time.monotonic(), time.monotonic() - start])
            time.sleep(0.02)
    """
    with host.agent() as agent:
        process = subprocess.Popen(
            host.command(WEB, *program(loop % SITE4)), stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout
            wait_for(lambda: json.loads(process.stdout.readline())[0], "an answer")  # type: ignore[union-attr]
            agent.kill()
            agent.wait(10)
            refused = [json.loads(process.stdout.readline()) for _ in range(20)]
            assert all(took < 1 for _, _, took in refused)
            assert not refused[-1][0]
            with host.agent():
                ready = time.monotonic()
                worked = False
                while not worked:
                    worked, when, took = json.loads(process.stdout.readline())
                    assert took < 1
                    assert when < ready + 1
        finally:
            process.kill()
            process.wait()


def test_ATTACK_a_slow_drip_on_a_thousand_connections_starves_nobody(host: Host) -> None:
    """One byte a second on each; another workload, and even the same, asks as before."""
    host.write("web.yaml", document("web", "example.com"))
    host.config.write_text(f"{CONFIG}  - {{name: other, units: [other.service], labels: {{app: other}}}}\n")
    host.write("other.yaml", document("other", "example.com").replace("app: web", "app: other"))
    drip = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        held = []
        for i in range(1000):
            s = stream()
            s.setblocking(False)
            held.append(s)
        tell("dripping")
        data = b"\\xff\\xff" + bytes(60)
        for byte in data:
            for s in held:
                outcome(lambda: s.send(bytes([byte])))
            time.sleep(1)
    """
    timed_ask = "tell(timed(lambda: ask_tcp('example.com')))"
    with host.agent():
        process = subprocess.Popen(host.command(WEB, *program(drip)), stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            assert json.loads(process.stdout.readline()) == "dripping"
            for _ in range(3):
                for unit in (OTHER, WEB):
                    found, took = host.do(unit, TCP + timed_ask)
                    assert found == [SITE4]
                    assert took < 4
        finally:
            process.kill()
            process.wait()

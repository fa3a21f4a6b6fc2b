"""Attacks by what a socket was before, and by what seems to come from outside: with the defence switched off
each of them gets through, with it none does.

Run as an unprivileged user; NET_RAW where the attack needs it. Ways of sending: test_attacks_packets.py.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.network.conftest import REFUSED4, ZONE
from tests.network.workload import python
from tests.topology import ODD, end

SITE4, SITE6 = ZONE["example.com"]
POD = "10.1.0.2"
BROADCAST = "10.1.0.255"
TARGET = "198.51.100.66"  # where the attacker wants to get
FRIEND = "203.0.113.5"  # an address of nobody's, for which a friend in the world answers by hand
RAW = ("net_raw",)
TUPLE = "what is remembered is one whole tuple"
OUTSIDE = "loopback is not outside"
EITHER = pytest.mark.parametrize("defended", [False, True], ids=["the defence switched off", "defended"])
NAMES = ("*.example.com", "example.com")


def lines(process, count=1):
    told = [json.loads(process.stdout.readline()) for _ in range(count)]
    return told[0] if count == 1 else told


# ---- What a socket was before -----------------------------------------------------------------------------


@EITHER
@pytest.mark.parametrize("which", ["accepted", "listening"])
def test_ATTACK_a_socket_that_was_called_from_outside_calls_elsewhere(lab, arena, which, defended):
    code = f"""
        listening = socket.create_server(("", 8001))
        tell("ready")
        accepted, _ = listening.accept()
        accepted.recv(1)
        listening.shutdown(socket.SHUT_RDWR)
        disconnect(accepted)
        {which}.settimeout(2)
        tell(outcome(lambda: {which}.connect(({REFUSED4!r}, 80))))
    """
    workload = arena.workload(SITE4, SITE6, without="" if defended else TUPLE)
    with workload.started(code) as process:
        assert lines(process) == "ready"
        lab.world.checked(*python(f"socket.create_connection(({POD!r}, 8001), 5).send(b'x')"))
        assert lines(process) == ("EPERM" if defended else None)


@EITHER
def test_ATTACK_a_datagram_socket_that_a_stranger_wrote_to_writes_to_others(lab, arena, defended):
    """What came in may be answered: that host at that port, and no other."""
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(5)
        sock.bind(("", 8002))
        tell("ready")
        _, stranger = sock.recvfrom(10)
        peers = stranger, (stranger[0], 7), ({REFUSED4!r}, stranger[1])
        tell([outcome(lambda: sock.sendto(b"x", to)) for to in peers])
    """
    workload = arena.workload(SITE4, SITE6, without="" if defended else TUPLE)
    with workload.started(code) as process:
        assert lines(process) == "ready"
        lab.world.checked(
            *python(f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ({POD!r}, 8002))")
        )
        assert lines(process) == ([1, "EPERM", "EPERM"] if defended else [1, 1, 1])


def test_ATTACK_multipath_TCP_is_refused_at_once(run):
    code = f"""
        IPPROTO_MPTCP = 262
        def mptcp(address):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
                sock.settimeout(1)
                sock.connect((address, 80))
                return "connected"
        tell([outcome(lambda: mptcp(resolve("example.com"))), timed(lambda: mptcp({REFUSED4!r}))])
    """
    got = run("--allow", "example.com", "--", *python(code))
    if got.told[0] == "EPROTONOSUPPORT":
        pytest.skip("no MPTCP in this kernel")
    assert got.told[0] == "connected"
    assert got.told[1][0] == "EPERM"
    assert got.told[1][1] < 0.1


@EITHER
@pytest.mark.parametrize("how", ["connect", "sendmsg"])
def test_ATTACK_the_kernel_is_asked_by_io_uring(arena, programs, how, defended):
    """Another thread of the kernel does it; the socket's cgroup is the same."""
    program = programs("uring")
    program.parent.chmod(0o755)
    for folder in program.parents:
        if str(folder).startswith("/tmp/pytest"):
            folder.chmod(0o755)
    workload = arena.workload(SITE4, SITE6, audit=not defended)
    code = f"""
        import subprocess
        tell(subprocess.run([{str(program)!r}, {how!r}, {REFUSED4!r}], capture_output=True, text=True).stdout)
    """
    (told,) = workload.attack(code)
    if told == "ENOSYS\n":
        pytest.skip("no io_uring in this kernel")
    assert told == ("EPERM\n" if defended else "done\n")


def test_ATTACK_a_socket_is_handed_to_a_process_outside(lab, arena):
    """It stays what it was born as; so does one that comes from outside, which is a limit that is stated."""
    workload = arena.workload(SITE4, SITE6)
    where = f"\0{lab.instance}"
    hand = f"""
        pair = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        pair.connect({where!r})
        socket.send_fds(pair, [b"x"], [sock.fileno()])
    """
    take = f"""
        pair = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        pair.bind({where!r})
        tell("ready")
        _, (fd,), _, _ = socket.recv_fds(pair, 1, 1)
        given = socket.socket(fileno=fd)
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tell([outcome(lambda: s.sendto(b"x", ({REFUSED4!r}, 7))) for s in (given, own)])
    """
    outside = lab.pod.start(*python(take), stdout=subprocess.PIPE)
    try:
        assert lines(outside) == "ready"
        workload.attack(hand)
        assert lines(outside) == ["EPERM", 1]
    finally:
        end(outside)


# ---- What seems to come from outside ----------------------------------------------------------------------

LISTEN = f"""
    server = socket.create_server(({POD!r}, 0))
    server.settimeout(3)
    syn = segment({FRIEND!r}, 4444, {POD!r}, server.getsockname()[1], 7, 0, SYN)
    outcome(lambda: send_raw({POD!r}, syn))
    def serve():
        connection, _ = server.accept()
        return connection.send(sys.argv[1].encode())
    tell(outcome(serve))
"""
COMPLETE = f"""
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    frames.bind(("eth0", ETH_P_ALL))
    tell("ready")
    while True:
        p = frames.recv(4096)
        if p[9] == 6 and p[16:20] == socket.inet_aton({FRIEND!r}) and p[33] == SYN | ACK:
            break
    port, number = int.from_bytes(p[20:22], "big"), int.from_bytes(p[24:28], "big")
    send_raw({POD!r}, segment({FRIEND!r}, 4444, {POD!r}, port, 8, number + 1, ACK))
"""


@EITHER
def test_ATTACK_a_call_from_outside_is_forged_over_loopback_and_a_friend_completes_it(
    lab, arena, spy, defended
):
    workload = arena.workload(SITE4, SITE6, without="" if defended else OUTSIDE)
    before = workload.counters()
    secret = f"{defended} secret"  # the undefended one is sent again and again
    friend = lab.world.start(*python(COMPLETE), stdout=subprocess.PIPE)
    try:
        assert lines(friend) == "ready"
        spy.seen()
        told = workload.attack(LISTEN, secret, capabilities=RAW)
        got_out = any(secret.encode() in packet for packet in spy.seen())
    finally:
        end(friend)
    assert (told, got_out) == ((["timeout"], False) if defended else ([len(secret)], True))
    if defended:
        assert (workload.counters() - before)["SPOOFED"] == 1


# The datagram makes its source a stranger who wrote first and may be answered.
STRANGER = {
    "over loopback": f"forge({REFUSED4!r}, 7, {POD!r}, port, b'x')",
    "by a frame on loopback": f"frame('lo', udp_packet({REFUSED4!r}, 7, {POD!r}, port, b'x'))",
}


@EITHER
@pytest.mark.parametrize("way", STRANGER)
def test_ATTACK_a_datagram_from_outside_is_forged(arena, way, defended):
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(({POD!r}, 0))
        sock.settimeout(1)
        port = sock.getsockname()[1]
        outcome(lambda: {STRANGER[way]})
        tell([outcome(lambda: sock.recv(9).decode()), outcome(lambda: sock.sendto(b"x", ({REFUSED4!r}, 7)))])
    """
    workload = arena.workload("10.1.0.0/24", without="" if defended else OUTSIDE)
    before = workload.counters()
    (told,) = workload.attack(code, capabilities=RAW)
    assert told == (["timeout", "EPERM"] if defended else ["x", 1])
    if defended:
        assert (workload.counters() - before)["SPOOFED"] == 1, (before, workload.counters())


# ---- What seems to be an answer ---------------------------------------------------------------------------

ASKED = f"""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.settimeout(2)
    port = sock.getsockname()[1]
    question = DNSRecord.question("silent.example.com")
    sock.sendto(question.pack(), ({ODD!r}, 53))
    forged = answer("silent.example.com", question.header.id, {TARGET!r})
"""
ANSWERS = {
    "over loopback": f"forge({ODD!r}, 53, {POD!r}, port, forged)",
    "by a frame on loopback": f"frame('lo', udp_packet({ODD!r}, 53, {POD!r}, port, forged))",
    "by its own broadcast": f"forge({ODD!r}, 53, {BROADCAST!r}, port, forged, broadcast=True)",
}


@EITHER
@pytest.mark.parametrize("way", ANSWERS)
def test_ATTACK_the_answer_of_a_resolver_elsewhere_is_forged(arena, way, defended):
    workload = arena.workload(*NAMES, "10.1.0.0/24", resolvers=[ODD], without="" if defended else OUTSIDE)
    code = f"""{ASKED}
    outcome(lambda: {ANSWERS[way]})
    tell([outcome(lambda: answers(sock.recv(4096))), connect({TARGET!r})])
    """
    (told,) = workload.attack(code, capabilities=RAW)
    if defended:
        assert told == [[TARGET] if "broadcast" in way else "timeout", "EPERM"]
    else:
        assert told == [[TARGET], "connected"]


LOCAL = {
    "from a raw socket": """forge("127.0.0.53", 53, *sock.getsockname(), forged)""",
    "by its own server": """server.sendto(forged, sock.getsockname())""",
}


@EITHER
@pytest.mark.parametrize("way", LOCAL)
def test_ATTACK_the_answer_of_a_resolver_on_this_host_is_forged(arena, way, defended):
    """Answers are learned at the resolver's own socket only, which is no workload's."""
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.53", 53))  # or the question is answered by an ICMP error
        question = DNSRecord.question("own.example.com")
        sock.sendto(question.pack(), ("127.0.0.53", 53))
        forged = answer("own.example.com", question.header.id, {TARGET!r})
        {LOCAL[way]}
        tell([answers(sock.recv(4096)), connect({TARGET!r})])
    """
    without = "" if defended else OUTSIDE
    workload = arena.workload(*NAMES, resolvers=["127.0.0.53"], without=without)
    (told,) = workload.attack(code, capabilities=("net_raw", "net_bind_service"))
    assert told == [[TARGET], "connected" if not defended else "EPERM"]

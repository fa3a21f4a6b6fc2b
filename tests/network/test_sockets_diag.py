"""Real sockets in namespaces of their own: listed whole, with what the kernel keeps of them, and ended."""

import errno
import ipaddress
import os
import socket
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from bpf import kernel
from bpf.contract import contract
from gateway import cgroups
from routing import borrowed, namespaces, sockets
from routing.sockets import NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, InterruptedDumpError, State
from tests.kernel.bench import Namespace, inside
from tests.topology import wait_for

SO_COOKIE = 57
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.fixture
def network(superuser):
    made = Namespace()
    yield made
    made.close()


@pytest.fixture
def keep():
    """Closes what is entered into it."""
    with ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def made(network, keep):
    """A socket of the namespace."""

    def make(family, kind):
        with network.entered():
            one = keep(socket.socket(family, kind))
        one.settimeout(5)
        return one

    return make


@pytest.fixture
def pair(made, keep):
    """The two ends of a connection to an address, and its listener."""

    def connect(family, host, listen_at=None, listen_family=None):
        listener = made(listen_family or family, TCP)
        listener.bind((listen_at or host, 0))
        listener.listen()
        client = made(family, TCP)
        client.connect((host, listener.getsockname()[1]))
        return client, keep(listener.accept()[0]), listener

    return connect


@pytest.fixture
def dump(network):
    def by_cookie(**options):
        found = namespaces.inside(network.fd, lambda: sockets.dump(**options))
        assert len({one.cookie for one in found}) == len(found)
        return {one.cookie: one for one in found}

    return by_cookie


@pytest.fixture
def storage():
    """A map as the contract has it, and how to put a value for a socket."""
    wanted = contract().maps["sockets"]
    made = kernel.create_map(wanted)

    def put(one, value):
        assert len(value) == wanted.value_size
        kernel.update(made, struct.pack("=I", one.fileno()), value)

    yield made, put, wanted.value_size
    os.close(made)


def cookie(one):
    return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)


def ended(network, found):
    return namespaces.inside(network.fd, lambda: sockets.destroy(found))


def error_of(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


# ---- What a list holds


@pytest.mark.parametrize("family", LOOPBACK)
def test_the_two_ends_and_the_listener_are_listed_as_they_are(family, pair, dump):
    client, server, listener = pair(family, LOOPBACK[family])
    found = dump()
    assert set(found) == {cookie(client), cookie(server), cookie(listener)}
    for one, state in ((client, State.ESTABLISHED), (server, State.ESTABLISHED), (listener, State.LISTEN)):
        row = found[cookie(one)]
        assert (row.family, row.protocol, row.state) == (family, socket.IPPROTO_TCP, state)
        assert (str(row.local), row.local_port) == one.getsockname()[:2]
        assert row.storage is None
    assert (str(found[cookie(client)].remote), found[cookie(client)].remote_port) == listener.getsockname()[
        :2
    ]
    waiting = found[cookie(listener)]
    assert (waiting.remote.is_unspecified, waiting.remote_port, waiting.interface) == (True, 0, 0)


def test_an_ipv4_peer_of_an_ipv6_socket_is_listed_as_ipv4(pair, dump):
    client, server, listener = pair(
        socket.AF_INET6, "::ffff:127.0.0.1", listen_at="::", listen_family=socket.AF_INET6
    )
    found = dump()
    home = ipaddress.IPv4Address("127.0.0.1")
    for one in (client, server):
        assert (found[cookie(one)].local, found[cookie(one)].remote) == (home, home)
    assert found[cookie(listener)].local == ipaddress.IPv6Address("::")


def test_a_datagram_socket_is_listed_connected_or_not_and_with_its_interface(made, dump):
    sender, receiver = made(socket.AF_INET, UDP), made(socket.AF_INET6, UDP)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    receiver.bind(("::1", 0))
    sender.connect(("127.0.0.1", 9))
    found = dump()
    assert (found[cookie(sender)].state, found[cookie(sender)].remote_port) == (State.ESTABLISHED, 9)
    assert (found[cookie(receiver)].state, found[cookie(receiver)].interface) == (State.CLOSE, 1)
    assert {row.protocol for row in found.values()} == {socket.IPPROTO_UDP}


def test_only_the_protocols_that_were_asked_for(pair, made, dump):
    pair(socket.AF_INET, "127.0.0.1")
    made(socket.AF_INET, UDP).bind(("127.0.0.1", 0))
    assert len(dump(protocols=(socket.IPPROTO_UDP,))) == 1
    assert len(dump(protocols=(socket.IPPROTO_TCP,))) == 3


def test_a_protocol_that_the_kernel_does_not_know_is_left_out(made, dump):
    made(socket.AF_INET, UDP).bind(("127.0.0.1", 0))
    assert len(dump(protocols=(253, socket.IPPROTO_UDP))) == 1  # RFC 3692: for experiments


def test_a_kernel_that_can_t_list_tcp_is_an_error_and_no_empty_list(monkeypatch):
    def unknown(*_arguments):
        raise OSError(errno.ENOENT, "no handler")

    monkeypatch.setattr(sockets, "_ask", unknown)
    assert error_of(sockets.dump) == errno.ENOENT


def test_what_has_no_socket_any_more_is_left_out(pair, made, dump):
    """One end in TIME_WAIT, and a handshake that waits for its last segment."""
    client, server, listener = pair(socket.AF_INET, "127.0.0.1")
    client.close()
    assert server.recv(1) == b""
    server.close()
    assert set(dump()) == {cookie(listener)}


def test_a_half_open_connection_is_left_out_and_its_client_is_not(network, made, dump):
    network.ip("addr add 192.0.2.1/32 dev lo")
    with network.entered():
        rule = "add table ip t; add chain ip t c { type filter hook output priority 0; }; "
        rule += "add rule ip t c tcp flags & (syn|ack) == ack drop"
        try:
            subprocess.run(["nft", rule], check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip("needs nft and nf_tables")
    listener, client = made(socket.AF_INET, TCP), made(socket.AF_INET, TCP)
    listener.bind(("192.0.2.1", 0))
    listener.listen()
    client.connect(listener.getsockname())
    found = dump()
    assert set(found) == {cookie(listener), cookie(client)}
    assert found[cookie(client)].state == State.ESTABLISHED


def test_the_cgroup_is_the_one_that_the_socket_was_made_in(made, dump, cgroup_root):
    folder = cgroup_root / "sockets-diag"
    folder.mkdir()
    with inside(folder):
        one = made(socket.AF_INET, UDP)
    one.bind(("127.0.0.1", 0))
    assert dump()[cookie(one)].cgroup == folder.stat().st_ino == cgroups.cgroup_id(folder)


def test_the_storage_is_that_of_the_map_that_was_asked_for(pair, made, dump, storage):
    number, put, size = storage
    client, server, listener = pair(socket.AF_INET6, "::1")
    datagram = made(socket.AF_INET, UDP)
    datagram.connect(("127.0.0.1", 9))
    values = {one: os.urandom(size) for one in (client, listener, datagram)}
    for one, value in values.items():
        put(one, value)
    found = dump(storage_map=number)
    assert [found[cookie(one)].storage for one in (client, listener)] == [values[client], values[listener]]
    assert found[cookie(server)].storage is None
    assert found[cookie(datagram)].storage is None, "the kernel tells it now: borrowed.py is no more needed"
    other = kernel.create_map(contract().maps["sockets"])
    try:
        assert {row.storage for row in dump(storage_map=other).values()} == {None}
    finally:
        os.close(other)


def test_a_descriptor_that_is_no_map_is_an_error(dump, network):
    assert error_of(lambda: dump(storage_map=network.fd)) == errno.EINVAL


def test_five_thousand_sockets_with_storage_are_all_listed(made, dump, storage):
    number, put, size = storage
    wanted = {}
    for index in range(5000):
        one = made((socket.AF_INET, socket.AF_INET6)[index % 2], TCP)
        one.bind((LOOPBACK[one.family], 0))
        one.listen(1)
        wanted[cookie(one)] = index.to_bytes(size, "big")
        put(one, wanted[cookie(one)])
    assert {found: row.storage for found, row in dump(storage_map=number).items()} == wanted


HOLDER = """
import socket, sys
made = [socket.socket(family, 2) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)]
print(*(int.from_bytes(one.getsockopt(1, 57, 8), sys.byteorder) for one in made[:2]), flush=True)
sys.stdin.read()
"""


def test_the_storage_of_another_process_s_datagram_socket_is_found_by_borrowing_it(storage):
    number, put, size = storage
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        wanted = {int(word): os.urandom(size) for word in holder.stdout.readline().split()}
        for name, held in borrowed.sockets_of(holder.pid, set()):
            put(held, wanted[name])
        found = {
            name: kernel.lookup(number, struct.pack("=I", held.fileno()), size)
            for name, held in borrowed.sockets_of(holder.pid, set())
        }
        assert found == wanted
    finally:
        holder.communicate()
    assert list(borrowed.sockets_of(holder.pid, set())) == []


# ---- Ending


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::ffff:127.0.0.1")],
)
def test_a_connection_that_is_ended_tells_both_ends_at_once(family, host, network, pair, dump):
    client, server, listener = pair(family, host)
    found = dump()[cookie(client)]
    assert ended(network, found)
    assert error_of(client.recv, 1) == errno.ECONNABORTED
    assert error_of(server.recv, 1) == errno.ECONNRESET
    assert set(dump()) == {cookie(listener)}
    assert not ended(network, found)


def test_a_read_that_waits_is_told(network, pair, dump):
    client, _server, _listener = pair(socket.AF_INET, "127.0.0.1")
    told = []
    waiting = threading.Thread(target=lambda: told.append(error_of(client.recv, 1)))
    waiting.start()
    try:
        assert ended(network, dump()[cookie(client)])
    finally:
        waiting.join(6)
    assert told == [errno.ECONNABORTED]


def test_a_connection_that_is_still_asked_for_is_ended(network, made, keep, dump):
    silent = keep(closing(Namespace()))
    network.join(silent)
    network.ip("addr add 192.0.2.1/24 dev outside")
    network.ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:01 dev outside")
    client = made(socket.AF_INET, TCP)
    client.setblocking(False)
    assert client.connect_ex(("192.0.2.2", 9)) == errno.EINPROGRESS
    found = dump()[cookie(client)]
    assert found.state == State.SYN_SENT
    assert ended(network, found)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::ffff:127.0.0.1")],
)
def test_a_connected_datagram_socket_is_told_and_has_no_peer_any_more(family, host, network, made, dump):
    one = made(family, UDP)
    one.connect((host, 9))
    assert ended(network, dump()[cookie(one)])
    assert error_of(one.recv, 1) == errno.ECONNABORTED
    assert error_of(one.getpeername) == errno.ENOTCONN


def test_nothing_else_is_ended_where_the_addresses_have_a_new_owner(network, pair, made, dump):
    client, server, listener = pair(socket.AF_INET, "127.0.0.1")
    before = dump()[cookie(client)]
    ends = client.getsockname(), client.getpeername()
    assert ended(network, before)
    assert error_of(server.recv, 1) == errno.ECONNRESET
    client.close()
    heir = made(socket.AF_INET, TCP)
    heir.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    heir.bind(ends[0])
    heir.connect(ends[1])
    assert not ended(network, before)
    assert {cookie(heir), cookie(listener)} <= set(dump())
    heir.send(b"x")


def test_a_socket_of_another_namespace_is_not_ended(network, pair, dump):
    client, server, _listener = pair(socket.AF_INET, "127.0.0.1")
    assert not sockets.destroy(dump()[cookie(client)])
    client.send(b"x")
    assert server.recv(1) == b"x"


def test_a_kernel_that_can_t_end_sockets_is_named(made, dump, monkeypatch):
    made(socket.AF_INET, UDP).bind(("127.0.0.1", 0))
    (found,) = dump().values()

    def unsupported(*_arguments):
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(sockets, "_ask", unsupported)
    with pytest.raises(OSError, match="CONFIG_INET_DIAG_DESTROY"):
        sockets.destroy(found)


# ---- Netlink


def message(kind, flags=0, payload=bytes(4)):
    return sockets.HEADER.pack(sockets.HEADER.size + len(payload), kind, flags, 1, 0) + payload


def test_an_answer_in_several_pieces_is_one():
    pieces = [message(20, 2, b"abcd") + message(20, 2, b"efg") + b"\0", message(NLMSG_DONE)]
    assert sockets.replies(iter(pieces).__next__) == [b"abcd", b"efg"]


def test_an_interrupted_list_is_asked_for_again_and_not_for_ever(monkeypatch):
    broken = [message(20, 2 | NLM_F_DUMP_INTR, b"abcd") + message(NLMSG_DONE)]
    with pytest.raises(InterruptedDumpError):
        sockets.replies(iter(broken).__next__)
    tries = []

    def interrupted(*arguments):
        tries.append(arguments)
        raise InterruptedDumpError

    monkeypatch.setattr(sockets, "_ask", interrupted)
    assert error_of(sockets.dump) == errno.EINTR
    assert len(tries) == sockets.ATTEMPTS


@pytest.mark.parametrize("kind", [NLMSG_ERROR, NLMSG_DONE])
def test_an_error_is_told_wherever_the_kernel_puts_it(kind):
    answer = message(20, 2, b"abcd") + message(kind, 0, struct.pack("=i", -errno.EPERM))
    assert error_of(sockets.replies, iter([answer]).__next__) == errno.EPERM


@pytest.mark.parametrize("cut", [4, 17])
def test_an_answer_that_is_cut_is_an_error(cut):
    assert error_of(sockets.replies, iter([message(20, 2, b"abcd")[:cut]]).__next__) == errno.EBADMSG


def test_ATTACK_answers_forged_by_a_process_of_the_pod():
    """It needs NET_ADMIN in the namespace, which this test has."""
    with sockets.connected() as link, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as attacker:
        forged = message(NLMSG_DONE)
        assert error_of(attacker.sendto, forged, (link.getsockname()[0], 0)) == errno.ECONNREFUSED


# ---- Namespaces


def own_inode():
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_work_is_done_in_the_namespace_and_the_caller_stays_where_it_is(network):
    before = own_inode()
    assert namespaces.inside(network.fd, own_inode) == os.fstat(network.fd).st_ino != before
    assert own_inode() == before
    with pytest.raises(ZeroDivisionError):
        namespaces.inside(network.fd, lambda: 1 // 0)
    assert own_inode() == before


def test_where_a_namespace_can_t_be_entered_nothing_is_done():
    began = []
    with Path(os.devnull).open() as nothing:
        assert error_of(namespaces.inside, nothing.fileno(), lambda: began.append(1)) == errno.EINVAL
    assert began == []


def test_each_namespace_of_some_processes_is_there_once(network):
    with ExitStack() as started:

        def start():
            process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
            started.callback(process.communicate)
            return process

        here = [start(), start()]
        with network.entered():
            there = start()
        gone = subprocess.Popen(["true"])
        gone.wait()
        wait_for(lambda: not Path("/proc", str(gone.pid)).exists(), "the end of a process")
        with namespaces.namespaces([p.pid for p in (*here, there, gone)]) as found:
            assert set(found) == {own_inode(), os.fstat(network.fd).st_ino}
            for inode, number in found.items():
                assert namespaces.inside(number, own_inode) == inode
            opened = [*found.values()]
        for number in opened:
            assert error_of(os.fstat, number) == errno.EBADF

"""A rule that goes away ends what it admitted and nothing else: real sockets, a policy changed in place."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway import place, resolvers
from gateway.engine import Engine, Held
from gateway.numbers import Options
from gateway.policies import allow, policy
from gateway.policies.records import Rule
from tests.network.workload import python
from tests.topology import DNS4, Lab, end, wait_for

LOOP = """
kept = {}
def keep(name, make):
    kept[name] = make
    return "kept"
def opened(address, port=80):
    held = socket.create_connection((address, port), 3)
    held.settimeout(3)
    return held
def datagrams(*to):
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    held.settimeout(3)
    if to:
        held.connect(to)
    return held
def ask(name):
    kept[name].sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    return len(kept[name].recv(65536)) > 0
tell("ready")
for line in sys.stdin:
    tell(outcome(lambda: eval(line)))
"""


class Workload:
    """A process of the pod under a policy that the test changes; it evaluates what it is told."""

    def __init__(self, engine: Engine, held: Held, options: Options, process: subprocess.Popen[str]) -> None:
        self.engine, self.held, self.options, self.process = engine, held, options, process

    def __call__(self, expression: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def allow(self, *texts: str, regex: str = "") -> list[str]:
        return self.engine.update(self.held, wanted(*texts, regex=regex), self.options)


def wanted(*texts: str, regex: str = "") -> policy.Policy:
    from gateway.policies import patterns

    egress = allow.egress(list(texts), audit=False)
    egress = type(egress)(
        "default", "test", rules=(*egress.rules, *([Rule(regex=(patterns.parse(regex),))] if regex else []))
    )
    union = policy.union([egress])
    assert union is not None
    return union


@pytest.fixture
def workload(lab: Lab) -> Iterator[Callable[..., Any]]:
    @contextmanager
    def start(*texts: str, regex: str = "", **options: Any) -> Iterator[Workload]:
        engine = Engine(place.find(lab.instance))
        chosen = Options(resolvers=(resolvers.parse(DNS4),), trace=True, **options)
        name = f"test-{os.urandom(4).hex()}"
        held = engine.hold(name, wanted(*texts, regex=regex), chosen, {"kind": "test"})
        cgroup = engine.where.cgroup / name
        cgroup.mkdir()
        engine.place(held, cgroup)
        process = lab.pod.start(
            "sh",
            "-c",
            'echo $$ >$0/cgroup.procs; exec "$@"',
            cgroup,
            *python(LOOP),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        made = Workload(engine, held, chosen, process)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == '"ready"\n'
            yield made
        finally:
            end(process)
            made.engine.release(made.held)
            made.engine.close()
            cgroup.rmdir()

    return start


def test_a_withdrawn_name_ends_its_connections_and_leaves_others(workload: Any) -> None:
    with workload("example.com", "example.net") as w:
        assert w("keep('com', opened('example.com'))") == "kept"
        assert w("keep('net', opened('example.net'))") == "kept"
        assert w("ask('com')") is True
        (told,) = w.allow("example.net")
        assert "ended TCP to 198.51.100.10 port 80 of python" in told
        assert w("ask('com')") == "ECONNABORTED"
        assert w("ask('net')") is True
        assert w("connect('198.51.100.10')") == "EPERM"
        assert w("connect('example.com')") == "EPERM"


def test_a_reader_that_waits_is_woken(workload: Any) -> None:
    with workload("example.com") as w:
        assert w("keep('com', opened('example.com'))") == "kept"
        assert w.process.stdin is not None
        assert w.process.stdout is not None
        w.process.stdin.write("(tell('waiting'), kept['com'].settimeout(30), kept['com'].recv(1))\n")
        w.process.stdin.flush()
        assert w.process.stdout.readline() == '"waiting"\n'
        assert len(w.allow()) == 1
        assert w.process.stdout.readline() == '"ECONNABORTED"\n'


def test_a_narrowed_rule_ends_the_ports_it_lost(workload: Any) -> None:
    with workload("example.com:80", "example.com:443") as w:
        assert w("keep('com', opened('example.com', 80))") == "kept"
        (told,) = w.allow("example.com:443")
        assert "port 80" in told
        assert w("ask('com')") == "ECONNABORTED"


def test_of_two_names_on_one_address_either_may_go(workload: Any, lab: Lab) -> None:
    lab.dns.add([("a.shared.test", "198.51.100.20", 60), ("b.shared.test", "198.51.100.20", 60)])
    for stays, goes in (("a.shared.test", "b.shared.test"), ("b.shared.test", "a.shared.test")):
        with workload("a.shared.test", "b.shared.test") as w:
            assert w(f"keep('one', opened('{goes}'))") == "kept"
            assert w(f"keep('two', opened('{stays}'))") == "kept"
            assert w.allow(stays) == []
            assert w("ask('one')") is True
            assert w("ask('two')") is True
            assert len(w.allow()) == 2
            assert w("ask('one')") == "ECONNABORTED"


def test_expiry_ends_nothing_that_is_open_and_a_change_elsewhere_neither(workload: Any, lab: Lab) -> None:
    lab.dns.add([("short.test", "198.51.100.20", 0)])
    with workload("short.test", "example.org", floor=0, grace=1) as w:
        assert w("keep('short', opened('short.test'))") == "kept"
        wait_for(lambda: w("connect('198.51.100.20')") == "EPERM", "the grant's end")
        assert w("ask('short')") is True
        assert w.allow("short.test") == []
        assert w("ask('short')") is True


def test_a_withdrawn_pattern_ends_its_connections(workload: Any) -> None:
    with workload(regex=r"exa.ple\.(com|net)") as w:
        assert w("keep('com', opened('example.com'))") == "kept"
        assert w("keep('net', opened('example.net'))") == "kept"
        assert w("connect('example.org')") == "EPERM"
        # Another expression is another peer, though it matches one of the names too.
        assert len(w.allow(regex=r"exa.ple\.net")) == 2
        assert w("ask('com')") == "ECONNABORTED"
        assert w("ask('net')") == "ECONNABORTED"
        assert w("connect('example.net')") == "connected"
        assert w("connect('example.com')") == "EPERM"


def test_a_prefix_that_still_holds_the_address_keeps_the_connection(workload: Any) -> None:
    with workload("example.com") as w:
        assert w("keep('com', opened('example.com'))") == "kept"
        assert w.allow("198.51.100.0/24", "2001:db8:51::/64") == []
        assert w("ask('com')") is True


def test_connected_datagrams_are_told_and_other_peers_go_on(workload: Any) -> None:
    with workload("198.51.100.10", "198.51.100.20") as w:
        assert w("keep('one', datagrams('198.51.100.10', 7))") == "kept"
        assert w("keep('two', datagrams('198.51.100.20', 7))") == "kept"
        assert w("keep('many', datagrams())") == "kept"
        assert w("kept['one'].send(b'x') + kept['two'].send(b'x')") == 2
        assert w("[kept['many'].sendto(b'x', (a, 7)) for a in ('198.51.100.10', '198.51.100.20')]") == [1, 1]
        (told,) = w.allow("198.51.100.20")
        assert "ended UDP to 198.51.100.10 port 7" in told
        assert w("kept['one'].recv(9)") == "ECONNABORTED"
        assert w("kept['two'].send(b'x')") == 1
        assert w("kept['many'].sendto(b'x', ('198.51.100.10', 7))") == "EPERM"
        assert w("kept['many'].sendto(b'x', ('198.51.100.20', 7))") == 1


def test_a_dead_holder_is_followed_by_one_that_goes_on(workload: Any) -> None:
    """Its policy, grants and open connections are there; a change made meanwhile ends what it withdraws."""
    with workload("example.com", "example.net", regex=r"exa.ple\.org") as w:
        assert w("keep('com', opened('example.com'))") == "kept"
        assert w("keep('net', opened('example.net'))") == "kept"
        assert w("connect('example.org')") == "connected"
        number = w.held.number
        os.close(w.held.state)
        os.close(w.held.ring)
        w.engine.close()
        assert w("connect('example.org')") == "connected"
        w.engine = Engine(w.engine.where)
        w.held = w.engine.hold(w.held.name, wanted("example.com"), w.options, {"kind": "test"})
        assert w.held.number == number
        assert len(w.held.ended) == 1
        assert w("connect('198.51.100.10')") == "connected"
        assert w("connect('198.51.100.20')") == "EPERM"
        assert w("connect('198.51.100.30')") == "EPERM"
        assert w("ask('com')") is True
        assert w("ask('net')") == "ECONNABORTED"

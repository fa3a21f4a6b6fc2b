"""One workload floods every table that it has a quota of: the others lose nothing, and it is told."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from bpf.contract import contract
from bpf.datapath import Datapath
from gateway import cgroups, place
from tests.network.conftest import REFUSED4
from tests.topology import DNS4, ODD, end, wait_for

POD, PORT = "10.1.0.2", 5999
SILENT = "198.51.100.253"  # a site, and no DNS server
NAMES = 1000  # of the workload that is not to notice
FULL = {"FLOWS_FULL", "INBOUND_FULL", "NAME_FULL"}
RINGS = {"question_ring": "QUESTIONS", "flow_ring": "FLOWS", "inbound_ring": "INBOUNDS"}


@contextmanager
def flooded(lab, workload, program):
    """From within, and from the world outside to a server within."""
    join = 'echo $$ >"$0/cgroup.procs"; exec "$@"'
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    inside = lab.pod.start("sh", "-c", join, workload.cgroup, program, "from", ODD, SILENT, PORT, **pipes)
    try:
        assert inside.stdout.readline() == "started\n"
        outside = lab.world.start(program, "to", POD, PORT, **pipes)
        try:
            yield
        finally:
            end(outside)
    finally:
        end(inside)


def places(workload):
    """How many places of its rings a workload holds."""
    loaded = Datapath(place.find(workload.version.instance).pins)
    number = cgroups.cgroup_id(Path(workload.cgroup))
    held = ((ring, int(key.workload)) for ring in RINGS for key, _ in loaded[ring].items())
    found = Counter(ring for ring, who in held if who == number)
    loaded.close()
    return found


def test_ATTACK_one_workload_floods_every_table(lab, arena, run, programs):
    """The other asks for new names meanwhile and connects to each: nothing fails."""
    attacker = arena.workload("*.flood.test", resolvers=[ODD, SILENT])
    with flooded(lab, attacker, programs("flood")):
        wait_for(lambda: attacker.counters().keys() >= FULL, "every quota used up", 30)
        before = attacker.counters()
        words = (programs("burst"), DNS4, "many.test", NAMES, 9, REFUSED4)
        got = run("--allow", "*.many.test", "--", *words, instance=attacker.version.instance)
        told_of_it = attacker.counters() - before
    told = json.loads(got.out.splitlines()[-1])
    wrong = ("unanswered", "failed", "lost_datagrams", "denied_passed")
    assert {key: told[key] for key in wrong} == dict.fromkeys(wrong, 0), told
    assert told["names"] == NAMES
    assert told_of_it.keys() >= FULL
    held = places(attacker)
    assert held["question_ring"] == contract().constant("QUESTIONS")
    assert all(0 < held[ring] <= contract().constant(most) for ring, most in RINGS.items()), held

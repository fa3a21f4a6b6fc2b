"""Upgrades, downgrades and SIGKILL at any moment, under load: nothing is lost, nothing gets through.

A workload of one version runs all the time: fresh names, open connections whose grants ran out, peers that
come in, a prober of what is denied. Meanwhile other versions start one after the other, each takes the kernel
half over from the one before, and each is killed at some moment of that.

    SKOUTER_SWAPS    how many are killed (default 20)
    SKOUTER_SEED     of the moments
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpf import kernel
from bpf.contract import contract
from bpf.datapath import Table
from bpf.load import maps_folder
from bpf.versions import layouts
from gateway import place
from tests.network.conftest import MANY_NETWORK, REFUSED4
from tests.topology import ATTACKER, DNS4, PATIENCE, Lab, end
from tests.variants import environment, variant

SWAPS = int(os.environ.get("SKOUTER_SWAPS", "12"))
SEED = int(os.environ.get("SKOUTER_SEED", "20"))
RATE = 500
TTL = 8  # seconds
POD, DOMAIN = "10.1.0.2", "load.test"
OUTSIDE = Path(__file__).parent / "programs" / "outside.py"
FIELDS = [
    (f"	{before}\n	{after}", f"	{before}\n	__u64 more;\n	{after}")
    for before, after in (
        ("__u64 peer;", "__u64 expires;"),
        ("__u64 seen;", "__u32 policy;"),
        ("struct flow flow;", "__u64 netns;"),
        ("__u64 time;", "__u64 workload;\n	__u64 socket;\n	__u32 policy;"),
    )
]
REASONS = [
    ("	ALLOWED,                  /*", "	FANCY,\n	ALLOWED,                  /*"),
    ("	LOOPBACK,\n", "	INBOUND,\n	LOOPBACK,\n"),
    ("	INBOUND,                  /* answers", "	/* answers"),
]
OTHERS = {
    "fields": {"bpf/contract.h": [*FIELDS, ("struct grant, 1000000)", "struct grant, 900000)")]},
    "reasons": {"bpf/reasons.h": REASONS},
    "text": {"bpf/cgroup.c": [("#include <linux/ip.h>", "/* another */\n#include <linux/ip.h>")]},
}
START = "from gateway import place; from gateway.engine import Engine; Engine(place.find()).close()"
CHECKOUT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """This checkout, another text of it, and two other layouts."""
    folder = tmp_path_factory.mktemp("versions")
    return [CHECKOUT, *(variant(folder / name, edits) for name, edits in OTHERS.items())]


class Starter:
    """Brings any version up, of one instance: what every command and the agent do first."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.instance = lab, lab.another_instance()

    def start(self, version: Path) -> subprocess.Popen[str]:
        words = ("env", f"SKOUTER_INSTANCE={self.instance}", sys.executable, "-c", START)
        return subprocess.Popen(
            self.lab.pod.command(*words), env=environment(version), stderr=subprocess.PIPE, text=True
        )

    def whole(self, version: Path) -> float:
        """A start to its end; the seconds that it took."""
        begun = time.monotonic()
        _, said = (process := self.start(version)).communicate(timeout=60 * PATIENCE)
        assert process.returncode == 0, said
        return time.monotonic() - begun

    def is_halfway(self) -> bool:
        """Whether something is left of another version; at least one decides."""
        where = place.find(self.instance)
        there = layouts(where.pins, where.run)
        assert any(one.decides([where.cgroup]) for one in there), "a gap"
        return len(there) > 1 or len(list(where.pins.glob("programs-*"))) > 1

    def miscounted(self) -> int:
        """Places of addresses that are counted for all peers, less those that are taken."""
        folder, maps = maps_folder(place.find(self.instance).pins), contract().maps
        holdings, ring = (Table(kernel.get(folder / name), maps[name]) for name in ("holdings", "grant_ring"))
        counted = sum(value.places for key, value in holdings.items() if not key.peer)
        taken = len(set(ring.raw_keys()))
        os.close(holdings.fd)
        os.close(ring.fd)
        print(f"{taken} places of addresses are taken, {counted} counted")
        return int(counted - taken)

    def record(self) -> dict[str, Any]:
        """Of the workload that the load ran in."""
        (path,) = place.find(self.instance).run.glob("*.json")
        return dict(json.loads(path.read_text()))


@pytest.fixture
def starter(lab: Lab) -> Starter:
    return Starter(lab)


def names(lab: Lab) -> None:
    many = ((f"n{i}.{DOMAIN}", f"{MANY_NETWORK}.{i >> 8}.{i & 255}", TTL) for i in range(32768))
    lab.dns.add(many)
    lab.dns.add([(f"held.{DOMAIN}", "198.51.100.70", 1), (f"other.{DOMAIN}", "198.51.100.71", 1)])


@contextmanager
def talking(words: list[str], **options: Any) -> Iterator[Talker]:
    process = subprocess.Popen(words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    try:
        yield Talker(process)
    finally:
        end(process)


class Talker:
    """A program that says when it is ready, and at its end what happened."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout
        assert process.stdout.readline()

    def signal(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def told(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"it ended with status {self.process.wait(60)}"
        return dict(json.loads(line))


def test_under_load_nothing_is_lost_and_nothing_gets_through(
    lab: Lab, starter: Starter, versions: list[Path], programs: Any
) -> None:
    names(lab)
    for version in versions:
        starter.whole(version)  # compiled now, hence not in the loop
    lasts = starter.whole(versions[1])
    chance, halfway = random.Random(SEED), 0
    policy = ("--floor", 1, "--grace", 0, "--allow", f"*.{DOMAIN}")
    trust = ("--resolver", DNS4, "--resolver", ATTACKER)
    words = (programs("load"), DNS4, ATTACKER, DOMAIN, RATE, REFUSED4)
    busy = lab.skouter("run", "-q", *trust, *policy, "--", *words, instance=starter.instance)
    with (
        talking(lab.world.command(sys.executable, OUTSIDE, POD, ATTACKER)) as outside,
        talking(busy, env=environment(versions[0])) as load,
    ):
        outside.signal()
        for _ in range(SWAPS):
            process = starter.start(chance.choice(versions))
            time.sleep(chance.uniform(0.2, lasts))  # a moment by chance is what is wanted
            process.kill()
            process.communicate()
            halfway += starter.is_halfway()
        for version in versions:
            starter.whole(version)
            assert not starter.is_halfway()
        assert load.process.poll() is None, "the load ended early"
        assert abs(starter.miscounted()) < 128, "how many places are taken drifts with each swap"
        outside.signal()
        check_outside(outside.told())
        assert load.process.stdin
        load.process.stdin.close()
        check(load.told())
        assert load.process.wait(60) == 0
    assert halfway >= SWAPS // 4, "hardly a swap was cut short: this proves nothing"
    assert starter.record()["ended"], "who started it closed it, though its tables had long been replaced"


def check(load: dict[str, Any]) -> None:
    print(load)
    wrong = ("unanswered", "failed", "retransmitted", "lost", "held_failed", "serve_failed", "denied_passed")
    assert {key: load[key] for key in wrong} == dict.fromkeys(wrong, 0), load
    assert load["expired"] == 1, "the grant of the held connections is still there: they prove nothing"
    assert load["names"] > RATE * load["seconds"] * 0.6, "not the load that was asked for"
    for key in ("held_used", "served", "denied_tried", "slowly_answered"):
        assert load[key] > 10 * load["seconds"], key


def check_outside(told: dict[str, Any]) -> None:
    print(told)
    assert (told["come_in_failed"], told["send_in_failed"]) == (0, 0)
    assert min(told["come_in"], told["send_in"]) > 10 * SWAPS

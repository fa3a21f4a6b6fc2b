"""From a plan to the kernel's rows: what changes, what stays for a while, what one failure does not stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.contract import contract
from gateway import cgroups, enforcement, place
from gateway.enforcement import Enforcement, Outcome
from gateway.engine import Engine
from gateway.numbers import Options
from gateway.plan import Plan, Wanted
from gateway.policies import allow, policy
from routing.own import UNKNOWN
from tests.topology import Lab

ONE, TWO = "/system.slice/one.service", "/system.slice/two.service"


def wanted(*texts: str) -> policy.Policy:
    found = policy.union([allow.egress(list(texts), audit=False)])
    assert found is not None
    return found


class Fleet:
    """An engine attached to the whole hierarchy, with cgroups of its own below `root`."""

    def __init__(self, instance: str) -> None:
        self.place = place.find(instance)
        self.root = self.place.hierarchy / f"{instance}-fleet"
        for path in (ONE, TWO):
            self.folder(path).mkdir(parents=True)
        self.engine = Engine(self.place, host=True)
        self.enforcement = Enforcement(self.engine, self.root, self.ids())

    def folder(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def ids(self) -> dict[str, int]:
        there = [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]
        return {"/" + str(path.relative_to(self.root)).strip("."): cgroups.cgroup_id(path) for path in there}

    def apply(
        self, exempt: frozenset[str] = frozenset(), **workloads: tuple[policy.Policy, set[str]]
    ) -> Outcome:
        made = {name: Wanted(policy, frozenset(paths), ()) for name, (policy, paths) in workloads.items()}
        return self.enforcement.apply(Plan(made, exempt), self.ids(), Options(), UNKNOWN)

    def row(self, identity: int) -> int | None:
        """The policy number of a cgroup by its id."""
        found = self.engine.datapath["workloads"].get(identity)
        return None if found is None else int(found.policy)

    def number(self, name: str) -> int:
        return self.enforcement.held[name].number

    def close(self) -> None:
        self.engine.close()
        for path in sorted((p for p in self.root.rglob("*") if p.is_dir()), reverse=True):
            path.rmdir()
        self.root.rmdir()


@pytest.fixture
def fleet(lab: Lab) -> Iterator[Fleet]:
    made = Fleet(lab.another_instance())
    yield made
    made.close()
    lab.remove(made.place.name)


def test_a_cgroup_moves_from_one_workload_to_another(fleet: Fleet) -> None:
    ids = fleet.ids()
    assert fleet.apply(a=(wanted("a.test"), {ONE, TWO}), b=(wanted("b.test"), set())) == Outcome()
    assert (fleet.row(ids[ONE]), fleet.row(ids[TWO])) == (fleet.number("a"), fleet.number("a"))
    assert fleet.apply(a=(wanted("a.test"), {ONE}), b=(wanted("b.test"), {TWO})) == Outcome()
    assert (fleet.row(ids[ONE]), fleet.row(ids[TWO])) == (fleet.number("a"), fleet.number("b"))
    assert set(fleet.enforcement.held["a"].cgroups) == {fleet.folder(ONE)}
    assert fleet.apply(b=(wanted("b.test"), {TWO})).told == ["workload a is held to nothing any more"]
    assert (fleet.row(ids[ONE]), fleet.row(ids[TWO])) == (None, fleet.number("b"))


def test_exempt_is_a_row_of_its_own_and_goes_when_it_is_not_wanted(fleet: Fleet) -> None:
    ids, exempt = fleet.ids(), contract().constant("EXEMPT")
    fleet.apply(exempt=frozenset({ONE}), host=(wanted("a.test"), {"/"}))
    assert (fleet.row(ids[ONE]), fleet.row(ids["/"])) == (exempt, fleet.number("host"))
    fleet.apply(host=(wanted("a.test"), {"/"}))
    assert fleet.row(ids[ONE]) is None


def test_a_cgroup_that_has_gone_is_held_for_what_its_sockets_still_say(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fleet.ids()[ONE]
    fleet.apply(a=(wanted("a.test"), {ONE}))
    fleet.folder(ONE).rmdir()
    fleet.folder(ONE).mkdir()
    fleet.apply(a=(wanted("a.test"), {ONE}))  # the unit started again: another cgroup
    again = fleet.ids()[ONE]
    fleet.folder(ONE).rmdir()
    fleet.apply(a=(wanted("a.test"), set()))
    assert fleet.enforcement.held["a"].cgroups == {}
    fleet.enforcement.sweep()
    assert (fleet.row(before), fleet.row(again)) == (fleet.number("a"), fleet.number("a"))
    monkeypatch.setattr(enforcement, "LINGER", -1)
    fleet.enforcement.sweep()
    assert (fleet.row(before), fleet.row(again)) == (None, None)


def test_commands_are_not_swept(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement, "LINGER", -1)
    held = fleet.engine.hold("run-1-test", wanted("a.test"), Options(), {"kind": "command"})
    fleet.engine.place(held, fleet.folder(ONE))
    fleet.apply(b=(wanted("b.test"), {TWO}))
    fleet.enforcement.sweep()
    assert fleet.row(fleet.ids()[ONE]) == held.number
    assert fleet.row(cgroups.cgroup_id(fleet.place.cgroup)) == 0
    fleet.engine.release(held)


def test_one_that_can_not_be_held_is_told_and_does_not_stop_the_others(fleet: Fleet) -> None:
    deep = "/a/b/c/d/e/f/g/h/i"
    fleet.folder(deep).mkdir(parents=True)
    outcome = fleet.apply(deep=(wanted("a.test"), {deep}), flat=(wanted("b.test"), {ONE}))
    (failed,) = outcome.failed
    assert failed.startswith(f"NOT ENFORCED: {deep}: workloads on ")
    assert fleet.row(fleet.ids()[ONE]) == fleet.number("flat")


def test_one_that_has_gone_meanwhile_is_no_failure(fleet: Fleet) -> None:
    gone = {**fleet.ids(), "/system.slice/gone.service": 1}
    plan = Plan({"a": Wanted(wanted("a.test"), frozenset({"/system.slice/gone.service", ONE}), ())})
    assert fleet.enforcement.apply(plan, gone, Options(), UNKNOWN) == Outcome()
    assert fleet.row(gone[ONE]) == fleet.number("a")


def test_the_next_one_knows_what_the_last_one_placed(fleet: Fleet) -> None:
    fleet.apply(exempt=frozenset({TWO}), a=(wanted("a.test"), {ONE, "/"}))
    held = fleet.enforcement.held["a"]
    for descriptor in (held.ring, held.state):  # as the end of a process does it
        os.close(descriptor)
    following = Enforcement(fleet.engine, fleet.root, fleet.ids())
    ids = fleet.ids()
    assert following.placed == {"/": (ids["/"], "a"), ONE: (ids[ONE], "a"), TWO: (ids[TWO], "")}

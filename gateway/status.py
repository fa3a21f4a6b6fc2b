"""`skouter status`: what is attached, who is held to what, and which names are granted."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from bpf import datapath
from bpf.datapath import Datapath
from bpf.events import address
from bpf.load import DatapathError
from gateway import cgroups
from gateway.place import Place
from gateway.report import printable
from gateway.states import EngineError, is_owned, read_state


def collect(where: Place) -> dict[str, Any]:
    """The state of one instance; every list is empty where nothing is loaded."""
    if os.geteuid() != 0:
        raise EngineError("status needs root to read BPF tables: run it with sudo")
    found: dict[str, Any] = {
        "instance": where.name,
        "attached": {},
        "workloads": [],
        "other_layouts": datapath.other_layouts(where.pins),
        "problem": None,
    }
    if not where.pins.is_dir():
        return found
    try:
        loaded = Datapath(where.pins)
    except DatapathError as error:
        return {**found, "problem": str(error)}
    try:
        for cgroup in (where.cgroup, where.hierarchy):
            if cgroup.is_dir() and (names := loaded.attached(cgroup)):
                found["attached"][str(cgroup)] = names
        found["workloads"] = [
            _workload(loaded, path, state)
            for path in sorted(where.run.glob("*.json"))
            if (state := read_state(path)) and state["ended"] is None
        ]
    finally:
        loaded.close()
    return found


def _workload(loaded: Datapath, path: Path, state: dict[str, Any]) -> dict[str, Any]:
    known = [loaded["workloads"].get(int(identity)) for identity in state["cgroups"].values()]
    return {
        **{key: state[key] for key in ("name", "kind", "command", "mode", "policy", "rules", "resolvers")},
        "problems": state["problems"],
        "cgroups": list(state["cgroups"]),
        "enforced": all(row is not None and int(row.policy) == int(state["policy"]) for row in known),
        "watched": is_owned(path),
        "processes": sorted(set[int]().union(*(cgroups.processes_below(Path(c)) for c in state["cgroups"]))),
        "grants": _grants(loaded, int(state["policy"]), state["peers"]),
    }


def _grants(loaded: Datapath, number: int, peers: dict[str, str]) -> list[dict[str, Any]]:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    found = []
    for key, value in loaded["grants"].items():
        if int(key.policy) != number:
            continue
        for slot in value.slots:
            if slot.peer and slot.expires > now:
                found.append(
                    {
                        "name": peers.get(str(int(slot.peer)), f"peer {int(slot.peer):x}"),
                        "address": str(address(bytes(key.address))),
                        "seconds_left": (int(slot.expires) - now) // 10**9,
                    }
                )
    return sorted(found, key=lambda grant: (grant["name"], grant["address"]))


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    out = [f"instance {found['instance']}"]
    if found["problem"]:
        out.append(f"  not usable: {found['problem']}")
    if not found["attached"]:
        out.append("  nothing is attached: nothing is filtered")
    out += [f"  attached to {cgroup}: {', '.join(names)}" for cgroup, names in found["attached"].items()]
    out += [f"  left by another version, not used: {name}" for name in found["other_layouts"]]
    for workload in found["workloads"]:
        held = "enforced" if workload["enforced"] else "NOT ENFORCED"
        watched = "" if workload["watched"] else ", its skouter is gone"
        out.append(f"{workload['kind']} {workload['name']}: {workload['mode']}, {held}{watched}")
        pids = ", ".join(map(str, workload["processes"])) or "none"
        out.append(f"  {printable(' '.join(workload['command']))} (pids {pids})")
        out += [f"  allows {rule}" for rule in workload["rules"]] or ["  allows nothing"]
        out.append(f"  trusts DNS from {', '.join(workload['resolvers'])}")
        out += [
            f"  granted {grant['name']} {grant['address']} for {grant['seconds_left']} s"
            for grant in workload["grants"]
        ]
    if not found["workloads"]:
        out.append("no workloads")
    return out

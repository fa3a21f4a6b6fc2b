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
from gateway import bulletin, cgroups
from gateway.place import Place
from gateway.report import printable
from gateway.states import EngineError, is_owned, read_description, read_state

Granted = dict[int, list[tuple[bytes, int, int]]]  # policy's number to address, peer, seconds left
PIDS = 20  # of one workload that people are shown: the host's own are many


def collect(where: Place) -> dict[str, Any]:
    """The state of one instance; every list is empty where nothing is loaded."""
    if os.geteuid() != 0:
        raise EngineError("status needs root to read BPF tables: run it with sudo")
    found: dict[str, Any] = {
        "instance": where.name,
        "attached": {},
        "agent": bulletin.read(where),
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
        filters = {name for names in found["attached"].values() for name in names}
        granted = _grants(loaded)
        found["workloads"] = [
            _workload(loaded, filters, path, {**read_description(where, path.stem), **state}, granted)
            for path in sorted(where.run.glob("*.json"))
            if (state := read_state(path)) and state["ended"] is None
        ]
    finally:
        loaded.close()
    return found


def _workload(
    loaded: Datapath, filters: set[str], path: Path, state: dict[str, Any], granted: Granted
) -> dict[str, Any]:
    known = [loaded["workloads"].get(int(identity)) for identity in state["cgroups"].values()]
    return {
        **{key: state[key] for key in ("name", "kind", "command", "mode", "policy", "rules", "resolvers")},
        "objects": state.get("objects", []),
        "problems": state["problems"],
        "cgroups": list(state["cgroups"]),
        "titles": state.get("titles", {}),
        "enforced": "egress" in filters
        and all(row is not None and int(row.policy) == int(state["policy"]) for row in known),
        "watched": is_owned(path),
        "processes": sorted(set[int]().union(*(cgroups.processes_below(Path(c)) for c in state["cgroups"]))),
        "grants": sorted(
            (
                {
                    "name": state["peers"].get(str(peer), f"peer {peer:x}"),
                    "address": str(address(held)),
                    "seconds_left": left,
                }
                for held, peer, left in granted.get(int(state["policy"]), ())
            ),
            key=lambda grant: (grant["name"], grant["address"]),
        ),
    }


def _grants(loaded: Datapath) -> Granted:
    """All that are not over, in one walk: the table is large."""
    now, found = time.clock_gettime_ns(time.CLOCK_BOOTTIME), Granted()
    for key, value in loaded["grants"].items():
        for slot in value.slots:
            if slot.peer and slot.expires > now:
                left = (int(slot.expires) - now) // 10**9
                found.setdefault(int(key.policy), []).append((bytes(key.address), int(slot.peer), left))
    return found


def only(found: dict[str, Any], pod: str) -> dict[str, Any]:
    """The state as far as it concerns one pod, `NAMESPACE/NAME`: its line, and what its group is held to."""
    agent = found["agent"] or {}
    rows = [row for row in agent.get("pods", ()) if row["pod"] == f"pod {pod}"]
    if not rows:
        raise EngineError(f"pod {pod} is not known here: is this its node, and its name NAMESPACE/NAME?")
    groups = {row["group"] for row in rows}
    workloads = [workload for workload in found["workloads"] if workload["name"] in groups]
    return {**found, "agent": {**agent, "pods": rows}, "workloads": workloads}


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    out = [f"instance {found['instance']}"]
    if found["problem"]:
        out.append(f"  not usable: {found['problem']}")
    if not found["attached"]:
        out.append("  nothing is attached: nothing is filtered")
    out += [f"  attached to {cgroup}: {', '.join(names)}" for cgroup, names in found["attached"].items()]
    out += [f"  left by another version, not used: {name}" for name in found["other_layouts"]]
    out += _agent_lines(found["agent"]) if found["agent"] else []
    for workload in found["workloads"]:
        held = "enforced" if workload["enforced"] else "NOT ENFORCED"
        watched = "" if workload["watched"] else ", its skouter is gone"
        out.append(f"{workload['kind']} {workload['name']}: {workload['mode']}, {held}{watched}")
        pids = ", ".join(map(str, workload["processes"][:PIDS])) or "none"
        pids += ", ..." if len(workload["processes"]) > PIDS else ""
        named = [workload["titles"].get(cgroup, cgroup) for cgroup in workload["cgroups"]]
        what = printable(" ".join(workload["command"])) or printable(", ".join(named)) or "no cgroup yet"
        out.append(f"  {what} (pids {pids})")
        out += [f"  selected by {name}" for name in workload["objects"]]
        out += [f"  problem: {problem}" for problem in workload["problems"]]
        out += [f"  allows {rule}" for rule in workload["rules"]] or ["  allows nothing"]
        out.append(f"  trusts DNS from {', '.join(workload['resolvers'])}")
        out += [
            f"  granted {grant['name']} {grant['address']} for {grant['seconds_left']} s"
            for grant in workload["grants"]
        ]
    if not found["workloads"]:
        out.append("no workloads")
    return out


def _agent_lines(agent: dict[str, Any]) -> list[str]:
    out = [f"agent (pid {agent['pid']}): policies of {agent['policies']}, configuration {agent['config']}"]
    if not agent["running"]:
        out.append("  it is not running: what it enforced stays enforced, changes are not followed")
    if agent["problems"]:
        out.append("  these files are NOT enforced, an earlier set of them is:")
        out += [f"    {problem}" for problem in agent["problems"]]
    out += [f"  {line}" for line in (*agent["failed"], *agent["told"])]
    out += _gateway_lines(agent["gateway"]) if agent.get("gateway") else []
    if any(agent.get("dns", {}).values()):
        out.append(f"  DNS over TCP: {', '.join(f'{name} {count}' for name, count in agent['dns'].items())}")
    return out + [f"  {line}" for row in agent.get("pods", ()) for line in _pod_lines(row)]


def _gateway_lines(gateway: dict[str, Any]) -> list[str]:
    out = [f"  gateway: clients on {gateway['inside']}, way out on {gateway['outside']}"]
    out += [f"  NOT READY: {why}" for why in gateway["unready"]]
    if gateway["peers"]:
        out.append(f"  peers: {', '.join(f'{name} {count}' for name, count in gateway['peers'].items())}")
    return out + [f"  machine {row['name']} {row['source']}: {row['group']}" for row in gateway["machines"]]


def _pod_lines(row: dict[str, Any]) -> list[str]:
    by = f", selected by {', '.join(row['objects'])}" if row["objects"] else ""
    loose = [f"  Uncontained: {row['uncontained']}"] if row["uncontained"] else []
    why = f" ({row['link_why']})" if row["link_why"] else ""
    link = [f"  link: {row['link']}{why}"] if row["group"] != "not selected" else []
    return [f"{row['pod']}: {row['group']}{by}", *link, *loose]

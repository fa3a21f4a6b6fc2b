"""What an agent does beside its work: it says how it is, and frees its node of the start-up taint.

None of it may harm the work: what fails here is said, and tried again where that helps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

import trio

from gateway.bulletin import Bulletin
from gateway.health import Report, Sources, serve_here, serve_network, serve_plainly
from gateway.kubernetes import startup_taint
from gateway.links import ATTACHED, BYPASSED, NONE
from gateway.metrics import Numbers
from gateway.notify import NOTICE, WARNING, say
from gateway.request import Request

if TYPE_CHECKING:
    from gateway.dns_service import AgentProxy
    from gateway.gate import Gate
    from gateway.kubernetes.api_server import Door
    from gateway.kubernetes.source import Kubernetes
    from gateway.settings import Settings

HUNG = 300.0  # seconds after which a step is taken to hang
AGAIN = 2.0  # between two tries


class Agent(Protocol):
    """What is asked of an agent; `busy_since` is by trio's clock."""

    request: Request
    source: Kubernetes | None
    is_ready: bool
    busy_since: float | None
    last: Bulletin | None
    dns: AgentProxy
    gate: Gate | None
    settings: Settings

    def packets(self) -> Mapping[str, Mapping[str, int]]: ...


async def attend(agent: Agent) -> None:
    """For ever, if there is anything to do."""
    sources = Sources(lambda: _report(agent), lambda: _numbers(agent), lambda *asked: _may_get(agent, *asked))
    request = agent.request
    async with trio.open_nursery() as nursery:
        if request.health:
            nursery.start_soon(serve_here, request.health, sources)
        if request.metrics and request.health:
            nursery.start_soon(serve_network, request.metrics, request.health.parent, sources)
        if agent.settings.gateway and agent.settings.gateway.health:
            address, port = agent.settings.gateway.health
            nursery.start_soon(serve_plainly, (str(address), port), sources)
        if request.node and request.node.startup_taint and agent.source:
            nursery.start_soon(_free, agent, agent.source.door, request.node.name)


# ---- How it is ------------------------------------------------------------------------------------------


def _report(agent: Agent) -> Report:
    since = agent.busy_since
    hangs = since is not None and trio.current_time() > since + HUNG
    waits = "the API server has not told everything yet" if agent.source else "nothing is enforced yet"
    return Report(
        dead=(f"a step has been hanging for more than {HUNG:.0f} s",) if hangs else (),
        unready=(*(() if agent.is_ready else (waits,)), *(agent.gate.unready() if agent.gate else ())),
    )


def _numbers(agent: Agent) -> Numbers:
    last, source = agent.last, agent.source
    return Numbers(
        version=version("skouter"),
        packets=agent.packets(),
        workloads=_states(last.pods) if last else {},
        links=_links(last.pods) if last else {},
        problems=len(last.problems) + len(last.failed) if last else 0,
        api=source.counts() if source else {},
        dns=agent.dns.numbers(),
        peers=agent.gate.neighbours.peers.numbers() if agent.gate and agent.gate.neighbours else {},
        ready=not _report(agent).unready,
        api_connected=source.health.connected if source else None,
    )


def _states(pods: Iterable[Mapping[str, object]]) -> dict[str, int]:
    states = dict.fromkeys(("held", "closed", "not selected", "uncontained"), 0)
    for pod in pods:
        group = str(pod["group"])
        states["closed" if group.startswith("closed") else group if group in states else "held"] += 1
        states["uncontained"] += bool(pod["uncontained"])
    return states


def _links(pods: Iterable[Mapping[str, object]]) -> dict[str, int]:
    there = [pod["link"] for pod in pods]
    return {state: there.count(state) for state in (ATTACHED, BYPASSED, NONE)}


def _may_get(agent: Agent, token: str, path: str) -> bool:
    from gateway.kubernetes.api_questions import may_get

    return agent.source is not None and may_get(agent.source.door, token, path)


# ---- The start-up taint -----------------------------------------------------------------------------------


async def _free(agent: Agent, door: Door, node: str) -> None:
    """Once, when pods are enforced here."""
    from gateway.kubernetes.api_server import ServerError

    told = ""
    while True:
        await trio.sleep(AGAIN)
        if not agent.is_ready:
            continue
        try:
            if await trio.to_thread.run_sync(startup_taint.remove, door, node, abandon_on_cancel=True):
                say(f"node {node} is free of the taint {startup_taint.TAINT}", NOTICE)
            return
        except ServerError as error:
            if str(error) != told:
                say(f"the taint {startup_taint.TAINT} stays on node {node} for now: {error}", WARNING)
            told = str(error)

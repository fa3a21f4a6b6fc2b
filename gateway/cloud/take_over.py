"""Which routes a gateway takes when another one is not ready, and takes back when it is itself.

Rules this file obeys:

- Who decides is pure: told who was ready, it says which gateways' routes are to lead here.
- Nothing is elected and nothing exchanged. The next one in the list that is ready takes the routes of one
  that was not ready for a while, once; only that one takes them back. So two that can't see each other while
  both are well each end up with their own.
- No packet waits for this: where the cloud does not answer, routes stay as they are, and it is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.cloud import aws
from gateway.cloud.http import CloudError, ask

PACE = 2.0  # seconds between two rounds
PROMPT = 1.0  # seconds in which a gateway that is ready says so
PATIENCE = 5  # rounds that a gateway is not ready until its routes are taken
RENEWAL = 30  # rounds until one's own routes are led here again, whatever happened to them


@dataclass(frozen=True, slots=True)
class Gateway:
    """`interface` is what its routes lead to: those of `tables` to each of `destinations`."""

    interface: str
    address: str
    tables: tuple[str, ...]
    destinations: tuple[str, ...]


@dataclass(slots=True)
class Watch:
    """What the gateway with the interface `own` knows of all."""

    gateways: Sequence[Gateway]
    own: str
    missed: dict[str, int] = field(default_factory=dict)  # rounds in a row, by interface
    taken: set[str] = field(default_factory=set)
    kept: int = 0  # rounds since one's own routes were led here

    def round(self, ready: Mapping[str, bool]) -> list[Gateway]:
        """Whose routes to lead here now. `ready`: by interface, this gateway's own too."""
        for gateway in self.gateways:
            its = gateway.interface
            self.missed[its] = 0 if ready[its] else self.missed.get(its, 0) + 1
            if ready[its]:
                self.taken.discard(its)
        if not ready[self.own]:
            self.kept = 0
            return []
        wanted = [] if self.kept else [next(g for g in self.gateways if g.interface == self.own)]
        lost = (g for g in self.gateways if self.missed[g.interface] >= PATIENCE)
        return [*wanted, *(g for g in lost if g.interface not in self.taken and self._is_next(g, ready))]

    def done(self, gateway: Gateway) -> None:
        """Its routes lead here."""
        if gateway.interface == self.own:
            self.kept = RENEWAL
        else:
            self.taken.add(gateway.interface)

    def passed(self) -> None:
        """A round is over."""
        self.kept = max(0, self.kept - 1)

    def _is_next(self, gateway: Gateway, ready: Mapping[str, bool]) -> bool:
        place = self.gateways.index(gateway)
        behind = [*self.gateways[place + 1 :], *self.gateways[:place]]
        return next(g.interface for g in behind if ready[g.interface]) == self.own


def run(gateways: Sequence[Gateway], port: int, say: Callable[[str], None]) -> None:
    """Goes on for ever. `port`: where gateways answer /readyz."""
    watch, region = Watch(gateways, aws.interface()), aws.region()
    if watch.own not in {gateway.interface for gateway in gateways}:
        raise CloudError(f"{watch.own}, this machine's interface, is none of the gateways'")
    while True:
        ready = {gateway.interface: is_ready(gateway.address, port) for gateway in gateways}
        for gateway in watch.round(ready):
            try:
                lead(gateway, watch.own, region)
            except CloudError as error:
                say(f"the routes of {gateway.address} can't be led here: {error}")
                continue
            if gateway.interface != watch.own:
                say(f"{gateway.address} is not ready: its routes lead here")
            watch.done(gateway)
        watch.passed()
        time.sleep(PACE)


def is_ready(address: str, port: int) -> bool:
    host = f"[{address}]" if ":" in address else address
    try:
        ask(f"http://{host}:{port}/readyz", seconds=PROMPT)
    except CloudError:
        return False
    return True


def lead(gateway: Gateway, interface: str, region: str) -> None:
    for table in gateway.tables:
        for destination in gateway.destinations:
            aws.replace_route(table, destination, interface, region)

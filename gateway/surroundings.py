"""What the host is like at present, as far as policies hang on it: nobody tells when it changes."""

from __future__ import annotations

from dataclasses import dataclass

from gateway import lifelines, resolvers
from gateway.resolvers import Resolver
from gateway.settings import Settings
from routing.own import Home, home


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Equal ones need no new plan. `listening`: sockets that answer for a resolver of this host."""

    resolvers: tuple[Resolver, ...]
    searches: tuple[str, ...]
    home: Home
    listening: frozenset[int]

    @property
    def local_resolvers(self) -> list[Resolver]:
        return lifelines.local(self.resolvers)


def look(settings: Settings) -> Surroundings:
    """Resolvers are those of the settings, else those of the host."""
    trusted = [Resolver(*server) for server in settings.resolvers] or resolvers.of_this_host()
    listening = lifelines.resolver_sockets(lifelines.local(trusted))
    searches = resolvers.searches_from(resolvers.resolv_conf())
    return Surroundings(tuple(trusted), searches, home(), listening)

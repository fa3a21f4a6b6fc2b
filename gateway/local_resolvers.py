"""Trusted resolvers on this host: their own socket's egress is where their answers are learned (cgroup.c).

They stand under policy 0 in the table of resolvers. Whoever calls this holds the instance's lock.
"""

from __future__ import annotations

from bpf.contract import contract
from bpf.datapath import Datapath
from bpf.events import address
from gateway.numbers import Options, resolver_key
from gateway.place import Place
from gateway.states import states


def trust(loaded: Datapath, where: Place, options: Options) -> None:
    for resolver in options.local:
        loaded["resolvers"][resolver_key(resolver, 0)] = 1
        loaded.attach(where.hierarchy, ("resolver",))


def forget_unused(loaded: Datapath, where: Place) -> None:
    """Those that no record names."""
    wanted = {text for state in states(where) for text in state["local_resolvers"]}
    table = loaded["resolvers"]
    for raw in list(table.raw_keys()):
        key = contract().unpack(table.layout.key, raw)
        text = f"{address(bytes(key.address))} {int.from_bytes(bytes(key.port), 'big')}"
        if key.policy == 0 and text not in wanted:
            table.remove_raw(raw)

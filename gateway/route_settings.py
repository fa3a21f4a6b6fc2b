"""What route.yaml says: whose packets a router spreads over gateways, over which, and when one is dead.

The rules this file must obey:

* `read` never raises, and a configuration with a problem is none at all.
* Everything that can be seen to be wrong is told at once, with the mend.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gateway.policies import schema, yaml_nodes
from gateway.policies.addresses import Address, BadAddressError, Network, parse_address, parse_network
from gateway.policies.reading import Reading
from gateway.policies.records import Problem

PORT, EVERY, IN_A_ROW = 9808, 1, 2
BUCKETS, IDLE, UNBALANCED = 256, 120, 0


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """`gateways` have at most one address of each family; the first is asked how the gateway is, at `port`,
    each `every` seconds. After `fall` bad answers in a row it is dead, after `rise` good ones alive. `inside`
    are names of interfaces. For the others see routing/next_hops.py.
    """

    gateways: tuple[tuple[Address, ...], ...]
    clients: tuple[Network, ...]
    inside: tuple[str, ...]
    by_flow: bool = False
    port: int = PORT
    every: int = EVERY
    fall: int = IN_A_ROW
    rise: int = IN_A_ROW
    buckets: int = BUCKETS
    idle: int = IDLE
    unbalanced: int = UNBALANCED


def read(text: str, file: str) -> tuple[RouteSettings | None, list[Problem]]:
    """The settings, or None and every problem of the file."""
    first, *more = [*yaml_nodes.documents(text)] or [yaml_nodes.Document({})]
    reading = Reading(file, first)
    if more:
        reading.wrong((), "holds more than one document", "leave out the lines that are ---")
    if not reading.found:
        for violation in schema.violations_of(_SCHEMA, first.data, reading.spelling):
            reading.wrong(*violation)
    settings = _settings(reading)
    return (None if reading.found else settings), reading.problems()


def _settings(reading: Reading) -> RouteSettings:
    def number(default: int, *path: str) -> int:
        found = reading.get(*path)
        return default if found is None else int(found)

    return RouteSettings(
        gateways=_gateways(reading),
        clients=reading.each(("clients",), parse_network),
        inside=reading.each(("inside",), _interface),
        by_flow=reading.get("hash") == "flow",
        port=number(PORT, "probe", "port"),
        every=number(EVERY, "probe", "seconds"),
        fall=number(IN_A_ROW, "probe", "fall"),
        rise=number(IN_A_ROW, "probe", "rise"),
        buckets=number(BUCKETS, "buckets"),
        idle=number(IDLE, "idleSeconds"),
        unbalanced=number(UNBALANCED, "unbalancedSeconds"),
    )


def _gateways(reading: Reading) -> tuple[tuple[Address, ...], ...]:
    made: list[tuple[Address, ...]] = []
    for index in range(len(reading.get("gateways") or ())):
        path = ("gateways", index, "addresses")
        found = reading.each(path, lambda text: parse_address(text).network_address)
        if len({address.version for address in found}) < len(found):
            reading.wrong(path, "has two addresses of one family", "write them as two gateways")
        for address in found:
            if any(address in earlier for earlier in made):
                reading.wrong(path, f"{address} is an earlier gateway's too", "leave one of them out")
        made.append(found)
    return tuple(made)


# ---- Texts and shape --------------------------------------------------------------------------------------

_INTERFACE = re.compile(r"[^\s/]{1,15}")  # IFNAMSIZ (netdevice(7))


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text) or text in (".", ".."):
        raise BadAddressError(f"{text!r} is not the name of an interface", "write eth0")
    return text


def _number(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _list(items: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "maxItems": most, "items": items}


_TEXT = {"type": "string", "minLength": 1, "maxLength": 64}
_SECONDS = _number(0, 86400)
_GATEWAY = {"type": "object", "required": ["addresses"], "properties": {"addresses": _list(_TEXT, 2)}}
_PROBE = {
    "type": "object",
    "properties": {
        "port": _number(1, 65535),
        "seconds": _number(1, 60),
        "fall": _number(1, 100),
        "rise": _number(1, 100),
    },
}
_SCHEMA: schema.Schema = {
    "type": "object",
    "required": ["inside", "clients", "gateways"],
    "properties": {
        "inside": _list(_TEXT, 64),
        "clients": _list(_TEXT, 1000),
        "gateways": _list(_GATEWAY, 64),
        "hash": {"type": "string", "enum": ["source", "flow"]},
        "probe": _PROBE,
        "buckets": _number(1, 65535),
        "idleSeconds": _SECONDS,
        "unbalancedSeconds": _SECONDS,
    },
}

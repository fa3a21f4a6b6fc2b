"""The agent's own configuration, or a gateway's: from its text to a frozen record, every problem at once.

The rules this file must obey:

* `read` never raises. A configuration with a problem is none at all: who is held to what would be half told.
* A missing or empty file is the defaults: no workload is named, and the host has no labels.
* Patterns are those of a shell (glob(7)) within one component of a path; `*` never crosses a `/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gateway import gateway_settings
from gateway.gateway_settings import GatewaySettings
from gateway.policies import schema, yaml_nodes
from gateway.policies.addresses import Address, BadAddressError, Network, parse_network, parse_server
from gateway.policies.names import BadNameError, normal
from gateway.policies.reading import Reading, labels
from gateway.policies.records import Problem
from gateway.policies.selection import EXEMPT

HOST = "host"  # the name of the host's own traffic among the workloads
COMMANDS = "run-"  # and the beginning of those of `skouter run`
FLOOR, GRACE, DNS_PORT = 60, 60, 53

Found = TypeVar("Found")
SUFFIXES = ("service", "scope", "slice", "socket", "mount", "swap")  # units with a cgroup (systemd.unit(5))


@dataclass(frozen=True, slots=True)
class Member:
    """A workload of this host: the cgroups that belong to it, by patterns, and the labels it is picked by.

    `units` are the system manager's; `user_units` those of any user's manager, whose names users choose.
    """

    name: str
    units: tuple[str, ...] = ()
    user_units: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What concerns the node of a cluster. `closed`: a pod that is not classified yet reaches nothing.

    `ranges` are networks of pods and Services that the API does not tell of: only names below `domains` teach
    their addresses, and none those of `never_learn`. `resolvers` are those of the cluster; none: what its API
    says. `cgroup_root` is kubelet's --cgroup-root
    where that is none of the usual ones. Pods of `uncontained_runtimes` have no sockets on this kernel.
    """

    closed: bool = True
    domains: tuple[str, ...] = ("cluster.local",)
    ranges: tuple[Network, ...] = ()
    never_learn: tuple[Network, ...] = ()
    resolvers: tuple[tuple[Address, int], ...] = ()
    exempt_namespaces: frozenset[str] = EXEMPT
    uncontained_runtimes: tuple[str, ...] = ("gvisor", "runsc*", "kata*")
    cgroup_root: str = ""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Two bits of the marks of packets (`mask`): `mark` is that of packets to the DNS proxy."""

    mark: int = 0x10
    mask: int = 0x30


@dataclass(frozen=True, slots=True)
class Settings:
    """What agent.yaml says; times in seconds. No resolvers: those of the host."""

    node_labels: tuple[tuple[str, str], ...] = ()
    workloads: tuple[Member, ...] = ()
    resolvers: tuple[tuple[Address, int], ...] = ()
    exempt: tuple[str, ...] = ()
    floor: int = FLOOR
    grace: int = GRACE
    cluster: ClusterSettings = ClusterSettings()
    link: LinkSettings = LinkSettings()
    gateway: GatewaySettings | None = None


def read(text: str, file: str, gateway: bool = False) -> tuple[Settings | None, list[Problem]]:
    """The settings, or None and every problem of the file. A `gateway`'s has more to say."""
    first, *more = [*yaml_nodes.documents(text)] or [yaml_nodes.Document({})]
    reading = Reading(file, first)
    if more:
        reading.wrong((), "holds more than one document", "leave out the lines that are ---")
    if not reading.found:
        shape = _GATEWAY_SCHEMA if gateway else _SCHEMA
        for violation in schema.violations_of(shape, first.data, reading.spelling):
            reading.wrong(*violation)
    settings = _settings(reading)
    if gateway:
        settings = replace(settings, gateway=gateway_settings.read(reading))
    return (None if reading.found else settings), reading.problems()


def _settings(reading: Reading) -> Settings:
    members = tuple(_member(reading, index) for index in range(len(reading.get("workloads") or ())))
    for index, member in enumerate(members):
        if member.name and member.name in [earlier.name for earlier in members[:index]]:
            path = ("workloads", index, "name")
            reading.wrong(path, f"{member.name!r} is an earlier workload's name too", "write another name")
    return Settings(
        node_labels=labels(reading, ("node", "labels")),
        workloads=members,
        resolvers=reading.each(("resolvers",), lambda text: parse_server(text, DNS_PORT)),
        exempt=reading.each(("exempt",), _unit),
        floor=_or(reading.get("floor"), FLOOR),
        grace=_or(reading.get("grace"), GRACE),
        cluster=_cluster(reading),
        link=_link(reading),
    )


def _link(reading: Reading) -> LinkSettings:
    default = LinkSettings()
    mark = _or(reading.get("link", "mark"), default.mark)
    mask = _or(reading.get("link", "mask"), default.mask)
    if mask.bit_count() != 2 or mark.bit_count() != 1 or not mark & mask:
        path = ("link", "mask" if reading.get("link", "mask") is not None else "mark")
        mend = (
            f"write two bits as mask and one of them as mark: {{mark: {default.mark}, mask: {default.mask}}}"
        )
        reading.wrong(path, f"mark {mark:#x} in mask {mask:#x} can't be told from its answers", mend)
    return LinkSettings(mark, mask)


def _cluster(reading: Reading) -> ClusterSettings:
    def each(key: str, parse: Callable[[str], Found], default: tuple[Found, ...]) -> tuple[Found, ...]:
        path = ("cluster", key)
        return default if reading.get(*path) is None else reading.each(path, parse)

    default = ClusterSettings()
    return ClusterSettings(
        closed=reading.get("cluster", "unclassified") != "open",
        domains=each("domains", normal, default.domains),
        resolvers=each("resolvers", lambda text: parse_server(text, DNS_PORT), ()),
        ranges=each("ranges", parse_network, ()),
        never_learn=each("neverLearn", parse_network, ()),
        exempt_namespaces=frozenset(each("exemptNamespaces", _namespace, tuple(default.exempt_namespaces))),
        uncontained_runtimes=each("uncontainedRuntimes", str, default.uncontained_runtimes),
        cgroup_root=reading.one(("cluster", "cgroupRoot"), _cgroup) or "",
    )


def _or(value: Any, default: int) -> int:
    return default if value is None else int(value)


def _member(reading: Reading, index: int) -> Member:
    path = ("workloads", index)
    data = reading.get(*path)
    if isinstance(data, dict) and not {"units", "userUnits", "cgroups"} & set(data):
        reading.wrong((*path, "units"), "is missing, and so are cgroups", "add units: [nginx.service]")
    return Member(
        name=reading.one((*path, "name"), _name) or "",
        units=reading.each((*path, "units"), _unit),
        user_units=reading.each((*path, "userUnits"), _unit),
        cgroups=reading.each((*path, "cgroups"), _cgroup),
        labels=labels(reading, (*path, "labels")),
    )


# ---- Texts ------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@*?\[\]!-]{1,255}")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise BadNameError(f"{text!r} is not a name", "write lower-case letters, digits and -")
    if text == HOST or text.startswith(COMMANDS):
        raise BadNameError(f"{text!r} is a name of Skouter's own", "write another name")
    return text


def _namespace(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise BadNameError(f"{text!r} is not a namespace", "write lower-case letters, digits and -")
    return text


def _unit(text: str) -> str:
    if "/" in text:
        raise BadNameError(f"{text!r} is not the name of a unit", "write paths under cgroups")
    if not _UNIT.fullmatch(text):
        raise BadNameError(f"{text!r} is not the name of a unit", "write a name such as nginx.service")
    if text.rpartition(".")[2] not in SUFFIXES:
        raise BadNameError(f"{text!r} does not say what kind of unit it is", f"write {text}.service")
    return text


def _cgroup(text: str) -> str:
    parts = text.strip("/").split("/")
    if {"", ".", ".."} & set(parts):
        mend = "write a path below the cgroup2 mount; the whole host is meant by nodeSelector"
        raise BadAddressError(f"{text!r} is not the path of a cgroup", mend)
    if text != "/" + "/".join(parts):
        raise BadAddressError(f"{text!r} is not the path of a cgroup", f"write /{'/'.join(parts)}")
    return text


# ---- Shape ------------------------------------------------------------------------------------------------

_STRINGS = {"type": "array", "maxItems": 1000, "items": {"type": "string", "minLength": 1, "maxLength": 4096}}
_LABELS = {"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string"}}
_SECONDS = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_MARK = {"type": "integer", "minimum": 1, "maximum": 2**32 - 1}
_MEMBER = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "units": _STRINGS | {"minItems": 1},
        "userUnits": _STRINGS | {"minItems": 1},
        "cgroups": _STRINGS | {"minItems": 1},
        "labels": _LABELS,
    },
}
_CLUSTER = {
    "type": "object",
    "properties": {
        "unclassified": {"type": "string", "enum": ["closed", "open"]},
        "domains": _STRINGS | {"maxItems": 16, "minItems": 1},
        "resolvers": _STRINGS | {"maxItems": 64, "minItems": 1},
        "ranges": _STRINGS,
        "neverLearn": _STRINGS,
        "exemptNamespaces": _STRINGS,
        "uncontainedRuntimes": _STRINGS,
        "cgroupRoot": {"type": "string", "minLength": 1},
    },
}
_SCHEMA: schema.Schema = {
    "type": "object",
    "properties": {
        "node": {"type": "object", "properties": {"labels": _LABELS}},
        "workloads": {"type": "array", "maxItems": 1000, "items": _MEMBER},
        "resolvers": _STRINGS | {"maxItems": 64, "minItems": 1},
        "exempt": _STRINGS,
        "floor": _SECONDS,
        "grace": _SECONDS,
        "cluster": _CLUSTER,
        "link": {"type": "object", "properties": {"mark": _MARK, "mask": _MARK}},
    },
}
_GATEWAY_SCHEMA: schema.Schema = {
    "type": "object",
    "properties": {**_SCHEMA["properties"], **gateway_settings.PROPERTIES},
    "required": gateway_settings.REQUIRED,
}

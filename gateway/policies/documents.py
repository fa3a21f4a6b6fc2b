"""From the text of a policy file, or an object of the API, to frozen records; every problem at once.

The rules this file must obey:

* `read` never raises: whatever is wrong becomes a Problem that names file, line, object, field and mend.
* Nothing is skipped silently. An object whose rules alone are at fault still selects what it selects, and a
  faulty rule grants nothing (Rule() keeps its place, so that rule numbers stay those of the document); an
  object that is wrong elsewhere is left out. Whoever enforces must therefore refuse a file that has problems,
  or keep what it had: to leave an object out may open what it closed.
* Shape is schema.py's, YAML yaml_nodes.py's, where a problem lies reading.py's, DNS names are names.py's,
  regular expressions patterns.py's and addresses addresses.py's. Here is what else a schema cannot say:
  exceptions inside their network (as for NetworkPolicy's ipBlock), ranges of ports, the names of objects and
  labels, and that a rule names a peer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.policies import addresses, names, patterns, schema, yaml_nodes
from gateway.policies.reading import SUBDOMAIN, Reading, check_key, check_value, labels
from gateway.policies.records import (
    Block,
    Egress,
    Expression,
    ExternalWorkload,
    Object,
    Ports,
    Problem,
    Rule,
    Selector,
)
from gateway.policies.schema import Path


def read(text: str, file: str) -> tuple[list[Object], list[Problem]]:
    """The objects of a file of YAML documents, and all of its problems."""
    readings = [Reading(file, document) for document in yaml_nodes.documents(text)]
    objects: dict[str, Object] = {}
    for reading in readings:
        found = _object(reading)
        if found and str(found) in objects:
            reading.wrong(("metadata", "name"), "is the name of an earlier object too", "write another name")
        elif found:
            objects[str(found)] = found
    if not readings:
        return [], [Problem(file, None, "", "", "the file has no object", "write an Egress")]
    return list(objects.values()), [problem for reading in readings for problem in reading.problems()]


def read_object(data: Mapping[str, Any], file: str = "") -> tuple[Object | None, list[Problem]]:
    """The object that the API server sent as `data`, and all of its problems."""
    reading = Reading(file, yaml_nodes.Document(data))
    return _object(reading), reading.problems()


# ---- Kinds ------------------------------------------------------------------------------------------------

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_METADATA = (
    *("name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "generateName"),
    *("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "managedFields"),
    *("ownerReferences", "selfLink"),
)


def _object(reading: Reading) -> Object | None:
    data = reading.document.data
    if not isinstance(data, dict):
        if not reading.found:
            reading.wrong((), "is not an object", "write apiVersion, kind, metadata and spec")
        return None
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in schema.KINDS:
        reading.wrong(
            ("kind",),
            "is missing" if kind is None else f"{kind!r} is not read here",
            schema.did_you_mean(str(kind), [*schema.KINDS]),
        )
        return None
    if data.get("apiVersion") != schema.API_VERSION:
        reading.wrong(("apiVersion",), f"is {data.get('apiVersion')!r}", f"write {schema.API_VERSION}")
    name, namespace = _identity(reading, data, kind)
    reading.title = f"{kind} {name}" if namespace is None else f"{kind} {namespace}/{name}"
    for violation in schema.violations(kind, data, reading.spelling):
        reading.wrong(*violation)
    build = _external_workload if kind == "ExternalWorkload" else _egress
    built = build(reading, namespace, name)
    rules_alone = all(path[:2] == ("spec", "rules") and len(path) > 2 for path, _, _ in reading.found)
    return built if rules_alone else None


def _identity(reading: Reading, data: dict[str, Any], kind: str) -> tuple[str, str | None]:
    metadata = data.get("metadata")
    if not isinstance(metadata, dict):
        reading.wrong(("metadata",), "is missing", "write metadata: {name: ...}")
        metadata = {}
    for unknown in [key for key in metadata if key not in _METADATA]:
        reading.wrong(("metadata", unknown), "is not a field", schema.did_you_mean(unknown, [*_METADATA[:4]]))
    name = _valid_name(reading, "name", metadata.get("name"), SUBDOMAIN)
    if kind == "Egress":
        return name, _valid_name(reading, "namespace", metadata.get("namespace", "default"), _NAMESPACE)
    if "namespace" in metadata:
        reading.wrong(("metadata", "namespace"), f"has no meaning for {kind}", "leave it out")
    return name, None


def _valid_name(reading: Reading, key: str, name: object, form: re.Pattern[str]) -> str:
    path = ("metadata", key)
    if name is None:
        reading.wrong(path, "is missing", f"add metadata.{key}")
    elif not isinstance(name, str):
        reading.wrong(path, "is not a string", f'write "{reading.spelling(path) or name}" in quotes')
    elif not form.fullmatch(name):
        reading.wrong(path, f"{name!r} is not a {key}", "write lower-case letters, digits and -")
    return str(name)


def _egress(reading: Reading, namespace: str | None, name: str) -> Egress:
    if reading.get("spec", "namespaceSelector") is not None and reading.get("spec", "podSelector") is None:
        path = ("spec", "namespaceSelector")
        reading.wrong(path, "selects nothing without podSelector", "add podSelector: {} for all their pods")
    return Egress(
        namespace,
        name,
        pods=_selector(reading, ("spec", "podSelector")),
        namespaces=_selector(reading, ("spec", "namespaceSelector")),
        nodes=_selector(reading, ("spec", "nodeSelector")),
        machines=_selector(reading, ("spec", "workloadSelector")),
        sources=reading.each(("spec", "sourceCIDRs"), addresses.parse_network),
        audit=reading.get("spec", "mode") == "Audit",
        only_allowed_names=bool(reading.get("spec", "dns", "onlyAllowedNames")),
        rules=tuple(_rule(reading, index) for index in range(len(reading.get("spec", "rules") or ()))),
    )


def _external_workload(reading: Reading, namespace: str | None, name: str) -> ExternalWorkload:
    del namespace  # a machine has none
    own = labels(reading, ("metadata", "labels"))
    return ExternalWorkload(
        name, own, reading.each(("spec", "addresses"), addresses.parse_address_or_network)
    )


def _selector(reading: Reading, path: Path) -> Selector | None:
    if reading.get(*path) is None:
        return None
    wanted = labels(reading, (*path, "matchLabels"))
    conditions = (*path, "matchExpressions")
    expressions = []
    for index, item in enumerate(reading.get(*conditions) or ()):
        if reading.sound((*conditions, index)):
            _check_expression(reading, (*conditions, index), item)
            expressions.append(Expression(item["key"], item["operator"], tuple(item.get("values", ()))))
    return Selector(wanted, tuple(expressions))


def _check_expression(reading: Reading, path: Path, item: dict[str, Any]) -> None:
    check_key(reading, (*path, "key"), item["key"])
    for index, value in enumerate(item.get("values", ())):
        check_value(reading, (*path, "values", index), value)
    takes_values = item["operator"] in ("In", "NotIn")
    if takes_values and "values" not in item:
        reading.wrong((*path, "values"), "is missing", f"add the values of {item['operator']}")
    if not takes_values and "values" in item:
        reading.wrong((*path, "values"), f"has no meaning for {item['operator']}", "leave it out")


# ---- Rules ------------------------------------------------------------------------------------------------

_PEERS = ("domains", "regex", "fqdn", "ips", "cidrs", "ipBlocks")


def _rule(reading: Reading, index: int) -> Rule:
    path: Path = ("spec", "rules", index)
    rule = reading.get(*path)
    if rule is None:
        return Rule()
    if not any(peer in rule for peer in _PEERS):
        everything = 'cidrs: [0.0.0.0/0, "::/0"]'
        reading.wrong(
            path, "names no peer", f"add domains, regex, ips, cidrs or ipBlocks; everything is {everything}"
        )
    blocks = (
        *map(Block, reading.each((*path, "ips"), addresses.parse_address)),
        *map(Block, reading.each((*path, "cidrs"), addresses.parse_network)),
        *_ip_blocks(reading, (*path, "ipBlocks")),
    )
    built = Rule(
        domains=reading.each((*path, "domains"), names.parse),
        regex=reading.each((*path, "regex"), patterns.parse) + reading.each((*path, "fqdn"), patterns.parse),
        blocks=blocks,
        ports=_ports(reading, (*path, "ports")),
    )
    return built if reading.sound(path) else Rule()


def _ip_blocks(reading: Reading, path: Path) -> Iterator[Block]:
    for index in range(len(reading.get(*path) or ())):
        network = reading.one((*path, index, "cidr"), addresses.parse_network)
        excepts = reading.each((*path, index, "except"), addresses.parse_network)
        if network is None:
            continue
        for position, part in enumerate(excepts):
            if part == network or not addresses.inside(part, network):
                where = (*path, index, "except", position)
                reading.wrong(
                    where, f"{part} is not a part of {network}", f"write a network inside {network}"
                )
        yield Block(network, excepts)


def _ports(reading: Reading, path: Path) -> tuple[Ports, ...]:
    ports = []
    for index, item in enumerate(reading.get(*path) or ()):
        if reading.sound((*path, index)):
            _check_ports(reading, (*path, index), item)
            protocol, first = item.get("protocol", "TCP"), item.get("port")
            ports.append(
                Ports(protocol)
                if first is None
                else Ports(protocol, int(first), int(item.get("endPort", first)))
            )
    return tuple(ports)


def _check_ports(reading: Reading, path: Path, item: dict[str, Any]) -> None:
    first, last, protocol = item.get("port"), item.get("endPort"), item.get("protocol", "TCP")
    if first is None and last is not None:
        reading.wrong((*path, "endPort"), "has no port to begin at", "add port")
    elif first is not None and protocol in ("ICMP", "ANY"):
        mend = "leave the port out" if protocol == "ICMP" else "write one entry each for TCP and UDP"
        reading.wrong((*path, "port"), f"{protocol} has no ports", mend)
    elif first is not None and last is not None and last < first:
        reading.wrong((*path, "endPort"), f"{last} is less than port {first}", f"write {first} or more")

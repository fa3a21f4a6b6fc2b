"""From the text of a policy file, or an object of the API, to frozen records; every problem at once.

The rules this file must obey:

* `read` never raises: whatever is wrong becomes a Problem that names file, line, object, field and mend.
* Nothing is skipped silently. An object whose rules alone are at fault still selects what it selects, and a
  faulty rule grants nothing (Rule() keeps its place, so that rule numbers stay those of the document); an
  object that is wrong elsewhere is left out. Whoever enforces must therefore refuse a file that has problems,
  or keep what it had: to leave an object out may open what it closed.
* Shape is schema.py's. Here is what a schema cannot say: addresses, host bits, exceptions inside their
  network (as for NetworkPolicy's ipBlock), ranges of ports, names, and that a rule names a peer.
* YAML as Kubernetes reads it (YAML 1.1), but a key given twice is a problem, and keys stay as written.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gateway import names, schema
from gateway.names import BadNameError, Pattern
from gateway.schema import Path, Violation

if TYPE_CHECKING:
    from yaml import MappingNode, SafeLoader, ScalarNode, SequenceNode

    Node = MappingNode | ScalarNode | SequenceNode

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Parsed = TypeVar("Parsed")

DEEPEST = 32  # levels of a document; the schema itself has nine
MOST_VALUES = 1_000_000  # values in a document, aliases counted at every use
V4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file; `field` is a path such as spec.rules[2].ports[0].port."""

    file: str
    line: int | None
    object: str
    field: str
    wrong: str
    mend: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(filter(None, (place, self.object, self.field, self.wrong))) + f"; {self.mend}"


@dataclass(frozen=True, slots=True)
class Expression:
    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    """A label selector: all of the labels and all of the expressions must hold; empty matches everything."""

    labels: tuple[tuple[str, str], ...] = ()
    expressions: tuple[Expression, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A network without some parts of it; an address of `ips` is a network of one."""

    network: Network
    excepts: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Ports:
    protocol: str
    first: int = 0
    last: int = 65535


@dataclass(frozen=True, slots=True)
class Rule:
    """Any of the peers, on any of the ports; no ports is every port. Without peers it grants nothing."""

    domains: tuple[Pattern, ...] = ()
    regex: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    ports: tuple[Ports, ...] = ()


@dataclass(frozen=True, slots=True)
class Egress:
    """An Egress or, where `namespace` is None, a ClusterEgress. A selector that is None selects nothing."""

    namespace: str | None
    name: str
    pods: Selector | None = None
    namespaces: Selector | None = None
    nodes: Selector | None = None
    machines: Selector | None = None
    sources: tuple[Network, ...] = ()
    audit: bool = False
    only_allowed_names: bool = False
    rules: tuple[Rule, ...] = ()

    def __str__(self) -> str:
        return (
            f"ClusterEgress {self.name}" if self.namespace is None else f"Egress {self.namespace}/{self.name}"
        )


@dataclass(frozen=True, slots=True)
class ExternalWorkload:
    name: str
    labels: tuple[tuple[str, str], ...] = ()
    addresses: tuple[Network, ...] = ()

    def __str__(self) -> str:
        return f"ExternalWorkload {self.name}"


Object = Egress | ExternalWorkload


def read(text: str, file: str) -> tuple[list[Object], list[Problem]]:
    """The objects of a file of YAML documents, and all of its problems."""
    readings = [_Reading(file, document) for document in _documents(text)]
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
    reading = _Reading(file, _Document(data))
    return _object(reading), reading.problems()


# ---- One object being read --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Document:
    """The plain value of one object, what was wrong with its YAML, and its nodes, which know the lines."""

    data: object
    found: list[Violation] = field(default_factory=list)
    node: Node | None = None
    line: int | None = None


class _Reading:
    """One object being read: which parts of it are sound, and every problem found so far."""

    def __init__(self, file: str, document: _Document) -> None:
        self.file = file
        self.title = ""
        self.document = document
        self.found: list[Violation] = []
        self._at: set[Path] = set()
        self._above: set[Path] = set()
        for violation in document.found:
            self.wrong(*violation)

    def wrong(self, path: Path, wrong: str, mend: str) -> None:
        self.found.append(Violation(path, wrong, mend))
        self._at.add(path)
        self._above.update(path[:length] for length in range(len(path)))

    def get(self, *path: str | int) -> Any:
        """The value at `path`; None where it is missing, or where it or what holds it is wrong."""
        value: Any = self.document.data
        for depth in range(len(path) + 1):
            if path[:depth] in self._at:
                return None
            if depth < len(path):
                try:
                    value = value[path[depth]]
                except (KeyError, IndexError, TypeError):
                    return None
        return value

    def sound(self, path: Path) -> bool:
        """Whether nothing is wrong at `path` or below it."""
        return path not in self._at and path not in self._above

    def one(self, path: Path, parse: Callable[[Any], Parsed]) -> Parsed | None:
        """The value at `path`, parsed; what `parse` refuses is told."""
        value = self.get(*path)
        try:
            return None if value is None else parse(value)
        except (BadNameError, _BadAddressError) as error:
            self.wrong(path, error.wrong, error.mend)
            return None

    def each(self, path: Path, parse: Callable[[Any], Parsed]) -> tuple[Parsed, ...]:
        """The items of the list at `path`, parsed, less those that `parse` refuses."""
        items = (self.one((*path, index), parse) for index in range(len(self.get(*path) or ())))
        return tuple(item for item in items if item is not None)

    def problems(self) -> list[Problem]:
        """Every problem, by line."""
        problems = [
            Problem(self.file, self._line(path), self.title, _dotted(path), wrong, mend)
            for path, wrong, mend in self.found
        ]
        return sorted(problems, key=lambda problem: problem.line or 0)

    def spelling(self, path: Path) -> str | None:
        """The scalar at `path` as it was written, before YAML made a boolean of `no`."""
        node = _node_at(self.document.node, path)[0]
        return node.value if node is not None and isinstance(node.value, str) else None

    def _line(self, path: Path) -> int | None:
        if self.document.node is None:
            return self.document.line
        return _node_at(self.document.node, path)[1]


def _dotted(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


# ---- Kinds ------------------------------------------------------------------------------------------------

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # RFC 1123, as Kubernetes has it
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_METADATA = (
    *("name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "generateName"),
    *("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "managedFields"),
    *("ownerReferences", "selfLink"),
)


def _object(reading: _Reading) -> Object | None:
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


def _identity(reading: _Reading, data: dict[str, Any], kind: str) -> tuple[str, str | None]:
    metadata = data.get("metadata")
    if not isinstance(metadata, dict):
        reading.wrong(("metadata",), "is missing", "write metadata: {name: ...}")
        metadata = {}
    for unknown in [key for key in metadata if key not in _METADATA]:
        reading.wrong(("metadata", unknown), "is not a field", schema.did_you_mean(unknown, [*_METADATA[:4]]))
    name = _valid_name(reading, "name", metadata.get("name"), _SUBDOMAIN)
    if kind == "Egress":
        return name, _valid_name(reading, "namespace", metadata.get("namespace", "default"), _NAMESPACE)
    if "namespace" in metadata:
        reading.wrong(("metadata", "namespace"), f"has no meaning for {kind}", "leave it out")
    return name, None


def _valid_name(reading: _Reading, key: str, name: object, form: re.Pattern[str]) -> str:
    path = ("metadata", key)
    if name is None:
        reading.wrong(path, "is missing", f"add metadata.{key}")
    elif not isinstance(name, str):
        reading.wrong(path, "is not a string", f'write "{reading.spelling(path) or name}" in quotes')
    elif not form.fullmatch(name):
        reading.wrong(path, f"{name!r} is not a {key}", "write lower-case letters, digits and -")
    return str(name)


def _egress(reading: _Reading, namespace: str | None, name: str) -> Egress:
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
        sources=reading.each(("spec", "sourceCIDRs"), _network),
        audit=reading.get("spec", "mode") == "Audit",
        only_allowed_names=bool(reading.get("spec", "dns", "onlyAllowedNames")),
        rules=tuple(_rule(reading, index) for index in range(len(reading.get("spec", "rules") or ()))),
    )


def _external_workload(reading: _Reading, namespace: str | None, name: str) -> ExternalWorkload:
    del namespace  # a machine has none
    labels = _labels(reading, ("metadata", "labels"))
    return ExternalWorkload(name, labels, reading.each(("spec", "addresses"), _address_or_network))


def _selector(reading: _Reading, path: Path) -> Selector | None:
    if reading.get(*path) is None:
        return None
    labels = _labels(reading, (*path, "matchLabels"))
    conditions = (*path, "matchExpressions")
    expressions = []
    for index, item in enumerate(reading.get(*conditions) or ()):
        if reading.sound((*conditions, index)):
            _check_expression(reading, (*conditions, index), item)
            expressions.append(Expression(item["key"], item["operator"], tuple(item.get("values", ()))))
    return Selector(labels, tuple(expressions))


def _check_expression(reading: _Reading, path: Path, item: dict[str, Any]) -> None:
    _check_key(reading, (*path, "key"), item["key"])
    for index, value in enumerate(item.get("values", ())):
        _check_value(reading, (*path, "values", index), value)
    takes_values = item["operator"] in ("In", "NotIn")
    if takes_values and "values" not in item:
        reading.wrong((*path, "values"), "is missing", f"add the values of {item['operator']}")
    if not takes_values and "values" in item:
        reading.wrong((*path, "values"), f"has no meaning for {item['operator']}", "leave it out")


def _labels(reading: _Reading, path: Path) -> tuple[tuple[str, str], ...]:
    labels = reading.get(*path)
    if not isinstance(labels, dict):
        if labels is not None:
            reading.wrong(path, "is not a map", "write key: value")
        return ()
    for key, value in labels.items():
        _check_key(reading, (*path, key), key)
        if isinstance(value, str):
            _check_value(reading, (*path, key), value)
        elif reading.get(*path, key) is not None:
            reading.wrong(
                (*path, key), "is not a string", f'write "{reading.spelling((*path, key))}" in quotes'
            )
    return tuple(sorted((key, value) for key, value in labels.items() if isinstance(value, str)))


def _check_key(reading: _Reading, path: Path, key: str) -> None:
    prefix, slash, name = key.rpartition("/")
    if not name or not _LABEL_VALUE.fullmatch(name) or (slash and not _SUBDOMAIN.fullmatch(prefix)):
        reading.wrong(path, f"{key!r} is not a label's key", "write a key such as app or example.com/app")


def _check_value(reading: _Reading, path: Path, value: str) -> None:
    if not _LABEL_VALUE.fullmatch(value):
        reading.wrong(path, f"{value!r} is not a label's value", "write letters, digits, -, _ and .")


# ---- Rules ------------------------------------------------------------------------------------------------

_PEERS = ("domains", "regex", "fqdn", "ips", "cidrs", "ipBlocks")


def _rule(reading: _Reading, index: int) -> Rule:
    path: Path = ("spec", "rules", index)
    rule = reading.get(*path)
    if rule is None:
        return Rule()
    if not any(peer in rule for peer in _PEERS):
        everything = 'cidrs: [0.0.0.0/0, "::/0"]'
        reading.wrong(
            path, "names no peer", f"add domains, ips, cidrs or ipBlocks; everything is {everything}"
        )
    _refuse_regex(reading, path)
    blocks = (
        *map(Block, reading.each((*path, "ips"), _address)),
        *map(Block, reading.each((*path, "cidrs"), _network)),
        *_ip_blocks(reading, (*path, "ipBlocks")),
    )
    built = Rule(
        domains=reading.each((*path, "domains"), names.parse),
        regex=reading.each((*path, "regex"), str) + reading.each((*path, "fqdn"), str),
        blocks=blocks,
        ports=_ports(reading, (*path, "ports")),
    )
    return built if reading.sound(path) else Rule()


def _refuse_regex(reading: _Reading, path: Path) -> None:
    """Nothing compiles expressions yet, and a peer that cannot be matched is refused, not skipped."""
    for key in ("regex", "fqdn"):
        if reading.get(*path, key) is not None:
            mend = "write domains: a name, or *.example.com for all names below it"
            reading.wrong(
                (*path, key), "regex is not enforced by this version: the rule grants nothing", mend
            )


def _ip_blocks(reading: _Reading, path: Path) -> Iterator[Block]:
    for index in range(len(reading.get(*path) or ())):
        network = reading.one((*path, index, "cidr"), _network)
        excepts = reading.each((*path, index, "except"), _network)
        if network is None:
            continue
        for position, part in enumerate(excepts):
            if part == network or not inside(part, network):
                where = (*path, index, "except", position)
                reading.wrong(
                    where, f"{part} is not a part of {network}", f"write a network inside {network}"
                )
        yield Block(network, excepts)


def _ports(reading: _Reading, path: Path) -> tuple[Ports, ...]:
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


def _check_ports(reading: _Reading, path: Path, item: dict[str, Any]) -> None:
    first, last, protocol = item.get("port"), item.get("endPort"), item.get("protocol", "TCP")
    if first is None and last is not None:
        reading.wrong((*path, "endPort"), "has no port to begin at", "add port")
    elif first is not None and protocol in ("ICMP", "ANY"):
        mend = "leave the port out" if protocol == "ICMP" else "write one entry each for TCP and UDP"
        reading.wrong((*path, "port"), f"{protocol} has no ports", mend)
    elif first is not None and last is not None and last < first:
        reading.wrong((*path, "endPort"), f"{last} is less than port {first}", f"write {first} or more")


# ---- Addresses --------------------------------------------------------------------------------------------


class _BadAddressError(ValueError):
    def __init__(self, wrong: str, mend: str) -> None:
        super().__init__(wrong)
        self.wrong = wrong
        self.mend = mend


def inside(part: Network, whole: Network) -> bool:
    """Whether all of `part` lies in `whole`; never across families."""
    shift = whole.max_prefixlen - whole.prefixlen
    return (
        part.version == whole.version
        and part.prefixlen >= whole.prefixlen
        and int(part.network_address) >> shift == int(whole.network_address) >> shift
    )


def _address(text: str) -> Network:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        mend = (
            f"write {text} under cidrs"
            if "/" in text
            else "write an address such as 192.0.2.1; names are domains"
        )
        raise _BadAddressError(f"{text!r} is not an address", mend) from None
    return _plain_network(text, ipaddress.ip_network(address.packed), "")


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise _BadAddressError(f"{text!r} is not a network", "write a network such as 10.0.0.0/8") from None
    length = f"/{network.prefixlen}"
    if not text.endswith(length):
        raise _BadAddressError(f"{text!r} does not end with a prefix length", f"write {network}")
    if network.network_address != ipaddress.ip_address(text.removesuffix(length)):
        raise _BadAddressError(f"{text!r} has host bits", f"write {network}")
    return _plain_network(text, network, length)


def _address_or_network(text: str) -> Network:
    return _network(text) if "/" in text else _address(text)


def _plain_network(text: str, network: Network, length: str) -> Network:
    """Refuses what the kernel's tables mean otherwise: IPv4 in IPv6 clothes, and zones."""
    if "%" in text:
        raise _BadAddressError(f"{text!r} has a zone", f"write {network.network_address}{length}")
    if inside(network, V4_MAPPED):
        v4 = ipaddress.IPv6Address(network.network_address).ipv4_mapped
        suffix = length and f"/{network.prefixlen - V4_MAPPED.prefixlen}"
        raise _BadAddressError(f"{text!r} is an IPv4 address written as IPv6", f"write {v4}{suffix}")
    return network


# ---- YAML -------------------------------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp")}


def _documents(text: str) -> Iterator[_Document]:
    # Imported here: an agent that is fed by the API server never reads YAML.
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if _too_deep(text, loader):
            raise yaml.YAMLError(f"more than {DEEPEST} levels")
        for root in yaml.compose_all(text, Loader=loader):
            for node in _items(cast("Node", root)):
                yield _document(node)
    except yaml.MarkedYAMLError as error:
        mend = "mend the YAML; texts with : # * or & in them need quotes"
        if "alias" in f"{error.context} {error.problem}":
            mend = 'write names with a * in quotes: "*.example.com"'
        mark = error.problem_mark or error.context_mark
        violation = Violation((), f"is not YAML: {error.problem or error.context}", mend)
        yield _Document(None, [violation], line=mark.line + 1 if mark else None)
    except (yaml.YAMLError, UnicodeError) as error:
        yield _Document(
            None, [Violation((), f"is not YAML: {error}".splitlines()[0], "write plain UTF-8 text")]
        )


def _too_deep(text: str, loader: type[SafeLoader]) -> bool:
    """Composing recurses, in C and without a limit: a file of brackets would end the process."""
    import yaml

    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            opens = isinstance(event, yaml.CollectionStartEvent)
            depth += opens - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                return True
    except (yaml.YAMLError, UnicodeError):
        pass  # composing stops at the same place, and tells it after what comes before
    return False


def _items(root: Node) -> Iterator[Node]:
    """The objects of a document: itself, the items of a List, or nothing between two `---`."""
    pairs = root.value if root.id == "mapping" else []
    fields = {key.value: value for key, value in pairs if key.id == "scalar"}
    kind, items = fields.get("kind"), fields.get("items")
    if kind is not None and str(kind.value).endswith("List") and items is not None and items.id == "sequence":
        yield from items.value
    elif root.tag != _TAG + "null":
        yield root


def _document(node: Node) -> _Document:
    document = _Document(None, node=node)
    document.data = _Plain(document.found).value(node, ())
    return document


class _Plain:
    """Nodes to plain values; `found` takes what Kubernetes would refuse or silently lose."""

    def __init__(self, found: list[Violation]) -> None:
        from yaml.constructor import SafeConstructor

        self.found = found
        self.values = 0
        self._construct = SafeConstructor().construct_object

    def value(self, node: Node, path: Path) -> object:
        self.values += 1
        if len(path) > DEEPEST or self.values > MOST_VALUES:
            if self.values <= MOST_VALUES + 1:
                self.found.append(Violation(path, "is too large, or an alias within itself", "write less"))
            return None
        if node.id == "sequence":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, path) if node.id == "mapping" else self._scalar(node, path)

    def _mapping(self, node: Node, path: Path) -> dict[str, object]:
        plain: dict[str, object] = {}
        for key, value in node.value:
            if key.id != "scalar":
                self.found.append(Violation(path, "has a key that is not a text", "write plain keys"))
            elif key.value in plain:
                wrong = f"is given twice, again in line {key.start_mark.line + 1}"
                self.found.append(Violation((*path, key.value), wrong, "leave one of them"))
            else:
                plain[key.value] = self.value(value, (*path, key.value))
        return plain

    def _scalar(self, node: Node, path: Path) -> object:
        if node.tag == _TAG + "timestamp":
            return node.value  # JSON has no dates, and Kubernetes keeps the text
        try:
            if node.tag in _SCALARS:
                return self._construct(node)
        except ValueError:
            pass  # an explicit tag that the text does not fit
        self.found.append(Violation(path, f"has the tag {node.tag!r}", "leave the tag out"))
        return None


def _node_at(node: Node | None, path: Path) -> tuple[Node | None, int | None]:
    """The node at `path`, and the line of it or, where it is missing, of what should hold it."""
    line = None if node is None else node.start_mark.line + 1
    for step in path:
        below = None
        if node is not None and node.id == "mapping":
            for key, value in node.value:
                if key.value == step:
                    below, line = value, key.start_mark.line + 1
                    break
        elif node is not None and node.id == "sequence" and isinstance(step, int) and step < len(node.value):
            below = node.value[step]
            line = below.start_mark.line + 1
        if below is None:
            return None, line
        node = below
    return node, line

"""What a document may say: the one schema of files and of the API server, and how its refusals are told.

The rules this file must obey:

* It is a structural schema (Kubernetes, KEP-1693; OpenAPI v3 as CustomResourceDefinitions take it): a type
  on every node, no `additionalProperties: false` beside properties, a list never of "this or that".
* Every list, map and string has a bound. The API server prices a CEL rule by the largest object that the
  schema permits, and refuses the definition, not the object, when that is too dear.
* Every field has a description: `kubectl explain` is the manual that people really read.
* An unknown field is a mistake, not an extension: a misspelt `excpet` would widen what is allowed. The API
  server does that by strict field validation; for files `violations` does.

What a schema cannot say (host bits, the order of ports) cel.py says to the API server; documents.py refuses
it in files, and in what the server sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.policies import cel

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

GROUP = "egress.skouter"
API_VERSION = f"{GROUP}/v1alpha1"

Schema = dict[str, Any]
Path = tuple[str | int, ...]


class Violation(NamedTuple):
    """One thing that is wrong, where, and the mend: what to write instead."""

    path: Path
    wrong: str
    mend: str


def violations(kind: str, data: object, spelling: Callable[[Path], str | None]) -> Iterator[Violation]:
    """All that the schema of `kind` has against `data`; `spelling` gives the scalar as it was written."""
    yield from _unknown_fields(kind, data, KINDS[kind], ())
    yield from _misshapen(_validator(kind), data, spelling)


def violations_of(
    schema: Schema, data: object, spelling: Callable[[Path], str | None]
) -> Iterator[Violation]:
    """The same for a schema that is no kind of policy document."""
    from jsonschema import Draft202012Validator

    yield from _unknown_fields("", data, schema, ())
    yield from _misshapen(Draft202012Validator(schema), data, spelling)


def _misshapen(
    validator: Draft202012Validator, data: object, spelling: Callable[[Path], str | None]
) -> Iterator[Violation]:
    for error in validator.iter_errors(data):
        path = tuple(error.absolute_path)
        if error.validator == "required":
            missing = next(f for f in error.validator_value if f not in error.instance and f in error.message)
            yield Violation((*path, missing), "is missing", f"add {missing}")
        elif error.validator != "pattern":  # of names: names.py says what is wrong with one, and the mend
            yield Violation(path, *_tell(error, spelling(path)))


def _text(description: str, longest: int = 253, **more: object) -> Schema:
    return {"type": "string", "description": description, "minLength": 1, "maxLength": longest, **more}


def _list(description: str, most: int, items: Schema, least: int = 1) -> Schema:
    return {
        "type": "array",
        "description": description,
        "minItems": least,
        "maxItems": most,
        "items": items,
    }


def _object(
    description: str,
    fields: Mapping[str, Schema],
    required: tuple[str, ...] = (),
    rules: Schema | None = None,
) -> Schema:
    schema: Schema = {"type": "object", "description": description, "properties": dict(fields)}
    return schema | ({"required": list(required)} if required else {}) | (rules or {})


def _selector(description: str) -> Schema:
    value = {"type": "string", "description": "A label's value.", "maxLength": 63} | cel.LABEL_VALUE
    labels = {
        "type": "object",
        "description": "Labels that must all be there with these values.",
        "maxProperties": 64,
        "additionalProperties": value,
        **cel.LABELS,
    }
    operators = ["In", "NotIn", "Exists", "DoesNotExist"]
    expression = _object(
        "A condition on one label.",
        {
            "key": _text("The label's key.", 317) | cel.LABEL_KEY,
            "operator": _text("What must hold between the label and the values.", 12, enum=operators),
            "values": _list("The values of In and NotIn.", 64, value),
        },
        required=("key", "operator"),
        rules=cel.EXPRESSION,
    )
    return _object(
        description,
        {
            "matchLabels": labels,
            "matchExpressions": _list("Conditions that must all hold.", 16, expression, least=0),
        },
    )


_ADDRESS = _text("An IPv4 or IPv6 address.", 45) | cel.ADDRESS
_CIDR = _text("A network such as 10.0.0.0/8 or 2001:db8::/32, without host bits.", 49) | cel.NETWORK
_PORT = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535}
_PORTS = _object(
    "Ports of one protocol.",
    {
        "port": _PORT | {"description": "The port, or the first of a range. Without it every port."},
        "endPort": _PORT | {"description": "The last port of the range that begins at port."},
        "protocol": _text(
            "The protocol. ICMP means ICMPv6 too; it and ANY (every protocol) have no port.",
            4,
            enum=["TCP", "UDP", "SCTP", "ICMP", "ANY"],
            default="TCP",
        ),
    },
    rules=cel.PORTS,
)
_IP_BLOCK = _object(
    "A network, less some parts of it.",
    {"cidr": _CIDR, "except": _list("Networks inside cidr that are not meant.", 16, _CIDR)},
    required=("cidr",),
    rules=cel.IP_BLOCK,
)
_REGEX = (
    _text("An RE2 expression that a whole name must match, such as api-[0-9]+\\.example\\.com.", 256)
    | cel.REGEX
)
_RULE = _object(
    "What may be reached: any of the peers, on the ports. At least one peer is named.",
    {
        "domains": _list(
            "DNS names. *.example.com is every name below example.com, never itself; * is every name.",
            1000,
            _text("A name or a wildcard.", 256) | cel.NAME,
        ),
        "regex": _list(
            "Names by regular expression, always anchored at both ends; case does not count.", 64, _REGEX
        ),
        "fqdn": _list("The same as regex.", 64, _REGEX),
        "ips": _list("Single addresses.", 1000, _ADDRESS),
        "cidrs": _list("Networks.", 1000, _CIDR),
        "ipBlocks": _list("Networks with exceptions, as in NetworkPolicy.", 80, _IP_BLOCK),
        "ports": _list("The ports. Without this list every port of every protocol.", 64, _PORTS),
    },
    rules=cel.RULE,
)
_DNS = _object(
    "How questions are treated.",
    {
        "onlyAllowedNames": {
            "type": "boolean",
            "description": "Refuse questions for names that no rule allows, which closes tunnels over DNS.",
        }
    },
)
_MODE = _text(
    "Enforce drops what no rule allows. Audit drops nothing and reports what would have been dropped.",
    7,
    enum=["Enforce", "Audit"],
    default="Enforce",
)
_EGRESS_SPEC: dict[str, Schema] = {
    "mode": _MODE,
    "podSelector": _selector("Which pods are meant: {} means all of them. Without it, none."),
    "dns": _DNS,
    "rules": _list("What may be reached, in any order. None at all: nothing.", 64, _RULE, least=0),
}
_CLUSTER_SPEC = _EGRESS_SPEC | {
    "namespaceSelector": _selector(
        "The namespaces of podSelector. Without it all but kube-system and Skouter's own."
    ),
    "nodeSelector": _selector("Nodes whose own traffic is meant, by the node's labels."),
    "workloadSelector": _selector("Machines behind a gateway, by the labels of their ExternalWorkload."),
    "sourceCIDRs": _list("Machines behind a gateway, by their addresses.", 256, _CIDR),
}
_ADDRESS_OR_NETWORK = _text("An address or a network.", 49) | cel.ADDRESS_OR_NETWORK
_EXTERNAL_SPEC = _object(
    "A machine outside the cluster whose traffic a gateway forwards.",
    {"addresses": _list("Its addresses or networks.", 256, _ADDRESS_OR_NETWORK)},
    required=("addresses",),
)
_CONDITION = _object(
    "One thing known about the object (metav1.Condition).",
    {
        "type": _text("What it is about, such as Accepted.", 316),
        "status": _text("True, False or Unknown.", 7, enum=["True", "False", "Unknown"]),
        "reason": _text("The cause in one word.", 1024),
        "message": {"type": "string", "description": "The cause in a sentence.", "maxLength": 32768},
        "observedGeneration": {"type": "integer", "format": "int64", "description": "Of which spec."},
        "lastTransitionTime": {"type": "string", "format": "date-time", "description": "Since when."},
    },
    required=("type", "status"),
)
_STATUS = _object(
    "What the agents say about the object.",
    {
        "conditions": _list("What is known about it.", 16, _CONDITION, least=0)
        | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    },
)


def _kind(description: str, spec: Schema) -> Schema:
    fields = {
        "apiVersion": {"type": "string", "description": f"Always {API_VERSION}."},
        "kind": {"type": "string", "description": "The kind of this object."},
        "metadata": {"type": "object", "description": "Its name, namespace and labels."},
        "spec": spec,
        "status": _STATUS,
    }
    return _object(description, fields, required=("spec",))


KINDS: Mapping[str, Schema] = {
    "Egress": _kind(
        "What the pods of one namespace may reach.",
        _object("Who is meant, and what they may reach.", _EGRESS_SPEC),
    ),
    "ClusterEgress": _kind(
        "What pods of many namespaces, nodes and machines behind a gateway may reach.",
        _object("Who is meant, and what they may reach.", _CLUSTER_SPEC, rules=cel.CLUSTER_SPEC),
    ),
    "ExternalWorkload": _kind("A name and labels for a machine outside the cluster.", _EXTERNAL_SPEC),
}


def did_you_mean(text: str, choices: list[str]) -> str:
    """The choice that `text` misspells, else all of them."""
    import difflib

    folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(text.lower(), folded, n=1)
    return f"write {folded[close[0]]}" if close else f"choose from {', '.join(choices)}"


def _unknown_fields(kind: str, data: object, schema: Schema, path: Path) -> Iterator[Violation]:
    if isinstance(data, list):
        for index, item in enumerate(data):
            yield from _unknown_fields(kind, item, schema.get("items", {}), (*path, index))
    if not isinstance(data, dict) or "properties" not in schema:
        return
    for field, value in data.items():
        if field in schema["properties"]:
            yield from _unknown_fields(kind, value, schema["properties"][field], (*path, field))
        elif path == ("spec",) and kind == "Egress" and field in _CLUSTER_SPEC:
            yield Violation((*path, field), "is not a field of Egress", "write a ClusterEgress for it")
        else:
            yield Violation((*path, field), "is not a field", did_you_mean(field, list(schema["properties"])))


@cache
def _validator(kind: str) -> Draft202012Validator:
    # Imported here: jsonschema takes longer to load than an agent with no files takes to start.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(KINDS[kind])


def _tell(error: ValidationError, written: str | None) -> tuple[str, str]:
    instance: Any = error.instance
    wanted: Any = error.validator_value
    match error.validator:
        case "type":
            text = written if written is not None else json.dumps(instance, default=str)
            return _wrong_type(instance, text), _mend_type(instance, wanted, text)
        case "enum":
            return f"{instance!r} is not a choice", did_you_mean(str(instance), wanted)
        case "minItems" | "minLength":
            return "is empty", "leave it out, or name at least one"
        case "maxItems" | "maxProperties":
            return f"has {len(instance)} entries", f"write at most {wanted}, and the rest in another object"
        case "maxLength":
            return f"has {len(instance)} characters", f"write at most {wanted}"
        case "minimum":
            return f"{instance} is out of range", f"write {wanted} or more"
        case "maximum":
            return f"{instance} is out of range", f"write {wanted} or less"
    return error.message, f"see {error.validator}: {wanted}"


_JSON_TYPES = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
_FORMS = {
    "array": "a list: one entry per line, each after a -",
    "boolean": "true or false",
    "integer": "a whole number",
    "object": "its fields",
    "string": "a string",
}


def _wrong_type(instance: object, text: str) -> str:
    if instance is None:
        return "is empty"
    found = _JSON_TYPES.get(type(instance), "value")
    shown = f"{text} is read as" if found not in ("object", "list") else "is"
    return f"{shown} a {found}"


def _mend_type(instance: object, wanted: str, text: str) -> str:
    scalar = not isinstance(instance, (dict, list)) and instance is not None
    if wanted == "string" and scalar:
        return f'write "{text}" in quotes'
    if wanted == "array" and scalar:
        return f"write a list: [{text}]"
    if (wanted == "integer" and text.isdigit()) or (wanted == "boolean" and text in ("true", "false")):
        return f"write {text} without quotes"
    return f"{'write' if instance is not None else 'leave it out, or write'} {_FORMS[wanted]}"

"""The CustomResourceDefinitions: what the API server is told of each kind.

The rules this file must obey:

* The fields and what may stand in them are schema.py's; here is what only an API server needs: names, scope,
  columns, the status subresource.
* The version's name stays for as long as its fields mean the same. A field may come, or a bound widen, within
  a version; what was once accepted stays readable.

Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gateway.policies.schema import API_VERSION, GROUP, KINDS


class Names(NamedTuple):
    plural: str
    short: str
    scope: str


NAMES = {
    "Egress": Names("egresses", "eg", "Namespaced"),
    "ClusterEgress": Names("clusteregresses", "ceg", "Cluster"),
    "ExternalWorkload": Names("externalworkloads", "ew", "Cluster"),
}


def definition(kind: str) -> dict[str, Any]:
    """The CustomResourceDefinition of `kind`, as apiextensions.k8s.io/v1 takes it."""
    plural, short, scope = NAMES[kind]
    version = {
        "name": API_VERSION.partition("/")[2],
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": _columns(kind),
        "schema": {"openAPIV3Schema": _schema(kind)},
    }
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": [short],
        "categories": ["skouter"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": scope, "names": names, "versions": [version]},
    }


def _schema(kind: str) -> dict[str, Any]:
    """That of the files; the server itself knows what metadata holds, and refuses to be told."""
    schema = KINDS[kind]
    return schema | {"properties": schema["properties"] | {"metadata": {"type": "object"}}}


def _columns(kind: str) -> list[dict[str, Any]]:
    condition = ".status.conditions[?(@.type=='Accepted')]"
    what = (
        _column("Addresses", ".spec.addresses", "Of the machine.")
        if kind == "ExternalWorkload"
        else _column("Mode", ".spec.mode", "Enforce, or Audit.")
    )
    return [
        what,
        _column("Accepted", f"{condition}.status", "Whether all of it can be enforced."),
        _column("Message", f"{condition}.message", "What is to be mended.") | {"priority": 1},
        _column("Age", ".metadata.creationTimestamp", "Since its creation.") | {"type": "date"},
    ]


def _column(name: str, path: str, description: str) -> dict[str, Any]:
    return {"name": name, "type": "string", "jsonPath": path, "description": description}

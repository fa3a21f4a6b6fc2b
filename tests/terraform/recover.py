"""A provider's schema, recovered from the classes that CDK Terraform generated of it.

Rules this file obeys:

- Pure: text in, schema out.
- Every attribute of a generated class is told by a comment (`// NAME - computed: .., optional: ..`) with its
  getter below, which shows the type; whether it is a block or an attribute, a list or a set, is told by the
  entry of the same name where the class writes HCL.
- What these texts do not say is not guessed: sensitive and write-only attributes, conflicts, enumerations.
- A struct is taken for a block, as nearly all are (`timeouts`).

Classes of a provider itself have no getters below the first level; their HCL entries are all there is.

Source: the packages' inline source maps (https://tc39.es/ecma426/); Terraform's plugin protocol 6.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tf.gen import tfplugin_pb2 as wire

CLASS = re.compile(r"^export class (\w+) extends \w+\.(\w+) \{\n(.*?)^\}\n", re.MULTILINE | re.DOTALL)
ATTRIBUTE = re.compile(
    r"^  // (\w+) - computed: (true|false), optional: (true|false), required: (true|false)\n"
    r"(.*?)(?=^  // \w+ - computed|^  // ====|\Z)",
    re.MULTILINE | re.DOTALL,
)
WRITER = re.compile(r"^export function (\w+)ToHclTerraform\(.*?^\}\n", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(
    r'^ +(\w+): \{\n +value: (.*),\n +isBlock: (\w+),\n +type: "(\w+)",\n +storageClassType: "(\w+)",\n',
    re.MULTILINE,
)
NESTED = re.compile(r'= new (\w+)\(this, "\w+"(?:, (\w+))?\)')
DEEPEST = (
    3  # blocks of one kind within each other: the protocol has no recursion, so providers end it somewhere
)
CONTAINERS = ("OutputReference", "List", "Map", "ListList", "MapList")
PLAIN = re.compile(r"return (.*?)this\.(?:get(\w*)Attribute|(interpolationForAttribute))\(")
WRAPPED = re.compile(r"= new \w+\.(String|Number|Boolean|Any)Map(List)?\(")

PRIMITIVES = {"": "string", "string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}
PRIMITIVES |= {"String": "string", "Number": "number", "Boolean": "bool", "Any": "dynamic"}

Type = str | list[Any]  # as cty writes it: "string", ["list", "string"], ["object", {...}]
Block = wire.Schema.Block
Nested = wire.Schema.NestedBlock


@dataclass(frozen=True)
class Entry:
    """How a class writes one of its inputs."""

    is_block: bool
    kind: str  # simple, list, set, map, struct
    storage: str
    writer: str  # the function that writes one element, without its suffix


@dataclass(frozen=True)
class Struct:
    """What holds the structs of a nested block or attribute, one or many."""

    name: str
    container: str
    is_set: bool


@dataclass(frozen=True)
class Attribute:
    """What the comment says, and the text of the getter."""

    name: str
    computed: bool
    optional: bool
    required: bool
    getter: str


class Module:
    """The classes of one resource, and the functions that write its structs: of all files of its folder."""

    def __init__(self, sources: list[str]) -> None:
        text = "\n".join(sources)
        self.classes = {name: (base, body) for name, base, body in CLASS.findall(text)}
        self.open: list[str] = []
        self.writers = {found[1]: entries(found[0]) for found in WRITER.finditer(text)}

    def main(self) -> Iterator[tuple[str, str]]:
        """The base and the body of each class that is no struct."""
        for base, body in self.classes.values():
            if base in ("TerraformResource", "TerraformDataSource", "TerraformProvider"):
                yield base, body

    def block(self, body: str, written: dict[str, Entry]) -> Block:
        made = Block()
        for attribute in attributes(body):
            self._add(made, attribute, written.get(attribute.name))
        return made

    def written_block(self, writer: str) -> Block:
        """A struct of a provider's configuration: nothing in it is required."""
        made = Block()
        for name, entry in self.writers[writer].items():
            self._add(made, Attribute(name, False, True, False, ""), entry)
        return made

    def _add(self, block: Block, attribute: Attribute, entry: Entry | None) -> None:
        if entry and entry.is_block and ", false)(" not in entry.writer:
            if not self._too_deep(attribute):
                block.block_types.append(self._nested(attribute, entry))
            return
        if entry and entry.storage == "any":
            return  # five blocks, too large for CDK Terraform
        block.attributes.append(
            wire.Schema.Attribute(
                name=attribute.name,
                type=json.dumps(self._type(attribute, entry)).encode(),
                computed=attribute.computed,
                optional=attribute.optional,
                required=attribute.required,
            )
        )

    def _too_deep(self, attribute: Attribute) -> bool:
        struct = self._struct(attribute)
        return struct is not None and self.open.count(struct.name) >= DEEPEST

    def _nested(self, attribute: Attribute, entry: Entry) -> wire.Schema.NestedBlock:
        if struct := self._struct(attribute):
            self.open.append(struct.name)
            block = self.block(self._body(struct.name), self.writers[_lower(struct.name)])
            self.open.pop()
        else:
            block = self.written_block(re.findall(r"(\w+)ToHclTerraform", entry.writer)[-1])
        nesting = {"list": Nested.LIST, "set": Nested.SET, "map": Nested.MAP, "struct": Nested.SINGLE}[
            entry.kind
        ]
        counted = nesting in (Nested.LIST, Nested.SET)
        return Nested(
            type_name=attribute.name,
            block=block,
            nesting=nesting,
            min_items=int(counted and attribute.required),
            max_items=int(counted and struct is not None and struct.container == "OutputReference"),
        )

    def _type(self, attribute: Attribute, entry: Entry | None) -> Type:
        if struct := self._struct(attribute):
            return self._structs(struct, entry.kind == "set" if entry else struct.is_set)
        if entry:
            return storage(entry.kind, entry.storage)
        if wrapped := WRAPPED.search(attribute.getter):
            of: Type = ["map", PRIMITIVES[wrapped[1]]]
            return ["list", of] if wrapped[2] else of
        found = PLAIN.search(attribute.getter)
        if not found:
            return "dynamic"
        kind = re.fullmatch(r"(String|Number|Boolean|Any|)(List|Map|)", found[2] or "Any")
        assert kind, found[0]
        if not kind[2]:
            return PRIMITIVES[kind[1]]
        outer = "map" if kind[2] == "Map" else "set" if "tolist" in found[1] else "list"
        return [outer, PRIMITIVES[kind[1]]]

    def _structs(self, struct: Struct, is_set: bool) -> Type:
        written = self.writers.get(_lower(struct.name), {})
        members = attributes(self._body(struct.name))
        of: Type = ["object", {a.name: self._type(a, written.get(a.name)) for a in members}]
        outer = "set" if is_set else "list"
        return {
            "OutputReference": of,
            "Map": ["map", of],
            "List": [outer, of],
            "ListList": [outer, ["list", of]],
            "MapList": [outer, ["map", of]],
        }[struct.container]

    def _struct(self, attribute: Attribute) -> Struct | None:
        """That ending counts which leaves the name of a struct: a struct may be called ListToMap."""
        if found := NESTED.search(attribute.getter):
            for container in CONTAINERS:
                name = found[1].removesuffix(container)
                if name != found[1] and f"{name}OutputReference" in self.classes:
                    return Struct(name, container, found[2] == "true")
        return None

    def _body(self, struct: str) -> str:
        return self.classes[f"{struct}OutputReference"][1]


def attributes(body: str) -> Iterator[Attribute]:
    for name, computed, optional, required, getter in ATTRIBUTE.findall(body):
        yield Attribute(name, computed == "true", optional == "true", required == "true", getter)


def entries(text: str) -> dict[str, Entry]:
    return {
        name: Entry(is_block == "true", kind, storage, value)
        for name, value, is_block, kind, storage in ENTRY.findall(text)
    }


def storage(kind: str, stored: str) -> Type:
    """The type of an input by the words `type` and `storageClassType`: ("set", "stringList")."""
    found = re.fullmatch(r"(string|number|boolean|any)((?:List|Map)*)", stored)
    if not found:
        return "dynamic"
    made: Type = PRIMITIVES[found[1]]
    layers = re.findall("List|Map", found[2])
    for inner in layers[:-1]:
        made = [inner.lower(), made]
    return [kind if layers[-1] == "List" else "map", made] if layers else made


def source(javascript: str) -> str:
    """The TypeScript that the compiler kept in the inline source map."""
    encoded = javascript.rpartition("sourceMappingURL=data:application/json;base64,")[2]
    (text,) = json.loads(base64.b64decode(encoded))["sourcesContent"]
    return str(text)


def schema(folders: dict[str, list[str]]) -> wire.GetProviderSchema.Response:
    """The schema of a provider whose classes' TypeScript lies in `folders`, by the folders' names."""
    answer = wire.GetProviderSchema.Response()
    for sources in folders.values():
        module = Module(sources)
        for base, body in module.main():
            block = module.block(body, entries(body))
            if base == "TerraformProvider":
                block.attributes.remove(next(a for a in block.attributes if a.name == "alias"))
                answer.provider.CopyFrom(wire.Schema(block=block))
                continue
            name = re.search(r'tfResourceType = "(\w+)"', body)
            assert name
            into = answer.resource_schemas if base == "TerraformResource" else answer.data_source_schemas
            into[name[1]].CopyFrom(wire.Schema(block=block))
    return answer


def _lower(struct: str) -> str:
    return struct[0].lower() + struct[1:]

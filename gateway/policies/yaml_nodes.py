"""From the text of a YAML file to plain values, and to nodes that still know their lines.

The rules this file must obey:

* YAML as Kubernetes reads it (YAML 1.1), but a key given twice is a problem, and keys stay as written.
* No text raises or ends the process: not being YAML, too deep or too large is a Violation like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from gateway.policies.schema import Path, Violation

if TYPE_CHECKING:
    from yaml import MappingNode, SafeLoader, ScalarNode, SequenceNode

    Node = MappingNode | ScalarNode | SequenceNode

DEEPEST = 32  # levels of a document; the schema itself has nine
MOST_VALUES = 1_000_000  # values in a document, aliases counted at every use

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp")}


@dataclass(slots=True)
class Document:
    """The plain value of one object, what was wrong with its YAML, and its nodes, which know the lines."""

    data: object
    found: list[Violation] = field(default_factory=list)
    node: Node | None = None
    line: int | None = None


def documents(text: str) -> Iterator[Document]:
    """All objects in `text`, in their order; the last one tells where the text stops being YAML."""
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
        yield Document(None, [violation], line=mark.line + 1 if mark else None)
    except (yaml.YAMLError, UnicodeError) as error:
        yield Document(
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


def _document(node: Node) -> Document:
    document = Document(None, node=node)
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


def node_at(node: Node | None, path: Path) -> tuple[Node | None, int | None]:
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

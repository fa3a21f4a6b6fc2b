"""One object of a file being read: which parts of it are sound, and every problem found so far.

The rules this file must obey:

* Nothing raises: what is wrong is kept with its path, and told with line, object, field and mend.
* A value that is wrong, or lies in something wrong, reads as missing; whoever builds a record of it looks at
  `sound` or `found` before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from gateway.policies import yaml_nodes
from gateway.policies.addresses import BadAddressError
from gateway.policies.names import BadNameError
from gateway.policies.patterns import BadPatternError
from gateway.policies.records import Problem
from gateway.policies.schema import Path, Violation

Parsed = TypeVar("Parsed")

_DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_DNS_LABEL}(\.{_DNS_LABEL})*")  # RFC 1123, as Kubernetes has it
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


class Reading:
    """One object being read: which parts of it are sound, and every problem found so far."""

    def __init__(self, file: str, document: yaml_nodes.Document) -> None:
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
        except (BadNameError, BadPatternError, BadAddressError) as error:
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
        node = yaml_nodes.node_at(self.document.node, path)[0]
        return node.value if node is not None and isinstance(node.value, str) else None

    def _line(self, path: Path) -> int | None:
        if self.document.node is None:
            return self.document.line
        return yaml_nodes.node_at(self.document.node, path)[1]


def _dotted(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def labels(reading: Reading, path: Path) -> tuple[tuple[str, str], ...]:
    found = reading.get(*path)
    if not isinstance(found, dict):
        if found is not None:
            reading.wrong(path, "is not a map", "write key: value")
        return ()
    for key, value in found.items():
        check_key(reading, (*path, key), key)
        if isinstance(value, str):
            check_value(reading, (*path, key), value)
        elif reading.get(*path, key) is not None:
            reading.wrong(
                (*path, key), "is not a string", f'write "{reading.spelling((*path, key))}" in quotes'
            )
    return tuple(sorted((key, value) for key, value in found.items() if isinstance(value, str)))


def check_key(reading: Reading, path: Path, key: str) -> None:
    prefix, slash, name = key.rpartition("/")
    if not name or not _LABEL_VALUE.fullmatch(name) or (slash and not SUBDOMAIN.fullmatch(prefix)):
        reading.wrong(path, f"{key!r} is not a label's key", "write a key such as app or example.com/app")


def check_value(reading: Reading, path: Path, value: str) -> None:
    if not _LABEL_VALUE.fullmatch(value):
        reading.wrong(path, f"{value!r} is not a label's value", "write letters, digits, -, _ and .")

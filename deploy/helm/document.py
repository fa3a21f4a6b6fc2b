"""Writes the table of values in the chart's README from the comments of values.yaml.

Rules this file obeys: values.yaml is the one truth. A value that has no comment is an error, and so is a
comment that belongs to none. `python deploy/helm/document.py`, as `make manifests` does.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "skouter"
BEGIN, END = "<!-- values -->\n", "<!-- /values -->\n"
KEY = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<rest>.*)")


class UndocumentedError(Exception):
    """A value and its comment are not together; the message names it."""


def comments(text: str) -> dict[str, str]:
    """Path of a value (`image.tag`) to the comment above it; where its children have theirs it needs none."""
    found: dict[str, str] = {}
    above: list[str] = []
    parents: list[str] = []
    for line in text.splitlines():
        if match := KEY.fullmatch(line):
            parents = [*parents[: len(match["indent"]) // 2], match["key"]]
            if above:
                found[".".join(parents)] = " ".join(above)
            above = []
        elif line.lstrip().startswith("#"):
            above.append(line.lstrip("# "))
        elif not line:
            above = []
    return found


def rows(text: str) -> list[tuple[str, str, str]]:
    """(path, default as JSON, comment) of every value. Raises UndocumentedError."""
    told, values = comments(text), yaml.safe_load(text)
    found = list(_rows(values, told, ""))
    if missing := [path for path, _, comment in found if not comment]:
        raise UndocumentedError(f"values.yaml: no comment above {', '.join(missing)}")
    if more := told.keys() - {path for path, *_ in found}:
        raise UndocumentedError(f"values.yaml: a comment above {', '.join(sorted(more))} is lost")
    return found


def _rows(values: dict[str, Any], told: dict[str, str], prefix: str) -> Any:
    for key, value in values.items():
        path = prefix + key
        if path in told or not isinstance(value, dict) or not value:
            yield path, json.dumps(value), told.get(path, "")
        else:
            yield from _rows(value, told, f"{path}.")


def table(text: str) -> str:
    lines = [f"| `{path}` | `{default}` | {comment} |" for path, default, comment in rows(text)]
    return "\n".join(["| value | default | what it does |", "| --- | --- | --- |", *lines]) + "\n"


def document(readme: str, values: str) -> str:
    """The README with its table written anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table(values)}{END}{after}"


if __name__ == "__main__":
    path = CHART / "README.md"
    path.write_text(document(path.read_text(), (CHART / "values.yaml").read_text()))

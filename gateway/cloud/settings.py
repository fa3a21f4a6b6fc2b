"""/etc/skouter/cloud.yaml: which secrets become which files, and whose routes are taken over.

Terraform writes this file; it is checked all the same, since a gateway that starts with half of it is worse
than one that says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from gateway.cloud.take_over import Gateway

_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT}
_GATEWAY = {
    "type": "object",
    "properties": {"interface": _TEXT, "address": _TEXT, "routeTables": _TEXTS, "destinations": _TEXTS},
    "required": ["interface", "address", "routeTables", "destinations"],
    "additionalProperties": False,
}
_TAKE_OVER = {
    "type": "object",
    "properties": {
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "gateways": {"type": "array", "minItems": 1, "items": _GATEWAY},
    },
    "required": ["port", "gateways"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "secrets": {
            "type": "object",
            "patternProperties": {"^/": _TEXT},
            "additionalProperties": False,
        },
        "takeOver": _TAKE_OVER,
    },
    "additionalProperties": False,
}


class SettingsError(Exception):
    """The file can't be used; the message says which field, and why."""


@dataclass(frozen=True, slots=True)
class Settings:
    secrets: dict[Path, str]  # file to name
    gateways: tuple[Gateway, ...]  # that take over from each other
    port: int = 0  # where they answer /readyz


def read(path: Path) -> Settings:
    try:
        data: Any = yaml.safe_load(path.read_text())
        jsonschema.validate(data, SCHEMA)
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    except jsonschema.ValidationError as error:
        raise SettingsError(f"{path}: {error.json_path}: {error.message}") from error
    its = data.get("takeOver", {"gateways": [], "port": 0})
    return Settings(
        secrets={Path(file): name for file, name in data.get("secrets", {}).items()},
        gateways=tuple(
            Gateway(g["interface"], g["address"], tuple(g["routeTables"]), tuple(g["destinations"]))
            for g in its["gateways"]
        ),
        port=its["port"],
    )

"""`make crds`: writes the definitions of this folder from the schema that the file checker uses, too."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from gateway.kubernetes import crds

HEAD = "# Written by make crds: fields as gateway/policies/schema.py has them, rules as cel.py has.\n"


def texts() -> dict[str, str]:
    """File name to text."""
    found = {}
    for kind, names in crds.NAMES.items():
        plain = json.loads(json.dumps(crds.definition(kind)))  # equal parts are written out, not as aliases
        found[f"{names.plural}.yaml"] = HEAD + yaml.safe_dump(plain, sort_keys=False, width=110)
    return found


if __name__ == "__main__":
    for name, text in texts().items():
        Path(__file__).with_name(name).write_text(text)

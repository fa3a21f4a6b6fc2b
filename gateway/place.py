"""Where one instance of the engine lives on this host.

Every folder carries the instance's name, so that two (a test and the real one, say) never meet:

    BPFFS/NAME          pinned maps and programs
    CGROUP2/NAME        the workloads' cgroup, to which the programs are attached
    /run/NAME           the lock, and what each workload was given, for people to read
    /var/lib/NAME       the last good set of an agent's policies
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gateway import cgroups

DEFAULT = "skouter"
BPFFS = Path("/sys/fs/bpf")
FORWARDING = "forwarding.json"  # of a gateway, below its state: what the host's settings were before
ROUTE = "route.json"  # the same of a router in front of gateways
STATE = Path("/var/lib")  # file-hierarchy(7)
INSTANCE = re.compile(r"skouter(-[A-Za-z0-9_-]+)?")  # never the name of somebody else's folder


@dataclass(frozen=True)
class Place:
    """Paths of one instance."""

    name: str
    bpffs: Path
    hierarchy: Path
    run: Path

    @property
    def pins(self) -> Path:
        return self.bpffs / self.name

    @property
    def cgroup(self) -> Path:
        return self.hierarchy / self.name

    @property
    def state(self) -> Path:
        return STATE / self.name

    @property
    def kept(self) -> Path:
        return self.state / "good.json"

    @property
    def mirror(self) -> Path:
        return self.state / "mirror"

    @property
    def lock(self) -> Path:
        return self.run / "lock"


def find(name: str | None = None) -> Place:
    """The instance called `name`, by default $SKOUTER_INSTANCE or "skouter"."""
    name = name or os.environ.get("SKOUTER_INSTANCE") or DEFAULT
    if not INSTANCE.fullmatch(name):
        raise cgroups.CgroupError(
            f"instance {name!r}: write skouter, or skouter- and letters, digits, '-', '_'"
        )
    bpffs = cgroups.find_mount("bpf", cgroups.mounts()) or BPFFS
    return Place(name, bpffs, cgroups.hierarchy(), Path("/run") / name)


def ensure_bpffs(place: Place) -> None:
    """Mounts the bpf file system where nobody did (systemd does).

    In a container that would end with it, and all that is pinned there: who comes after would find nothing.
    """
    if cgroups.find_mount("bpf", cgroups.mounts()) is None:
        if "POD_NAMESPACE" in os.environ:
            raise cgroups.CgroupError(
                f"no bpf file system on this node: mount -t bpf bpf {place.bpffs}, at each boot"
            )
        place.bpffs.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", str(place.bpffs)], check=True)

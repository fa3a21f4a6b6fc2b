"""`python -m tests.cluster.node.prepare`: fetches and builds what the tests of a node need from outside.

BASE and IMAGE_OPTIONS are those of `make image`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from tests.cluster.node.machine import CHECKOUT
from tests.matrix import kernels
from tests.tools import build

SUITE = "bookworm"
KERNELS = CHECKOUT / "build" / "matrix"
IMAGE = CHECKOUT / "build" / "skouter-image.tar"


def programs(name: str) -> Path:
    return build.folder(name)


def kernel() -> kernels.Kernel:
    return kernels.Kernel(SUITE, KERNELS / SUITE / "kernel")


def main() -> None:
    for name in ("node", "helm", "coredns"):
        programs(name)
    kernels.fetch(SUITE, KERNELS)
    env = {**os.environ, "BASE": os.environ.get("BASE", "debootstrap")}
    options = shlex.split(env.get("IMAGE_OPTIONS", ""))
    subprocess.run([CHECKOUT / "deploy" / "build-image", *options], env=env, check=True)


if __name__ == "__main__":
    main()

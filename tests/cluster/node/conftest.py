"""One node for all tests of this folder, with the image that deploy/ContainerFile makes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster.apiserver import KubectlError
from tests.cluster.node import images
from tests.cluster.node.machine import CHECKOUT, Node
from tests.cluster.node.prepare import IMAGE, kernel, programs

TOLD = (
    ("get", "pods", "-A"),
    ("logs", "-n", "skouter-system", "-l", "app.kubernetes.io/name=skouter", "--tail=50"),
)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    def put(folder: Path) -> None:
        # busybox's own wget, linked statically, crashes where it asks for names.
        box = images.busybox() | images.with_libraries("wget") | {"bin/frames": images.frames(folder.parent)}
        images.archive(folder / "box.tar", "localhost/box:1", box, ["sleep", "1000000"])
        coredns = {"bin/coredns": programs("coredns") / "coredns"}
        images.archive(folder / "coredns.tar", "localhost/coredns:1", coredns, ["/bin/coredns"])
        (folder / "skouter.tar").symlink_to(IMAGE)

    with Node(tmp_path_factory.mktemp("node"), programs("node"), kernel(), put) as running:
        running.api.kubectl("apply", "-f", CHECKOUT / "tests" / "cluster" / "node" / "coredns.yaml")
        yield running
        for words in TOLD:
            with suppress(KubectlError):
                print(running.api.kubectl(*words))
        subprocess.run(["tail", "-n", "60", running.console], check=False)

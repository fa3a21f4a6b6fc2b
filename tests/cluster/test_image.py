"""The image of deploy/ContainerFile, after `make image`: unpacked, and its programs run in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.compile import text_hash
from tests.cluster.rendered import DEPLOY, ROOT, agent

ARCHIVE = ROOT / "build" / "skouter-image.tar"
OBJECTS = "opt/skouter/share/skouter"
MANIFEST = DEPLOY / "kustomize" / "base" / "skouter.yaml"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not ARCHIVE.exists():
        pytest.skip("needs the image: run 'make image'")
    archive, root = tmp_path_factory.mktemp("archive"), tmp_path_factory.mktemp("image")
    subprocess.run(["tar", "-x", "-f", ARCHIVE, "-C", archive], check=True)
    (manifest,) = json.loads((archive / "manifest.json").read_text())
    for name in manifest["Layers"]:
        subprocess.run(["tar", "-x", "-f", archive / name, "-C", root], check=True)
    shutil.rmtree(archive)
    (made,) = (root / OBJECTS).glob("*.json")
    if not made.name.startswith(text_hash()):
        pytest.skip("the image is of another text of the kernel half: run 'make image'")
    yield root
    shutil.rmtree(root)


def run(image: Path, *words: object, text: str = "") -> str:
    """What a program of the image prints; with its PATH, and mounts that end with it."""
    enter = 'cd "$0" && mount --rbind /proc proc && mount --rbind /dev dev && exec chroot . env -i "$@"'
    path = "PATH=/opt/skouter/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    command = ["unshare", "--mount", "sh", "-c", enter, str(image), path, *map(str, words)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_programs_run(image: Path) -> None:
    assert run(image, "skouter", "--version").startswith("skouter ")
    example = (DEPLOY / "examples" / "patterns.yaml").read_text()
    assert "1 object, 0 problems" in run(image, "skouter", "policy", "check", "/dev/stdin", text=example)


def test_it_needs_no_compiler(image: Path) -> None:
    """The kernel half is there already."""
    code = "from bpf import load; load.compile_object = None; print(len(load.compiled()))"
    assert int(run(image, "python", "-c", code)) > 5
    assert not list(image.glob("usr/lib/*/libclang*"))
    assert not list(image.glob("usr/bin/*gcc*"))


def test_what_the_manifest_runs_is_there(image: Path) -> None:
    container = agent(MANIFEST.read_text())
    words = container["command"] + container["readinessProbe"]["exec"]["command"]
    programs = {word for word in words if word in ("nsenter", "skouter", "python")}
    assert programs == {"nsenter", "skouter", "python"}
    for program in (*programs, "openssl", "sh", "rm", "touch", "test", "sleep"):
        assert run(image, "sh", "-c", f"command -v {program}")
    for option in ("--kubernetes", "--health", "--metrics", "--startup-taint", "--config"):
        assert option in run(image, "skouter", "agent", "--help")
    for module in ("ask", "kubernetes.cleanup", "kubernetes.source", "health"):
        run(image, "python", "-I", "-c", f"import gateway.{module}")


def test_it_trusts_the_authorities_that_debian_trusts(image: Path) -> None:
    assert (image / "etc" / "ssl" / "certs" / "ca-certificates.crt").stat().st_size > 100_000

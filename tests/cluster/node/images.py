"""Images of containers without a registry: docker archives of one layer, made from files.

Source: the image specification of docker-archive (manifest.json, one JSON of configuration, tar layers), as
`ctr images import` and `podman load` take it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARY = re.compile(r"(/\S+) \(0x")
APPLETS = ("sh", "sleep", "nslookup", "ls", "cat", "nc", "ip", "ping", "env", "id", "true", "httpd")


def busybox() -> dict[str, Path | str]:
    """A small userland: files are copied, strings are links."""
    program = Path(shutil.which("busybox") or "/bin/busybox")
    return {"bin/busybox": program, **dict.fromkeys((f"bin/{name}" for name in APPLETS), "busybox")}


def with_libraries(*names: str) -> dict[str, Path | str]:
    """Programs of this machine with the libraries that they are linked to, where the loader looks."""
    files: dict[str, Path | str] = {}
    for program in (Path(shutil.which(name) or name) for name in names):
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for path in (program, *map(Path, LIBRARY.findall(said))):
            files[str(path).lstrip("/")] = path
    return files


def frames(folder: Path) -> Path:
    """frames.c, compiled into `folder`."""
    made, source = folder / "frames", Path(__file__).with_name("frames.c")
    subprocess.run(["musl-gcc", "-static", "-O2", "-Wall", "-Werror", "-o", made, source], check=True)
    return made


def archive(target: Path, name: str, files: Mapping[str, Path | str], command: Sequence[str]) -> None:
    """Writes the image `name` (localhost/box:1) with these files, below no folder, to `target`."""
    layer = _layer(files)
    digest = hashlib.sha256(layer).hexdigest()
    about = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": list(command), "Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    configuration = json.dumps(about).encode()
    config_name = f"{hashlib.sha256(configuration).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}.tar"]}]
    with tarfile.open(target, "w") as out:
        _put(out, f"{digest}.tar", layer)
        _put(out, config_name, configuration)
        _put(out, "manifest.json", json.dumps(manifest).encode())


def _layer(files: Mapping[str, Path | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(entry)
        for path, source in files.items():
            if isinstance(source, str):
                entry = tarfile.TarInfo(path)
                entry.type, entry.linkname = tarfile.SYMTYPE, source
                layer.addfile(entry)
            else:
                _put(layer, path, source.read_bytes(), 0o755)
    return buffer.getvalue()


def _put(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))

"""What a cgroup's path says of a pod: the layouts that kubelet and the container runtimes make.

The rules this file must obey:

* A path is believed only where everything above it was made by the system's own managers. A user may make
  folders below a unit of his, and call them as he likes.
* What looks like no layout known here is nobody's pod: below the pods' root it stays closed.

Layouts (kubelet's --cgroup-driver; QoS class Guaranteed has no folder of its own):

    kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope   systemd
    kubepods/burstable/podUID/ID                                                                    cgroupfs

The driver systemd writes a UID's "-" as "_". CRI-O calls containers crio-ID, Docker docker-ID, and CRI-O puts
its monitor (crio-conmon-ID) into the pod too: that process lives in the host's network namespace. With
--cgroup-root the pods' root is ROOT.slice/ROOT-kubepods.slice or ROOT/kubepods; in a node that is a container
itself (kind, k3d) it lies below docker/ID, or below the container's scope.

Source: kubelet's cgroup manager (pkg/kubelet/cm), systemd.slice(5), CRI-O's conmon_cgroup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

QoS = Literal["guaranteed", "burstable", "besteffort"]
CLASSES: tuple[QoS, ...] = ("burstable", "besteffort")

_UID = r"pod(?P<uid>[0-9A-Za-z][0-9A-Za-z_-]{0,127})"
_STATIC = re.compile(r"[0-9a-f]{32}")  # a hash of the pod's file; the API's own UIDs have dashes (RFC 9562)
_CONTAINER = re.compile(r"(?:cri-containerd-|crio-|docker-)?(?P<id>[0-9a-f]{12,64})(?:\.scope)?")
# The root of a node that is a container: by Docker or Podman, by their own hand or by systemd's.
_NODES = (
    re.compile(r"/docker/[0-9a-f]{64}"),
    re.compile(r"/libpod_parent/libpod-[0-9a-f]{64}"),
    re.compile(r"/(?:system|machine)\.slice/(?:docker|libpod)-[0-9a-f]{64}\.scope(?:/container)?"),
)
_ABOVE_NODES = ("/docker", "/libpod_parent")  # and slices, which are watched in any case


@dataclass(frozen=True, slots=True)
class PodCgroup:
    """A pod's cgroup, or one of a container of it.

    `container` is "" for what is neither: the runtime's monitor, which lives in the host's network namespace.
    """

    uid: str
    qos: QoS
    container: str | None = None

    @property
    def is_pod(self) -> bool:
        return self.container is None

    @property
    def is_static(self) -> bool:
        """Whether the pod is of a file on this node: the API server may be such a one."""
        return _STATIC.fullmatch(self.uid) is not None


def read(path: str, root: str = "") -> PodCgroup | None:
    """What lies at `path`, or None where that is no pod, nor right below one.

    `root`: kubelet's --cgroup-root, where that is none of the usual ones.
    """
    for top in _above(path):
        if is_top(top, root):
            return _read_below(top.rpartition("/")[2], _parts(path.removeprefix(top)))
    return None


def is_top(path: str, root: str = "") -> bool:
    """Whether `path` is the folder in which all pods of the node lie."""
    if root:
        return path in _tops(root)
    *above, name = _inside_node(path) or ("",)
    if name == "kubepods":
        return above in ([], ["kubelet"])
    return (name == "kubepods.slice" or name.endswith("-kubepods.slice")) and _are_slices(above)


def is_of_interest(path: str, root: str = "") -> bool:
    """Whether a cgroup right below `path` may be a pod's, a container's, or lie above one: watch it."""
    found = read(path, root)
    if found is not None:
        return found.is_pod
    top, _, name = path.rpartition("/")
    if is_top(top, root):
        return name in CLASSES or name in _class_slices(top.rpartition("/")[2])
    if is_top(path, root) or path == "/":
        return True
    if root:
        return any(wanted.startswith(path + "/") for wanted in _tops(root))
    inside = _inside_node(path)
    return path in _ABOVE_NODES or _are_slices(inside) or inside == ("kubelet",)


def tops(paths: Iterable[str], root: str = "") -> list[str]:
    """The folders of all pods among `paths`, in order: one on a node, two after its driver was changed."""
    return sorted(path for path in paths if is_top(path, root))


def pods(paths: Iterable[str], root: str = "") -> dict[str, PodCgroup]:
    """The pods' own cgroups among `paths`."""
    found = ((path, read(path, root)) for path in paths)
    return {path: pod for path, pod in found if pod is not None and pod.is_pod}


def same_uid(uid: str) -> str:
    """The spelling of a UID in which those of both drivers and of the API are one."""
    return uid.replace("_", "-")


def _read_below(top: str, parts: tuple[str, ...]) -> PodCgroup | None:
    qos: QoS = "guaranteed"
    stem = top.removesuffix(".slice")
    before, after = (f"{stem}-", ".slice") if top.endswith(".slice") else ("", "")
    for name in CLASSES:
        if parts[0] == before + name + after:
            qos, parts = name, parts[1:]
            before = f"{before}{name}-" if after else ""
            break
    found = re.fullmatch(re.escape(before) + _UID + re.escape(after), parts[0]) if parts else None
    if found is None or len(parts) > 2:
        return None
    if len(parts) == 1:
        return PodCgroup(same_uid(found["uid"]), qos)
    container = _CONTAINER.fullmatch(parts[1])
    return PodCgroup(same_uid(found["uid"]), qos, container["id"] if container else "")


def _parts(path: str) -> tuple[str, ...]:
    return tuple(filter(None, path.split("/")))


def _above(path: str) -> Iterator[str]:
    """The folders around `path`, the outermost first."""
    parts = _parts(path)
    return ("/" + "/".join(parts[:depth]) for depth in range(1, len(parts)))


def _inside_node(path: str) -> tuple[str, ...]:
    """`path` below the root of the node that it is in."""
    for node in _NODES:
        if found := node.match(path):
            return _parts(path[found.end() :])
    return _parts(path)


def _are_slices(parts: Iterable[str]) -> bool:
    return all(part.endswith(".slice") for part in parts)


def _class_slices(top: str) -> list[str]:
    return [f"{top.removesuffix('.slice')}-{name}.slice" for name in CLASSES]


def _tops(root: str) -> tuple[str, str]:
    """The pods' root under kubelet's --cgroup-root, in both drivers' spelling."""
    parts = _parts(root)
    slices = ["-".join(parts[: depth + 1]) + ".slice" for depth in range(len(parts))]
    systemd = [*slices, "-".join((*parts, "kubepods")) + ".slice"]
    return "/" + "/".join((*parts, "kubepods")), "/" + "/".join(systemd)

"""What the command line asked an agent for, as a record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """`root` is the cgroup that is looked after, "/" the whole host."""

    policies: Path
    config: Path
    even: frozenset[str] = frozenset()
    root: str = "/"
    node: NodeOf | None = None
    health: Path | None = None  # a socket to be asked on
    metrics: tuple[str, int] | None = None  # and an address of this node
    gateway: bool = False
    mirrored: Mirrored | None = None  # where its policies come from, if not from files


@dataclass(frozen=True, slots=True)
class Mirrored:
    """The API server of `kubeconfig`, whose policies a gateway has as files; `peers` is a Service there."""

    kubeconfig: Path
    peers: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class NodeOf:
    """The cluster that this host is a node of, and its name there; no `kubeconfig`: the pod's own account.

    `namespace` is that of the agent's DaemonSet; none: it is no pod's, and does not end with one.
    """

    name: str
    kubeconfig: Path | None = None
    namespace: str = ""
    startup_taint: bool = False

"""A real node: kubelet, containerd, runc, kube-proxy and a CNI in a guest, joined to a control plane here.

    outside: the namespace of the tests                        guest
    ┌───────────────────────────────────────┐               ┌─────────────────────────────────────────┐
    │ 10.0.2.2  etcd, API server, scheduler, │               │ 10.0.2.15  kubelet, containerd          │
    │           controller-manager           ├─ tap ── eth0 ─┤ kube-proxy, 10.96.0.0/16                │
    │ 198.51.100.0/24, 198.18.0.0/16         │               │ cni0 10.244.0.1/24 ── veth ── pods      │
    │           answer HTTP                  │               │                                         │
    └───────────────────────────────────────┘               └─────────────────────────────────────────┘

Rules this file obeys:

- The tests run in a network namespace that they may change as they like: `unshare --net`, see Makefile.
- The guest is emulated: all there takes ten times as long, so whoever waits is patient and nothing is timed.
- It sees this host's files read-only and keeps none of its own. No registry: images are made from files.
- All of it ends with the process that began it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.cluster.apiserver import ApiServer, KubectlError
from tests.matrix import kernels, machine
from tests.network.servers import ODD
from tests.topology import end, wait_for

CHECKOUT = Path(__file__).parent.parent.parent.parent
HERE = Path(__file__).parent
MEMORY = "6G"
OUTSIDE, INSIDE = "10.0.2.2", "10.0.2.15"
CLUSTER_DNS = "10.96.0.10"
SITES, FRESH = "198.51.100.0/24", "198.18.0.0/16"
FLAGS = ("--kubelet-preferred-address-types=InternalIP",)
READY_CONDITION = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
READY = 600  # seconds that anything may take in the guest
AGAIN = 1.0  # between two looks

OUTSIDE_NETWORK = f"""
    link set lo up
    tuntap add dev tap0 mode tap
    addr add {OUTSIDE}/24 dev tap0
    link set tap0 up
    route add local {SITES} dev lo
    route add local {FRESH} dev lo
    addr add {ODD}/32 dev lo
"""
GUEST_NETWORK = f"""
    link set lo up
    link set eth0 up
    addr add {INSIDE}/24 dev eth0
    route add default via {OUTSIDE}
"""
CONTAINERD = """
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/box:1"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
"""
CNI: dict[str, Any] = {
    "cniVersion": "0.4.0",
    "name": "bridge",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "subnet": "10.244.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
        }
    ],
}
KUBELET: dict[str, Any] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "cgroupDriver": "cgroupfs",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "clusterDNS": [CLUSTER_DNS],
    "clusterDomain": "cluster.local",
    "failSwapOn": False,
    "runtimeRequestTimeout": "10m",
}
CONTROLS = ("kube-controller-manager", "kube-scheduler")


class Node:
    """A cluster of one node, named node. `api` is its API server, `console` a file of what the guest says."""

    def __init__(
        self, folder: Path, programs: Path, kernel: kernels.Kernel, images: Callable[[Path], None]
    ) -> None:
        """`programs` has Kubernetes' binaries; `images` puts archives into the folder that it is given."""
        self._programs = programs
        self.folder, self.console = folder, folder / "console"
        with ExitStack() as undo:
            _ip(OUTSIDE_NETWORK)
            undo.callback(end, _sites())
            self.api = undo.enter_context(ApiServer(programs, FLAGS, OUTSIDE))
            for name in CONTROLS:
                undo.callback(end, self._control(programs / name))
            self._lay(programs, images)
            undo.callback(self._boot(kernel).close)
            self._undo = undo.pop_all()
            self.wait("the node", "node", "node", "-o", READY_CONDITION)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def wait(self, what: str, *query: str, value: str = "True", seconds: float = READY) -> None:
        """Until `kubectl get QUERY` prints `value`."""

        def found() -> bool:
            try:
                if self.api.kubectl("get", *query).strip() == value:
                    return True
            except KubectlError:
                pass
            time.sleep(AGAIN)  # kubectl takes as much of this machine as the guest does
            return False

        wait_for(found, what, seconds)

    def runs(self, namespace: str, pod: str) -> None:
        """Waits until all containers of a pod are ready."""
        self.wait(f"pod {namespace}/{pod}", "pod", "-n", namespace, pod, "-o", READY_CONDITION)

    def inside(self, namespace: str, pod: str, *words: str) -> str:
        """What a command in a pod prints, as `kubectl exec` runs it; raises KubectlError where it fails."""
        return self.api.kubectl("exec", "-n", namespace, pod, "--", *words)

    def start(self, namespace: str, pod: str, *words: str) -> subprocess.Popen[str]:
        """The same in the background; its output is a pipe."""
        command = [self._programs / "kubectl", "--kubeconfig", self.api.kubeconfig, "exec"]
        return subprocess.Popen(
            [*command, "-n", namespace, pod, "--", *words], stdout=subprocess.PIPE, text=True
        )

    def _control(self, program: Path) -> subprocess.Popen[Any]:
        words = [f"--kubeconfig={self.api.kubeconfig}", "--leader-elect=false"]
        if program.name == CONTROLS[0]:
            words += [
                f"--service-account-private-key-file={self.api.account_key}",
                f"--root-ca-file={self.api.ca}",
            ]
        with (self.folder / f"{program.name}.log").open("w") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", program, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _lay(self, programs: Path, images: Callable[[Path], None]) -> None:
        (self.folder / "images").mkdir()
        images(self.folder / "images")
        unpack = ("sh", HERE / "unpack.sh", self.folder / "images", self.folder / "containerd.tar")
        subprocess.run(["unshare", "--mount", *unpack], check=True)
        (self.folder / "bin").symlink_to(programs)
        self.api.write_kubeconfig(self.folder / "kubeconfig", self.api.token)
        (self.folder / "kubelet.yaml").write_text(json.dumps(KUBELET))
        (self.folder / "containerd.toml").write_text(CONTAINERD)
        (self.folder / "cni.conflist").write_text(json.dumps(CNI))
        (self.folder / "network").write_text(GUEST_NETWORK)

    def _boot(self, kernel: kernels.Kernel) -> Any:
        command = ["sh", str(HERE / "guest.sh"), str(self.folder)]
        lines: Iterator[str] = machine.run(kernel, CHECKOUT, command, self.console, MEMORY, "tap0")
        for wanted in ("containerd", "started"):
            told = next(lines, "").strip()
            if told != wanted:
                raise RuntimeError(f"the guest said {told!r}, not {wanted!r}: see {self.console}")
            print(f"guest: {told}", file=sys.stderr)
        return lines


def _sites() -> subprocess.Popen[str]:
    servers = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, CHECKOUT / "tests" / "network" / "servers.py"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert servers.stdout is not None
    assert servers.stdout.readline() == "ready\n"
    return servers


def _ip(lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)

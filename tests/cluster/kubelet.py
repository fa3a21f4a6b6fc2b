"""A small kubelet and runtime: real cgroups in their layouts, networks and processes, for pods of the API.

    pod ── veth ── lab.node (the agent, host-network pods; 127.0.0.1 leads to the API server) ── world

What it does as the real ones do: a pod's cgroup is there before its first process; a container's first
process is put into its cgroup before it enters the pod's network; the pause process comes first. What it does
not: images, probes, mounts, status. Everything ends with `close`, or with the lab.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bpf.datapath import Datapath
from gateway import place
from gateway.states import read_description
from routing.namespaces import inside
from tests.cluster.apiserver import HOST, ApiServer
from tests.cluster.objects import create, delete
from tests.conftest import remove_cgroup
from tests.network.daemon import Program, daemon
from tests.network.workload import python
from tests.topology import DNS4, SKOUTER, Lab, Namespace, end, wait_for

NODE = "node-pods"
NETWORK = "10.244.0.0/16"
SYSTEM = "/api/v1/namespaces/kube-system"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"
LABELS = {"k8s-app": "kube-dns"}
DRIVERS = ("systemd", "cgroupfs")

Data = dict[str, Any]


class Passage:
    """127.0.0.1:PORT of a namespace leads to the same address of this one, for as long as it is open."""

    def __init__(self, where: Namespace, port: int) -> None:
        self.port = port
        with Path(f"/proc/{where.holder.pid}/ns/net").open() as namespace:
            self._door = inside(namespace.fileno(), lambda: socket.create_server((HOST, port)))
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._door.accept()
                try:
                    server = socket.create_connection((HOST, self.port))
                except OSError:
                    client.close()
                    continue
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        self._open |= {source, target}
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Pod:
    """A pod that the API knows as `data`; `network` is None on the host's."""

    def __init__(self, kubelet: Kubelet, uid: str, cgroup: Path, network: Namespace | None) -> None:
        self.kubelet, self.uid, self.cgroup, self.network = kubelet, uid, cgroup, network
        self.processes: list[subprocess.Popen[str]] = []
        self.name = ""

    def container(self) -> Path:
        """A new container's cgroup."""
        name = secrets.token_hex(32)
        folder = self.cgroup / (f"cri-containerd-{name}.scope" if self.kubelet.driver == "systemd" else name)
        folder.mkdir()
        return folder

    def start(self, *argv: object, **options: Any) -> subprocess.Popen[str]:
        """A container's first process: in its cgroup first, and then in the pod's network."""
        where = self.network or self.kubelet.lab.node
        enter = ["nsenter", "--target", str(where.holder.pid), "--net", "--mount", "--", *map(str, argv)]
        move = f'echo $$ > {self.container()}/cgroup.procs && exec "$@"'
        words = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", move, "-", *enter]
        process = subprocess.Popen(words, text=True, **{"stdin": subprocess.DEVNULL, **options})
        self.processes.append(process)
        return process

    def pause(self) -> None:
        """Returns when it is in the pod's network."""
        process = self.start("sleep", "infinity")
        where = self.network or self.kubelet.lab.node
        home = Path(f"/proc/{where.holder.pid}/ns/net").stat().st_ino
        net = Path(f"/proc/{process.pid}/ns/net")
        wait_for(lambda: net.stat().st_ino == home, "pause in its network")

    def do(self, code: str) -> Any:
        """What a Python program in a new container tells."""
        process = self.start(*python(code), stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=60)
        return json.loads(out)

    @contextmanager
    def program(self) -> Iterator[Program]:
        process = self.start(*python(Program.LOOP), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            yield Program(process)
        finally:
            end(process)

    def stop(self) -> None:
        """All of its processes, its cgroup and its network."""
        for process in self.processes:
            end(process)
        if self.cgroup.is_dir():
            remove_cgroup(self.cgroup)
        if self.network:
            self.network.close()
        self.kubelet.pods.pop(self.uid, None)


class Kubelet:
    """One node with its agent: cgroups below a root of its own, the object Node, and the cluster's DNS."""

    def __init__(self, lab: Lab, api: ApiServer, folder: Path, driver: str = "systemd") -> None:
        self.lab, self.api, self.folder, self.driver = lab, api, folder, driver
        self.instance = lab.another_instance()
        self.place = place.find(self.instance)
        self.node = f"{NODE}-{secrets.token_hex(3)}"
        self.root = self.place.hierarchy / f"{self.instance}-host"
        self.top = self.root / ("kubepods.slice" if driver == "systemd" else "kubepods")
        self.log, self.config = folder / "log", folder / "agent.yaml"
        self.pods: dict[str, Pod] = {}
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self._ready, self._listener = threading.Event(), threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.config.write_text("")
        self.log.touch()
        self.top.mkdir(parents=True)
        for qos in ("burstable", "besteffort"):
            self._class(qos).mkdir()
        self.passage = Passage(lab.node, api.server.port)
        create(api, "/api/v1/nodes", {"metadata": {"name": self.node, "labels": {"node": self.node}}})
        self._write_dns()

    def _write_dns(self) -> None:
        ports = [{"name": "dns", "port": 53, "protocol": "UDP"}]
        service = {"metadata": {"name": self.node, "labels": LABELS}}
        create(self.api, f"{SYSTEM}/services", service | {"spec": {"clusterIP": "None", "ports": ports}})
        labels = LABELS | {"kubernetes.io/service-name": self.node}
        points = [{"addresses": [DNS4], "conditions": {"ready": True}}]
        slices = {"metadata": {"name": self.node, "labels": labels}, "addressType": "IPv4"}
        create(self.api, SLICES, slices | {"endpoints": points, "ports": ports})

    # ---- Pods

    def create(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        namespace: str = "default",
        annotations: Mapping[str, str] | None = None,
        bound: bool = True,
        **spec: object,
    ) -> Data:
        """The object of a pod of this node, or of one that waits for `bind`; nothing runs yet."""
        drop = {"securityContext": {"capabilities": {"drop": ["ALL"]}}}
        containers = [{"name": "main", "image": "none"} | drop]
        metadata = {"name": name, "labels": dict(labels or {}), "annotations": dict(annotations or {})}
        wanted = {"containers": containers, **({"nodeName": self.node} if bound else {}), **spec}
        return create(
            self.api, f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": wanted}
        )

    def bind(self, data: Data) -> None:
        """The pod is of this node from now on: only now its agent hears of it."""
        meta = data["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/binding"
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
        create(self.api, path, {"metadata": {"name": meta["name"]}, "target": target})

    def cgroup(self, uid: str, qos: str = "burstable") -> Path:
        """The path of a pod's cgroup."""
        above = self.top if qos == "guaranteed" else self._class(qos)
        if self.driver == "cgroupfs":
            return above / f"pod{uid}"
        return above / f"{above.name.removesuffix('.slice')}-pod{uid.replace('-', '_')}.slice"

    def run(self, data: Data | str, qos: str = "burstable", pause: bool = True) -> Pod:
        """What kubelet and the runtime do with a pod: a cgroup, a network, a first process."""
        uid = data if isinstance(data, str) else data["metadata"]["uid"]
        host = not isinstance(data, str) and data["spec"].get("hostNetwork", False)
        cgroup = self.cgroup(uid, qos)
        cgroup.mkdir()
        pod = Pod(self, uid, cgroup, None if host else self._network())
        self.pods[uid] = pod
        if pause:
            pod.pause()
        return pod

    def delete(self, data: Data) -> None:
        """The object alone: what runs goes on."""
        meta = data["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        delete(self.api, path, gracePeriodSeconds=0)

    def _class(self, qos: str) -> Path:
        return self.top / (f"kubepods-{qos}.slice" if self.driver == "systemd" else qos)

    def _network(self) -> Namespace:
        number = next(_numbers)
        ours, theirs = (
            f"10.244.{number >> 6}.{(number & 63) * 4 + 1}",
            f"10.244.{number >> 6}.{(number & 63) * 4 + 2}",
        )
        made = Namespace(f"pod{number}", self.lab.resolv_conf)
        node = self.lab.node
        made.ip(f"link add eth0 type veth peer name p{number} netns {node.holder.pid}")
        node.ip(f"addr add {ours}/30 dev p{number}\nlink set p{number} up")
        made.ip(
            f"link set lo up\naddr add {theirs}/30 dev eth0\nlink set eth0 up\nroute add default via {ours}"
        )
        return made

    # ---- The agent

    @contextmanager
    def agent(
        self, *words: object, ready: bool = True, seconds: float = 60, within: tuple[object, ...] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        """It is ready when the block begins. `within`: a command line that runs it."""
        command = self.lab.node.command(
            *within,
            *("env", f"SKOUTER_INSTANCE={self.instance}", f"NOTIFY_SOCKET={self.folder}/notify"),
            *(SKOUTER, "agent", "--kubernetes", "--kubeconfig", self.api.kubeconfig),
            *("--node-name", self.node, "--policy-dir", self.folder / "bootstrap"),
            *("--config", self.config, "--root", f"/{self.root.name}", *words),
        )
        with daemon(command, self.log) as process:
            if ready:
                self.wait_until_ready(process, seconds)
            yield process

    def wait_until_ready(self, process: subprocess.Popen[str], seconds: float) -> None:
        def ready() -> bool:
            assert process.poll() is None, self.said()
            return self._ready.wait(0.01)

        wait_for(ready, f"READY=1, after {self.said()}", seconds)
        self._ready.clear()

    def _listen(self) -> None:
        """As a manager does: what nobody reads would hold the agent up."""
        while data := self.manager.recv(1 << 16):
            if b"READY=1" in data.splitlines():
                self._ready.set()

    def said(self) -> str:
        return self.log.read_text()

    def status(self) -> Data:
        words = self.lab.skouter("status", "-o", "json", instance=self.instance, machine=self.lab.node)
        return dict(json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout))

    def rows(self) -> dict[int, int]:
        """What the kernel says: id of a cgroup to its policy's number."""
        loaded = Datapath(self.place.pins)
        try:
            return {int(key): int(row.policy) for key, row in loaded["workloads"].items()}
        finally:
            loaded.close()

    def rules(self, group: str) -> list[str]:
        """What a group allows, as its record tells."""
        return list(read_description(self.place, group)["rules"])

    def groups(self) -> dict[str, str]:
        """Pod to its group, as `skouter status` tells it."""
        return {row["pod"]: row["group"] for row in self.status()["agent"]["pods"]}

    def close(self) -> None:
        for pod in list(self.pods.values()):
            pod.stop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.folder / "notify"))
        self._listener.join()
        self.manager.close()
        self.passage.close()
        remove_cgroup(self.root)
        self.lab.remove(self.instance)
        for path in (f"/api/v1/nodes/{self.node}", f"{SYSTEM}/services/{self.node}", f"{SLICES}/{self.node}"):
            delete(self.api, path)


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


_numbers = _count()

"""`python -m gateway.kubernetes.cleanup NAMESPACE SECONDS PATCH`: agents give way to what undoes their work.

Rules this file obeys:

- It runs as a Job before Helm deletes anything (deploy/helm), so it must end: in time, or with the names of
  the nodes that are not clean.
- What undoes is the patch's (deploy/kustomize/cleanup), and the DaemonSet's controller brings it to every
  node; here it is only waited for. A pod of the new kind is ready when its node is clean.

Source: apps/v1 DaemonSetStatus, strategic merge patch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from gateway.kubernetes.api_server import Door, ServerError

NAME = "skouter"
MERGE = "application/strategic-merge-patch+json"
AGAIN = 2.0  # seconds between two looks


def clean(
    door: Door,
    namespace: str,
    patch: dict[str, Any],
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Nodes that are not clean after `seconds`, by name; none where all is done, or where no DaemonSet is."""
    path = f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{NAME}"
    deadline = time.monotonic() + seconds
    try:
        made = door.send("PATCH", path, patch, MERGE)
    except ServerError as error:
        if error.status == 404:
            return []
        raise
    generation = made["metadata"]["generation"]
    while True:
        status = door.get(path).get("status", {})
        if status.get("observedGeneration", 0) >= generation and _is_done(status):
            return []
        if time.monotonic() > deadline:
            return _left(door, namespace) or ["unknown: the DaemonSet's controller does not say"]
        sleep(AGAIN)


def _is_done(status: dict[str, Any]) -> bool:
    wanted = status.get("desiredNumberScheduled", 0)
    return bool(status.get("updatedNumberScheduled", 0) == wanted == status.get("numberReady", 0))


def _left(door: Door, namespace: str) -> list[str]:
    pods = door.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"app.kubernetes.io/name={NAME}")
    return sorted(pod["spec"].get("nodeName", "no node yet") for pod in pods["items"] if not _is_ready(pod))


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def main(namespace: str, seconds: str, patch: str) -> int:
    try:
        left = clean(Door(), namespace, json.loads(patch), float(seconds))
    except ServerError as error:
        left = [f"all: {error}"]
    if left:
        print(
            f"not clean: {', '.join(left)}; `helm uninstall --no-hooks` goes on without them", file=sys.stderr
        )
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""The taint that keeps pods from a node until its agent enforces: taken off once, when it does.

Nodes join with it (kubelet's --register-with-taints, or the node pool's setting). Nobody puts it back:
whether an agent runs is the DaemonSet's affair, and what is enforced stays enforced without one.

Source: core/v1 Node, RFC 7386.
"""

from __future__ import annotations

from gateway.kubernetes.api_server import Door, ServerError

TAINT = "egress.skouter/not-ready"
PATCH = "application/merge-patch+json"
TRIES = 5


def remove(door: Door, node: str) -> bool:
    """Whether the taint was there. Raises ServerError where the node can't be read or written."""
    path = f"/api/v1/nodes/{node}"
    for tries in range(TRIES):
        found = door.get(path)
        taints = found["spec"].get("taints", [])
        rest = [taint for taint in taints if taint["key"] != TAINT]
        if rest == taints:
            return False
        # Of this very version: a taint that somebody else puts there meanwhile must not get lost.
        as_read = {"resourceVersion": found["metadata"]["resourceVersion"]}
        try:
            door.send("PATCH", path, {"metadata": as_read, "spec": {"taints": rest}}, PATCH)
        except ServerError as error:
            if error.status != 409 or tries == TRIES - 1:
                raise
        else:
            return True
    return False
